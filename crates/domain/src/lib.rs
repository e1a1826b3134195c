//! Commerce: the rules of products, stock, carts and orders. Pure and synchronous (law 7): time, ids and look-ups come
//! in with the command; nothing here knows a store, a wire format or a clock.
//!
//! # Layout
//! - [`product`], [`stock`], [`cart`], [`order`]: one aggregate each: events, state and `evolve`, commands and `decide`
//! - `entity`: the whole model as one [`Event`] and one [`Entity`]
//! - `command`: everything that changes something as one [`Command`], which may be decided on two streams
//! - `rejection`: why a rule refuses ([`Rejection`]), one type over all aggregates
//! - `ids`: [`ProductId`], [`CustomerId`], [`OrderId`], [`ReservationId`]
//! - `money`: [`Money`] in integer minor units, [`Price`]
//! - `values`: bounded texts and numbers, so that invalid ones cannot exist inside

mod command;
mod entity;
mod ids;
mod money;
mod rejection;
mod values;

pub mod cart;
pub mod order;
pub mod product;
pub mod stock;

pub use cart::Cart;
pub use command::Command;
pub use entity::{Entity, Event, KindMismatch};
pub use ids::{CustomerId, OrderId, ProductId, ReservationId};
pub use money::{Currency, Money, Price};
pub use order::{Order, OrderStatus};
pub use product::{Catalog, Product, ProductFacts, ProductStatus};
pub use rejection::{Class, Rejection};
pub use stock::Stock;
pub use values::{
    CancelReason, Carrier, Category, Correction, Description, InvalidValue, Note, PaymentReference, Quantity, Receipt, Tag, Tags, Title,
    TrackingNumber,
};
