use std::cmp::Reverse;

use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    sea_query::{Expr, ExprTrait, Func},
};
use souk_event_sourcing::UnixMillis;
use souk_proto::orders::v1::OrderState;
use souk_read_store::{Demand, ReadStore, ReadStoreError};

use super::snapshot::{ListedRow, Page, Scope, in_snapshots};
use crate::entity::order_view::{Column, Entity};

/// Which orders a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OrderFilter {
    pub customer_id: Option<String>,
    pub state: Option<OrderState>,
    /// Placed at or after.
    pub from: Option<UnixMillis>,
    /// Placed before.
    pub to: Option<UnixMillis>,
}

/// Place of an order among all: by the time it was placed, then by id, both descending.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderCursor {
    pub placed: UnixMillis,
    pub order_id: String,
}

#[derive(FromQueryResult)]
struct Listed {
    key: String,
    placed_ms: i64,
    body: Vec<u8>,
    stale_since: Option<i64>,
}

/// Orders, newest first, those after `after`. `scope` must hold the logs of the filter's customer.
pub async fn list_orders(
    store: &ReadStore,
    scope: Scope,
    filter: &OrderFilter,
    after: Option<&OrderCursor>,
    limit: usize,
    demand: Demand,
) -> Result<Page<ListedRow<OrderCursor>>, ReadStoreError> {
    let mut query = Entity::find()
        .select_only()
        .columns([Column::Key, Column::PlacedMs, Column::Body, Column::StaleSince])
        .filter(Column::Version.gt(0))
        .order_by_desc(Column::PlacedMs)
        .order_by_desc(Column::Key)
        .limit(limit as u64 + 1);
    if let Some(customer_id) = &filter.customer_id {
        query = query.filter(Column::CustomerId.eq(customer_id));
    }
    if let Some(state) = filter.state {
        query = query.filter(Column::State.eq(state as i16));
    }
    if let Some(from) = filter.from {
        query = query.filter(Column::PlacedMs.gte(from.0));
    }
    if let Some(to) = filter.to {
        query = query.filter(Column::PlacedMs.lt(to.0));
    }
    if let Some(after) = after {
        let key = Expr::tuple([Expr::col(Column::PlacedMs), Expr::col(Column::Key)]);
        query = query.filter(key.lt(Expr::tuple([Expr::val(after.placed.0), Expr::val(after.order_id.as_str())])));
    }
    let parts = in_snapshots::<Listed>(store, &demand, scope, &query.into_query()).await?;
    let page = Page::merge(parts, limit, |row| Reverse((row.placed_ms, row.key.clone())));
    let rows = page.rows.into_iter().map(|row| ListedRow {
        cursor: OrderCursor { placed: UnixMillis(row.placed_ms), order_id: row.key },
        body: row.body.into(),
        stale_since: row.stale_since.map(UnixMillis),
    });
    Ok(Page { rows: rows.collect(), more: page.more, as_of: page.as_of })
}

#[derive(FromQueryResult)]
struct Oldest {
    stale_since: Option<i64>,
}

/// Since when orders stand still because an event of theirs could not be applied, the first of each database: sums over orders
/// lack what follows.
pub async fn orders_stale_since(store: &ReadStore, demand: Demand) -> Result<Page<UnixMillis>, ReadStoreError> {
    let query = Entity::find()
        .select_only()
        .column_as(Expr::expr(Func::min(Expr::col(Column::StaleSince))), "stale_since")
        .filter(Column::StaleSince.is_not_null());
    let parts = in_snapshots::<Oldest>(store, &demand, Scope::All, &query.into_query()).await?;
    let page = Page::merge(parts, usize::MAX, |row| row.stale_since);
    Ok(Page { rows: page.rows.into_iter().filter_map(|row| row.stale_since).map(UnixMillis).collect(), more: false, as_of: page.as_of })
}
