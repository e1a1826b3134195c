//! Orders.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "order_view")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region: i16,
    #[sea_orm(primary_key, auto_increment = false)]
    pub partition: i32,
    /// Order id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    /// Number of events of the entity's stream.
    pub version: i64,
    /// Position of the last of them.
    pub position: i64,
    /// Revision of the projection that wrote the row.
    pub revision: i32,
    /// Unix milliseconds since which an event of this entity could not be applied.
    pub stale_since: Option<i64>,
    /// Position of that event.
    pub parked_at: Option<i64>,
    /// Time of the last event, Unix milliseconds.
    pub updated_ms: i64,
    /// Encoded `souk.orders.v1.Order`.
    pub body: Vec<u8>,
    pub customer_id: String,
    /// `souk.orders.v1.OrderState`.
    pub state: i16,
    /// Time of OrderPlaced, Unix milliseconds.
    pub placed_ms: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
