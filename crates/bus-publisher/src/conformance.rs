//! The law of [`LogPublisher`], [`EventSource`] and [`Feed`] as tests. Adapters that belong together pass [`all`] on a
//! fresh broker.

use std::{fmt::Debug, future::Future, slice, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use souk_bus::{BusError, EventSource, Events, Feed};
use souk_event_sourcing::{
    Epoch, EventId, Hlc, LogHash, LogId, MAX_PAYLOAD_BYTES, Partition, Position, RecordedEvent, Region, UnixMillis, Version,
};
use souk_proto::log::v1::{ChangeFeed, HeadAnnouncement};
use uuid::Uuid;

use crate::{LogPublisher, PublishError};

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `future` yields; panics when that takes too long.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// A log of the tests.
pub const fn log(partition: u16) -> LogId {
    LogId { region: Region(1), partition: Partition(partition) }
}

/// A log's history, event by event, chained by its hashes as a committer does it.
#[derive(Debug, Clone)]
pub struct History {
    log: LogId,
    last: Position,
    hash: LogHash,
    pub epoch: Epoch,
    /// Goes into every event, so that histories with different ones are different.
    pub name: &'static str,
    pub traceparent: &'static str,
}

impl History {
    pub const fn of(log: LogId, name: &'static str) -> Self {
        Self { log, last: Position(0), hash: LogHash::EMPTY, epoch: Epoch(1), name, traceparent: "" }
    }

    pub const fn log(&self) -> LogId {
        self.log
    }

    /// The next event, with a payload of so many bytes.
    pub fn event(&mut self, payload: usize) -> RecordedEvent {
        let position = self.last.next();
        let mut event = RecordedEvent {
            log: self.log,
            position,
            epoch: self.epoch,
            hash: LogHash::EMPTY,
            stream: "thing-1".parse().expect("a stream name"),
            version: Version(position.0),
            kind: "ThingHappened".into(),
            schema_version: 1,
            payload: Bytes::from(vec![position.0 as u8; payload]),
            event_id: EventId(Uuid::from_u128(position.0.into())),
            request_id: None,
            causation_id: None,
            correlation_id: None,
            actor: self.name.into(),
            hlc: Hlc::new(UnixMillis::now(), position.0 as u16),
            traceparent: self.traceparent.into(),
            home_epoch: Epoch(1),
            key_id: None,
        };
        event.hash = self.hash.after(&event);
        (self.last, self.hash) = (position, event.hash);
        event
    }

    /// The next `count` events.
    pub fn events(&mut self, count: u64) -> Vec<RecordedEvent> {
        (0..count).map(|_| self.event(100)).collect()
    }
}

/// Sends all, then waits for all, and panics unless all are stored.
pub async fn publish(publisher: &impl LogPublisher, events: &[RecordedEvent]) {
    for outcome in outcomes(publisher, events).await {
        outcome.expect("stored");
    }
}

/// The next `count` events of a consumer.
pub async fn take(events: &mut Events, count: usize) -> Vec<RecordedEvent> {
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        taken.push(within(events.next()).await.expect("goes on").expect("an event"));
    }
    taken
}

/// Waits for a consumer to fail, passing over events.
pub async fn failure(events: &mut Events) -> BusError {
    loop {
        match within(events.next()).await.expect("an error before the end") {
            Ok(_) => {}
            Err(error) => {
                assert!(within(events.next()).await.is_none(), "a consumer ends with its error");
                return error;
            }
        }
    }
}

/// Runs the whole suite on logs 1 to 9.
pub async fn all<B: EventSource + Feed>(publisher: &impl LogPublisher, bus: &B) {
    a_log_without_a_stream_is_told_apart(publisher, bus).await;
    what_is_published_arrives_at_its_position(publisher, bus).await;
    an_event_is_stored_only_right_behind_the_one_before(publisher).await;
    a_stream_may_begin_anywhere(publisher, bus).await;
    a_consumer_beyond_the_end_waits_for_its_position(publisher, bus).await;
    a_stream_made_anew_ends_its_consumers(publisher, bus).await;
    the_largest_event_passes(publisher, bus).await;
    announcements_reach_the_readers_of_their_region(bus).await;
}

async fn outcomes(publisher: &impl LogPublisher, events: &[RecordedEvent]) -> Vec<Result<(), PublishError>> {
    let mut acks = Vec::with_capacity(events.len());
    for event in events {
        acks.push(within(publisher.publish(event)).await.expect("sent"));
    }
    within(join_all(acks)).await
}

fn same<T: PartialEq + Debug>(found: &[T], expected: &[T]) {
    assert_eq!(found.len(), expected.len());
    if let Some((found, expected)) = found.iter().zip(expected).find(|(found, expected)| found != expected) {
        panic!("found {found:?}, expected {expected:?}");
    }
}

async fn a_log_without_a_stream_is_told_apart<B: EventSource>(publisher: &impl LogPublisher, bus: &B) {
    assert_eq!(publisher.state(log(1)).await, Ok(None));
    assert_eq!(publisher.delete(log(1)).await, Ok(()));
    assert_eq!(outcomes(publisher, &History::of(log(1), "none").events(1)).await, [Err(PublishError::NoStream)]);
    let error = bus.consume(log(1), Position(1)).await.err().expect("nothing to consume");
    assert!(error.retryable(), "{error}");
}

async fn what_is_published_arrives_at_its_position<B: EventSource>(publisher: &impl LogPublisher, bus: &B) {
    let mut history = History::of(log(2), "arrives");
    publisher.create(log(2), Position(1)).await.expect("made");
    let empty = publisher.state(log(2)).await.expect("told").expect("made");
    assert_eq!((empty.begin, empty.first, empty.last, empty.whole, empty.settled), (Position(1), Position(1), Position(0), true, true));
    let early = history.events(700);
    publish(publisher, &early).await;
    let mut all = bus.consume(log(2), Position(1)).await.expect("consumes");
    same(&take(&mut all, 700).await, &early);
    let mut tail = bus.consume(log(2), Position(500)).await.expect("consumes");
    same(&take(&mut tail, 201).await, &early[499..]);
    // Both wait now, and get each event as it comes.
    for _ in 0..3 {
        let late = history.events(1);
        publish(publisher, &late).await;
        same(&take(&mut all, 1).await, &late);
        same(&take(&mut tail, 1).await, &late);
    }
    let state = publisher.state(log(2)).await.expect("told").expect("made");
    assert_eq!((state.begin, state.first, state.last, state.whole), (Position(1), Position(1), Position(703), true));
    assert_eq!(publisher.event(log(2), Position(500)).await.expect("told").as_ref(), Some(&early[499]));
    for beyond in [0, 704] {
        assert_eq!(publisher.event(log(2), Position(beyond)).await, Ok(None));
    }
}

async fn an_event_is_stored_only_right_behind_the_one_before(publisher: &impl LogPublisher) {
    let events = History::of(log(3), "dense").events(20);
    publisher.create(log(3), Position(1)).await.expect("made");
    publish(publisher, &events[..10]).await;
    let wrong = Err(PublishError::WrongSequence);
    assert_eq!(outcomes(publisher, &events[9..10]).await, slice::from_ref(&wrong), "a duplicate");
    assert_eq!(outcomes(publisher, &events[4..5]).await, slice::from_ref(&wrong), "an old one");
    // One is missing in the window: everything behind it is refused, and can be sent again.
    assert_eq!(outcomes(publisher, &events[11..]).await, vec![wrong; 9]);
    assert_eq!(publisher.state(log(3)).await.expect("told").expect("made").last, Position(10));
    publish(publisher, &events[10..]).await;
    assert_eq!(publisher.state(log(3)).await.expect("told").expect("made").last, Position(20));
}

async fn a_stream_may_begin_anywhere<B: EventSource>(publisher: &impl LogPublisher, bus: &B) {
    let events = History::of(log(4), "late").events(1010);
    publisher.create(log(4), Position(1001)).await.expect("made");
    publisher.create(log(4), Position(1001)).await.expect("the same again is no error");
    assert!(publisher.create(log(4), Position(7)).await.is_err(), "another beginning is");
    let state = publisher.state(log(4)).await.expect("told").expect("made");
    assert_eq!((state.begin, state.first, state.last, state.whole), (Position(1001), Position(1001), Position(1000), true));
    assert_eq!(outcomes(publisher, &events[..1]).await, [Err(PublishError::WrongSequence)]);
    publish(publisher, &events[1000..]).await;
    let mut consumer = bus.consume(log(4), Position(5)).await.expect("consumes");
    same(&take(&mut consumer, 10).await, &events[1000..]);
}

async fn a_consumer_beyond_the_end_waits_for_its_position<B: EventSource>(publisher: &impl LogPublisher, bus: &B) {
    let events = History::of(log(5), "beyond").events(20);
    publisher.create(log(5), Position(1)).await.expect("made");
    publish(publisher, &events[..5]).await;
    let mut consumer = bus.consume(log(5), Position(11)).await.expect("consumes");
    publish(publisher, &events[5..]).await;
    same(&take(&mut consumer, 10).await, &events[10..]);
}

async fn a_stream_made_anew_ends_its_consumers<B: EventSource>(publisher: &impl LogPublisher, bus: &B) {
    let (old, new) = (History::of(log(6), "old").events(10), History::of(log(6), "new").events(20));
    publisher.create(log(6), Position(1)).await.expect("made");
    publish(publisher, &old).await;
    let mut consumer = bus.consume(log(6), Position(1)).await.expect("consumes");
    same(&take(&mut consumer, 10).await, &old);
    publisher.delete(log(6)).await.expect("deleted");
    publisher.create(log(6), Position(9)).await.expect("made anew");
    publish(publisher, &new[8..]).await;
    let error = failure(&mut consumer).await;
    assert!(error.retryable(), "{error}");
    let mut consumer = bus.consume(log(6), Position(11)).await.expect("consumes");
    same(&take(&mut consumer, 10).await, &new[10..]);
}

async fn the_largest_event_passes<B: EventSource>(publisher: &impl LogPublisher, bus: &B) {
    let mut history = History::of(log(7), "large");
    let events = [history.event(MAX_PAYLOAD_BYTES), history.event(1), history.event(MAX_PAYLOAD_BYTES)];
    publisher.create(log(7), Position(1)).await.expect("made");
    publish(publisher, &events).await;
    let mut consumer = bus.consume(log(7), Position(1)).await.expect("consumes");
    assert!(take(&mut consumer, 3).await == events);
    assert!(publisher.event(log(7), Position(3)).await.expect("told").as_ref() == Some(&events[2]));
}

async fn announcements_reach_the_readers_of_their_region<B: Feed>(bus: &B) {
    let head = |region, position| HeadAnnouncement {
        region,
        partition: 8,
        epoch: 3,
        position,
        hash: vec![7; 16].into(),
        ..HeadAnnouncement::default()
    };
    let change = |region, position| ChangeFeed { region, partition: 9, epoch: 3, position, ..ChangeFeed::default() };
    let mut heads = bus.subscribe_heads(Region(1)).await.expect("subscribes");
    let mut changes = bus.subscribe_changes(Region(1)).await.expect("subscribes");
    for region in [2, 1] {
        bus.publish_head(head(region, 40)).await.expect("announced");
        bus.publish_changes(change(region, 50)).await.expect("announced");
    }
    assert_eq!(within(heads.next()).await, Some(head(1, 40)));
    assert_eq!(within(changes.next()).await, Some(change(1, 50)));
}
