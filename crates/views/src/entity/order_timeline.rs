//! Every event of every order, one row each; rows never change.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "order_timeline")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region: i16,
    #[sea_orm(primary_key, auto_increment = false)]
    pub partition: i32,
    /// Order id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub version: i64,
    pub position: i64,
    pub revision: i32,
    /// When this row was written, Unix milliseconds: the one column that is no function of the events.
    pub projected_ms: i64,
    /// Encoded `souk.orders.v1.TimelineEntry` without `projected_time`.
    pub body: Vec<u8>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
