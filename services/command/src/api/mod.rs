//! The gRPC edge of the write side: protobuf in, commands on, statuses out. Nothing behind it sees a request message.
//!
//! # Layout
//! - `rpc`: the way of every command RPC, once ([`rpc::run`]); `route`: to the owner of its log, here or elsewhere
//! - `catalog`, `stock`, `cart`, `orders`: how each request becomes a command, and the services
//! - `convert`: fields to domain values; `failure`: errors to statuses
//! - `lookups`: facts from other owners, and for them
//! - `event_log`, `topology`, `admin`: the internal port; `ends`: where logs end, for all tails at once

#![warn(clippy::large_futures)]

mod admin;
mod cart;
mod catalog;
mod convert;
mod ends;
mod event_log;
mod failure;
mod lookups;
mod orders;
mod route;
mod rpc;
mod stock;
mod topology;

pub use admin::{Admin, Nudges};
pub use cart::CartCommands;
pub use catalog::CatalogCommands;
pub use ends::Ends;
pub use event_log::EventLogs;
pub use lookups::{CatalogLookups, OrderLookups};
pub use orders::{OrderCommands, OrderProcess};
pub use stock::{StockCommands, StockProcess};
pub use topology::Topologies;
