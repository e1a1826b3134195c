use prost::Message;
use souk_domain::{
    ProductId, Quantity,
    cart::{Event, Line, State},
};
use souk_proto::cart::v1::{CartCheckedOut, CartCleared, CartSnapshot, ItemAdded, ItemQuantitySet, ItemRemoved};

use crate::{
    convert::{cart_line, stored_cart_line},
    event::message,
};

pub(crate) fn encode(event: &Event) -> (&'static str, Vec<u8>) {
    match event {
        Event::ItemAdded(Line { product, quantity }) => {
            ("ItemAdded", ItemAdded { product_id: product.to_string(), quantity: quantity.get() }.encode_to_vec())
        }
        Event::ItemQuantitySet(Line { product, quantity }) => {
            ("ItemQuantitySet", ItemQuantitySet { product_id: product.to_string(), quantity: quantity.get() }.encode_to_vec())
        }
        Event::ItemRemoved { product } => ("ItemRemoved", ItemRemoved { product_id: product.to_string() }.encode_to_vec()),
        Event::CartCleared => ("CartCleared", CartCleared {}.encode_to_vec()),
        Event::CartCheckedOut { order, lines } => {
            let lines = lines.iter().map(cart_line).collect();
            ("CartCheckedOut", CartCheckedOut { order_id: order.to_string(), lines }.encode_to_vec())
        }
    }
}

/// Outer `None`: unknown name; inner: damaged payload.
pub(crate) fn decode(kind: &str, payload: &[u8]) -> Option<Option<Event>> {
    Some(match kind {
        "ItemAdded" => message(payload).and_then(|ItemAdded { product_id, quantity }| {
            Some(Event::ItemAdded(Line { product: product(&product_id)?, quantity: Quantity::stored(quantity) }))
        }),
        "ItemQuantitySet" => message(payload).and_then(|ItemQuantitySet { product_id, quantity }| {
            Some(Event::ItemQuantitySet(Line { product: product(&product_id)?, quantity: Quantity::stored(quantity) }))
        }),
        "ItemRemoved" => {
            message(payload).and_then(|ItemRemoved { product_id }| Some(Event::ItemRemoved { product: product(&product_id)? }))
        }
        "CartCleared" => message(payload).map(|CartCleared {}| Event::CartCleared),
        "CartCheckedOut" => message(payload).and_then(|CartCheckedOut { order_id, lines }| {
            let lines = lines.iter().map(stored_cart_line).collect::<Option<_>>()?;
            Some(Event::CartCheckedOut { order: order_id.parse().ok()?, lines })
        }),
        _ => return None,
    })
}

fn product(id: &str) -> Option<ProductId> {
    id.parse().ok()
}

pub(crate) fn encode_state(state: &State) -> Vec<u8> {
    CartSnapshot { lines: state.lines.iter().map(cart_line).collect() }.encode_to_vec()
}

pub(crate) fn decode_state(bytes: &[u8]) -> Option<State> {
    let CartSnapshot { lines } = message(bytes)?;
    Some(State { lines: lines.iter().map(stored_cart_line).collect::<Option<_>>()? })
}
