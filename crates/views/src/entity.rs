//! SeaORM entities of the view tables.

pub mod availability_view;
pub mod cart_view;
pub mod order_timeline;
pub mod order_view;
pub mod product_view;
pub mod sales_day;
