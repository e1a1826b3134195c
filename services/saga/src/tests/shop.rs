//! The write side as the process manager sees it: the real rules over a real log in Postgres, behind gRPC, with a bus in
//! memory. Calls fail on demand, before or after they took effect.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex as StdMutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use souk_bus::MemoryBus;
use souk_domain::{Command, Entity, Event, OrderId, OrderStatus, ProductId, Rejection, order, stock};
use souk_event_sourcing::{
    Epoch, EventId, Hlc, LogId, Partition, Position, RecordedEvent, Region, RequestId, StreamId, UnixMillis, Version, partition_of,
};
use souk_event_store::{BatchOutcome, Belief, DatabaseConfig, Lane, LogBatch, PostgresLane, PostgresStore, Retention, StreamAdvance};
use tokio::sync::Mutex;
use uuid::Uuid;

pub(super) const REGION: Region = Region(1);
pub(super) const PARTITIONS: u16 = 8;

/// A write side over one database.
pub(super) struct Shop {
    pub store: PostgresStore,
    pub bus: MemoryBus,
    inner: Mutex<Inner>,
    /// Every other call fails while this is set.
    pub flaky: AtomicBool,
    /// Every third event does not reach the bus while this is set.
    pub lossy: AtomicBool,
    calls: AtomicU64,
    /// Request ids seen, by what they were for.
    pub ids: StdMutex<BTreeMap<String, BTreeSet<RequestId>>>,
}

struct Inner {
    lane: PostgresLane,
    beliefs: HashMap<LogId, Belief>,
    entities: HashMap<StreamId, (Entity, Version)>,
    replies: HashMap<RequestId, Result<(), Rejection>>,
}

/// What a failing call does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    BeforeEffect,
    AfterEffect,
}

impl Shop {
    pub async fn open(url: &str) -> Arc<Self> {
        let configs = [DatabaseConfig::new("w1", url, 4)];
        PostgresStore::migrate(&configs).await.unwrap();
        let store = PostgresStore::connect(&configs, REGION, PARTITIONS).await.unwrap();
        let partitions: Vec<_> = (0..PARTITIONS).map(Partition).collect();
        let heads: Vec<_> = partitions.iter().map(|partition| (log(*partition), Position(0))).collect();
        store.prepare("w1", &heads, Retention { days: 7 }, UnixMillis::now()).await.unwrap();
        let taken = store.ownership("shop").take("w1", &partitions, std::time::Duration::ZERO).await.unwrap();
        let beliefs = taken.into_iter().map(|taken| (taken.log, taken.belief)).collect();
        let lane = store.lane("w1").unwrap();
        let inner = Inner { lane, beliefs, entities: HashMap::new(), replies: HashMap::new() };
        let (flaky, lossy, calls, ids) = Default::default();
        Arc::new(Self { store, bus: MemoryBus::default(), inner: Mutex::new(inner), flaky, lossy, calls, ids })
    }

    /// Decides and appends; a repeated request id gets the first answer.
    pub async fn execute(&self, request_id: RequestId, command: Command) -> Result<(), Rejection> {
        let mut inner = self.inner.lock().await;
        if let Some(reply) = inner.replies.get(&request_id) {
            return reply.clone();
        }
        let streams = command.streams();
        let mut entities: Vec<_> = streams.iter().map(|stream| inner.entity(stream)).collect();
        let decided = command.decide(&entities.iter().map(|(entity, _)| entity).collect::<Vec<_>>());
        inner.replies.insert(request_id, decided.as_ref().map(|_| ()).map_err(Clone::clone));
        let events = decided?;
        if !events.is_empty() {
            let log = log(partition_of(command.key().hash(), PARTITIONS));
            let recorded = inner.append(log, request_id, &streams, &mut entities, events).await;
            inner.entities.extend(streams.into_iter().zip(entities));
            for event in recorded {
                if !(self.lossy.load(Ordering::Relaxed) && event.position.0.is_multiple_of(3)) {
                    self.bus.put(event);
                }
            }
        }
        Ok(())
    }

    pub async fn must(&self, command: Command) {
        self.execute(RequestId(Uuid::now_v7()), command).await.unwrap();
    }

    pub async fn order(&self, order: OrderId) -> order::State {
        self.inner.lock().await.entity(&order.stream()).0.as_order().unwrap().clone()
    }

    pub async fn status(&self, order: OrderId) -> OrderStatus {
        self.order(order).await.status
    }

    pub async fn stock(&self, product: &ProductId) -> stock::State {
        self.inner.lock().await.entity(&product.stock_stream()).0.as_stock().unwrap().clone()
    }

    /// Notes a call and says how it shall fail.
    pub fn meet(&self, request_id: RequestId, about: String) -> Fault {
        self.ids.lock().unwrap().entry(about).or_default().insert(request_id);
        match self.calls.fetch_add(1, Ordering::Relaxed) % 5 {
            1 if self.flaky.load(Ordering::Relaxed) => Fault::BeforeEffect,
            3 if self.flaky.load(Ordering::Relaxed) => Fault::AfterEffect,
            _ => Fault::None,
        }
    }
}

impl Inner {
    fn entity(&self, stream: &StreamId) -> (Entity, Version) {
        self.entities.get(stream).cloned().unwrap_or_else(|| (Entity::of(stream).unwrap(), Version(0)))
    }

    async fn append(
        &mut self,
        log: LogId,
        request_id: RequestId,
        streams: &[StreamId],
        entities: &mut [(Entity, Version)],
        events: Vec<(usize, Event)>,
    ) -> Vec<RecordedEvent> {
        let belief = self.beliefs[&log];
        let expected: Vec<_> = entities.iter().map(|(_, version)| *version).collect();
        let (mut position, mut hash) = (belief.position, belief.hash);
        let mut recorded = Vec::new();
        for (index, event) in events {
            let (entity, version) = &mut entities[index];
            entity.evolve(&event).unwrap();
            *version = version.next();
            position = position.next();
            let mut event = record(log, position, belief.epoch, request_id, souk_codec::encode(&streams[index], &event), *version);
            hash = hash.after(&event);
            event.hash = hash;
            recorded.push(event);
        }
        let advance = |((stream, expected), (_, new)): ((&StreamId, Version), &(Entity, Version))| StreamAdvance {
            stream: stream.clone(),
            expected,
            new: *new,
        };
        let streams = streams.iter().zip(expected).zip(entities.iter()).map(advance).collect();
        let batch = LogBatch { log, belief, ledger: vec![], streams, events: recorded.iter().cloned().map(Arc::new).collect() };
        assert_eq!(self.lane.append(&[batch]).await.unwrap(), [BatchOutcome::Done]);
        self.beliefs.insert(log, Belief { epoch: belief.epoch, batch: belief.batch + 1, position, hash });
        recorded
    }
}

pub(super) fn log(partition: Partition) -> LogId {
    LogId { region: REGION, partition }
}

fn record(
    log: LogId,
    position: Position,
    epoch: Epoch,
    request_id: RequestId,
    new: souk_event_sourcing::NewEvent,
    version: Version,
) -> RecordedEvent {
    RecordedEvent {
        log,
        position,
        epoch,
        hash: Default::default(),
        stream: new.stream,
        version,
        kind: new.kind.to_owned(),
        schema_version: new.schema_version,
        payload: new.payload,
        event_id: EventId(Uuid::now_v7()),
        request_id: Some(request_id),
        causation_id: None,
        correlation_id: None,
        actor: "test".into(),
        hlc: Hlc::new(UnixMillis::now(), 0),
        traceparent: String::new(),
        home_epoch: Epoch(0),
        key_id: None,
    }
}
