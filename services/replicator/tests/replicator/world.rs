//! This region: databases, NATS and the replicator, and two other regions.

use std::{sync::Arc, time::Duration};

use souk_bus::{EventSource, JetStreamBus};
use souk_devstack::{Nats, NatsOptions, Postgres, PostgresOptions, TemporaryFolder};
use souk_event_sourcing::{Epoch, LogHash, LogId, Partition, Position, Region as Number, Site, Topology, UnixMillis};
use souk_event_store::{
    Copies, DatabaseConfig, End, EpochStart, EventLog, Lost, PostgresStore, ReplicaBatch, Restored, Retention,
    conformance::{beginning, history},
};
use souk_proto::internal::v1::{GetStatusRequest, GetStatusResponse, admin_service_client::AdminServiceClient};
use souk_runtime::{Health, Listeners, Process, ServiceKind, Settings};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::region::Region;

const PARTITIONS: u16 = 2;
const RETENTION: Retention = Retention { days: 7 };
/// How long a condition may take to come true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The log that the tests are about, of region 2.
pub const LOG: LogId = LogId { region: Number(2), partition: Partition(0) };

/// Its events under one epoch.
pub fn first_events(count: u64) -> ReplicaBatch {
    history(LOG, beginning(7), count)
}

/// `held` and as many events behind it, under `epoch`.
pub fn onward(held: &ReplicaBatch, epoch: u64, count: u64) -> ReplicaBatch {
    let more = history(LOG, End { epoch: Epoch(epoch), ..end(held) }, count);
    let mut all = held.clone();
    if epoch > end(held).epoch.0 {
        all.epochs.extend(more.epochs);
    }
    all.events.extend(more.events);
    all.ledger.extend(more.ledger);
    all
}

/// The first events of what is held.
pub fn until(held: &ReplicaBatch, count: usize) -> ReplicaBatch {
    ReplicaBatch { events: held.events[..count].to_vec(), ledger: held.ledger[..count].to_vec(), ..held.clone() }
}

/// `held` as it is when it went back to before its first event and was taken anew under `epoch`.
pub fn emptied(held: &ReplicaBatch, epoch: u64) -> ReplicaBatch {
    let taken = EpochStart { epoch: Epoch(epoch), first: Position(1) };
    ReplicaBatch { epochs: [held.epochs.clone(), vec![taken]].concat(), ..until(held, 0) }
}

fn end(held: &ReplicaBatch) -> End {
    let epoch = held.epochs.last().expect("some").epoch;
    held.events.last().map_or(End { epoch, position: Position(0), hash: LogHash::EMPTY }, |last| End {
        epoch: last.epoch,
        position: last.position,
        hash: last.hash,
    })
}

/// Region 1, which copies, with regions 2 and 3.
pub struct World {
    /// Of the log.
    pub origin: Region,
    pub third: Region,
    pub store: PostgresStore,
    bus: JetStreamBus,
    nats: Nats,
    postgres: Postgres,
    _folder: TemporaryFolder,
}

impl World {
    pub async fn start() -> Self {
        let folder = TemporaryFolder::create().unwrap();
        let options = PostgresOptions { databases: vec!["w1".into()], ..PostgresOptions::new(folder.path().join("postgres")) };
        let postgres = Postgres::start(options).await.unwrap();
        let nats = Nats::start(NatsOptions::new(folder.path().join("nats"))).await.unwrap();
        let databases = [DatabaseConfig::new("w1", postgres.url("w1"), 4)];
        PostgresStore::migrate(&databases).await.unwrap();
        let store = PostgresStore::connect(&databases, Number(1), PARTITIONS).await.unwrap();
        let (origin, third) = (Region::start().await, Region::start().await);
        let site = |number, name: &str, url: &str| Site { number: Number(number), name: name.into(), command_internal: url.into() };
        let sites = vec![site(1, "eu", "http://127.0.0.1:1"), site(2, "us", &origin.url), site(3, "ap", &third.url)];
        let topology = Topology::new(1, sites, vec![Number(1); PARTITIONS.into()]).unwrap();
        assert!(store.apply_topology(&topology).await.unwrap());
        let bus = JetStreamBus::connect(&nats.url(), "souk", "test").await.unwrap();
        Self { origin, third, store, bus, nats, postgres, _folder: folder }
    }

    fn settings(&self) -> Settings {
        Settings::from_toml(&format!(
            "[installation]\nregion = \"eu\"\npartitions = {PARTITIONS}\ntoken_key = \"{}\"\n\
             [write]\ndatabases = [{{name = \"w1\", url = \"{}\"}}]\n[nats]\nurl = \"{}\"\n\
             [peers]\ncommand_internal = \"http://127.0.0.1:1\"\n[command]\nrelay_check_interval = \"200ms\"\n\
             [replicator]\nretry_backoff = \"10ms\"\nretry_backoff_max = \"50ms\"\nheartbeat_interval = \"100ms\"\n",
            "01".repeat(32),
            self.postgres.url("w1"),
            self.nats.url(),
        ))
        .unwrap()
    }

    pub async fn replicator(&self) -> Replicator {
        let shutdown = CancellationToken::new();
        let process = Process::new(Arc::new(self.settings()), ServiceKind::Replicator, &Health::new(), shutdown.clone());
        let internal = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", internal.local_addr().unwrap());
        let running = tokio::spawn(souk_replicator::run(process, Listeners { public: None, internal }));
        Replicator { address, shutdown, running }
    }

    /// Drops the children of the event table that have events, as a backup made before the first one has none of them.
    pub async fn forget_tables(&self) {
        let mut connection = self.postgres.connect("w1").await.unwrap();
        let children: Vec<String> =
            sqlx::query_scalar("select distinct tableoid::regclass::text from event").fetch_all(&mut connection).await.unwrap();
        for child in children {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop table {child}"))).execute(&mut connection).await.unwrap();
        }
    }

    /// Where the copy ends.
    /// Lets nobody write the copy until it is dropped.
    pub async fn locked(&self) -> sqlx::Transaction<'static, sqlx::Postgres> {
        let mut transaction = sqlx::PgPool::connect(&self.postgres.url("w1")).await.unwrap().begin().await.unwrap();
        let statement = "select from partition_head where region = $1 and partition = $2 for update";
        let (region, partition) = (LOG.region.0 as i16, i32::from(LOG.partition.0));
        sqlx::query(statement).bind(region).bind(partition).fetch_one(&mut *transaction).await.unwrap();
        transaction
    }

    pub async fn position(&self) -> u64 {
        self.store.head(LOG).await.unwrap().position.0
    }

    /// Waits until the copy is this and no more, here and in JetStream, event by event.
    pub async fn copies(&self, held: &ReplicaBatch) {
        wait("the copy ends as it should", async || End::from(&self.store.head(LOG).await.unwrap()) == end(held)).await;
        assert_eq!(self.store.read(LOG, Position(1), 10_000).await.unwrap(), held.events);
        assert_eq!(self.store.head(LOG).await.unwrap().epochs, held.epochs);
        wait("JetStream has the same", async || self.published(held.events.len()).await.as_ref() == Some(&held.events)).await;
    }

    async fn published(&self, count: usize) -> Option<Vec<souk_event_sourcing::RecordedEvent>> {
        let read = async {
            let mut stream = self.bus.consume(LOG, Position(1)).await.ok()?;
            let mut events = Vec::new();
            while events.len() < count {
                events.push(stream.next().await?.ok()?);
            }
            Some(events)
        };
        tokio::time::timeout(Duration::from_secs(1), read).await.ok().flatten()
    }

    /// Waits until the ledger remembers the commands of all these events.
    pub async fn remembers(&self, held: &ReplicaBatch) {
        let wanted = held.ledger.len();
        wait("the ledger remembers", async || self.remembered(held).await == wanted).await;
        let mut found = self.store.ledger_of(LOG, &held.events, RETENTION).await.unwrap();
        let mut rows = held.ledger.clone();
        found.sort_by_key(|row| row.request_id.0);
        rows.sort_by_key(|row| row.request_id.0);
        assert_eq!(found, rows);
    }

    /// How many of these events' commands the ledger remembers.
    pub async fn remembered(&self, held: &ReplicaBatch) -> usize {
        self.store.ledger_of(LOG, &held.events, RETENTION).await.unwrap().len()
    }

    /// How many events are written down that were lost behind the fork when the log went on under `epoch`.
    pub async fn lost(&self, epoch: u64, fork: usize) -> usize {
        let lost = Lost { epoch: Epoch(7), position: Position(0) };
        let (epoch, fork) = (Epoch(epoch), Position(fork as u64));
        let of = Restored { log: LOG, epoch, fork, lost, found: UnixMillis::now(), found_by: String::new(), kept: 0 };
        self.store.lost_events(&of, fork.next(), 1_000).await.unwrap().len()
    }

    /// Waits until the origin vouches for all of the copy.
    pub async fn is_proven(&self) {
        wait("the origin vouches for it", async || self.store.unproven(LOG).await.unwrap().is_none()).await;
    }
}

/// A replicator of this region.
pub struct Replicator {
    address: String,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Replicator {
    async fn status(&self) -> GetStatusResponse {
        let mut admin = AdminServiceClient::connect(self.address.clone()).await.unwrap();
        admin.get_status(GetStatusRequest {}).await.unwrap().into_inner()
    }

    /// One figure of its status; 0 as long as it is not there.
    pub async fn figure(&self, name: &str) -> f64 {
        self.status().await.figures.get(name).copied().unwrap_or_default()
    }

    /// Ends it in order.
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.expect("it drains").unwrap().unwrap();
    }

    /// Ends it as a kill does: nothing is handed over, nothing finished.
    pub async fn kill(self) {
        self.running.abort();
        self.running.await.expect_err("aborted");
    }
}

/// Waits for a condition.
pub async fn wait(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}
