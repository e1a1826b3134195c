use std::fmt;

use souk_event_sourcing::{Decider, Version};

use crate::{Category, Description, Money, Price, ProductId, Rejection, Tags, Title};

/// Category of product streams.
pub const CATEGORY: &str = "product";

/// The rules of a product: draft → published ⇄ discontinued.
#[derive(Debug)]
pub struct Product;

/// What happened to a product.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    ProductCreated {
        details: Details,
        price: Option<Money>,
    },
    /// Only what changed.
    ProductDetailsChanged(Changes),
    PriceSet {
        price: Money,
    },
    ProductPublished,
    ProductDiscontinued,
}

/// The texts of a product.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    pub title: Title,
    pub description: Description,
    pub category: Category,
    pub tags: Tags,
}

/// New texts of a product; `None` leaves a text as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    pub title: Option<Title>,
    pub description: Option<Description>,
    pub category: Option<Category>,
    pub tags: Option<Tags>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is left when everything that `details` says already is taken out.
    fn beyond(&self, details: &Details) -> Self {
        Self {
            title: self.title.clone().filter(|title| *title != details.title),
            description: self.description.clone().filter(|description| *description != details.description),
            category: self.category.clone().filter(|category| *category != details.category),
            tags: self.tags.clone().filter(|tags| *tags != details.tags),
        }
    }
}

impl Details {
    fn apply(&mut self, changes: &Changes) {
        let Changes { title, description, category, tags } = changes.clone();
        self.title = title.unwrap_or_else(|| self.title.clone());
        self.description = description.unwrap_or_else(|| self.description.clone());
        self.category = category.unwrap_or_else(|| self.category.clone());
        self.tags = tags.unwrap_or_else(|| std::mem::take(&mut self.tags));
    }
}

/// Where a product stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ProductStatus {
    /// Never created.
    #[default]
    Missing,
    Draft,
    Published,
    Discontinued,
}

impl fmt::Display for ProductStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Draft => "draft",
            Self::Published => "published",
            Self::Discontinued => "discontinued",
        })
    }
}

/// A product as its events left it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    pub status: ProductStatus,
    pub details: Details,
    pub price: Option<Money>,
}

/// What carts and orders need to know of a product, answered by its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductFacts {
    pub status: ProductStatus,
    pub price: Option<Money>,
    pub version: Version,
}

impl ProductFacts {
    /// The price at which it is sold now; `None` when it is not for sale.
    pub fn sale_price(&self) -> Option<Money> {
        self.price.filter(|_| self.status == ProductStatus::Published)
    }
}

impl State {
    /// The facts at `version`; `None` when the product was never created.
    pub fn facts(&self, version: Version) -> Option<ProductFacts> {
        (self.status != ProductStatus::Missing).then_some(ProductFacts { status: self.status, price: self.price, version })
    }
}

/// What can be asked of a product.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Create { details: Details, price: Option<Price> },
    Update(Changes),
    SetPrice(Price),
    Publish,
    Discontinue,
}

impl Decider for Product {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;

    fn evolve(mut state: State, event: &Event) -> State {
        match event {
            Event::ProductCreated { details, price } => {
                state = State { status: ProductStatus::Draft, details: details.clone(), price: *price };
            }
            Event::ProductDetailsChanged(changes) => state.details.apply(changes),
            Event::PriceSet { price } => state.price = Some(*price),
            Event::ProductPublished => state.status = ProductStatus::Published,
            Event::ProductDiscontinued => state.status = ProductStatus::Discontinued,
        }
        state
    }

    fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Rejection> {
        use ProductStatus::{Discontinued, Draft, Missing, Published};
        match (state.status, command) {
            (Missing, Command::Create { details, price }) => {
                Ok(vec![Event::ProductCreated { details: details.clone(), price: price.map(Price::money) }])
            }
            (_, Command::Create { .. }) => Err(Rejection::ProductAlreadyExists),
            (Missing, _) => Err(Rejection::ProductNotFound { products: vec![] }),
            (_, Command::Update(changes)) => update(&state.details, changes),
            (_, Command::SetPrice(price)) if state.price == Some(price.money()) => Ok(vec![]),
            (_, Command::SetPrice(price)) => Ok(vec![Event::PriceSet { price: price.money() }]),
            (Published, Command::Publish) | (Discontinued, Command::Discontinue) => Ok(vec![]),
            (_, Command::Publish) if state.details.title.is_empty() => Err(Rejection::TitleRequired),
            (_, Command::Publish) if state.price.is_none() => Err(Rejection::PriceRequired),
            (_, Command::Publish) => Ok(vec![Event::ProductPublished]),
            (Draft, Command::Discontinue) => Err(Rejection::NotPublished),
            (Published, Command::Discontinue) => Ok(vec![Event::ProductDiscontinued]),
        }
    }
}

/// A title that was set stays set in every state: were it only kept while published, clearing it in one region could
/// race publishing in another.
fn update(details: &Details, changes: &Changes) -> Result<Vec<Event>, Rejection> {
    let changes = changes.beyond(details);
    if changes.title.as_ref().is_some_and(Title::is_empty) {
        return Err(Rejection::TitleRequired);
    }
    Ok(if changes.is_empty() { vec![] } else { vec![Event::ProductDetailsChanged(changes)] })
}

/// Products that were looked up for a command: facts, or `None` for one that does not exist. A product that is not in
/// here was not asked for.
pub type Catalog = std::collections::BTreeMap<ProductId, Option<ProductFacts>>;

#[cfg(test)]
mod tests {
    use souk_event_sourcing::given;

    use super::*;
    use crate::Tag;

    fn eur(minor: i64) -> Money {
        Money::new("EUR".parse().unwrap(), minor)
    }

    fn titled(title: &str) -> Details {
        Details { title: Title::new(title).unwrap(), ..Details::default() }
    }

    fn created(title: &str, price: Option<i64>) -> Event {
        Event::ProductCreated { details: titled(title), price: price.map(eur) }
    }

    fn new_title(title: &str) -> Changes {
        Changes { title: Some(Title::new(title).unwrap()), ..Changes::default() }
    }

    fn history(events: &[Event]) -> souk_event_sourcing::Given<Product> {
        given(events.to_vec())
    }

    #[test]
    fn create_makes_a_draft_once() {
        let create = Command::Create { details: titled("Lamp"), price: Some(Price::new(eur(5)).unwrap()) };
        history(&[]).when(create.clone()).then([created("Lamp", Some(5))]);
        history(&[created("Lamp", Some(5))]).when(create).then_refused(Rejection::ProductAlreadyExists);
    }

    #[test]
    fn update_yields_only_what_changed() {
        let changes = Changes { tags: Some(Tags::new([Tag::new("new").unwrap()]).unwrap()), ..new_title("Lamp") };
        let tags_only = Changes { title: None, ..changes.clone() };
        let lamp = created("Lamp", None);
        history(std::slice::from_ref(&lamp)).when(Command::Update(changes.clone())).then([Event::ProductDetailsChanged(tags_only.clone())]);
        history(&[lamp, Event::ProductDetailsChanged(tags_only)]).when(Command::Update(changes)).then_nothing();
        history(&[]).when(Command::Update(new_title("x"))).then_refused(Rejection::ProductNotFound { products: vec![] });
    }

    #[test]
    fn a_title_that_was_set_cannot_be_cleared() {
        history(&[created("Lamp", None)]).when(Command::Update(new_title(""))).then_refused(Rejection::TitleRequired);
        history(&[created("", None)]).when(Command::Update(new_title(""))).then_nothing();
    }

    #[test]
    fn a_price_is_set_when_it_differs() {
        let set = Command::SetPrice(Price::new(eur(7)).unwrap());
        history(&[created("Lamp", Some(5))]).when(set.clone()).then([Event::PriceSet { price: eur(7) }]);
        history(&[created("Lamp", Some(5)), Event::PriceSet { price: eur(7) }]).when(set.clone()).then_nothing();
        history(&[]).when(set).then_refused(Rejection::ProductNotFound { products: vec![] });
    }

    #[test]
    fn publishing_needs_title_and_price() {
        history(&[created("", Some(5))]).when(Command::Publish).then_refused(Rejection::TitleRequired);
        history(&[created("Lamp", None)]).when(Command::Publish).then_refused(Rejection::PriceRequired);
        let ready = created("Lamp", Some(5));
        history(std::slice::from_ref(&ready)).when(Command::Publish).then([Event::ProductPublished]);
        history(&[ready.clone(), Event::ProductPublished]).when(Command::Publish).then_nothing();
        history(&[ready, Event::ProductPublished, Event::ProductDiscontinued]).when(Command::Publish).then([Event::ProductPublished]);
    }

    #[test]
    fn only_what_was_published_is_discontinued() {
        let ready = created("Lamp", Some(5));
        history(std::slice::from_ref(&ready)).when(Command::Discontinue).then_refused(Rejection::NotPublished);
        let published = [ready, Event::ProductPublished];
        history(&published).when(Command::Discontinue).then([Event::ProductDiscontinued]);
        let [created, published] = published;
        history(&[created, published, Event::ProductDiscontinued]).when(Command::Discontinue).then_nothing();
    }

    #[test]
    fn only_a_published_product_has_a_sale_price() {
        let mut state = Product::fold(&[created("Lamp", Some(5))]);
        assert_eq!(state.facts(Version(1)).unwrap().sale_price(), None);
        state = Product::evolve(state, &Event::ProductPublished);
        assert_eq!(state.facts(Version(2)).unwrap().sale_price(), Some(eur(5)));
        assert_eq!(State::default().facts(Version(0)), None);
    }
}
