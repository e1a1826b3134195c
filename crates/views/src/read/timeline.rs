use bytes::Bytes;
use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait};
use souk_event_sourcing::{LogId, UnixMillis};
use souk_read_store::{Demand, ReadStore, ReadStoreError};

use super::snapshot::{Page, Scope, in_snapshots};
use crate::entity::order_timeline::{Column, Entity};

/// One event of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineRow {
    /// Encoded `souk.orders.v1.TimelineEntry` without `projected_time`.
    pub body: Bytes,
    /// When the row was written.
    pub projected: UnixMillis,
}

#[derive(FromQueryResult)]
struct Listed {
    projected_ms: i64,
    body: Vec<u8>,
}

/// Every event of an order, oldest first; empty when there is no such order.
pub async fn order_timeline(store: &ReadStore, log: LogId, order_id: &str, demand: Demand) -> Result<Page<TimelineRow>, ReadStoreError> {
    let query = Entity::find()
        .select_only()
        .columns([Column::ProjectedMs, Column::Body])
        .filter(Column::Region.eq(log.region.0 as i16))
        .filter(Column::Partition.eq(i32::from(log.partition.0)))
        .filter(Column::Key.eq(order_id))
        .order_by_asc(Column::Version);
    let parts = in_snapshots::<Listed>(store, &demand, Scope::Log(log), &query.into_query()).await?;
    // One log lies in one database: nothing to sort.
    let page = Page::merge(parts, usize::MAX, |_| ());
    let rows = page.rows.into_iter().map(|row| TimelineRow { body: row.body.into(), projected: UnixMillis(row.projected_ms) });
    Ok(Page { rows: rows.collect(), more: false, as_of: page.as_of })
}
