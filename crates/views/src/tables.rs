//! The view tables as the projections write them. The columns are those of the migration.

use std::sync::LazyLock;

use souk_read_store::{
    Column,
    Kind::{Big, Bytes, Int, Small, Sum, Text, Texts, WrittenMs},
    PointView, Table,
};

const KEY: Column = Column::new("key", Text);
const VERSION: Column = Column::new("version", Big);
const STALE_SINCE: Column = Column::new("stale_since", Big);
const PARKED_AT: Column = Column::new("parked_at", Big);
const UPDATED_MS: Column = Column::new("updated_ms", Big);
const BODY: Column = Column::new("body", Bytes);
const STATE: Column = Column::new("state", Small);

/// Products; key: product id; body: `souk.catalog.v1.Product`.
pub static PRODUCT: Table = Table {
    name: "product_view",
    key: &[KEY],
    columns: &[VERSION, STALE_SINCE, PARKED_AT, UPDATED_MS, BODY, STATE, Column::new("category", Text), Column::new("tags", Texts)],
};

/// Stock; key: product id; body: `souk.stock.v1.Availability`.
pub static AVAILABILITY: Table =
    Table { name: "availability_view", key: &[KEY], columns: &[VERSION, STALE_SINCE, PARKED_AT, UPDATED_MS, BODY] };

/// Carts; key: customer id; body: `souk.cart.v1.Cart`.
pub static CART: Table = Table { name: "cart_view", key: &[KEY], columns: &[VERSION, STALE_SINCE, PARKED_AT, UPDATED_MS, BODY] };

/// Orders; key: order id; body: `souk.orders.v1.Order`.
pub static ORDER: Table = Table {
    name: "order_view",
    key: &[KEY],
    columns: &[VERSION, STALE_SINCE, PARKED_AT, UPDATED_MS, BODY, Column::new("customer_id", Text), STATE, Column::new("placed_ms", Big)],
};

/// Events of orders; key: order id and version; body: `souk.orders.v1.TimelineEntry` without `projected_time`.
pub static ORDER_TIMELINE: Table =
    Table { name: "order_timeline", key: &[KEY, VERSION], columns: &[Column::new("projected_ms", WrittenMs), BODY] };

/// Sales; key: day, product id, currency.
pub static SALES_DAY: Table = Table {
    name: "sales_day",
    key: &[Column::new("day", Int), Column::new("product_id", Text), Column::new("currency", Text)],
    columns: &[Column::new("units", Sum), Column::new("revenue", Sum)],
};

/// All view tables, in the order they are written.
pub static TABLES: &[&Table] = &[&PRODUCT, &AVAILABILITY, &CART, &ORDER, &ORDER_TIMELINE, &SALES_DAY];

/// Reads one product.
pub static PRODUCT_VIEW: LazyLock<PointView> = LazyLock::new(|| PointView::new(&PRODUCT));
/// Reads the stock of one product.
pub static AVAILABILITY_VIEW: LazyLock<PointView> = LazyLock::new(|| PointView::new(&AVAILABILITY));
/// Reads one cart.
pub static CART_VIEW: LazyLock<PointView> = LazyLock::new(|| PointView::new(&CART));
/// Reads one order.
pub static ORDER_VIEW: LazyLock<PointView> = LazyLock::new(|| PointView::new(&ORDER));
