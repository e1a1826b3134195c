//! Logs, a bus that misbehaves and an event log in memory, for the tests of this crate.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use prost::Message;
use souk_bus::{BusError, EventSource, Events, MalformedEvent};
use souk_event_sourcing::{Epoch, EventId, Hlc, LogHash, LogId, Partition, Position, RecordedEvent, Region, StreamId, UnixMillis, Version};
use souk_proto::{log::v1::EpochStart, stock::v1::StockReceived};
use uuid::Uuid;

use crate::{
    Config,
    log_reader::{LogError, LogPage, LogReader},
};

pub(crate) fn log(partition: u16) -> LogId {
    LogId { region: Region(1), partition: Partition(partition) }
}

/// Everything happens at once, within milliseconds.
pub(crate) const CONFIG: Config = Config {
    writers: 1,
    batch_events: 7,
    batch_bytes: 1024,
    row_cache_entries: 4,
    parked_events_max: 5,
    batch_interval: Duration::from_millis(5),
    feed_interval: Duration::from_millis(10),
    lease_ttl: Duration::from_millis(300),
    heartbeat_interval: Duration::from_millis(10),
    watchdog_after: Duration::from_secs(60),
    backfill_after: Duration::from_millis(20),
    retry_backoff: Duration::from_millis(1),
    retry_backoff_max: Duration::from_millis(5),
};

/// A log under construction.
pub(crate) struct Writer {
    pub events: Vec<RecordedEvent>,
    log: LogId,
    epoch: Epoch,
    versions: HashMap<StreamId, Version>,
}

impl Writer {
    pub(crate) fn new(log: LogId) -> Self {
        Self { events: Vec::new(), log, epoch: Epoch(1), versions: HashMap::new() }
    }

    pub(crate) fn push(&mut self, stream: &str, kind: &str, payload: Vec<u8>) {
        let (position, hash) = self.events.last().map_or((Position(0), LogHash::EMPTY), |last| (last.position, last.hash));
        let stream: StreamId = stream.parse().unwrap();
        let version = self.versions.entry(stream.clone()).or_default();
        *version = version.next();
        let mut event = RecordedEvent {
            log: self.log,
            position: position.next(),
            epoch: self.epoch,
            hash,
            stream,
            version: *version,
            kind: kind.to_owned(),
            schema_version: 1,
            payload: payload.into(),
            event_id: EventId(Uuid::from_u128(u128::from(position.0) + 1)),
            request_id: None,
            causation_id: None,
            correlation_id: None,
            actor: "tester".to_owned(),
            hlc: Hlc::new(UnixMillis(1_700_000_000_000 + position.0 as i64), 0),
            traceparent: format!("00-0af7651916cd43dd8448eb211c80319c-{:016x}-01", position.0 + 1),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = hash.after(&event);
        self.events.push(event);
    }

    /// Units arrive for one of a few products.
    pub(crate) fn receive(&mut self, product: u64, quantity: i64) {
        self.push(&format!("stock-p-{product}"), "StockReceived", StockReceived { quantity }.encode_to_vec());
    }

    /// The same log up to `position`, then under another epoch.
    pub(crate) fn fork(&self, position: usize) -> Self {
        let mut versions = HashMap::new();
        let events = self.events[..position].to_vec();
        for event in &events {
            versions.insert(event.stream.clone(), event.version);
        }
        Self { events, log: self.log, epoch: Epoch(self.epoch.0 + 1), versions }
    }
}

/// A log of `count` events.
pub(crate) fn history(count: usize) -> Vec<RecordedEvent> {
    filled(Writer::new(log(0)), count).events
}

/// That log as it was written after it had been restored to `fork` events.
pub(crate) fn rewritten(count: usize, fork: usize) -> Vec<RecordedEvent> {
    filled(filled(Writer::new(log(0)), count).fork(fork), count).events
}

/// `writer` with receipts up to `count` events.
pub(crate) fn filled(mut writer: Writer, count: usize) -> Writer {
    while writer.events.len() < count {
        let number = writer.events.len() as u64;
        writer.receive(number % 3, number as i64 + 1);
    }
    writer
}

/// Never returns, as many times as `hangs` says.
pub(crate) async fn hang(hangs: &AtomicUsize) {
    if hangs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        std::future::pending::<()>().await;
    }
}

/// The true logs.
#[derive(Default)]
pub(crate) struct Truth {
    logs: Mutex<HashMap<LogId, Vec<RecordedEvent>>>,
    pub down: AtomicBool,
    /// The end that is told once, as if what comes behind it had been written since.
    pub said: Mutex<Option<Position>>,
    /// What is told of the epochs of any log.
    pub epochs: Mutex<Vec<EpochStart>>,
}

impl Truth {
    pub(crate) fn put(&self, events: &[RecordedEvent]) {
        self.logs.lock().unwrap().insert(events[0].log, events.to_vec());
    }

    fn events(&self, log: LogId) -> Vec<RecordedEvent> {
        self.logs.lock().unwrap().get(&log).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl LogReader for Truth {
    async fn read(&self, log: LogId, from: Position, limit: u32) -> Result<LogPage, LogError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(LogError::Unavailable("down".to_owned()));
        }
        let events = self.events(log);
        if from.0 > events.len() as u64 + 1 {
            return Err(LogError::BeyondEnd(from));
        }
        // Pages are small, so that there are several.
        let head = self.said.lock().unwrap().take().unwrap_or(Position(events.len() as u64));
        let events = events.into_iter().skip(from.0 as usize - 1).take(limit.min(5) as usize).collect();
        Ok(LogPage { events, head, epochs: self.epochs.lock().unwrap().clone() })
    }
}

/// A bus that loses, repeats and reorders, ends and fails as its numbers say; every consumer goes on with the next ones.
pub(crate) struct Messy {
    pub holds: Truth,
    numbers: Mutex<Box<dyn Iterator<Item = u8> + Send>>,
    /// How many consumers to come are never there, nor refused.
    pub hangs: AtomicUsize,
}

impl Messy {
    pub(crate) fn new(numbers: Vec<u8>) -> Self {
        Self { holds: Truth::default(), numbers: Mutex::new(Box::new(numbers.into_iter().cycle())), hangs: AtomicUsize::new(0) }
    }

    /// A bus without faults.
    pub(crate) fn tidy() -> Self {
        Self::new(vec![255])
    }

    fn number(&self) -> u8 {
        self.numbers.lock().unwrap().next().unwrap_or(255)
    }
}

#[async_trait]
impl EventSource for Messy {
    async fn consume(&self, log: LogId, from: Position) -> Result<Events, BusError> {
        hang(&self.hangs).await;
        let gone = || BusError::Unavailable("gone".to_owned());
        if self.holds.down.load(Ordering::Relaxed) || self.number() < 20 {
            return Err(gone());
        }
        let events: Vec<_> = self.holds.events(log).into_iter().filter(|event| event.position >= from).collect();
        let mut delivered: Vec<Result<RecordedEvent, BusError>> = Vec::new();
        let mut ends = false;
        for event in events {
            match self.number() {
                0..20 => {}
                20..40 => delivered.extend([Ok(event.clone()), Ok(event)]),
                40..60 => delivered.insert(delivered.len().saturating_sub(2), Ok(event)),
                60..66 => delivered.push(Err(gone())),
                66..70 => {
                    ends = true;
                    break;
                }
                70..72 => delivered.push(Err(MalformedEvent("garbled".to_owned()).into())),
                72..78 => delivered.push(Ok(RecordedEvent { actor: "somebody else".to_owned(), ..event })),
                _ => delivered.push(Ok(event)),
            }
        }
        let delivered = stream::iter(delivered);
        Ok(if ends { delivered.boxed() } else { delivered.chain(stream::pending()).boxed() })
    }
}
