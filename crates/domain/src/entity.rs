use souk_event_sourcing::{Decider, StreamId};

use crate::{Cart, Order, Product, Stock, cart, order, product, stock};

/// An event of any aggregate.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Product(product::Event),
    Stock(stock::Event),
    Cart(cart::Event),
    Order(order::Event),
}

/// The state of one stream of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Entity {
    Product(product::State),
    Stock(stock::State),
    Cart(cart::State),
    Order(order::State),
}

/// An event of one kind on the stream of another: a bug or damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of another kind than its stream")]
pub struct KindMismatch;

impl Entity {
    /// The state of `stream` before its first event; `None` for a category nobody knows.
    pub fn of(stream: &StreamId) -> Option<Self> {
        match stream.category() {
            product::CATEGORY => Some(Self::Product(Default::default())),
            stock::CATEGORY => Some(Self::Stock(Default::default())),
            cart::CATEGORY => Some(Self::Cart(Default::default())),
            order::CATEGORY => Some(Self::Order(Default::default())),
            _ => None,
        }
    }

    /// One event further.
    ///
    /// # Errors
    /// When the event is of another kind; nothing changed then.
    pub fn evolve(&mut self, event: &Event) -> Result<(), KindMismatch> {
        match (self, event) {
            (Self::Product(state), Event::Product(event)) => advance::<Product>(state, event),
            (Self::Stock(state), Event::Stock(event)) => advance::<Stock>(state, event),
            (Self::Cart(state), Event::Cart(event)) => advance::<Cart>(state, event),
            (Self::Order(state), Event::Order(event)) => advance::<Order>(state, event),
            _ => return Err(KindMismatch),
        }
        Ok(())
    }

    pub fn as_product(&self) -> Option<&product::State> {
        if let Self::Product(state) = self { Some(state) } else { None }
    }

    pub fn as_stock(&self) -> Option<&stock::State> {
        if let Self::Stock(state) = self { Some(state) } else { None }
    }

    pub fn as_cart(&self) -> Option<&cart::State> {
        if let Self::Cart(state) = self { Some(state) } else { None }
    }

    pub fn as_order(&self) -> Option<&order::State> {
        if let Self::Order(state) = self { Some(state) } else { None }
    }
}

fn advance<D: Decider>(state: &mut D::State, event: &D::Event) {
    *state = D::evolve(std::mem::take(state), event);
}
