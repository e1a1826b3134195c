//! The query services of all contexts.
//!
//! # Layout
//! - `entity`: reads of one entity and of several, alike for all
//! - `bytes`: replies about one entity, and about several, pass to the wire as they lie in the cache
//! - `catalog`, `stock`, `cart`, `orders`: one service each; `sales`: the longer RPC of orders
//! - `watch`: an entity as it is now and after every change, alike for all views
//! - `list`: what lists have in common

mod bytes;
mod cart;
mod catalog;
mod entity;
mod list;
mod orders;
mod sales;
mod stock;
mod watch;

pub(crate) use bytes::AsBytes;
pub(crate) use cart::GetCart;
pub(crate) use catalog::{BatchGetProducts, GetProduct};
pub(crate) use orders::GetOrder;
pub(crate) use stock::{BatchGetAvailability, GetAvailability};

use crate::core::Entrance;

/// Implements the query service of every context.
#[derive(Clone)]
pub(crate) struct Queries(pub Entrance);
