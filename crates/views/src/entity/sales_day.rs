//! Units and revenue per product, day and currency. One row per log that contributed; readers add them up, because a
//! row is guarded by the position of one log only.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "sales_day")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region: i16,
    #[sea_orm(primary_key, auto_increment = false)]
    pub partition: i32,
    /// Days since 1970-01-01 UTC, see [`crate::Day`].
    #[sea_orm(primary_key, auto_increment = false)]
    pub day: i32,
    #[sea_orm(primary_key, auto_increment = false)]
    pub product_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub currency: String,
    pub position: i64,
    pub revision: i32,
    pub units: i64,
    /// In the currency's minor unit.
    pub revenue: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
