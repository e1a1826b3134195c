use std::collections::BTreeMap;

use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    sea_query::{Alias, Expr, ExprTrait, Func},
};
use souk_read_store::{Demand, ReadStore, ReadStoreError};

use super::snapshot::{Page, Scope, in_snapshots};
use crate::{
    Day,
    entity::sales_day::{Column, Entity},
};

/// Which sales a summary shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SalesFilter {
    pub product_id: Option<String>,
    pub from: Day,
    /// Inclusive.
    pub to: Day,
}

/// Place of a sum in the summary: by day, then product, then currency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SalesCursor {
    pub day: Day,
    pub product_id: String,
    pub currency: String,
}

/// What was sold of one product on one day in one currency, over all logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SalesRow {
    pub key: SalesCursor,
    pub units: i64,
    /// In the currency's minor unit.
    pub revenue: i64,
}

#[derive(FromQueryResult)]
struct Summed {
    day: i32,
    product_id: String,
    currency: String,
    units: i64,
    revenue: i64,
}

/// Sums over all logs, those after `after`.
///
/// Every database adds up its own logs and answers its first sums in order; the first of all are then among them, and what
/// two databases have under one key is added up here.
pub async fn summarize_sales(
    store: &ReadStore,
    filter: &SalesFilter,
    after: Option<&SalesCursor>,
    limit: usize,
    demand: Demand,
) -> Result<Page<SalesRow>, ReadStoreError> {
    let sum = |column: Column| Func::sum(Expr::col(column)).cast_as(Alias::new("bigint"));
    let key = [Column::Day, Column::ProductId, Column::Currency];
    let mut query = Entity::find()
        .select_only()
        .columns(key)
        .column_as(sum(Column::Units), "units")
        .column_as(sum(Column::Revenue), "revenue")
        .filter(Column::Day.between(filter.from.0, filter.to.0))
        .limit(limit as u64 + 1);
    for column in key {
        query = query.group_by(column).order_by_asc(column);
    }
    if let Some(product_id) = &filter.product_id {
        query = query.filter(Column::ProductId.eq(product_id));
    }
    if let Some(after) = after {
        let place = [Expr::val(after.day.0), Expr::val(after.product_id.as_str()), Expr::val(after.currency.as_str())];
        query = query.filter(Expr::tuple(key.map(Expr::col)).gt(Expr::tuple(place)));
    }
    let parts = in_snapshots::<Summed>(store, &demand, Scope::All, &query.into_query()).await?;
    let parts = Page::merge(parts, usize::MAX, |_| ());
    let mut sums: BTreeMap<SalesCursor, (i64, i64)> = BTreeMap::new();
    for row in parts.rows {
        let (units, revenue) =
            sums.entry(SalesCursor { day: Day(row.day), product_id: row.product_id, currency: row.currency }).or_default();
        *units = units.saturating_add(row.units);
        *revenue = revenue.saturating_add(row.revenue);
    }
    let more = sums.len() > limit;
    let rows = sums.into_iter().take(limit).map(|(key, (units, revenue))| SalesRow { key, units, revenue });
    Ok(Page { rows: rows.collect(), more, as_of: parts.as_of })
}
