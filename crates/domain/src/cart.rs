use souk_event_sourcing::Decider;

use crate::{OrderId, ProductFacts, ProductId, Quantity, Rejection};

/// Category of cart streams.
pub const CATEGORY: &str = "cart";

/// Most lines of a cart, and of an order.
pub const MAX_LINES: usize = 100;

/// The rules of a customer's cart. It comes into being with its first item.
#[derive(Debug)]
pub struct Cart;

/// What happened to a cart.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Added to the units that were there.
    ItemAdded(Line),
    ItemQuantitySet(Line),
    ItemRemoved {
        product: ProductId,
    },
    CartCleared,
    /// The lines went into the order placed in the same transaction.
    CartCheckedOut {
        order: OrderId,
        lines: Vec<Line>,
    },
}

/// Units of one product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub product: ProductId,
    pub quantity: Quantity,
}

/// A cart as its events left it: lines in the order the products were first added.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    pub lines: Vec<Line>,
}

impl State {
    /// The units of `product`.
    pub fn quantity(&self, product: &ProductId) -> Option<Quantity> {
        self.lines.iter().find(|line| line.product == *product).map(|line| line.quantity)
    }

    fn set(&mut self, Line { product, quantity }: Line) {
        match self.lines.iter_mut().find(|line| line.product == product) {
            Some(line) => line.quantity = quantity,
            None => self.lines.push(Line { product, quantity }),
        }
    }
}

/// What can be asked of a cart.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `facts`: what is known of the product, `None` when there is none.
    Add {
        line: Line,
        facts: Option<ProductFacts>,
    },
    SetQuantity(Line),
    Remove {
        product: ProductId,
    },
    Clear,
    /// Hands the lines over to `order`.
    CheckOut {
        order: OrderId,
    },
}

impl Decider for Cart {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;

    fn evolve(mut state: State, event: &Event) -> State {
        match event {
            Event::ItemAdded(Line { product, quantity }) => {
                let before = state.quantity(product).map_or(0, Quantity::get);
                let quantity = Quantity::stored(before.saturating_add(quantity.get()));
                state.set(Line { product: product.clone(), quantity });
            }
            Event::ItemQuantitySet(line) => state.set(line.clone()),
            Event::ItemRemoved { product } => state.lines.retain(|line| line.product != *product),
            Event::CartCleared => state.lines.clear(),
            Event::CartCheckedOut { lines, .. } => state.lines.retain(|line| !lines.contains(line)),
        }
        state
    }

    fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Add { line, facts } => add(state, line, facts.as_ref()),
            Command::SetQuantity(line) => match state.quantity(&line.product) {
                None => Err(Rejection::ItemNotInCart),
                Some(quantity) if quantity == line.quantity => Ok(vec![]),
                Some(_) => Ok(vec![Event::ItemQuantitySet(line.clone())]),
            },
            Command::Remove { product } if state.quantity(product).is_none() => Ok(vec![]),
            Command::Remove { product } => Ok(vec![Event::ItemRemoved { product: product.clone() }]),
            Command::Clear => Ok(if state.lines.is_empty() { vec![] } else { vec![Event::CartCleared] }),
            Command::CheckOut { .. } if state.lines.is_empty() => Err(Rejection::CartEmpty),
            Command::CheckOut { order } => Ok(vec![Event::CartCheckedOut { order: *order, lines: state.lines.clone() }]),
        }
    }
}

fn add(state: &State, line: &Line, facts: Option<&ProductFacts>) -> Result<Vec<Event>, Rejection> {
    let product = || vec![line.product.clone()];
    let facts = facts.ok_or_else(|| Rejection::ProductNotFound { products: product() })?;
    if facts.sale_price().is_none() {
        return Err(Rejection::ProductNotForSale { products: product() });
    }
    match state.quantity(&line.product) {
        Some(before) if before.checked_add(line.quantity).is_none() => Err(Rejection::QuantityLimit { in_cart: before.get() }),
        None if state.lines.len() >= MAX_LINES => Err(Rejection::CartFull),
        _ => Ok(vec![Event::ItemAdded(line.clone())]),
    }
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::{Region, Version, given};

    use super::*;
    use crate::{Money, ProductStatus};

    fn product(name: &str) -> ProductId {
        name.parse().unwrap()
    }

    fn line(name: &str, quantity: i64) -> Line {
        Line { product: product(name), quantity: Quantity::new(quantity).unwrap() }
    }

    fn facts(status: ProductStatus) -> Option<ProductFacts> {
        Some(ProductFacts { status, price: Some(Money::new("EUR".parse().unwrap(), 5)), version: Version(3) })
    }

    fn add(name: &str, quantity: i64) -> Command {
        Command::Add { line: line(name, quantity), facts: facts(ProductStatus::Published) }
    }

    fn added(name: &str, quantity: i64) -> Event {
        Event::ItemAdded(line(name, quantity))
    }

    fn order() -> OrderId {
        let request = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        OrderId::mint(request, "shop", &"c-1".parse().unwrap(), "Checkout", Region(1))
    }

    #[test]
    fn an_item_is_added_to_what_is_there() {
        given::<Cart>([]).when(add("a", 2)).then([added("a", 2)]);
        given::<Cart>([added("a", 998)]).when(add("a", 1)).then([added("a", 1)]);
        given::<Cart>([added("a", 998)]).when(add("a", 2)).then_refused(Rejection::QuantityLimit { in_cart: 998 });
        assert_eq!(Cart::fold(&[added("a", 2), added("b", 1), added("a", 3)]).lines, [line("a", 5), line("b", 1)]);
    }

    #[test]
    fn only_published_products_are_added() {
        let with = |facts| Command::Add { line: line("a", 1), facts };
        let products = vec![product("a")];
        given::<Cart>([]).when(with(None)).then_refused(Rejection::ProductNotFound { products: products.clone() });
        for status in [ProductStatus::Draft, ProductStatus::Discontinued] {
            given::<Cart>([]).when(with(facts(status))).then_refused(Rejection::ProductNotForSale { products: products.clone() });
        }
    }

    #[test]
    fn a_cart_holds_100_lines() {
        let full: Vec<_> = (0..100).map(|number| added(&format!("p-{number}"), 1)).collect();
        given::<Cart>(full.clone()).when(add("one-more", 1)).then_refused(Rejection::CartFull);
        given::<Cart>(full.clone()).when(add("p-7", 1)).then([added("p-7", 1)]);
        given::<Cart>(full[1..].to_vec()).when(add("one-more", 1)).then([added("one-more", 1)]);
    }

    #[test]
    fn a_quantity_is_set_on_a_line_that_is_there() {
        given::<Cart>([added("a", 2)]).when(Command::SetQuantity(line("a", 7))).then([Event::ItemQuantitySet(line("a", 7))]);
        given::<Cart>([added("a", 2)]).when(Command::SetQuantity(line("a", 2))).then_nothing();
        given::<Cart>([added("a", 2)]).when(Command::SetQuantity(line("b", 2))).then_refused(Rejection::ItemNotInCart);
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let remove = Command::Remove { product: product("a") };
        given::<Cart>([added("a", 2)]).when(remove.clone()).then([Event::ItemRemoved { product: product("a") }]);
        given::<Cart>([]).when(remove).then_nothing();
        given::<Cart>([added("a", 2)]).when(Command::Clear).then([Event::CartCleared]);
        given::<Cart>([added("a", 2), Event::CartCleared]).when(Command::Clear).then_nothing();
    }

    #[test]
    fn checkout_takes_all_lines() {
        let checked_out = Event::CartCheckedOut { order: order(), lines: vec![line("a", 2)] };
        given::<Cart>([added("a", 2)]).when(Command::CheckOut { order: order() }).then([checked_out.clone()]);
        given::<Cart>([added("a", 2), checked_out]).when(Command::CheckOut { order: order() }).then_refused(Rejection::CartEmpty);
    }
}
