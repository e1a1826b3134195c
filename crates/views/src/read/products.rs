use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait, sea_query::Expr};
use souk_event_sourcing::UnixMillis;
use souk_proto::catalog::v1::ProductState;
use souk_read_store::{Demand, ReadStore, ReadStoreError};

use super::snapshot::{ListedRow, Page, Scope, in_snapshots};
use crate::entity::product_view::{Column, Entity};

/// Which products a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProductFilter {
    pub state: Option<ProductState>,
    pub tag: Option<String>,
    pub category: Option<String>,
}

#[derive(FromQueryResult)]
struct Listed {
    key: String,
    body: Vec<u8>,
    stale_since: Option<i64>,
}

/// Products by id, those after `after`; a row's cursor is its id.
pub async fn list_products(
    store: &ReadStore,
    filter: &ProductFilter,
    after: Option<&str>,
    limit: usize,
    demand: Demand,
) -> Result<Page<ListedRow<String>>, ReadStoreError> {
    let mut query = Entity::find()
        .select_only()
        .columns([Column::Key, Column::Body, Column::StaleSince])
        .filter(Column::Version.gt(0))
        .order_by_asc(Column::Key)
        .limit(limit as u64 + 1);
    if let Some(after) = after {
        query = query.filter(Column::Key.gt(after));
    }
    if let Some(state) = filter.state {
        query = query.filter(Column::State.eq(state as i16));
    }
    if let Some(category) = &filter.category {
        query = query.filter(Column::Category.eq(category));
    }
    if let Some(tag) = &filter.tag {
        // Not `array[$1]`: the query builder takes brackets for quotes.
        query = query.filter(Expr::cust_with_values("tags @> array_append(null::text[], $1)", [tag.as_str()]));
    }
    let parts = in_snapshots::<Listed>(store, &demand, Scope::All, &query.into_query()).await?;
    let page = Page::merge(parts, limit, |row| row.key.clone());
    let rows =
        page.rows.into_iter().map(|row| ListedRow { cursor: row.key, body: row.body.into(), stale_since: row.stale_since.map(UnixMillis) });
    Ok(Page { rows: rows.collect(), more: page.more, as_of: page.as_of })
}
