use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context;
use souk_event_store::{DatabaseConfig, PostgresStore, Retention, StoreError};
use souk_proto::internal::v1::admin_service_server::AdminServiceServer;
use souk_runtime::{
    Component, GrpcServer, Listeners, Peer, Process, SchemaTooOld, Settings, limited,
    metrics::{at_scrape, start_at_zero},
    topology,
};
use tokio::time::{Instant, sleep};

use crate::{admin::Admin, board::Board, copier::Pauses, membership::Membership, relaying::CopiedLogs};

const RETRY_STORE: Duration = Duration::from_secs(1);

/// Copies the logs of all other regions until `process.shutdown`.
///
/// # Errors
/// When the settings do not fit the databases, or the door breaks. Databases, bus and regions that do not answer are waited for.
pub async fn run(process: Process, listeners: Listeners) -> anyhow::Result<()> {
    let settings = process.settings.clone();
    let board = Board::default();
    let admin = Admin { board: board.clone(), replica: process.replica.clone(), started: Instant::now().into_std() };
    // Before the door opens: an open door alone does not make a process ready.
    let ready = process.health.component("write store");
    let server = GrpcServer::new("internal", &process).add(limited!(AdminServiceServer::new(admin), process));
    let server = tokio::spawn(server.serve(listeners.internal));
    start_at_zero(&["souk_replicator_rewinds_total", "souk_replicator_divergences_total", "souk_relay_troubles_total"]);
    let shown = board.clone();
    let _figures = at_scrape(move || shown.measure());
    if let Some(store) = connect(&process, &ready).await? {
        let store = Arc::new(store);
        copy(&process, &settings, &store, board, ready).await?;
        store.close().await;
    }
    process.shutdown.cancel();
    server.await.context("the internal server")?
}

async fn copy(process: &Process, settings: &Settings, store: &Arc<PostgresStore>, board: Board, ready: Component) -> anyhow::Result<()> {
    let home = Peer::connect(&settings.peers.command_internal).context("peers.command_internal")?;
    let known = store.topology().await.unwrap_or_default().unwrap_or_else(|| settings.installation.alone());
    let replicator = &settings.replicator;
    let membership = Membership {
        me: process.replica.clone(),
        store: store.clone(),
        topology: topology::follow(home, known),
        relays: souk_relay::connect(settings, &process.replica, Arc::new(CopiedLogs(store.clone())), store.installation())
            .await
            .context("nats.url")?,
        board,
        retention: Retention::of(settings.command.ledger_retention),
        pauses: Pauses { first: replicator.retry_backoff, longest: replicator.retry_backoff_max },
        lease_ttl: replicator.lease_ttl,
        heartbeat_interval: replicator.heartbeat_interval,
        ready,
        ways: settings.peers.clone(),
        copying: HashMap::new(),
    };
    membership.run(process.shutdown.clone()).await;
    Ok(())
}

/// Connects, for as long as databases and tables are missing that this process was not asked to make. `None` when shutdown came
/// first.
async fn connect(process: &Process, ready: &Component) -> anyhow::Result<Option<PostgresStore>> {
    loop {
        match open(&process.settings).await {
            Ok(Ok(store)) => return Ok(Some(store)),
            Ok(Err(old)) => ready.not_ready(&old.to_string()),
            Err(error @ StoreError::Setup(_)) => return Err(error.into()),
            Err(error) => ready.not_ready(&error.to_string()),
        }
        tokio::select! {
            () = sleep(RETRY_STORE) => {}
            () = process.shutdown.cancelled() => return Ok(None),
        }
    }
}

async fn open(settings: &Settings) -> Result<Result<PostgresStore, SchemaTooOld>, StoreError> {
    let config = |database: &souk_runtime::Database| DatabaseConfig {
        name: database.name.clone(),
        url: database.url.to_string(),
        pooled_url: database.pooled_url.as_ref().map(|url| url.to_string()),
        max_connections: database.max_connections,
    };
    let databases: Vec<_> = settings.write.databases.iter().map(config).collect();
    if settings.process.migrate {
        PostgresStore::migrate(&databases).await?;
    } else {
        let missing = PostgresStore::missing_migrations(&databases).await?;
        if !missing.is_empty() {
            return Ok(Err(SchemaTooOld(missing)));
        }
    }
    PostgresStore::connect(&databases, settings.installation.region(), settings.installation.partitions).await.map(Ok)
}
