use souk_event_sourcing::{Decider, RoutingKey, StreamId, UnixMillis};

use crate::{
    CancelReason, Cart, Correction, CustomerId, Entity, Event, Money, Note, Order, OrderId, PaymentReference, Price, Product, ProductFacts,
    ProductId, Quantity, Receipt, Rejection, ReservationId, Stock, cart, order, product, stock,
};

/// Everything that changes something, with the time and the look-ups it is decided on. One variant per RPC.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    CreateProduct {
        product: ProductId,
        details: product::Details,
        price: Option<Price>,
    },
    UpdateProduct {
        product: ProductId,
        changes: product::Changes,
    },
    SetPrice {
        product: ProductId,
        price: Price,
    },
    PublishProduct {
        product: ProductId,
    },
    DiscontinueProduct {
        product: ProductId,
    },

    ReceiveStock {
        product: ProductId,
        quantity: Receipt,
    },
    AdjustStock {
        product: ProductId,
        delta: Correction,
        note: Note,
    },
    ReserveStock {
        product: ProductId,
        reservation: ReservationId,
        hold: stock::Hold,
        now: UnixMillis,
    },
    ReleaseReservation {
        product: ProductId,
        reservation: ReservationId,
        valid_until: UnixMillis,
        now: UnixMillis,
    },
    CommitReservation {
        product: ProductId,
        reservation: ReservationId,
        now: UnixMillis,
    },
    /// `needed`: the order of that id still counts on the units ([`crate::OrderStatus::needs_stock`]).
    ExpireReservation {
        product: ProductId,
        reservation: ReservationId,
        needed: bool,
        now: UnixMillis,
    },

    /// `facts`: `None` when there is no such product.
    AddItem {
        customer: CustomerId,
        product: ProductId,
        quantity: Quantity,
        facts: Option<ProductFacts>,
    },
    SetItemQuantity {
        customer: CustomerId,
        product: ProductId,
        quantity: Quantity,
    },
    RemoveItem {
        customer: CustomerId,
        product: ProductId,
    },
    ClearCart {
        customer: CustomerId,
    },
    /// The catalog of the terms: the products that were in the cart when it was looked at.
    Checkout {
        order: OrderId,
        customer: CustomerId,
        terms: order::Terms,
    },

    PlaceOrder {
        order: OrderId,
        lines: order::OrderLines,
        terms: order::Terms,
    },
    RecordPayment {
        order: OrderId,
        reference: PaymentReference,
        amount: Money,
    },
    CancelOrder {
        order: OrderId,
        reason: CancelReason,
    },
    RecordShipment {
        order: OrderId,
        shipment: order::Shipment,
    },
    RecordDelivery {
        order: OrderId,
    },
    RecordReservation {
        order: OrderId,
        refusals: Vec<order::Refusal>,
    },
    ExpirePayment {
        order: OrderId,
        now: UnixMillis,
    },
}

/// What a command is addressed to. The streams of one target lie in one partition.
enum Target<'a> {
    Product(&'a ProductId),
    ProductAndStock(&'a ProductId),
    Stock(&'a ProductId),
    Cart(&'a CustomerId),
    CartAndOrder(&'a CustomerId, &'a OrderId),
    Order(&'a OrderId),
}

impl Command {
    fn target(&self) -> Target<'_> {
        match self {
            Self::CreateProduct { product, .. } | Self::PublishProduct { product } | Self::DiscontinueProduct { product } => {
                Target::ProductAndStock(product)
            }
            Self::UpdateProduct { product, .. } | Self::SetPrice { product, .. } => Target::Product(product),
            Self::ReceiveStock { product, .. }
            | Self::AdjustStock { product, .. }
            | Self::ReserveStock { product, .. }
            | Self::ReleaseReservation { product, .. }
            | Self::CommitReservation { product, .. }
            | Self::ExpireReservation { product, .. } => Target::Stock(product),
            Self::AddItem { customer, .. }
            | Self::SetItemQuantity { customer, .. }
            | Self::RemoveItem { customer, .. }
            | Self::ClearCart { customer } => Target::Cart(customer),
            Self::Checkout { customer, order, .. } => Target::CartAndOrder(customer, order),
            Self::PlaceOrder { order, .. }
            | Self::RecordPayment { order, .. }
            | Self::CancelOrder { order, .. }
            | Self::RecordShipment { order, .. }
            | Self::RecordDelivery { order }
            | Self::RecordReservation { order, .. }
            | Self::ExpirePayment { order, .. } => Target::Order(order),
        }
    }

    /// Every stream the command is decided on, the one it is addressed to first.
    pub fn streams(&self) -> Vec<StreamId> {
        match self.target() {
            Target::Product(product) => vec![product.stream()],
            Target::ProductAndStock(product) => vec![product.stream(), product.stock_stream()],
            Target::Stock(product) => vec![product.stock_stream()],
            Target::Cart(customer) => vec![customer.cart_stream()],
            Target::CartAndOrder(customer, order) => vec![customer.cart_stream(), order.stream()],
            Target::Order(order) => vec![order.stream()],
        }
    }

    /// Decides the log.
    pub fn key(&self) -> RoutingKey<'_> {
        match self.target() {
            Target::Product(product) | Target::ProductAndStock(product) | Target::Stock(product) => product.key(),
            Target::Cart(customer) | Target::CartAndOrder(customer, _) => customer.key(),
            Target::Order(order) => order.key(),
        }
    }

    /// What the command leads to: events with the index of their stream in [`Command::streams`].
    ///
    /// # Errors
    /// When a rule refuses.
    ///
    /// # Panics
    /// When `entities` are not the states of [`Command::streams`], in that order.
    pub fn decide(&self, entities: &[&Entity]) -> Result<Vec<(usize, Event)>, Rejection> {
        match self.target() {
            Target::Product(_) => ask::<Product>(entities, 0, &self.to_product()),
            Target::ProductAndStock(_) => {
                let mut events = ask::<Product>(entities, 0, &self.to_product())?;
                events.extend(ask::<Stock>(entities, 1, &self.to_stock())?);
                Ok(events)
            }
            Target::Stock(_) => ask::<Stock>(entities, 0, &self.to_stock()),
            Target::Cart(_) => ask::<Cart>(entities, 0, &self.to_cart()),
            Target::CartAndOrder(..) => {
                let lines = Cart::state(entities[0]).lines.clone();
                let mut events = ask::<Cart>(entities, 0, &self.to_cart())?;
                events.extend(ask::<Order>(entities, 1, &self.to_order(lines))?);
                Ok(events)
            }
            Target::Order(_) => ask::<Order>(entities, 0, &self.to_order(vec![])),
        }
    }

    fn to_product(&self) -> product::Command {
        match self {
            Self::CreateProduct { details, price, .. } => product::Command::Create { details: details.clone(), price: *price },
            Self::UpdateProduct { changes, .. } => product::Command::Update(changes.clone()),
            Self::SetPrice { price, .. } => product::Command::SetPrice(*price),
            Self::PublishProduct { .. } => product::Command::Publish,
            Self::DiscontinueProduct { .. } => product::Command::Discontinue,
            other => unreachable!("{other:?} is not addressed to a product"),
        }
    }

    fn to_stock(&self) -> stock::Command {
        match self.clone() {
            Self::CreateProduct { .. } => stock::Command::Open,
            Self::PublishProduct { .. } => stock::Command::OpenSale,
            Self::DiscontinueProduct { .. } => stock::Command::CloseSale,
            Self::ReceiveStock { quantity, .. } => stock::Command::Receive(quantity),
            Self::AdjustStock { delta, note, .. } => stock::Command::Adjust { delta, note },
            Self::ReserveStock { reservation, hold, now, .. } => stock::Command::Reserve { reservation, hold, now },
            Self::ReleaseReservation { reservation, valid_until, now, .. } => stock::Command::Release { reservation, valid_until, now },
            Self::CommitReservation { reservation, now, .. } => stock::Command::Commit { reservation, now },
            Self::ExpireReservation { reservation, needed, now, .. } => stock::Command::Expire { reservation, needed, now },
            other => unreachable!("{other:?} is not addressed to a stock"),
        }
    }

    fn to_cart(&self) -> cart::Command {
        match self.clone() {
            Self::AddItem { product, quantity, facts, .. } => cart::Command::Add { line: cart::Line { product, quantity }, facts },
            Self::SetItemQuantity { product, quantity, .. } => cart::Command::SetQuantity(cart::Line { product, quantity }),
            Self::RemoveItem { product, .. } => cart::Command::Remove { product },
            Self::ClearCart { .. } => cart::Command::Clear,
            Self::Checkout { order, .. } => cart::Command::CheckOut { order },
            other => unreachable!("{other:?} is not addressed to a cart"),
        }
    }

    /// `cart_lines`: what is in the cart that is checked out.
    fn to_order(&self, cart_lines: Vec<cart::Line>) -> order::Command {
        match self.clone() {
            Self::PlaceOrder { lines, terms, .. } => order::Command::Place { lines: lines.as_slice().to_vec(), terms },
            Self::Checkout { terms, .. } => order::Command::Place { lines: cart_lines, terms },
            Self::RecordPayment { reference, amount, .. } => order::Command::RecordPayment { reference, amount },
            Self::CancelOrder { reason, .. } => order::Command::Cancel { reason },
            Self::RecordShipment { shipment, .. } => order::Command::RecordShipment(shipment),
            Self::RecordDelivery { .. } => order::Command::RecordDelivery,
            Self::RecordReservation { refusals, .. } => order::Command::RecordReservation { refusals },
            Self::ExpirePayment { now, .. } => order::Command::ExpirePayment { now },
            other => unreachable!("{other:?} is not addressed to an order"),
        }
    }
}

/// An aggregate as part of the whole model.
trait Aggregate: Decider<Rejection = Rejection> {
    fn state(entity: &Entity) -> &Self::State;
    fn event(event: Self::Event) -> Event;
}

macro_rules! aggregate {
    ($kind:ident) => {
        impl Aggregate for $kind {
            fn state(entity: &Entity) -> &Self::State {
                match entity {
                    Entity::$kind(state) => state,
                    other => panic!(concat!("want the state of a ", stringify!($kind), ", not {:?}"), other),
                }
            }

            fn event(event: Self::Event) -> Event {
                Event::$kind(event)
            }
        }
    };
}

aggregate!(Product);
aggregate!(Stock);
aggregate!(Cart);
aggregate!(Order);

fn ask<A: Aggregate>(entities: &[&Entity], index: usize, command: &A::Command) -> Result<Vec<(usize, Event)>, Rejection> {
    let events = A::decide(A::state(entities[index]), command)?;
    Ok(events.into_iter().map(|event| (index, A::event(event))).collect())
}
