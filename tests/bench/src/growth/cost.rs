use std::sync::Arc;

use anyhow::Result;
use souk_devstack::Service;
use souk_load::Rpc;

use super::{Table, filled};
use crate::{
    effort::Effort,
    loader::{Loader, Press, all_ok},
    record::progress,
    sources::{GET_PRODUCT, Gets, UPDATE_PRODUCT, updates},
    stage::{CONNECTIONS, Part, Stage},
};

/// The query service answers out of its memory; its CPU alone is a query's.
const QUERY: [Part; 1] = [Part::Service(Service::Query)];

/// Calls per second of each kind: the same for all rows, since what idles is in the figures and batches grow with the rate.
fn rates(effort: Effort) -> (f64, f64) {
    effort.of((1_000.0, 5_000.0), (1_000.0, 5_000.0), (50.0, 100.0))
}

/// CPU of the whole system per command: services, Postgres and NATS, until it is in the views.
async fn command(stage: &Stage, effort: Effort, connections: usize) -> Result<f64> {
    let (keys, press) = (stage.uniform(), Press::Rate(rates(effort).0, effort.time, 4096));
    let loader = Loader::new(stage.system.stack.urls("command"), connections);
    let source = move |rpcs: Vec<Arc<Rpc>>| updates(rpcs[0].clone(), keys);
    let before = stage.cpu(&Part::ALL)?;
    let report = all_ok(loader.run(&[(0, UPDATE_PRODUCT)], source, press).await?)?;
    stage.caught_up().await?;
    Ok(stage.cpu_since(&Part::ALL, before)?.as_secs_f64() * 1e6 / report.answered() as f64)
}

/// CPU of the query service per query.
async fn query(stage: &Stage, effort: Effort, connections: usize) -> Result<f64> {
    let (keys, products) = (stage.uniform(), stage.products);
    let loader = Loader::new(stage.system.stack.urls("query"), connections);
    let source = move |rpcs: Vec<Arc<Rpc>>| Gets::new(rpcs[0].clone(), keys, products);
    let before = stage.cpu(&QUERY)?;
    let report = all_ok(loader.run(&[(0, GET_PRODUCT)], source, Press::Rate(rates(effort).1, effort.time, 4096)).await?)?;
    Ok(stage.cpu_since(&QUERY, before)?.as_secs_f64() * 1e6 / report.answered() as f64)
}

/// Both, once everything is warm.
async fn both(stage: &Stage, effort: Effort, connections: usize) -> Result<Vec<String>> {
    command(stage, effort, connections).await?;
    stage.warm_up().await?;
    let command = command(stage, effort, connections).await?;
    stage.warm_up().await?;
    Ok([command, query(stage, effort, connections).await?].map(|cpu| format!("{cpu:.1}")).to_vec())
}

pub(super) async fn databases(effort: Effort) -> Result<Table> {
    const COLUMNS: &[&str] = &["write databases", "CPU per command, whole system, µs", "CPU per query, query service, µs"];
    let mut table = Table::new("Write databases on one server", COLUMNS);
    for count in effort.of(vec![1, 2, 4, 8], vec![1, 2, 4, 8], vec![2]) {
        progress(&format!("{count} write databases"));
        let stage = filled(effort, effort.of(10_000, 10_000, 200), |options| options.write_shards = Some(count)).await?;
        let cells = both(&stage, effort, CONNECTIONS).await?;
        stage.audit().await?;
        table.row([vec![count.to_string()], cells].concat());
    }
    Ok(table)
}

pub(super) async fn entities(effort: Effort) -> Result<Table> {
    const COLUMNS: &[&str] = &["products", "CPU per command, whole system, µs", "CPU per query, query service, µs"];
    let mut table = Table::new("Entities, each asked for and changed alike", COLUMNS);
    for count in effort.of(vec![10_000, 100_000, 1_000_000], vec![10_000, 100_000], vec![300]) {
        progress(&format!("{count} products"));
        // All rows fit, so that a query is a hit in every row.
        let stage = filled(effort, count, |options| {
            options.set("query.cache_bytes", 4_i64 << 30);
        })
        .await?;
        let cells = both(&stage, effort, CONNECTIONS).await?;
        stage.audit().await?;
        table.row([vec![count.to_string()], cells].concat());
    }
    Ok(table)
}

pub(super) async fn connections(effort: Effort) -> Result<Table> {
    const COLUMNS: &[&str] = &["connections", "CPU per command, whole system, µs", "CPU per query, query service, µs"];
    let mut table = Table::new("Connections to a service", COLUMNS);
    let stage = filled(effort, effort.of(10_000, 10_000, 200), |_| {}).await?;
    for count in effort.of(vec![1, 10, 100, 1_000], vec![1, 10, 100, 1_000], vec![1, 20]) {
        let cells = both(&stage, effort, count).await?;
        table.row([vec![count.to_string()], cells].concat());
    }
    stage.audit().await?;
    Ok(table)
}
