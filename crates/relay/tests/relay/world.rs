//! A server, a store and relays between them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{self, stream::Config};
use souk_bus::{Connection, EventSource, JetStreamBus, Subjects};
use souk_bus_publisher::{
    JetStreamPublisher, LogPublisher, StreamLimits, StreamState,
    conformance::{History, log, publish, take, within},
};
use souk_devstack::{Nats, NatsOptions, TemporaryFolder};
use souk_event_sourcing::{Epoch, LogId, Position, RecordedEvent, Version};
use souk_event_store::{BatchOutcome, Belief, EventLog, Head as LogHead, Lane, LogBatch, MemoryStore, StoreError, StreamAdvance};
use souk_relay::{Head, OwnedLog, RelayHandle, Relays, Tuning};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMITS: StreamLimits = StreamLimits { max_age: Duration::from_secs(24 * 3600), max_bytes: 2 << 30, replicas: 1 };
pub const LOG: LogId = log(1);
pub const TUNING: Tuning =
    Tuning { ring_capacity: 64, check_every: Duration::from_millis(100), announce_every: Duration::from_millis(50), refill: 1_000 };

/// The log where it is true: a store that can be away, and can be replaced by a restored one.
pub struct Truth {
    pub store: Mutex<MemoryStore>,
    pub away: AtomicBool,
    pub clock: AtomicU64,
    /// What relays wrote down of lost events.
    pub lost: Mutex<Vec<RecordedEvent>>,
}

impl Truth {
    fn store(&self) -> Result<MemoryStore, StoreError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("away".into()));
        }
        Ok(self.store.lock().expect("not poisoned").clone())
    }

    /// Raises the epoch, to one that was never used.
    pub fn take(&self, log: LogId) -> Belief {
        let now = self.clock.fetch_add(1, Ordering::SeqCst);
        self.store.lock().expect("not poisoned").take(log, now)
    }

    pub fn back_up(&self) -> MemoryStore {
        self.store.lock().expect("not poisoned").back_up()
    }

    /// Everything is as in the backup.
    pub fn restore(&self, backup: MemoryStore) {
        *self.store.lock().expect("not poisoned") = backup;
    }
}

#[async_trait::async_trait]
impl EventLog for Truth {
    async fn read(&self, log: LogId, from: Position, limit: usize) -> Result<Vec<RecordedEvent>, StoreError> {
        self.store()?.read(log, from, limit).await
    }

    async fn head(&self, log: LogId) -> Result<LogHead, StoreError> {
        self.store()?.head(log).await
    }
}

#[async_trait::async_trait]
impl OwnedLog for Truth {
    async fn still_owner(&self, log: LogId, epoch: Epoch) -> Result<bool, StoreError> {
        Ok(self.head(log).await?.epoch == epoch)
    }

    async fn keep_lost(&self, _: LogId, lost: &[RecordedEvent]) -> Result<(), StoreError> {
        self.store()?;
        self.lost.lock().expect("not poisoned").extend_from_slice(lost);
        Ok(())
    }
}

pub struct World {
    pub relays: Arc<Relays<Truth, JetStreamPublisher, JetStreamBus>>,
    pub stranger: jetstream::Context,
    pub nats: Nats,
    pub folder: TemporaryFolder,
}

impl World {
    pub async fn new() -> Self {
        Self::with(TUNING, 256).await
    }

    pub async fn with(tuning: Tuning, window: usize) -> Self {
        let folder = TemporaryFolder::create().expect("a folder");
        let nats = Nats::start(NatsOptions::new(folder.path().join("nats"))).await.expect("NATS starts");
        let bus = JetStreamBus::new(Connection::open(&nats.url(), "relay").await.expect("a good url"), Subjects::new("souk"));
        let publisher = JetStreamPublisher::new(bus.client().clone(), bus.subjects().clone(), LIMITS, Uuid::from_u128(1));
        let stranger = jetstream::new(async_nats::connect(nats.url()).await.expect("connects"));
        let truth = Truth { store: Mutex::default(), away: AtomicBool::new(false), clock: AtomicU64::new(1_000), lost: Mutex::default() };
        let relays = Relays {
            store: Arc::new(truth),
            publisher: Arc::new(publisher),
            feed: Arc::new(bus),
            window: Arc::new(Semaphore::new(window)),
            tuning,
        };
        within(relays.publisher.reachable()).await;
        Self { relays: Arc::new(relays), stranger, nats, folder }
    }

    /// A log taken over: its relay runs.
    pub fn own(&self, history: History) -> Owned {
        let belief = self.relays.store.take(history.log());
        self.relay(belief, history)
    }

    pub fn relay(&self, belief: Belief, history: History) -> Owned {
        let stop = CancellationToken::new();
        let head = Head { position: belief.position, hash: belief.hash };
        let relay = self.relays.spawn(history.log(), belief.epoch, head, stop.clone());
        Owned { relays: self.relays.clone(), history, belief, relay, stop }
    }

    pub fn stream_name(&self) -> String {
        self.relays.feed.subjects().stream(LOG)
    }

    /// A stream of somebody else's in place of the log's: without protection, and with these events.
    pub async fn foreign(&self, events: &[RecordedEvent]) -> jetstream::stream::Stream {
        self.relays.publisher.delete(LOG).await.expect("deleted");
        let config = Config { name: self.stream_name(), subjects: vec![self.relays.feed.subjects().log(LOG)], ..Config::default() };
        let stream = within(async {
            loop {
                match self.stranger.create_stream(config.clone()).await {
                    Ok(stream) => break stream,
                    // The server may be at the files of the deleted one still.
                    Err(error) if error.to_string().contains("error creating store") => tokio::time::sleep(Duration::from_millis(10)).await,
                    Err(error) => panic!("not made: {error}"),
                }
            }
        })
        .await;
        publish(&*self.relays.publisher, events).await;
        stream
    }

    pub async fn state(&self, log: LogId) -> Option<StreamState> {
        self.relays.publisher.state(log).await.ok().flatten()
    }

    pub async fn created(&self) -> String {
        self.stranger.get_stream(self.stream_name()).await.map_or_else(|_| String::new(), |stream| stream.cached_info().created.to_string())
    }
}

/// An owned log: commits go to the store and to the relay's ring, as a committer does it.
pub struct Owned {
    pub relays: Arc<Relays<Truth, JetStreamPublisher, JetStreamBus>>,
    pub history: History,
    pub belief: Belief,
    pub relay: RelayHandle,
    pub stop: CancellationToken,
}

impl Owned {
    pub async fn commit(&mut self, events: u64) {
        for batch in (0..events).collect::<Vec<_>>().chunks(50) {
            let events = self.history.events(batch.len() as u64);
            self.append(events).await;
        }
    }

    pub async fn append(&mut self, events: Vec<RecordedEvent>) {
        for event in self.append_unheard(events).await {
            self.relay.ring.push(event);
        }
    }

    /// An append whose outcome stays unknown: the store has the events, the relay was not told.
    pub async fn append_unheard(&mut self, events: Vec<RecordedEvent>) -> Vec<Arc<RecordedEvent>> {
        let events: Vec<_> = events.into_iter().map(Arc::new).collect();
        let last = events.last().expect("some").clone();
        let stream = StreamAdvance { stream: last.stream.clone(), expected: Version(self.belief.position.0), new: last.version };
        let batch = LogBatch { log: last.log, belief: self.belief, ledger: vec![], streams: vec![stream], events: events.clone() };
        let mut store = self.relays.store.store.lock().expect("not poisoned").clone();
        assert_eq!(store.append(&[batch]).await.expect("appended"), [BatchOutcome::Done]);
        self.belief = Belief { batch: self.belief.batch + 1, position: last.position, hash: last.hash, ..self.belief };
        events
    }

    /// Waits until the stream is a copy of the log from `first` on, and proves it event by event.
    pub async fn copied_from(&self, first: u64) {
        let (log, head) = (self.history.log(), self.belief.position);
        let (patience, mut state) = (Instant::now() + Duration::from_secs(30), None);
        loop {
            state = self.relays.publisher.state(log).await.ok().flatten().or(state);
            let whole = state.is_some_and(|state| state.last == head && state.first.0 == first && state.whole && state.settled);
            if whole && self.relay.progress.acknowledged() == head {
                break;
            }
            let acknowledged = self.relay.progress.acknowledged();
            assert!(Instant::now() < patience, "want {first} to {head}, acknowledged {acknowledged}, last seen {state:?}");
            tokio::task::yield_now().await;
        }
        let count = (head.0 + 1 - first) as usize;
        let store = self.relays.store.store.lock().expect("not poisoned").clone();
        let stored = store.read(log, Position(first), count).await.expect("read");
        let mut consumer = self.relays.feed.consume(log, Position(first)).await.expect("consumes");
        assert!(take(&mut consumer, count).await == stored, "the stream differs from the log");
    }

    pub async fn copied(&self) {
        self.copied_from(1).await;
    }

    pub async fn stop(self) {
        self.stop.cancel();
        within(self.relay.stopped()).await;
    }
}
