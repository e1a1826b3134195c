use std::sync::Mutex;

use async_trait::async_trait;
use souk_bus::{BusError, MalformedEvent, MemoryBus};
use souk_event_sourcing::{Hlc, LogHash, Version};

use super::*;
use crate::testing::{LOG, origin};

/// A log of `count` events; `flavour` tells histories apart.
fn history(count: u64, flavour: &str) -> Vec<RecordedEvent> {
    let mut hash = LogHash::EMPTY;
    let event = |position: u64| {
        let mut event = RecordedEvent {
            log: LOG,
            position: Position(position),
            epoch: Epoch(1),
            hash: LogHash::EMPTY,
            stream: "cart-c-1".parse().unwrap(),
            version: Version(position),
            kind: "CartCleared".into(),
            schema_version: 1,
            payload: Default::default(),
            event_id: origin(position).cause,
            request_id: None,
            causation_id: None,
            correlation_id: None,
            actor: flavour.to_owned(),
            hlc: Hlc(position),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = hash.after(&event);
        hash = event.hash;
        event
    };
    (1..=count).map(event).collect()
}

const START: Tail = Tail { epoch: Epoch(0), position: Position(0), hash: LogHash::EMPTY };

/// The event log in memory.
#[derive(Default)]
struct Log(Mutex<Vec<RecordedEvent>>);

#[async_trait]
impl Truth for Log {
    async fn read(&self, _: LogId, from: Position) -> Result<Vec<RecordedEvent>, TruthError> {
        let events = self.0.lock().unwrap();
        if from.0 > events.len() as u64 + 1 {
            return Err(TruthError::BeyondEnd(from));
        }
        Ok(events.iter().filter(|event| event.position >= from).take(3).cloned().collect())
    }
}

struct Broken(fn() -> BusError);

#[async_trait]
impl EventSource for Broken {
    async fn consume(&self, _: LogId, _: Position) -> Result<Events, BusError> {
        Ok(futures::stream::iter([Err((self.0)())]).boxed())
    }
}

struct World {
    bus: MemoryBus,
    log: Arc<Log>,
    board: Board,
    inbox: mpsc::Receiver<Arrival>,
}

impl World {
    /// A reader behind `tail` of a log that truly holds `events`.
    fn start(events: Vec<RecordedEvent>, tail: Tail, prepare: impl FnOnce(&MemoryBus)) -> Self {
        let (bus, board, log) = (MemoryBus::default(), Board::default(), Arc::new(Log(Mutex::new(events))));
        prepare(&bus);
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(10));
        let sources = Sources { bus: Arc::new(bus.clone()), truth: log.clone(), board: board.clone(), backoff };
        let (outbox, inbox) = mpsc::channel(4);
        tokio::spawn(Reader { log: LOG, epoch: Epoch(7), tail, sources, outbox }.run());
        Self { bus, log, board, inbox }
    }

    /// The same on a bus of which every consumer ends with `fault` before its first message.
    fn start_on(fault: fn() -> BusError, events: Vec<RecordedEvent>) -> Self {
        let (bus, board, log) = (MemoryBus::default(), Board::default(), Arc::new(Log(Mutex::new(events))));
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(10));
        let sources = Sources { bus: Arc::new(Broken(fault)), truth: log.clone(), board: board.clone(), backoff };
        let (outbox, inbox) = mpsc::channel(4);
        tokio::spawn(Reader { log: LOG, epoch: Epoch(7), tail: START, sources, outbox }.run());
        Self { bus, log, board, inbox }
    }

    async fn expect(&mut self, events: &[RecordedEvent]) {
        for event in events {
            let got = tokio::time::timeout(Duration::from_secs(20), self.inbox.recv()).await;
            let Arrival { epoch, event: got } = got.expect("an event in time").expect("a reader");
            assert_eq!((epoch, &got), (Epoch(7), event));
        }
    }

    async fn expect_nothing_more(&mut self) {
        let more = tokio::time::timeout(Duration::from_millis(100), self.inbox.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

#[tokio::test]
async fn events_come_once_and_in_order_from_the_checkpoint_on() {
    let events = history(6, "");
    let all = events.clone();
    let mut world = World::start(events.clone(), Tail::after(&events[1]), |bus| all.into_iter().for_each(|event| bus.put(event)));
    world.expect(&events[2..]).await;
    world.expect_nothing_more().await;
}

#[tokio::test]
async fn what_the_bus_lacks_at_the_start_or_between_is_read_from_the_log() {
    let events = history(9, "");
    let some = [events[3].clone(), events[7].clone(), events[8].clone()];
    let mut world = World::start(events.clone(), START, |bus| some.into_iter().for_each(|event| bus.put(event)));
    world.expect(&events).await;
}

#[tokio::test(start_paused = true)]
async fn a_quiet_bus_behind_the_announced_head_is_not_waited_for() {
    let events = history(5, "");
    let first = events[0].clone();
    let mut world = World::start(events.clone(), Tail::after(&events[0]), |bus| bus.put(first));
    world.expect_nothing_more().await;
    world.board.announce(LOG, Position(5));
    world.expect(&events[1..]).await;
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_never_gets_past_the_next_message_is_not_waited_for() {
    let events = history(5, "");
    for fault in [|| BusError::Unavailable("gone".to_owned()), || MalformedEvent("garbled".to_owned()).into()] {
        World::start_on(fault, events.clone()).expect(&events).await;
    }
}

#[tokio::test]
async fn another_history_on_the_bus_is_not_taken() {
    let (events, other) = (history(6, ""), history(6, "other"));
    let tail = Tail::after(&events[2]);
    let foreign = other[3].clone();
    let mut world = World::start(events.clone(), tail, |bus| bus.put(foreign));
    world.expect(&events[3..]).await;
    world.bus.put(other[5].clone());
    world.expect_nothing_more().await;
}

#[tokio::test]
async fn a_log_that_went_back_is_waited_for() {
    let events = history(6, "");
    let mut world = World::start(events[..2].to_vec(), Tail::after(&events[3]), |bus| bus.put(history(5, "other")[4].clone()));
    world.expect_nothing_more().await;
    *world.log.0.lock().unwrap() = events.clone();
    world.expect(&events[4..]).await;
}
