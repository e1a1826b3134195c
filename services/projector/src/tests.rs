//! Whole shards over memory: what the bus, the event log and the store may do, and what the views are then.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use proptest::prelude::*;
use souk_bus::{Feed, MemoryBus};
use souk_event_sourcing::{LogId, Position, RecordedEvent, Region, UnixMillis};
use souk_proto::log::v1::{ChangeFeed, HeadAnnouncement};
use souk_read_store::{
    Advance, Batch, Checkpoint, Fence, MemoryViews, Page, ReadStoreError, Row, RowKey, Table, Value, ViewStore, Written,
};
use souk_runtime::Health;
use souk_views::{AVAILABILITY, TABLES, fold_reference};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    board::Board,
    changes::Changes,
    heads::Heads,
    shard::{Ports, Shard},
    testing::{CONFIG, Messy, Truth, Writer, filled, history, log, rewritten},
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
}

struct Running {
    shutdown: CancellationToken,
    shard: JoinHandle<()>,
    board: Board,
}

impl World {
    fn new(logs: u16, bus: Messy, faults: Vec<u8>) -> Self {
        let logs: Vec<_> = (0..logs).map(log).collect();
        Self {
            bus: Arc::new(bus),
            truth: Arc::default(),
            store: Arc::new(Flaky { inner: MemoryViews::new(logs.clone(), TABLES), faults, next: AtomicU64::new(0) }),
            feed: MemoryBus::default(),
            heads: Heads::new(logs.clone()),
            health: Health::new(),
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
        });
    }

    fn start(&self) -> Running {
        let (changes, _) = Changes::start(Arc::new(self.feed.clone()));
        let board = Board::new(self.heads.clone());
        let ports = Ports { source: self.bus.clone(), truth: self.truth.clone(), heads: self.heads.clone(), changes, board: board.clone() };
        let component = self.health.component("database r0");
        let shard = Shard::new("r0".to_owned(), self.store.clone(), self.logs.clone(), ports, CONFIG, component);
        let shutdown = CancellationToken::new();
        Running { shard: tokio::spawn(shard.run(shutdown.clone())), shutdown, board }
    }

    async fn checkpoint(&self, log: LogId) -> Checkpoint {
        self.store.inner.checkpoints(&[log]).await.unwrap()[0]
    }

    /// Waits until the views have reached the end of these events, and compares them with the fold.
    async fn reach(&self, events: &[RecordedEvent]) {
        let end = events.last().unwrap();
        wait(|| async {
            let checkpoint = self.checkpoint(end.log).await;
            (checkpoint.position, checkpoint.hash) == (end.position, end.hash)
        })
        .await;
        let reference = fold_reference(events).unwrap();
        for table in TABLES.iter().copied() {
            let stored = self.store.inner.scan(table, end.log, None, usize::MAX).await.unwrap();
            assert_eq!(stored.rows, reference.rows(table), "{}", table.name);
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
}

impl Flaky {
    fn fault(&self) -> u8 {
        // Faults end: going round, they could meet the same call of every attempt for ever.
        let next = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        self.faults.get(next).copied().unwrap_or(255)
    }

    fn broken<T>() -> Result<T, ReadStoreError> {
        let source = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        Err(ReadStoreError::Database { database: "r0".to_owned(), source })
    }
}

#[async_trait]
impl ViewStore for Flaky {
    async fn claim(&self, logs: &[LogId], now: UnixMillis) -> Result<Vec<Checkpoint>, ReadStoreError> {
        if self.fault() < 10 { Self::broken() } else { self.inner.claim(logs, now).await }
    }

    async fn checkpoints(&self, logs: &[LogId]) -> Result<Vec<Checkpoint>, ReadStoreError> {
        if self.fault() < 5 { Self::broken() } else { self.inner.checkpoints(logs).await }
    }

    async fn load(&self, table: &'static Table, keys: &[RowKey]) -> Result<Vec<Row>, ReadStoreError> {
        if self.fault() < 10 { Self::broken() } else { self.inner.load(table, keys).await }
    }

    async fn write(&self, batch: &Batch) -> Result<Written, ReadStoreError> {
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
        self.inner.rewind(log, fence, now).await
    }

    async fn scan(&self, table: &'static Table, log: LogId, after: Option<&RowKey>, limit: usize) -> Result<Page, ReadStoreError> {
        self.inner.scan(table, log, after, limit).await
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Law 5, from the consumer to the rows: any batching, duplication, loss, reordering and forgery of messages, and any
    /// broken connection, ends in the same rows.
    #[test]
    fn whatever_bus_and_store_do_the_rows_are_the_fold(
        lengths in prop::collection::vec(1..60usize, 1..4),
        bus in prop::collection::vec(any::<u8>(), 1..97),
        store in prop::collection::vec(any::<u8>(), 0..150),
        two_projectors in any::<bool>(),
    ) {
        run(async {
            let world = World::new(lengths.len() as u16, Messy::new(bus), store);
            let logs: Vec<_> = lengths.iter().zip(0..).map(|(length, partition)| filled(Writer::new(log(partition)), *length).events).collect();
            logs.iter().for_each(|events| world.publish(events));
            let first = world.start();
            let second = two_projectors.then(|| world.start());
            for events in &logs {
                world.reach(events).await;
            }
            first.stop().await;
            if let Some(second) = second {
                second.stop().await;
            }
            for events in &logs {
                world.reach(events).await;
            }
        });
    }
}

#[tokio::test]
async fn views_go_on_from_the_event_log_when_the_bus_is_gone() {
    let world = World::new(1, Messy::tidy(), vec![]);
    world.bus.holds.down.store(true, Ordering::Relaxed);
    let events = history(12);
    world.truth.put(&events);
    let running = world.start();
    world.reach(&events).await;
    running.stop().await;
}

#[tokio::test]
async fn a_stream_that_silently_lost_its_end_is_made_good_from_the_event_log() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let events = history(12);
    world.truth.put(&events);
    world.bus.holds.put(&events[..5]);
    world.announce(&events);
    let running = world.start();
    world.reach(&events).await;
    running.stop().await;
}

/// Every consumer meets the same fault at its first message: a broken connection, an end, garbage, a forged event; or there
/// is none at all.
#[tokio::test]
async fn a_bus_that_never_gets_past_the_next_message_does_not_stop_the_views() {
    for fault in [62, 68, 71, 75, 0] {
        let world = World::new(1, Messy::new(vec![fault]), vec![]);
        let events = history(12);
        world.publish(&events);
        let running = world.start();
        world.reach(&events).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_log_that_went_back_is_folded_anew() {
    let world = World::new(2, Messy::tidy(), vec![]);
    let (old, other) = (history(12), filled(Writer::new(log(1)), 4).events);
    world.publish(&old);
    world.publish(&other);
    let running = world.start();
    world.reach(&old).await;
    // Restored to 7 events and written on; the bus knows nothing of it.
    let new = rewritten(10, 7);
    world.truth.put(&new);
    // Owners announce again and again.
    wait(|| async {
        world.announce(&new);
        world.checkpoint(log(0)).await.hash == new[9].hash
    })
    .await;
    world.reach(&new).await;
    world.reach(&other).await;
    running.stop().await;
}

#[tokio::test]
async fn a_checkpoint_that_the_log_does_not_know_is_noticed_at_start() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let old = history(12);
    world.publish(&old);
    let running = world.start();
    world.reach(&old).await;
    running.stop().await;
    let new = rewritten(12, 3);
    world.publish(&new);
    let running = world.start();
    world.reach(&new).await;
    running.stop().await;
}

#[tokio::test]
async fn a_poison_event_stops_its_log_visibly_and_no_other() {
    let world = World::new(2, Messy::tidy(), vec![]);
    let mut poisoned = filled(Writer::new(log(0)), 5);
    poisoned.push("stock-p-1", "StockEvaporated", vec![]);
    let poisoned = filled(poisoned, 9).events;
    let good = filled(Writer::new(log(1)), 30).events;
    world.publish(&poisoned);
    world.publish(&good);
    let running = world.start();
    world.reach(&good).await;
    wait(|| async { world.health.reasons().iter().any(|reason| reason.contains("StockEvaporated")) }).await;
    world.reach(&poisoned[..5]).await;
    let halted: Vec<_> = running.board.partitions().iter().map(|partition| partition.parked).collect();
    assert_eq!(halted, [1, 0]);
    running.stop().await;
    assert_eq!(world.checkpoint(log(0)).await.position, Position(5));
}

/// Two projectors at once, as during a rolling update: the older one stands by, and takes over when the newer one dies.
#[tokio::test]
async fn an_overtaken_projector_stands_by_until_the_other_dies() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let events = history(30);
    world.publish(&events[..10]);
    let older = world.start();
    world.reach(&events[..10]).await;
    let fence = world.checkpoint(log(0)).await.fence;
    let newer = world.start();
    wait(|| async { world.checkpoint(log(0)).await.fence > fence }).await;
    world.truth.put(&events[..20]);
    world.announce(&events[..20]);
    world.reach(&events[..20]).await;
    let second_fence = world.checkpoint(log(0)).await.fence;
    newer.shard.abort();
    world.truth.put(&events);
    world.announce(&events);
    world.reach(&events).await;
    assert!(world.checkpoint(log(0)).await.fence > second_fence);
    older.stop().await;
}

#[tokio::test]
async fn rows_that_somebody_changed_are_mended() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let events = history(12);
    world.publish(&events[..6]);
    let running = world.start();
    world.reach(&events[..6]).await;
    running.stop().await;
    let checkpoint = world.store.inner.claim(&[log(0)], UnixMillis(0)).await.unwrap()[0];
    let mut row = world.store.inner.scan(&AVAILABILITY, log(0), None, 1).await.unwrap().rows.remove(0);
    row.position = Position(7);
    row.values[0] = Value::Int(99);
    row.values[4] = Value::Bytes(Default::default());
    let Checkpoint { log, fence, epoch, position, hash, revision, written } = checkpoint;
    let advance = Advance { log, fence, from_epoch: epoch, from_position: position, epoch, position, hash };
    let tampered = Batch { advances: vec![advance], rows: [(AVAILABILITY.name, vec![row])].into(), revision, now: written };
    assert!(world.store.inner.write(&tampered).await.unwrap().lost.is_empty());
    world.publish(&events);
    let running = world.start();
    world.reach(&events).await;
    wait(|| async { world.health.is_ready() }).await;
    running.stop().await;
}

#[tokio::test]
async fn views_of_another_revision_are_folded_anew() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let events = history(6);
    world.publish(&events);
    let running = world.start();
    world.reach(&events).await;
    running.stop().await;
    let checkpoint = world.store.inner.claim(&[log(0)], UnixMillis(0)).await.unwrap()[0];
    let Checkpoint { log, fence, epoch, position, hash, .. } = checkpoint;
    let advance = Advance { log, fence, from_epoch: epoch, from_position: position, epoch, position, hash };
    let older = Batch { advances: vec![advance], revision: souk_views::revision() - 1, ..Batch::default() };
    assert!(world.store.inner.write(&older).await.unwrap().lost.is_empty());
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let running = world.start();
    let first = feed.next().await.unwrap();
    assert_eq!((first.from_position, first.position), (0, 0), "caches hear that the log begins anew");
    world.reach(&events).await;
    running.stop().await;
    assert_eq!(world.checkpoint(log).await.revision, souk_views::revision());
}

#[tokio::test]
async fn the_feed_follows_every_step_without_a_gap_and_speaks_when_idle() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let events = history(20);
    world.publish(&events);
    let running = world.start();
    let (mut position, mut rows, mut idle): (u64, Vec<ChangeFeed>, u32) = (0, Vec::new(), 0);
    while idle < 3 {
        let change = feed.next().await.unwrap();
        assert_eq!(change.from_position, position);
        position = change.position;
        if change.position == 20 && change.rows.is_empty() {
            idle += 1;
        }
        rows.push(change);
    }
    let traceparents: usize = rows.iter().map(|change| change.traceparents.len()).sum();
    assert_eq!(traceparents, 20, "batches here hold at most 7 events");
    let last = rows.iter().rev().find(|change| !change.rows.is_empty()).unwrap();
    assert_eq!(last.revision, souk_views::revision());
    let stored = world.store.inner.scan(&AVAILABILITY, log(0), None, 10).await.unwrap().rows;
    for changed in &last.rows {
        let row = stored.iter().find(|row| row.key.key[0].as_text() == Some(&changed.key)).unwrap();
        assert_eq!((changed.view.as_str(), changed.row.as_deref()), ("availability_view", row.values[4].as_bytes().map(|body| &body[..])));
    }
    running.stop().await;
}
