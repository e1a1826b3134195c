use std::{collections::HashMap, sync::Arc};

use anyhow::Context;
use souk_bus::JetStreamBus;
use souk_event_store::{DatabaseConfig, PostgresStore, StoreError};
use souk_proto::internal::v1::admin_service_server::AdminServiceServer;
use souk_runtime::{
    GrpcServer, Listeners, Peer, Process, SchemaTooOld, Settings, limited,
    metrics::{at_scrape, start_at_zero},
};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use crate::{
    backoff::Backoff,
    board::Board,
    commands::GrpcCommands,
    reader::Sources,
    shard::{Config, Shard},
    status::Admin,
    store::SagaStore,
    truth::GrpcTruth,
    worker::Worker,
};

/// Runs the process manager until `process.shutdown`, then drains.
///
/// # Errors
/// When the settings do not fit the databases, or a door breaks. Databases, bus and command service that do not answer
/// are waited for.
pub async fn run(process: Process, listeners: Listeners) -> anyhow::Result<()> {
    let settings = process.settings.clone();
    let region = settings.installation.region();
    let board = Board::default();
    let Some(placement) = placement(&process).await? else { return Ok(()) };
    let bus = JetStreamBus::connect(&settings.nats.url, &settings.nats.prefix, &process.replica).await.context("nats.url")?;
    let bus = Arc::new(bus);
    let internal = Peer::connect(&settings.peers.command_internal).context("peers.command_internal")?;
    let public = Peer::connect(&settings.peers.command).context("peers.command")?;
    let backoff = Backoff::new(settings.saga.retry_backoff, settings.saga.retry_backoff_max);
    let truth = Arc::new(GrpcTruth::new(internal.clone()));
    let sources = Sources { bus: bus.clone(), truth, board: board.clone(), backoff: backoff.clone() };
    let commands = GrpcCommands::new(public, internal, settings.saga.step_deadline);
    let permits = Arc::new(Semaphore::new(settings.saga.parallel_orders));
    let worker = Worker { commands: Arc::new(commands), permits };
    let config = Config {
        batch_events: settings.saga.batch_events,
        step_deadline: settings.saga.step_deadline,
        backoff,
        timer_interval: settings.saga.timer_interval,
        lease_ttl: settings.saga.lease_ttl,
        heartbeat_interval: settings.saga.heartbeat_interval,
        watchdog_after: settings.saga.watchdog_after,
    };

    let mut shards = JoinSet::new();
    for database in &settings.write.databases {
        let shard = Shard {
            database: database.name.clone(),
            region,
            partitions: placement.partitions_of(&database.name),
            store: SagaStore::connect(&database.url, region)?,
            replica: process.replica.clone(),
            sources: sources.clone(),
            worker: worker.clone(),
            config: config.clone(),
            ready: process.health.component(&format!("database {}", database.name)),
            shutdown: process.shutdown.clone(),
        };
        shards.spawn(Arc::new(shard).run());
    }
    start_at_zero(&["souk_saga_fenced_total", "souk_saga_divergences_total", "souk_saga_backfills_total", "souk_watchdog_restarts_total"]);
    let shown = board.clone();
    let _figures = at_scrape(move || shown.measure());
    let listening = tokio::spawn(board.clone().listen(bus, region));
    let admin = Admin { board, replica: process.replica.clone(), started: Instant::now(), databases: Arc::new(databases(&placement)) };
    let server = GrpcServer::new("internal", &process).add(limited!(AdminServiceServer::new(admin), process));
    let served = server.serve(listeners.internal).await;
    process.shutdown.cancel();
    while let Some(ended) = shards.join_next().await {
        ended.context("a shard panicked")?;
    }
    listening.abort();
    served
}

/// Brings all databases up to date and reads which of them holds what; `None` when the process shall end before they
/// answer.
async fn placement(process: &Process) -> anyhow::Result<Option<PostgresStore>> {
    let settings = &process.settings;
    let ready = process.health.component("placement");
    let mut backoff = Backoff::new(settings.saga.retry_backoff, settings.saga.retry_backoff_max);
    loop {
        match prepare(settings, settings.process.migrate).await {
            Ok(Ok(store)) => {
                ready.ready();
                return Ok(Some(store));
            }
            Ok(Err(old)) => ready.not_ready(&old.to_string()),
            Err(error) if error.retryable() => {
                tracing::warn!(%error, "a write database does not answer; trying again");
                ready.not_ready("a write database does not answer");
            }
            Err(error) => return Err(error).context("write databases"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.pause()) => {}
            () = process.shutdown.cancelled() => return Ok(None),
        }
    }
}

/// Brings the write databases up to date for this build: log, ledger, placement, and the process manager's tables beside
/// them. Harmless when two do it at once.
///
/// # Errors
/// When a database does not answer or does not fit the settings.
pub async fn migrate(settings: &Settings) -> Result<(), StoreError> {
    if let Ok(store) = prepare(settings, true).await? {
        store.close().await;
    }
    Ok(())
}

/// The placement, once all tables are there: made here if `migrate` says so.
async fn prepare(settings: &Settings, migrate: bool) -> Result<Result<PostgresStore, SchemaTooOld>, StoreError> {
    let config = |database: &souk_runtime::Database| DatabaseConfig {
        name: database.name.clone(),
        url: database.url.to_string(),
        pooled_url: database.pooled_url.as_ref().map(|url| url.to_string()),
        max_connections: 2,
    };
    let configs: Vec<_> = settings.write.databases.iter().map(config).collect();
    let way = |config: &DatabaseConfig| config.pooled_url.as_ref().unwrap_or(&config.url).clone();
    if migrate {
        PostgresStore::migrate(&configs).await?;
    } else {
        let mut missing = PostgresStore::missing_migrations(&configs).await?;
        for config in &configs {
            let names = SagaStore::missing_migrations(&way(config)).await?;
            missing.extend(names.into_iter().map(|name| format!("{name} in {}", config.name)));
        }
        if !missing.is_empty() {
            return Ok(Err(SchemaTooOld(missing)));
        }
    }
    let region = settings.installation.region();
    let store = PostgresStore::connect(&configs, region, settings.installation.partitions).await?;
    for config in &configs {
        if migrate {
            SagaStore::migrate(&config.url).await?;
        }
        let tables = SagaStore::connect(&way(config), region)?;
        tables.seed(&store.partitions_of(&config.name)).await?;
        tables.close().await;
    }
    Ok(Ok(store))
}

fn databases(placement: &PostgresStore) -> HashMap<souk_event_sourcing::Partition, String> {
    let of = |name: &str| placement.partitions_of(name).into_iter().map(|partition| (partition, name.to_owned())).collect::<Vec<_>>();
    placement.databases().flat_map(of).collect()
}
