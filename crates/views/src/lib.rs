//! The views of the shop: what queries read, made of events by pure projections. The only crate of the read side that
//! knows commerce.
//!
//! # The tables
//! Every row belongs to one log and its key begins with (`region`, `partition`). `position` is the position of the last
//! event in the row, `revision` that of the projection. `region` and `partition` are stored as smallint and int, positions,
//! versions and epochs as bigint, times as Unix milliseconds.
//!
//! | table | key | body | further columns | indexes for lists |
//! |---|---|---|---|---|
//! | `product_view` | product id | `souk.catalog.v1.Product` | `state`, `category`, `tags text[]` | key; (state, key); (category, key); GIN (tags) |
//! | `availability_view` | product id | `souk.stock.v1.Availability` | | |
//! | `cart_view` | customer id | `souk.cart.v1.Cart` | | |
//! | `order_view` | order id | `souk.orders.v1.Order` | `customer_id`, `state`, `placed_ms` | (placed_ms desc, key desc), the same after customer_id, after state |
//! | `order_timeline` | order id, version | `souk.orders.v1.TimelineEntry` | `projected_ms` | |
//! | `sales_day` | day, product id, currency | | `units`, `revenue` | (day, product_id, currency), (product_id, day, currency) |
//!
//! The first four share `version`, `stale_since`, `parked_at`, `updated_ms` and `body` and are read by
//! [`souk_read_store::ReadStore::read_row`] with [`PRODUCT_VIEW`] and its sisters, which answers the row together with the
//! checkpoint of the same snapshot. `sales_day` has one row per contributing log: add up (`sum(units)::bigint`) when reading.
//!
//! # What audit compares
//! Each row is a pure function of the events of its log, times included (they are the events'), except `projected_ms` of
//! `order_timeline`, which says when the row was written, and `stale_since` and `parked_at`, which say what could not be
//! applied. [`Reference`] folds events into the rows that must be stored; [`souk_read_store::ViewStore::scan`] reads what is.
//!
//! # Parked entities
//! An event that cannot be applied parks its entity: it and all later ones of its stream are set aside, and the entity's row
//! says from which position on (`parked_at`) and since when (`stale_since`). If its first event is one, a marker stands in
//! for the row: version and position 0, no body; no list shows it.
//!
//! # Sales
//! An order counts when its payment is recorded as valid, on the day (UTC) of that event: units and line totals of every
//! line, under the line's product and currency. A payment that is owed back at once (`refund_due`) never counts, and a paid
//! order that is cancelled later stays counted: the summary tells what was sold, the order tells what is owed back.
//!
//! # Layout
//! - `tables`, `migration`, `entity`: the tables as written, as created, as SeaORM reads them
//! - `product`, `availability`, `cart`, `order`: one view each: its events and how they change a row
//! - `timeline`, `sales`: rows that come of an order's events besides the order itself
//! - `entity_view`: what the views of one entity share
//! - `payload`: decoding of events, [`Poison`]
//! - `rows`: rows in memory that events are folded into; `generations`: what bounds them
//! - `folder`: [`Folder`], batches over a store, as the projector runs them
//! - `reference`: [`fold_reference`], a whole log from nothing, as audit compares
//! - `day`: [`Day`], a day in UTC
//! - `read`: queries over the tables

mod availability;
mod cart;
mod day;
pub mod entity;
mod entity_view;
mod folder;
mod generations;
mod migration;
mod order;
mod payload;
mod product;
pub mod read;
mod reference;
mod rows;
mod sales;
mod tables;
mod timeline;

pub use day::{Day, InvalidDay};
pub use entity_view::{changed_body, first_event};
pub use folder::Folder;
pub use migration::ViewsMigrator;
pub use payload::{Poison, PoisonReason};
pub use reference::{Reference, comparable, fold_reference, is_marker};
pub use tables::{
    AVAILABILITY, AVAILABILITY_VIEW, CART, CART_VIEW, ORDER, ORDER_TIMELINE, ORDER_VIEW, PRODUCT, PRODUCT_VIEW, SALES_DAY, TABLES,
};

/// Revisions of all projections as one number. Each only grows, hence so does their sum, and no two sets of revisions that
/// were ever released share one.
pub fn revision() -> u32 {
    use entity_view::EntityView;
    use souk_proto::{cart::v1::Cart, catalog::v1::Product, orders::v1::Order, stock::v1::Availability};
    [Product::REVISION, Availability::REVISION, Cart::REVISION, Order::REVISION, timeline::REVISION, sales::REVISION].iter().sum()
}
