//! Real Postgres (two read databases) and NATS, the whole query service, and in place of log and projector a test that
//! folds events of its own with the real views.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use souk_bus::{Feed, JetStreamBus};
use souk_devstack::{Nats, NatsOptions, Postgres, PostgresOptions, TemporaryFolder};
use souk_event_sourcing::{
    Epoch, EventId, Hlc, LogHash, LogId, LogPosition, Partition, Position, RecordedEvent, Region, StreamId, Token, TokenKey, UnixMillis,
    Version, partition_of, routing_hash,
};
use souk_proto::{
    common::v1::Money,
    internal::v1::{GetStatusRequest, GetStatusResponse, admin_service_client::AdminServiceClient},
    log::v1::{ChangeFeed, ChangedRow},
};
use souk_read_store::{Advance, Batch, Checkpoint, DatabaseConfig, Installation, ParkedEvent, PostgresViews, ReadStore, Row, ViewStore};
use souk_runtime::{Health, Listeners, Process, ServiceKind, Settings};
use souk_views::{Folder, TABLES, ViewsMigrator, changed_body, revision};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Uuid;

pub const PARTITIONS: u16 = 8;
pub const KEY: TokenKey = TokenKey::new([1; 32]);
/// 2023-11-14 22:13:20 UTC
pub const START_MS: i64 = 1_700_000_000_000;
const DATABASES: [&str; 2] = ["r0", "r1"];

pub struct Servers {
    pub postgres: Postgres,
    pub nats: Nats,
    _folder: TemporaryFolder,
}

impl Servers {
    pub async fn start() -> Self {
        let folder = TemporaryFolder::create().unwrap();
        let postgres = Postgres::start(PostgresOptions::new(folder.path().join("postgres"))).await.unwrap();
        for name in DATABASES {
            postgres.create_database(name).await.unwrap();
        }
        let nats = Nats::start(NatsOptions::new(folder.path().join("nats"))).await.unwrap();
        Self { postgres, nats, _folder: folder }
    }

    pub fn databases(&self) -> Vec<DatabaseConfig> {
        let config = |name: &&str| DatabaseConfig::new(*name, self.postgres.url(name), 4);
        DATABASES.iter().map(config).collect()
    }

    pub async fn install(&self) -> ReadStore {
        ReadStore::install::<ViewsMigrator>(&self.databases(), installation(), UnixMillis::now()).await.unwrap()
    }

    pub fn settings(&self) -> Settings {
        let database = |name: &&str| format!("{{name = \"{name}\", url = \"{}\", max_connections = 4}}", self.postgres.url(name));
        let databases: Vec<_> = DATABASES.iter().map(database).collect();
        Settings::from_toml(&format!(
            "[installation]\npartitions = {PARTITIONS}\ntoken_key = \"{}\"\n[read]\ndatabases = [{}]\n[nats]\nurl = \"{}\"\n\
             [query]\nwatch_heartbeat = \"300ms\"\nunproven_after = \"2s\"\n",
            "01".repeat(32),
            databases.join(", "),
            self.nats.url(),
        ))
        .unwrap()
    }
}

pub fn installation() -> Installation {
    Installation { region: Region(1), partitions: PARTITIONS }
}

/// The service, run in this process as its main does.
pub struct Service {
    pub channel: Channel,
    pub health: Health,
    pub address: String,
    internal: String,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Service {
    pub async fn start(settings: Settings) -> Self {
        let (health, shutdown) = (Health::new(), CancellationToken::new());
        let process = Process::new(Arc::new(settings), ServiceKind::Query, &health, shutdown.clone());
        let (public, internal) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (public_address, internal_address) = (address(&public), address(&internal));
        let running = tokio::spawn(souk_query::run(process, Listeners { public: Some(public), internal }));
        let channel = Channel::from_shared(public_address.clone()).unwrap().connect().await.unwrap();
        Self { channel, health, address: public_address, internal: internal_address, shutdown, running }
    }

    pub async fn ready(&self) {
        wait("the service is ready", || async { self.health.is_ready() && self.health.impairments().is_empty() }).await;
    }

    pub async fn status(&self) -> GetStatusResponse {
        let mut admin = AdminServiceClient::connect(self.internal.clone()).await.unwrap();
        admin.get_status(GetStatusRequest {}).await.unwrap().into_inner()
    }

    /// A named figure of its status.
    pub async fn figure(&self, name: &str) -> f64 {
        self.status().await.figures.get(name).copied().unwrap_or(f64::NAN)
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.expect("it drains").unwrap().unwrap();
    }
}

pub async fn wait<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Log and projector.
pub struct Shop {
    store: ReadStore,
    bus: JetStreamBus,
    folder: Folder,
    held: HashMap<LogId, Checkpoint>,
    recorded: HashMap<LogId, (Position, LogHash)>,
    versions: HashMap<StreamId, Version>,
    pending: Vec<RecordedEvent>,
    logs: HashMap<LogId, Vec<RecordedEvent>>,
    events: u64,
    pub epoch: Epoch,
}

impl Shop {
    pub async fn open(servers: &Servers) -> Self {
        Self::over(servers.install().await, &servers.nats).await
    }

    pub async fn over(store: ReadStore, nats: &Nats) -> Self {
        let bus = JetStreamBus::connect(&nats.url(), "souk", "test projector").await.unwrap();
        bus.client().flush().await.unwrap();
        let mut held = HashMap::new();
        for database in store.databases() {
            let views = PostgresViews::new(database.clone(), TABLES);
            for checkpoint in views.claim(&store.logs_of(database.name()), "test", Duration::ZERO, UnixMillis::now()).await.unwrap() {
                held.insert(checkpoint.log, checkpoint);
            }
        }
        let folder = Folder::new(10_000);
        Self {
            store,
            bus,
            folder,
            held,
            recorded: HashMap::new(),
            versions: HashMap::new(),
            pending: Vec::new(),
            logs: HashMap::new(),
            events: 0,
            epoch: Epoch(1_000),
        }
    }

    /// An event in the log, not projected yet. The time grows by a second with each.
    pub fn record(&mut self, routing_key: &str, stream: &str, kind: &str, payload: impl Message) -> Token {
        let log = log_of(routing_key);
        let stream: StreamId = stream.parse().unwrap();
        let (position, hash) = self.recorded.get(&log).copied().unwrap_or((Position(0), LogHash::EMPTY));
        let version = self.versions.entry(stream.clone()).or_default();
        *version = version.next();
        self.events += 1;
        let mut event = RecordedEvent {
            log,
            position: position.next(),
            epoch: self.epoch,
            hash,
            stream,
            version: *version,
            kind: kind.to_owned(),
            schema_version: 1,
            payload: payload.encode_to_vec().into(),
            event_id: EventId(Uuid::from_u128(self.events.into())),
            request_id: None,
            causation_id: None,
            correlation_id: None,
            actor: "tester".to_owned(),
            hlc: Hlc::new(UnixMillis(self.now_ms()), 0),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = hash.after(&event);
        self.recorded.insert(log, (event.position, event.hash));
        let token = LogPosition { log, epoch: event.epoch, position: event.position };
        self.logs.entry(log).or_default().push(event.clone());
        self.pending.push(event);
        token.into()
    }

    /// The time of the last event.
    pub fn now_ms(&self) -> i64 {
        START_MS + 1_000 * self.events as i64
    }

    /// Name of the database that holds an entity's rows.
    pub fn database_of(&self, routing_key: &str) -> &str {
        self.store.database_of(log_of(routing_key)).unwrap().name()
    }

    /// Projects what is pending, log by log, and announces it.
    pub async fn project(&mut self) {
        for message in self.project_silently().await {
            self.bus.publish_changes(message).await.unwrap();
        }
        self.bus.client().flush().await.unwrap();
    }

    /// The same without a word; returns what should have been said.
    pub async fn project_silently(&mut self) -> Vec<ChangeFeed> {
        let mut by_log: HashMap<LogId, Vec<RecordedEvent>> = HashMap::new();
        for event in std::mem::take(&mut self.pending) {
            by_log.entry(event.log).or_default().push(event);
        }
        let mut messages = Vec::new();
        for (log, events) in by_log {
            messages.push(self.project_log(log, &events).await);
        }
        messages
    }

    async fn project_log(&mut self, log: LogId, events: &[RecordedEvent]) -> ChangeFeed {
        let views = PostgresViews::new(self.store.database_of(log).unwrap().clone(), TABLES);
        self.folder.prepare(&views, events).await.unwrap();
        let (from, last) = (self.held[&log], events.last().unwrap());
        let now = UnixMillis::now();
        let mut parked = Vec::new();
        for event in events {
            if let Err(poison) = self.folder.apply(event) {
                self.folder.park(event, now);
                let (position, stream, reason) = (event.position, event.stream.clone(), poison.to_string());
                parked.push(ParkedEvent { log, position, stream, envelope: Bytes::new(), reason, since: now });
            }
        }
        let rows = self.folder.finish();
        let advance = Advance {
            log,
            fence: from.fence,
            from_epoch: from.epoch,
            from_position: from.position,
            epoch: last.epoch,
            position: last.position,
            hash: last.hash,
            whole: Some((last.position, last.hash)) == self.recorded.get(&log).copied(),
        };
        let changed = changed_rows(&rows);
        let written =
            views.write(&Batch { advances: vec![advance], rows, parked, revision: revision(), now, ..Batch::default() }).await.unwrap();
        assert!(written.lost.is_empty(), "another projector writes");
        let to = written.moved[0];
        self.held.insert(log, to);
        ChangeFeed { rows: changed, from_position: from.position.0, ..announcement(&to) }
    }

    /// Empties the views of a log, as a projector does to make them anew, and says nothing.
    pub async fn empty(&mut self, log: LogId) {
        let views = PostgresViews::new(self.store.database_of(log).unwrap().clone(), TABLES);
        assert!(views.rewind(log, self.held[&log].fence, UnixMillis::now()).await.unwrap());
        self.folder.forget(log);
        self.held.insert(log, views.checkpoints(&[log]).await.unwrap()[0]);
    }

    /// Folds the next events of a log that was emptied, at most `count`.
    pub async fn fold_anew(&mut self, log: LogId, count: usize) {
        let events = self.logs[&log].iter().skip(self.held[&log].position.0 as usize).take(count).cloned().collect::<Vec<_>>();
        self.project_log(log, &events).await;
    }

    /// Takes back all but the first `count` events of a log; what is recorded from now on has a later epoch.
    pub fn restore(&mut self, log: LogId, count: usize) {
        let events = self.logs.get_mut(&log).unwrap();
        for event in events.drain(count..) {
            self.versions.entry(event.stream).and_modify(|version| version.0 -= 1);
        }
        let last = events.last().unwrap();
        self.recorded.insert(log, (last.position, last.hash));
        self.epoch = Epoch(self.epoch.0 + 1);
    }

    /// What a projector says of every log, each second; unheard while NATS is away.
    pub async fn announce(&self) {
        for checkpoint in self.held.values() {
            let _ = self.bus.publish_changes(announcement(checkpoint)).await;
        }
    }

    /// Announces until the returned handle is aborted.
    pub fn keep_announcing(&self) -> JoinHandle<()> {
        let (bus, checkpoints): (_, Vec<_>) = (self.bus.clone(), self.held.values().map(announcement).collect());
        tokio::spawn(async move {
            loop {
                for checkpoint in &checkpoints {
                    let _ = bus.publish_changes(checkpoint.clone()).await;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    }

    /// Waits until the service has heard all that was projected.
    pub async fn heard_by(&self, service: &Service) {
        wait("the service has heard the feed", || async {
            self.announce().await;
            let status = service.status().await;
            status.partitions.iter().all(|partition| {
                let held = &self.held[&log(partition.partition as u16)];
                (partition.epoch, partition.position) == (held.epoch.0, held.position.0)
            }) && self.held.keys().all(|log| status.figures.contains_key(&format!("feed_age_seconds.{}.{}", log.region, log.partition)))
        })
        .await;
    }
}

fn announcement(checkpoint: &Checkpoint) -> ChangeFeed {
    ChangeFeed {
        region: checkpoint.log.region.0.into(),
        partition: checkpoint.log.partition.0.into(),
        epoch: checkpoint.epoch.0,
        from_position: checkpoint.position.0,
        position: checkpoint.position.0,
        revision: checkpoint.revision,
        repaired_ms: checkpoint.repaired.0,
        time_ms: checkpoint.written.0,
        rebuilding: checkpoint.rebuilding,
        ..Default::default()
    }
}

fn changed_rows(rows: &std::collections::BTreeMap<&'static str, Vec<Row>>) -> Vec<ChangedRow> {
    let rows = rows.iter().flat_map(|(view, rows)| rows.iter().map(move |row| (*view, row)));
    rows.filter_map(|(view, row)| {
        let (key, body): (&str, Option<&Bytes>) = changed_body(view, row)?;
        Some(ChangedRow { view: view.to_owned(), key: key.to_owned(), row: body.cloned() })
    })
    .collect()
}

pub fn log(partition: u16) -> LogId {
    LogId { region: Region(1), partition: Partition(partition) }
}

pub fn log_of(routing_key: &str) -> LogId {
    log(partition_of(routing_hash(routing_key), PARTITIONS).0)
}

/// An order id as the write side mints them for this customer.
pub fn order_id(customer: &str, number: u64) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bytes = [0; 20];
    bytes[7] = 1;
    bytes[8..12].copy_from_slice(&routing_hash(customer).to_be_bytes());
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    let bit = |index: usize| usize::from(bytes[index / 8] >> (7 - index % 8) & 1);
    (0..32).map(|digit| char::from(ALPHABET[(0..5).fold(0, |value, offset| value << 1 | bit(digit * 5 + offset))])).collect()
}

pub fn eur(minor_units: i64) -> Money {
    Money { currency: "EUR".to_owned(), minor_units }
}

pub fn text(token: &Token) -> String {
    token.encode(&KEY)
}

/// A request whose caller waits this long.
pub fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Code and reason of a failure.
pub fn reason(status: &Status) -> (Code, String) {
    (status.code(), status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default())
}

pub fn bad_fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}
