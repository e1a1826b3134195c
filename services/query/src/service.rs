use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use souk_bus::{Feed, JetStreamBus};
use souk_event_sourcing::Topology;
use souk_proto::{
    cart::v1::query_service_server::QueryServiceServer as CartServer,
    catalog::v1::query_service_server::QueryServiceServer as CatalogServer, internal::v1::admin_service_server::AdminServiceServer,
    orders::v1::query_service_server::QueryServiceServer as OrdersServer,
    stock::v1::query_service_server::QueryServiceServer as StockServer,
};
use souk_read_store::ReadStore;
use souk_runtime::{
    Component, GrpcServer, Listeners, Process, limited,
    metrics::{Look, at_scrape},
};
use tokio::task::JoinSet;

use crate::{
    admin::Admin,
    api::{AsBytes, BatchGetAvailability, BatchGetProducts, GetAvailability, GetCart, GetOrder, GetProduct, Queries},
    cache::RowCache,
    core::{Core, Entrance},
    feed, readiness,
};

/// How often it is looked whether a region was added.
const TOPOLOGY_EVERY: Duration = Duration::from_secs(1);

/// Runs the query service until `process.shutdown`: both doors open at once, queries are answered as soon as the read
/// store is there.
///
/// # Errors
/// When there is no public listener, a listener breaks or the bus's address is malformed.
pub async fn run(process: Process, listeners: Listeners) -> anyhow::Result<()> {
    let public = listeners.public.context("the query service needs a public listener")?;
    let entrance = Entrance::default();
    let nats = &process.settings.nats;
    let bus: Arc<dyn Feed> = Arc::new(JetStreamBus::connect(&nats.url, &nats.prefix, &process.replica).await?);
    let component = process.health.component("read store");
    let background = tokio::spawn(serve_from_store(process.clone(), entrance.clone(), bus, component));
    let admin = Admin { entrance: entrance.clone(), replica: process.replica.clone(), started: Instant::now() };
    let internal_server = GrpcServer::new("internal", &process).add(limited!(AdminServiceServer::new(admin), process));
    let served =
        tokio::try_join!(public_server(&process, Queries(entrance.clone())).serve(public), internal_server.serve(listeners.internal));
    background.abort();
    if let Ok(core) = entrance.core() {
        core.store.close().await;
    }
    served.map(|_| ())
}

fn public_server(process: &Process, queries: Queries) -> GrpcServer {
    let limit = process.settings.grpc.max_message_bytes;
    let (catalog, stock) = (CatalogServer::new(queries.clone()), StockServer::new(queries.clone()));
    let (cart, orders) = (CartServer::new(queries.clone()), OrdersServer::new(queries.clone()));
    let catalog = AsBytes::<_, BatchGetProducts>::new(limited!(catalog, process), queries.clone(), limit);
    let stock = AsBytes::<_, BatchGetAvailability>::new(limited!(stock, process), queries.clone(), limit);
    GrpcServer::new("public", process)
        .add(AsBytes::<_, GetProduct>::new(catalog, queries.clone(), limit))
        .add(AsBytes::<_, GetAvailability>::new(stock, queries.clone(), limit))
        .add(AsBytes::<_, GetCart>::new(limited!(cart, process), queries.clone(), limit))
        .add(AsBytes::<_, GetOrder>::new(limited!(orders, process), queries, limit))
}

/// Opens the store and serves from it, with the logs of all regions there are.
async fn serve_from_store(process: Process, entrance: Entrance, bus: Arc<dyn Feed>, component: Component) {
    let mut store = readiness::open(&process.settings, &component).await;
    loop {
        let topology = topology(&store, &process).await;
        let core = Arc::new(Core::new(store.clone(), topology.clone(), process.settings.clone()));
        let (tasks, figures) = follow(&process, &core, &bus, &component);
        entrance.open(core.clone());
        component.ready();
        store = changed(&store, &topology, &process).await;
        tracing::info!("the regions have changed; serving the logs of all of them");
        drop(figures);
        tokio::spawn(retire(core, tasks));
    }
}

/// The topology whose logs have a place in the store.
async fn topology(store: &ReadStore, process: &Process) -> Topology {
    loop {
        match store.topology().await {
            Ok(topology) => return topology.unwrap_or_else(|| process.settings.installation.alone()),
            Err(error) => tracing::warn!(%error, "the regions cannot be read"),
        }
        tokio::time::sleep(TOPOLOGY_EVERY).await;
    }
}

/// Waits until ids lead elsewhere than by `known`; the store as it is then.
async fn changed(store: &ReadStore, known: &Topology, process: &Process) -> ReadStore {
    loop {
        tokio::time::sleep(TOPOLOGY_EVERY).await;
        if topology(store, process).await.routes_as(known) {
            continue;
        }
        match store.reread().await {
            Ok(store) => return store,
            Err(error) => tracing::warn!(%error, "the placement of logs cannot be read"),
        }
    }
}

/// Follows the change feeds of all regions and watches over the databases, until it is dropped.
fn follow(process: &Process, core: &Core, bus: &Arc<dyn Feed>, component: &Component) -> (JoinSet<()>, Look) {
    let cache = core.reader.cache().clone();
    let mut regions: Vec<_> = core.store.logs().map(|log| log.region).collect();
    regions.dedup();
    let mut tasks = JoinSet::new();
    for region in regions {
        tasks.spawn(feed::follow(bus.clone(), region, cache.clone()));
    }
    tasks.spawn(feed::look(core.store.clone(), cache.clone(), process.settings.query.unproven_after / 3));
    tasks.spawn(readiness::watch(core.store.clone(), component.clone()));
    let store = core.store.clone();
    let figures = at_scrape(move || {
        store.report_pools();
        report(&cache);
    });
    (tasks, figures)
}

/// Keeps a core true that no new call comes to, until the last call on it has ended: a watch may be long.
async fn retire(core: Arc<Core>, tasks: JoinSet<()>) {
    while Arc::strong_count(&core) > 1 {
        tokio::time::sleep(TOPOLOGY_EVERY).await;
    }
    drop(tasks);
}

fn report(cache: &RowCache) {
    metrics::gauge!("souk_cache_entries").set(cache.entries() as f64);
    metrics::gauge!("souk_cache_bytes").set(cache.weight() as f64);
    let now = Instant::now();
    let oldest = cache.logs().map(|log| log.horizon().age(now).unwrap_or(NEVER)).max();
    metrics::gauge!("souk_feed_age_seconds").set(oldest.unwrap_or_default().as_secs_f64());
}

/// Age of a feed that was never heard.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);
