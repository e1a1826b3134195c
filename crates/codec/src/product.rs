use prost::Message;
use souk_domain::{
    Category, Description, Title,
    product::{Changes, Event, State},
};
use souk_proto::catalog::v1::{
    PriceSet, ProductCreated, ProductDetailsChanged, ProductDiscontinued, ProductPublished, ProductSnapshot, product_details_changed,
};

use crate::{
    convert::{details, money, product_state, stored_details, stored_money, stored_optional_money, stored_product_state, stored_tags},
    event::message,
};

pub(crate) fn encode(event: &Event) -> (&'static str, Vec<u8>) {
    match event {
        Event::ProductCreated { details: texts, price } => {
            ("ProductCreated", ProductCreated { details: Some(details(texts)), price: price.map(money) }.encode_to_vec())
        }
        Event::ProductDetailsChanged(changes) => ("ProductDetailsChanged", changed(changes).encode_to_vec()),
        Event::PriceSet { price } => ("PriceSet", PriceSet { price: Some(money(*price)) }.encode_to_vec()),
        Event::ProductPublished => ("ProductPublished", ProductPublished {}.encode_to_vec()),
        Event::ProductDiscontinued => ("ProductDiscontinued", ProductDiscontinued {}.encode_to_vec()),
    }
}

fn changed(changes: &Changes) -> ProductDetailsChanged {
    ProductDetailsChanged {
        title: changes.title.as_ref().map(Title::to_string),
        description: changes.description.as_ref().map(Description::to_string),
        category: changes.category.as_ref().map(Category::to_string),
        tags: changes
            .tags
            .as_ref()
            .map(|tags| product_details_changed::Tags { values: tags.as_slice().iter().map(ToString::to_string).collect() }),
    }
}

/// Outer `None`: unknown name; inner: damaged payload.
pub(crate) fn decode(kind: &str, payload: &[u8]) -> Option<Option<Event>> {
    Some(match kind {
        "ProductCreated" => message(payload).and_then(|ProductCreated { details, price }| {
            Some(Event::ProductCreated { details: stored_details(details?), price: stored_optional_money(&price)? })
        }),
        "ProductDetailsChanged" => message(payload).map(|changed: ProductDetailsChanged| {
            Event::ProductDetailsChanged(Changes {
                title: changed.title.map(Title::stored),
                description: changed.description.map(Description::stored),
                category: changed.category.map(Category::stored),
                tags: changed.tags.map(|tags| stored_tags(tags.values)),
            })
        }),
        "PriceSet" => message(payload).and_then(|PriceSet { price }| Some(Event::PriceSet { price: stored_money(&price?)? })),
        "ProductPublished" => message(payload).map(|ProductPublished {}| Event::ProductPublished),
        "ProductDiscontinued" => message(payload).map(|ProductDiscontinued {}| Event::ProductDiscontinued),
        _ => return None,
    })
}

pub(crate) fn encode_state(state: &State) -> Vec<u8> {
    let State { status, details: texts, price } = state;
    ProductSnapshot { state: product_state(*status).into(), details: Some(details(texts)), price: price.map(money) }.encode_to_vec()
}

pub(crate) fn decode_state(bytes: &[u8]) -> Option<State> {
    let ProductSnapshot { state, details, price } = message(bytes)?;
    Some(State { status: stored_product_state(state)?, details: stored_details(details?), price: stored_optional_money(&price)? })
}
