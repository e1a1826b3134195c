//! Whole shards over memory: what the bus, the event log and the store may do, and what the views are then.
//!
//! # Layout
//! - here: projectors over one store, one bus and one event log, and a store that fails
//! - `following`: any trouble of bus, log and store; `parking`: events that cannot be applied; `sharing`: several projectors;
//!   `hanging`: what never returns

mod following;
mod hanging;
mod parking;
mod sharing;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use souk_bus::MemoryBus;
use souk_event_sourcing::{LogId, Position, RecordedEvent, StreamId, UnixMillis};
use souk_proto::log::v1::{Event, HeadAnnouncement};
use souk_read_store::{
    Batch, Checkpoint, Fence, Members, MemoryViews, Page, ParkedEntity, ParkedEvent, ParkedQuery, ReadStoreError, Replica, Row, RowKey,
    Table, Value, ViewStore, Written,
};
use souk_runtime::Health;
use souk_views::{TABLES, comparable, fold_reference, is_marker};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    board::Board,
    changes::Changes,
    heads::Heads,
    parking::Errands,
    shard::{Ports, Shard, Writer},
    testing::{CONFIG, Messy, Truth, hang, log},
};

/// Projectors over one store, one bus and one event log.
struct World {
    logs: Vec<LogId>,
    bus: Arc<Messy>,
    truth: Arc<Truth>,
    store: Arc<Flaky>,
    feed: MemoryBus,
    heads: Heads,
    health: Health,
    config: Config,
}

struct Running {
    shutdown: CancellationToken,
    shard: JoinHandle<()>,
    board: Board,
    errands: Errands,
}

impl World {
    fn new(logs: u16, bus: Messy, faults: Vec<u8>) -> Self {
        let logs: Vec<_> = (0..logs).map(log).collect();
        Self {
            bus: Arc::new(bus),
            truth: Arc::default(),
            store: Arc::new(Flaky {
                inner: MemoryViews::new(logs.clone(), TABLES),
                faults,
                next: AtomicU64::new(0),
                refuses: Mutex::default(),
                learned: AtomicBool::new(false),
                hangs: AtomicUsize::new(0),
                broken_rewinds: AtomicUsize::new(0),
                takes_none: AtomicBool::new(false),
                slowness: AtomicUsize::new(0),
                writing: AtomicBool::new(false),
                loads_meanwhile: AtomicUsize::new(0),
                largest: AtomicUsize::new(0),
            }),
            feed: MemoryBus::default(),
            heads: Heads::new(logs.clone()),
            health: Health::new(),
            config: CONFIG,
            logs,
        }
    }

    /// Puts events into the log and on the bus, and announces the head.
    fn publish(&self, events: &[RecordedEvent]) {
        self.truth.put(events);
        self.bus.holds.put(events);
        self.announce(events);
    }

    fn announce(&self, events: &[RecordedEvent]) {
        let last = events.last().unwrap();
        self.heads.announce(&HeadAnnouncement {
            region: last.log.region.0.into(),
            partition: last.log.partition.0.into(),
            epoch: last.epoch.0,
            position: last.position.0,
            hash: last.hash.0.to_vec().into(),
            ..Default::default()
        });
    }

    fn start(&self) -> Running {
        self.start_as("one")
    }

    fn start_as(&self, name: &str) -> Running {
        self.start_writer(name, 0, 1)
    }

    fn start_writer(&self, name: &str, number: usize, writers: usize) -> Running {
        let replica = Replica { id: name.to_owned(), address: String::new() };
        let writer = Writer { database: "r0".to_owned(), number };
        let share = writer.share(writers, &self.logs);
        let (changes, _) = Changes::start(Arc::new(self.feed.clone()));
        let board = Board::new(self.heads.clone());
        let ports = Ports { source: self.bus.clone(), truth: self.truth.clone(), heads: self.heads.clone(), changes, board: board.clone() };
        let component = self.health.component("database r0");
        let shard = Shard::new(writer, replica, self.store.clone(), share, ports, self.config, component);
        let (shutdown, errands) = (CancellationToken::new(), shard.errands());
        Running { shard: tokio::spawn(shard.run(shutdown.clone())), shutdown, board, errands }
    }

    async fn checkpoint(&self, log: LogId) -> Checkpoint {
        self.store.inner.checkpoints(&[log]).await.unwrap()[0]
    }

    /// Waits until the views have reached the end of these events, and are said to be whole; compares them with the fold.
    async fn reach(&self, events: &[RecordedEvent]) {
        let end = events.last().unwrap();
        wait(|| async {
            let checkpoint = self.checkpoint(end.log).await;
            (checkpoint.position, checkpoint.hash, checkpoint.rebuilding) == (end.position, end.hash, false)
        })
        .await;
        self.hold_fold_of(end.log, events).await;
    }

    /// The rows of a log are the fold of these events.
    async fn hold_fold_of(&self, log: LogId, events: &[RecordedEvent]) {
        let reference = fold_reference(events).unwrap();
        for table in TABLES.iter().copied() {
            let stored = self.store.inner.scan(table, log, None, usize::MAX).await.unwrap().rows;
            let stored: Vec<_> = stored.into_iter().filter(|row| !is_marker(row)).map(|row| comparable(table, row)).collect();
            assert_eq!(stored, reference.rows(table), "{}", table.name);
        }
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.shard.await.unwrap();
    }
}

/// Waits for a condition; a minute is an error.
async fn wait<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the condition is met in time");
}

/// A store whose connection breaks as its numbers say, before a write or after it.
struct Flaky {
    inner: MemoryViews,
    faults: Vec<u8>,
    next: AtomicU64,
    /// A row that the database refuses as long as it does not reach beyond a position.
    refuses: Mutex<Option<(RowKey, Position)>>,
    /// Whether events set aside come back as ones that the code knows, as if it had learned of them.
    learned: AtomicBool,
    /// How many writes to come never return.
    hangs: AtomicUsize,
    /// How many rewinds to come break the connection.
    broken_rewinds: AtomicUsize,
    /// Whether every write breaks the connection.
    takes_none: AtomicBool,
    /// How often others have their turn while a batch is written.
    slowness: AtomicUsize,
    /// Whether one is being written.
    writing: AtomicBool,
    /// How often rows were asked for meanwhile.
    loads_meanwhile: AtomicUsize,
    /// Bytes of rows in the largest batch that was to be written.
    largest: AtomicUsize,
}

impl Flaky {
    fn fault(&self) -> u8 {
        // Faults end: going round, they could meet the same call of every attempt for ever.
        let next = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        self.faults.get(next).copied().unwrap_or(255)
    }

    /// Whether a batch changes the refused row; to mark it is fine.
    fn refuses(&self, batch: &Batch) -> bool {
        let refused = self.refuses.lock().unwrap();
        let Some((key, until)) = refused.as_ref() else { return false };
        batch.rows.values().flatten().any(|row| row.key == *key && row.position <= *until && row.values[2] == Value::Null)
    }

    fn broken<T>() -> Result<T, ReadStoreError> {
        let source = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        Err(ReadStoreError::Database { database: "r0".to_owned(), source })
    }
}

#[async_trait]
impl ViewStore for Flaky {
    async fn heartbeat(&self, replica: &Replica) -> Result<(), ReadStoreError> {
        if self.fault() < 5 { Self::broken() } else { self.inner.heartbeat(replica).await }
    }

    async fn members(&self, ttl: Duration) -> Result<Members, ReadStoreError> {
        self.inner.members(ttl).await
    }

    async fn claim(&self, logs: &[LogId], replica: &str, ttl: Duration, now: UnixMillis) -> Result<Vec<Checkpoint>, ReadStoreError> {
        match self.fault() {
            0..10 => Self::broken(),
            10..20 => {
                self.inner.claim(logs, replica, ttl, now).await?;
                Self::broken()
            }
            _ => self.inner.claim(logs, replica, ttl, now).await,
        }
    }

    async fn release(&self, logs: &[LogId], replica: &str) -> Result<(), ReadStoreError> {
        if self.fault() < 10 { Self::broken() } else { self.inner.release(logs, replica).await }
    }

    async fn leave(&self, replica: &str) -> Result<(), ReadStoreError> {
        self.inner.leave(replica).await
    }

    async fn checkpoints(&self, logs: &[LogId]) -> Result<Vec<Checkpoint>, ReadStoreError> {
        if self.fault() < 5 { Self::broken() } else { self.inner.checkpoints(logs).await }
    }

    async fn load(&self, table: &'static Table, keys: &[RowKey]) -> Result<Vec<Row>, ReadStoreError> {
        self.loads_meanwhile.fetch_add(self.writing.load(Ordering::Relaxed).into(), Ordering::Relaxed);
        if self.fault() < 10 { Self::broken() } else { self.inner.load(table, keys).await }
    }

    async fn write(&self, batch: &Batch) -> Result<Written, ReadStoreError> {
        hang(&self.hangs).await;
        self.largest.fetch_max(batch.rows.values().flatten().map(Row::bytes).sum(), Ordering::Relaxed);
        self.writing.store(true, Ordering::Relaxed);
        for _ in 0..self.slowness.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        self.writing.store(false, Ordering::Relaxed);
        if self.takes_none.load(Ordering::Relaxed) {
            return Self::broken();
        }
        if self.refuses(batch) {
            let source = sqlx::Error::Database(Box::new(BadData));
            return Err(ReadStoreError::Database { database: "r0".to_owned(), source });
        }
        match self.fault() {
            0..20 => Self::broken(),
            20..40 => {
                self.inner.write(batch).await?;
                Self::broken()
            }
            _ => self.inner.write(batch).await,
        }
    }

    async fn rewind(&self, log: LogId, fence: Fence, now: UnixMillis) -> Result<bool, ReadStoreError> {
        if self.broken_rewinds.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Self::broken();
        }
        self.inner.rewind(log, fence, now).await
    }

    async fn parked_entities(&self, query: ParkedQuery<'_>) -> Result<Vec<ParkedEntity>, ReadStoreError> {
        self.inner.parked_entities(query).await
    }

    async fn parked_events(
        &self,
        log: LogId,
        stream: &StreamId,
        after: Position,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadStoreError> {
        let mut events = self.inner.parked_events(log, stream, after, limit).await?;
        if self.learned.load(Ordering::Relaxed) {
            events.iter_mut().for_each(|event| event.envelope = known(&event.envelope));
        }
        Ok(events)
    }

    async fn blame(&self, log: LogId, fence: Fence, stream: &StreamId, reason: &str) -> Result<bool, ReadStoreError> {
        self.inner.blame(log, fence, stream, reason).await
    }

    async fn scan(&self, table: &'static Table, log: LogId, after: Option<&RowKey>, limit: usize) -> Result<Page, ReadStoreError> {
        self.inner.scan(table, log, after, limit).await
    }
}

/// SQLSTATE 22021, as for a text with U+0000.
#[derive(Debug)]
struct BadData;

impl fmt::Display for BadData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid byte sequence")
    }
}

impl std::error::Error for BadData {}

impl sqlx::error::DatabaseError for BadData {
    fn message(&self) -> &str {
        "invalid byte sequence"
    }

    fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some("22021".into())
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> sqlx::error::ErrorKind {
        sqlx::error::ErrorKind::Other
    }
}

/// Begins the names of events that no code here knows.
const UNKNOWN: &str = "Unknown";

/// The event under the name that newer code knows it by.
fn known(envelope: &Bytes) -> Bytes {
    let event = Event::decode(envelope.clone()).unwrap();
    let kind = event.r#type.trim_start_matches(UNKNOWN).to_owned();
    Event { r#type: kind, ..event }.encode_to_vec().into()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}
