//! What queries read beside single rows: lists, sums and timelines, each page with the checkpoints of its snapshots.
//!
//! Rows of one list lie in many logs and perhaps in several databases. Every list has one order over all of them, so that
//! one cursor (the order's key of the last row) continues it everywhere.
//!
//! # Layout
//! - `routing`: ids as callers send them, and the log each entity lies in
//! - `snapshot`: one query in one snapshot per database, merged: [`Page`], [`Scope`]
//! - `products`, `orders`, `sales`: the lists
//! - `timeline`: the events of one order
//! - `schema`: whether the tables are those this build reads

mod orders;
mod products;
mod routing;
mod sales;
mod schema;
mod snapshot;
mod timeline;

pub use orders::{OrderCursor, OrderFilter, list_orders, orders_stale_since};
pub use products::{ProductFilter, list_products};
pub use routing::{InvalidId, Routing};
pub use sales::{SalesCursor, SalesFilter, SalesRow, summarize_sales};
pub use schema::missing_migrations;
pub use snapshot::{ListedRow, Page, Scope};
pub use timeline::{TimelineRow, order_timeline};
