use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::{counter, gauge};
use souk_event_sourcing::{Epoch, LogId, Topology};
use souk_event_store::{Addresses, DatabaseConfig, PostgresStore, Retention, StoreError};
use souk_proto::{
    cart::v1 as cart, catalog::v1 as catalog, internal::v1 as internal, log::v1 as log, orders::v1 as orders, stock::v1 as stock,
};
use souk_runtime::{
    GrpcServer, Listeners, Process, Queue, SchemaTooOld, Settings, limited,
    metrics::{Look, at_scrape, start_at_zero},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use crate::{
    api::{
        Admin, CartCommands, CatalogCommands, CatalogLookups, Ends, EventLogs, Nudges, OrderCommands, OrderLookups, OrderProcess,
        StockCommands, StockProcess, Topologies,
    },
    commerce::Commerce,
    committer::{Committer, Limits, Watchers, Work},
    gateway::{Gateway, LaneDoor, Lanes, Replicas, Site},
    ownership::{Directory, Held, Owner, Peers, Upkeep},
    topology::InForce,
};

/// Pause after a heartbeat that somebody asked for.
const ASKED_AGAIN: Duration = Duration::from_millis(20);
const RETRY_STORE: Duration = Duration::from_secs(1);
/// Snapshots on their way to the store; more are dropped, they are disposable.
const SNAPSHOT_QUEUE: usize = 256;

/// Serves commands until shutdown: stop accepting → answer what is under way → publish it → give up the leases.
///
/// # Errors
/// When the databases do not fit the configuration, or a server cannot be built.
pub async fn run(process: Process, listeners: Listeners) -> anyhow::Result<()> {
    let settings = process.settings.clone();
    let ready = process.health.component("write store");
    let Some((store, topology)) = connect(&settings, &process.shutdown, &ready).await? else { return Ok(()) };
    let store = Arc::new(store);
    let retention = Retention::of(settings.command.ledger_retention);
    let held = Held::default();
    let watchers = Arc::new(Watchers::default());
    let mut tasks = JoinSet::new();
    let lanes = spawn_lanes(&settings, &store, retention, &held, &watchers, &mut tasks);
    let addresses = addresses(&process, &listeners)?;
    let (directory, peers) = (Directory::default(), Peers::default());
    let owner = Owner {
        store: store.clone(),
        replica: process.replica.clone(),
        addresses: addresses.clone(),
        lanes: lanes.clone(),
        held: held.clone(),
        directory: directory.clone(),
        peers: peers.clone(),
        relays: souk_relay::connect(&settings, "souk-command", store.clone(), store.installation()).await?,
        lease_ttl: settings.command.lease_ttl,
        heartbeat_patience: settings.command.heartbeat_interval,
        suspect_ttl: settings.command.heartbeat_interval.mul_f64(1.5),
        retention,
        seen: HashMap::new(),
        highest: Epoch(0),
    };
    let upkeep = Upkeep { store: store.clone(), replica: process.replica.clone(), held: held.clone(), retention };
    let upkeep = AbortOnDropHandle::new(tokio::spawn(upkeep.run(settings.command.upkeep_interval)));
    let name = process.replica.clone();
    let replicas = Replicas { name, public_address: addresses.public.parse()?, held: held.clone(), directory, peers };
    let topology = InForce::new(topology);
    let gateway = Gateway::new(site(&settings, retention, &topology, &store), lanes, watchers, replicas);

    // All is handed over while the doors are open still, so that no caller meets a log without an owner.
    let close_doors = CancellationToken::new();
    let owning = tokio::spawn(own(owner, settings.clone(), topology.clone(), ready, process.shutdown.clone(), close_doors.clone()));
    let _figures = watch_store(store.clone(), held.clone());
    let admin = Admin { store: store.clone(), held, replica: process.replica.clone(), started: Instant::now() };
    serve(&process, listeners, gateway, Topologies { store, in_force: topology }, admin, &close_doors).await?;

    // The doors are closed; the lanes end when the last sender is gone, and the relays publish what they left.
    close_doors.cancel();
    drop(upkeep);
    let owner = owning.await?;
    let Owner { store, .. } = owner.retire(&mut tasks).await;
    store.close().await;
    info!("nothing is under way any more");
    Ok(())
}

/// Connects, for as long as databases and tables are missing that this process was not asked to make. `None` when shutdown came first.
async fn connect(
    settings: &Settings,
    shutdown: &CancellationToken,
    ready: &souk_runtime::Component,
) -> anyhow::Result<Option<(PostgresStore, Topology)>> {
    let databases: Vec<_> = (settings.write.databases.iter())
        .map(|database| DatabaseConfig {
            name: database.name.clone(),
            url: database.url.to_string(),
            pooled_url: database.pooled_url.as_ref().map(|url| url.to_string()),
            max_connections: database.max_connections,
        })
        .collect();
    loop {
        let attempt = async {
            let missing = match settings.process.migrate {
                true => PostgresStore::migrate(&databases).await.map(|()| Vec::new())?,
                false => PostgresStore::missing_migrations(&databases).await?,
            };
            if !missing.is_empty() {
                return Ok(Err(SchemaTooOld(missing)));
            }
            let store = PostgresStore::connect(&databases, settings.installation.region(), settings.installation.partitions).await?;
            let topology = store.topology().await?;
            Ok(Ok((store, topology.unwrap_or_else(|| settings.installation.alone()))))
        };
        match attempt.await {
            Ok(Ok(connected)) => return Ok(Some(connected)),
            Ok(Err(old)) => ready.not_ready(&old.to_string()),
            Err(error @ StoreError::Setup(_)) => return Err(error.into()),
            Err(error) => {
                warn!(%error, "the write store is not there yet");
                ready.not_ready(&error.to_string());
            }
        }
        tokio::select! {
            () = sleep(RETRY_STORE) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}

/// Shows what is owned of each database, and its pool.
fn watch_store(store: Arc<PostgresStore>, held: Held) -> Look {
    start_at_zero(&[
        "souk_forwarded_total",
        "souk_leases_lost_total",
        "souk_leases_handed_over_total",
        "souk_logs_restored_total",
        "souk_relay_troubles_total",
    ]);
    for database in store.databases() {
        counter!("souk_leases_taken_total", "database" => database.to_owned()).increment(0);
    }
    at_scrape(move || {
        let owned: BTreeSet<LogId> = held.each(|log, _| log).into_iter().collect();
        for (database, pool) in store.pools() {
            let region = store.region();
            let owned = store
                .partitions_of(database)
                .into_iter()
                .filter(|partition| owned.contains(&LogId { region, partition: *partition }))
                .count();
            gauge!("souk_command_partitions", "database" => database.to_owned()).set(owned as f64);
            let name = format!("write/{database}");
            let (size, idle) = (pool.size() as usize, pool.num_idle());
            for (state, count) in [("used", size.saturating_sub(idle)), ("idle", idle)] {
                gauge!("souk_pool_connections", "pool" => name.clone(), "state" => state).set(count as f64);
            }
            gauge!("souk_pool_connections_max", "pool" => name).set(f64::from(pool.options().get_max_connections()));
        }
    })
}

/// Where others reach this process.
fn addresses(process: &Process, listeners: &Listeners) -> anyhow::Result<Addresses> {
    let public = listeners.public.as_ref().map(|door| process.reached_at(door)).transpose()?.unwrap_or_default();
    Ok(Addresses { internal: process.reached_at(&listeners.internal)?, public })
}

fn site(settings: &Settings, retention: Retention, topology: &InForce, store: &Arc<PostgresStore>) -> Site {
    Site {
        region: settings.installation.region(),
        topology: topology.clone(),
        peers: settings.peers.clone(),
        copies: store.clone(),
        retention,
        payment_window: settings.command.payment_window,
        takeover_wait: settings.command.takeover_wait,
        token_key: settings.installation.token_key(),
    }
}

/// One committer per database.
fn spawn_lanes(
    settings: &Settings,
    store: &Arc<PostgresStore>,
    retention: Retention,
    held: &Held,
    watchers: &Arc<Watchers>,
    tasks: &mut JoinSet<()>,
) -> Lanes {
    let command = &settings.command;
    let limits = Limits {
        batch_commands: command.batch_commands,
        batch_bytes: command.batch_bytes,
        batch_interval: command.batch_interval,
        attempts: command.append_retries,
        cached_entities: NonZeroUsize::new(command.entity_cache_entries as usize).unwrap_or(NonZeroUsize::MIN),
        snapshot_every: command.snapshot_every.max(1),
    };
    let (snapshots, mut kept) = mpsc::channel::<(LogId, _, _, souk_event_store::StoredSnapshot)>(SNAPSHOT_QUEUE);
    let keeper = store.clone();
    tasks.spawn(async move {
        while let Some((log, epoch, stream, snapshot)) = kept.recv().await {
            if let Err(error) = keeper.keep_snapshot(log, epoch, &stream, &snapshot).await {
                warn!(%error, "a snapshot was not kept");
            }
        }
    });
    let mut lanes = Lanes::new();
    for database in store.databases() {
        let (queue, work) = mpsc::channel::<Work<Commerce>>(command.queue_length);
        let lane = store.lane(database).expect("the store named it").with_retention(retention);
        let (sink, lost) = (snapshots.clone(), held.clone());
        let keep = Box::new(move |log, epoch, stream, snapshot| drop(sink.try_send((log, epoch, stream, snapshot))));
        let committer = Committer::new(database, lane, limits.clone(), watchers.clone(), keep, Box::new(move |log| lost.lost(log)));
        tasks.spawn(committer.run(work));
        // One batch at a time.
        let door = LaneDoor { queue, waiting: Queue::new(&format!("write/{database}"), command.queue_wait, 1) };
        for partition in store.partitions_of(database) {
            lanes.insert(LogId { region: store.region(), partition }, door.clone());
        }
    }
    lanes
}

/// Keeps heartbeat and leases in order until `leave`; then hands all over, closes the doors and gives the owner
/// back.
async fn own(
    mut owner: Owner,
    settings: Arc<Settings>,
    topology: InForce,
    ready: souk_runtime::Component,
    leave: CancellationToken,
    close_doors: CancellationToken,
) -> Owner {
    let directory = owner.directory.clone();
    let mut beat = interval(settings.command.heartbeat_interval);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = leave.cancelled() => {
                owner.leave().await;
                close_doors.cancel();
                return owner;
            }
            _ = beat.tick() => {
                look_after(&mut owner, &ready).await;
                // Half an interval at most: a database that is away must not delay the heartbeats on the others.
                match timeout(settings.command.heartbeat_interval / 2, topology.refresh(&owner.store)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(%error, "the topology was not read; the last known is in force"),
                    Err(_) => warn!("the topology was not read in time; the last known is in force"),
                }
            }
            // A heartbeat out of turn, but not one after the other.
            () = directory.asked() => {
                look_after(&mut owner, &ready).await;
                sleep(ASKED_AGAIN).await;
            }
        }
    }
}

async fn look_after(owner: &mut Owner, ready: &souk_runtime::Component) {
    match owner.beat().await {
        Ok(()) => ready.ready(),
        Err(error) => {
            warn!(%error, "no heartbeat");
            ready.impaired(&error.to_string());
        }
    }
}

async fn serve(
    process: &Process,
    listeners: Listeners,
    gateway: Gateway,
    topologies: Topologies,
    admin: Admin,
    close: &CancellationToken,
) -> anyhow::Result<()> {
    let nudges = Nudges(gateway.directory().clone());
    let (store, topology) = (topologies.store.clone(), topologies.in_force.clone());
    let logs = EventLogs { ends: Ends::of(store.clone()), store, topology, retention: gateway.retention() };
    let doorkeeper = gateway.clone();
    let public = GrpcServer::new("public", process)
        .shutdown_on(close.clone())
        .while_room(move || doorkeeper.room().map_err(Into::into))
        .add(limited!(catalog::command_service_server::CommandServiceServer::new(CatalogCommands(gateway.clone())), process))
        .add(limited!(stock::command_service_server::CommandServiceServer::new(StockCommands(gateway.clone())), process))
        .add(limited!(cart::command_service_server::CommandServiceServer::new(CartCommands(gateway.clone())), process))
        .add(limited!(orders::command_service_server::CommandServiceServer::new(OrderCommands(gateway.clone())), process));
    // Commands come in here too, forwarded by other replicas.
    let internal = GrpcServer::new("internal", process)
        .shutdown_on(close.clone())
        .add(limited!(catalog::command_service_server::CommandServiceServer::new(CatalogCommands(gateway.clone())), process))
        .add(limited!(stock::command_service_server::CommandServiceServer::new(StockCommands(gateway.clone())), process))
        .add(limited!(cart::command_service_server::CommandServiceServer::new(CartCommands(gateway.clone())), process))
        .add(limited!(orders::command_service_server::CommandServiceServer::new(OrderCommands(gateway.clone())), process))
        .add(limited!(orders::lookup_service_server::LookupServiceServer::new(OrderLookups(gateway.clone())), process))
        .add(limited!(internal::ownership_service_server::OwnershipServiceServer::new(nudges), process))
        .add(limited!(internal::topology_service_server::TopologyServiceServer::new(topologies), process))
        .add(limited!(log::event_log_service_server::EventLogServiceServer::new(logs), process))
        .add(limited!(catalog::lookup_service_server::LookupServiceServer::new(CatalogLookups(gateway.clone())), process))
        .add(limited!(orders::process_service_server::ProcessServiceServer::new(OrderProcess(gateway.clone())), process))
        .add(limited!(stock::process_service_server::ProcessServiceServer::new(StockProcess(gateway)), process))
        .add(limited!(internal::admin_service_server::AdminServiceServer::new(admin), process));
    let door = listeners.public.ok_or_else(|| anyhow::anyhow!("the command service needs a public listener"))?;
    tokio::try_join!(public.serve(door), internal.serve(listeners.internal))?;
    Ok(())
}
