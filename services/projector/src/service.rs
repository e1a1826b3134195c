use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use souk_bus::{Feed, JetStreamBus};
use souk_event_sourcing::{Region, Topology};
use souk_proto::internal::v1::{admin_service_server::AdminServiceServer, parked_entity_service_server::ParkedEntityServiceServer};
use souk_read_store::{Access, DatabaseConfig, Installation, PostgresViews, ReadStore, ReadStoreError, Replica};
use souk_runtime::{
    Component, GrpcServer, Listeners, Peer, Process, SchemaTooOld, Settings, limited,
    metrics::{at_scrape, start_at_zero},
    topology,
};
use souk_views::{TABLES, ViewsMigrator, read::missing_migrations};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    admin::Admin,
    backoff::Backoff,
    board::Board,
    changes::Changes,
    heads::Heads,
    log_reader::GrpcLog,
    parked_api::ParkedEntities,
    parking::Errands,
    shard::{Ports, Shard, Writer, now},
};

/// Time for announcing the last changes when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs the projector until `process.shutdown`, then finishes its batches and returns.
///
/// # Errors
/// When the read databases do not fit the settings, or a part that must not end ends.
pub async fn run(process: Process, listeners: Listeners) -> anyhow::Result<()> {
    let config = Config::from(&process.settings.projector);
    let started = Instant::now();
    // Health and reflection answer from the beginning, also while databases are still away.
    let (board_sender, board) = watch::channel(Board::new(Heads::new([])));
    let (shards_sender, shards) = watch::channel(Vec::new());
    let admin = Admin { replica: process.replica.clone(), board, started };
    let replica = Replica { id: process.replica.clone(), address: process.reached_at(&listeners.internal)? };
    let door = CancellationToken::new();
    // Before the door opens: an open door alone does not make a process ready.
    let opened = process.health.component("read databases");
    let server = GrpcServer::new("internal", &process)
        .add(limited!(AdminServiceServer::new(admin), process))
        .add(limited!(ParkedEntityServiceServer::new(ParkedEntities { shards, lease_ttl: config.lease_ttl }), process))
        .shutdown_on(door.clone())
        .serve(listeners.internal);
    let server = tokio::spawn(server);
    let outcome = follow(&process, &replica, config, &Shown { board: board_sender, shards: shards_sender }, &opened).await;
    door.cancel();
    server.await.context("the internal server")??;
    outcome
}

/// What the internal port shows once the databases are open.
struct Shown {
    board: watch::Sender<Board>,
    shards: watch::Sender<Vec<Errands>>,
}

/// Projects the logs of all regions there are, beginning anew when one is added.
async fn follow(process: &Process, replica: &Replica, config: Config, shown: &Shown, opened: &Component) -> anyhow::Result<()> {
    let settings = &process.settings;
    let command = Peer::connect(&settings.peers.command_internal).context("peers.command_internal")?;
    let known = topology::ask(&command).await.ok().flatten().unwrap_or_else(|| settings.installation.alone());
    let mut topologies = topology::follow(command, known);
    while let Some(store) = install(process, config, opened).await? {
        let Some(store) = admit(process, config, &store, &mut topologies).await else { break };
        let until = process.shutdown.child_token();
        let watching = tokio::spawn(grown(topologies.clone(), until.clone()));
        let outcome = project(process, replica, config, store, shown, opened, &until).await;
        watching.abort();
        outcome?;
        if process.shutdown.is_cancelled() {
            break;
        }
        tracing::info!("the regions have changed; projecting the logs of all of them");
    }
    Ok(())
}

/// Cancels `until` when ids lead elsewhere than they did.
async fn grown(mut topologies: watch::Receiver<Arc<Topology>>, until: CancellationToken) {
    let known = topologies.borrow_and_update().clone();
    if topologies.wait_for(|now| !now.routes_as(&known)).await.is_ok() {
        until.cancel();
    }
}

/// The store with the logs of all regions; while the write side is away, of those it was told of before. `None` when shutdown
/// comes first.
async fn admit(process: &Process, config: Config, store: &ReadStore, topologies: &mut watch::Receiver<Arc<Topology>>) -> Option<ReadStore> {
    let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
    loop {
        let known = topologies.borrow_and_update().clone();
        let admitted = match known.version() {
            0 => store.reread().await,
            _ => store.admit(&known, now()).await,
        };
        match admitted {
            Ok(store) => return Some(store),
            Err(error) => tracing::warn!(%error, "the regions are not told to the read store yet"),
        }
        tokio::select! {
            () = sleep(backoff.pause()) => {}
            () = process.shutdown.cancelled() => return None,
        }
    }
}

async fn project(
    process: &Process,
    replica: &Replica,
    config: Config,
    store: ReadStore,
    shown: &Shown,
    opened: &Component,
    until: &CancellationToken,
) -> anyhow::Result<()> {
    let settings = &process.settings;
    let bus = JetStreamBus::connect(&settings.nats.url, &settings.nats.prefix, &process.replica).await.context("nats.url")?;
    let bus = Arc::new(bus);
    let heads = Heads::new(store.logs());
    let (changes, publishing) = Changes::start(bus.clone());
    let ports = Ports {
        source: bus.clone(),
        truth: Arc::new(GrpcLog::new(Peer::connect(&settings.peers.command_internal).context("peers.command_internal")?)),
        heads: heads.clone(),
        changes,
        board: Board::new(heads.clone()),
    };
    shown.board.send_replace(ports.board.clone());
    let listening = CancellationToken::new();
    let mut listeners = JoinSet::new();
    for region in store.logs().map(|log| log.region).collect::<BTreeSet<Region>>() {
        let backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        let feed: Arc<dyn Feed> = bus.clone();
        listeners.spawn(heads.clone().listen(feed, region, backoff, listening.clone()));
    }

    start_at_zero(&[
        "souk_projector_taken_over_total",
        "souk_projector_lost_total",
        "souk_projector_rewinds_total",
        "souk_projector_divergences_total",
        "souk_projector_backfills_total",
        "souk_projector_feed_failures_total",
        "souk_watchdog_restarts_total",
    ]);
    let _figures = {
        let (store, board) = (store.clone(), ports.board.clone());
        at_scrape(move || {
            store.report_pools();
            board.measure();
        })
    };
    let mut shards = start_shards(process, replica, config, &store, ports, &shown.shards, until);
    // From now on it is for the shards to say.
    opened.ready();
    while let Some(ended) = shards.join_next().await {
        ended.context("a shard")?;
        anyhow::ensure!(until.is_cancelled(), "a shard ended by itself");
    }
    // Only now: what the last batches changed is still to be told, if the bus is there to hear it.
    let told = async {
        publishing.await.context("the change feed")?;
        bus.client().flush().await.context("the change feed")
    };
    match tokio::time::timeout(LAST_WORDS, told).await {
        Ok(told) => told?,
        Err(_) => tracing::warn!("the bus is away; the last changes were not announced"),
    }
    listening.cancel();
    listeners.join_all().await;
    store.close().await;
    Ok(())
}

/// As many loops per read database as there are writers, each with its share of the logs.
fn start_shards(
    process: &Process,
    replica: &Replica,
    config: Config,
    store: &ReadStore,
    ports: Ports,
    shown: &watch::Sender<Vec<Errands>>,
    until: &CancellationToken,
) -> JoinSet<()> {
    let mut shards = JoinSet::new();
    shown.send_modify(Vec::clear);
    for database in store.databases() {
        let logs = store.logs_of(database.name());
        for number in 0..config.writers.min(logs.len()) {
            let writer = Writer { database: database.name().to_owned(), number };
            let share = writer.share(config.writers, &logs);
            let component = process.health.component(&format!("database {}, writer {number}", database.name()));
            let views = Arc::new(PostgresViews::new(database.clone(), TABLES));
            let shard = Shard::new(writer, replica.clone(), views, share, ports.clone(), config, component);
            shown.send_modify(|shown| shown.push(shard.errands()));
            shards.spawn(shard.run(until.clone()));
        }
    }
    shards
}

/// Brings the read databases up to date for this build: tables, placement, checkpoints. Harmless when two do it at once.
///
/// # Errors
/// When a database does not answer or does not fit the settings.
pub async fn migrate(settings: &Settings) -> Result<(), ReadStoreError> {
    let store = ReadStore::install::<ViewsMigrator>(&databases(settings), installation(settings), now()).await?;
    store.close().await;
    Ok(())
}

/// Opens the read databases, waiting for them and their tables as long as it takes; `None` when shutdown comes first.
async fn install(process: &Process, config: Config, opened: &Component) -> anyhow::Result<Option<ReadStore>> {
    let settings = &process.settings;
    let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
    loop {
        match open(settings).await {
            Ok(Ok(store)) => return Ok(Some(store)),
            Ok(Err(missing)) => opened.not_ready(&SchemaTooOld(missing).to_string()),
            Err(error) if !error.retryable() => return Err(error.into()),
            Err(error) => opened.not_ready(&error.to_string()),
        }
        tokio::select! {
            () = sleep(backoff.pause()) => {}
            () = process.shutdown.cancelled() => return Ok(None),
        }
    }
}

/// The store, or the migrations it lacks and nobody asked this process for.
async fn open(settings: &Settings) -> Result<Result<ReadStore, Vec<String>>, ReadStoreError> {
    let (databases, installation) = (databases(settings), installation(settings));
    if settings.process.migrate {
        return ReadStore::install::<ViewsMigrator>(&databases, installation, now()).await.map(Ok);
    }
    let store = ReadStore::open(&databases, Access::Write, installation).await?;
    let missing = missing_migrations(&store).await?;
    if missing.is_empty() {
        return Ok(Ok(store));
    }
    store.close().await;
    Ok(Err(missing))
}

fn databases(settings: &Settings) -> Vec<DatabaseConfig> {
    let config = |database: &souk_runtime::Database| DatabaseConfig::new(&database.name, &*database.url, database.max_connections);
    settings.read.databases.iter().map(config).collect()
}

fn installation(settings: &Settings) -> Installation {
    Installation { region: settings.installation.region(), partitions: settings.installation.partitions }
}
