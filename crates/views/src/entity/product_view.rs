//! Products. The table also has `tags text[]` with a GIN index (`tags @> array[$1]`), which no model needs: the body holds them.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "product_view")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region: i16,
    #[sea_orm(primary_key, auto_increment = false)]
    pub partition: i32,
    /// Product id.
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
    /// Encoded `souk.catalog.v1.Product`.
    pub body: Vec<u8>,
    /// `souk.catalog.v1.ProductState`.
    pub state: i16,
    pub category: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
