//! Both pairs of adapters against the law of the ports, and what only a real server does: restarts, lost stores,
//! foreign streams, limits.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    stream::{Config, DiscardPolicy},
};
use prost::Message;
use souk_bus::{BusError, Connection, EventSource, Feed, JetStreamBus, MemoryBus, Subjects, to_wire};
use souk_bus_publisher::{
    JetStreamPublisher, LogPublisher, MemoryPublisher, PublishError, StreamLimits,
    conformance::{self, History, failure, log, publish, take, within},
};
use souk_devstack::{Nats, NatsOptions, TemporaryFolder};
use souk_event_sourcing::{Position, RecordedEvent, Region};
use souk_proto::log::v1::HeadAnnouncement;
use tokio::time::Instant;
use uuid::Uuid;

const LIMITS: StreamLimits = StreamLimits { max_age: Duration::from_secs(24 * 3600), max_bytes: 2 << 30, replicas: 1 };

/// A server of its own, and both adapters on one connection to it.
struct World {
    bus: JetStreamBus,
    publisher: JetStreamPublisher,
    /// For what only a stranger does.
    stranger: jetstream::Context,
    nats: Nats,
    _folder: TemporaryFolder,
}

impl World {
    async fn new() -> Self {
        let folder = TemporaryFolder::create().expect("a folder");
        let nats = Nats::start(NatsOptions::new(folder.path().join("nats"))).await.expect("NATS starts");
        let connection = Connection::open(&nats.url(), "test").await.expect("a good url");
        let stranger = jetstream::new(async_nats::connect(nats.url()).await.expect("connects"));
        let bus = JetStreamBus::new(connection, Subjects::new("souk"));
        let publisher = publisher(&bus, LIMITS);
        within(publisher.reachable()).await;
        Self { bus, publisher, stranger, nats, _folder: folder }
    }

    /// A stream of somebody else's in place of a log's.
    fn foreign(&self, partition: u16) -> Config {
        let subjects = self.bus.subjects();
        Config { name: subjects.stream(log(partition)), subjects: vec![subjects.log(log(partition))], ..Config::default() }
    }

    async fn kill_and_restart(&mut self) {
        self.nats.kill9().await.expect("killed");
        self.nats.start_again().await.expect("restarted");
    }
}

fn publisher(bus: &JetStreamBus, limits: StreamLimits) -> JetStreamPublisher {
    JetStreamPublisher::new(bus.client().clone(), bus.subjects().clone(), limits, Uuid::from_u128(1))
}

async fn state(publisher: &impl LogPublisher, partition: u16) -> souk_bus_publisher::StreamState {
    within(publisher.state(log(partition))).await.expect("told").expect("there is a stream")
}

async fn one(publisher: &impl LogPublisher, event: &RecordedEvent) -> Result<(), PublishError> {
    within(within(publisher.publish(event)).await?).await
}

#[tokio::test]
async fn memory_keeps_the_law() {
    let bus = MemoryBus::default();
    conformance::all(&MemoryPublisher::new(bus.clone()), &bus).await;
}

#[tokio::test]
async fn nats_keeps_the_law() {
    let world = World::new().await;
    conformance::all(&world.publisher, &world.bus).await;
}

#[tokio::test]
async fn a_stream_made_in_place_of_another_is_told_from_it() {
    let mut world = World::new().await;
    world.publisher.create(log(1), Position(1)).await.expect("made");
    let first = state(&world.publisher, 1).await;
    world.kill_and_restart().await;
    within(world.publisher.reachable()).await;
    assert_eq!(state(&world.publisher, 1).await.incarnation, first.incarnation, "the same stream, after a restart");
    world.publisher.delete(log(1)).await.expect("deleted");
    world.publisher.create(log(1), Position(1)).await.expect("made");
    assert_ne!(state(&world.publisher, 1).await.incarnation, first.incarnation);
}

#[tokio::test]
async fn a_restarted_server_ends_consumers_at_once_and_loses_nothing() {
    let mut world = World::new().await;
    let mut history = History::of(log(1), "restart");
    world.publisher.create(log(1), Position(1)).await.expect("made");
    let mut from = 1;
    for _ in 0..3 {
        let events = history.events(50);
        publish(&world.publisher, &events).await;
        let mut consumer = world.bus.consume(log(1), Position(from)).await.expect("consumes");
        assert_eq!(take(&mut consumer, 50).await, events);
        from += 50;
        world.kill_and_restart().await;
        let restarted = Instant::now();
        let error = failure(&mut consumer).await;
        // Well before a missing heartbeat is noticed.
        assert!(error.retryable() && restarted.elapsed() < Duration::from_secs(8), "{error} after {:?}", restarted.elapsed());
        within(world.publisher.reachable()).await;
        assert_eq!(state(&world.publisher, 1).await.last, Position(from - 1));
    }
}

#[tokio::test]
async fn nothing_waits_for_a_server_that_is_away() {
    let mut world = World::new().await;
    let event = &History::of(log(1), "away").events(1)[0];
    world.publisher.create(log(1), Position(1)).await.expect("made");
    world.nats.kill9().await.expect("killed");
    // Until the connection notices, calls may still be under way; they fail when it does.
    while world.publisher.state(log(1)).await.is_ok() {}
    let started = Instant::now();
    // More than async-nats queues: the next one would wait without limit.
    for _ in 0..5_000 {
        assert!(matches!(world.bus.publish_head(HeadAnnouncement::default()).await, Err(BusError::Unavailable(_))));
        assert!(matches!(world.publisher.publish(event).await, Err(PublishError::Unavailable(_))));
        assert!(matches!(world.publisher.state(log(1)).await, Err(PublishError::Unavailable(_))));
    }
    assert!(world.bus.consume(log(1), Position(1)).await.is_err_and(|error| error.retryable()));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    world.nats.start_again().await.expect("restarted");
    within(world.publisher.reachable()).await;
    while one(&world.publisher, event).await.is_err() {}
    let mut heads = world.bus.subscribe_heads(Region(0)).await.expect("subscribes");
    world.bus.publish_head(HeadAnnouncement::default()).await.expect("announced");
    assert!(within(futures::StreamExt::next(&mut heads)).await.is_some());
}

/// What it missed is on the bus, and the event log is not asked for it.
#[tokio::test]
async fn who_asks_before_it_is_connected_is_connected_first() {
    let world = World::new().await;
    let events = History::of(log(1), "started").events(3);
    world.publisher.create(log(1), Position(1)).await.expect("made");
    publish(&world.publisher, &events).await;
    for _ in 0..10 {
        let bus = JetStreamBus::connect(&world.nats.url(), "souk", "started").await.expect("a good url");
        let mut consumer = within(bus.consume(log(1), Position(1))).await.expect("consumes");
        assert_eq!(take(&mut consumer, 3).await, events);
    }
}

#[tokio::test]
async fn a_wiped_store_shows_as_a_missing_stream() {
    let mut world = World::new().await;
    let events = History::of(log(1), "wiped").events(3);
    world.publisher.create(log(1), Position(1)).await.expect("made");
    publish(&world.publisher, &events[..2]).await;
    world.nats.kill9().await.expect("killed");
    world.nats.wipe().expect("wiped");
    world.nats.start_again().await.expect("restarted");
    within(world.publisher.reachable()).await;
    assert_eq!(within(world.publisher.state(log(1))).await, Ok(None));
    assert_eq!(one(&world.publisher, &events[2]).await, Err(PublishError::NoStream));
}

#[tokio::test]
async fn others_may_not_delete_or_purge_but_the_owner_may_delete_the_stream() {
    let world = World::new().await;
    world.publisher.create(log(1), Position(1)).await.expect("made");
    publish(&world.publisher, &History::of(log(1), "denied").events(5)).await;
    let stream = world.stranger.get_stream(world.bus.subjects().stream(log(1))).await.expect("found");
    assert!(stream.delete_message(3).await.is_err());
    assert!(stream.purge().await.is_err());
    assert!(state(&world.publisher, 1).await.whole);
    world.publisher.delete(log(1)).await.expect("deleted");
    assert_eq!(world.publisher.state(log(1)).await, Ok(None));
}

#[tokio::test]
async fn a_hole_is_seen_and_delivered_as_one() {
    let world = World::new().await;
    let stream = world.stranger.create_stream(world.foreign(1)).await.expect("made");
    let events = History::of(log(1), "hole").events(5);
    publish(&world.publisher, &events).await;
    assert!(state(&world.publisher, 1).await.whole);
    stream.delete_message(3).await.expect("deleted");
    let holed = state(&world.publisher, 1).await;
    assert_eq!((holed.first, holed.last, holed.whole), (Position(1), Position(5), false));
    assert_eq!(world.publisher.event(log(1), Position(3)).await, Ok(None));
    let mut consumer = world.bus.consume(log(1), Position(1)).await.expect("consumes");
    let positions: Vec<u64> = take(&mut consumer, 4).await.iter().map(|event| event.position.0).collect();
    assert_eq!(positions, [1, 2, 4, 5]);
}

#[tokio::test]
async fn settings_are_put_right_without_losing_what_is_there() {
    let world = World::new().await;
    let stream =
        world.stranger.create_stream(Config { discard: DiscardPolicy::New, max_messages: 5, ..world.foreign(1) }).await.expect("made");
    let events = History::of(log(1), "settled").events(6);
    publish(&world.publisher, &events[..5]).await;
    assert_eq!(one(&world.publisher, &events[5]).await, Err(PublishError::Full));
    assert!(!state(&world.publisher, 1).await.settled);
    stream.delete_message(1).await.expect("deleted");
    world.publisher.settle(log(1)).await.expect("settled");
    let settled = state(&world.publisher, 1).await;
    // What was gone before is not held against the stream.
    assert_eq!(
        (settled.begin, settled.first, settled.last, settled.whole, settled.settled),
        (Position(2), Position(2), Position(5), true, true)
    );
    assert_eq!(one(&world.publisher, &events[5]).await, Ok(()));
    // New limits of the installation are settled the same way.
    let tighter = publisher(&world.bus, StreamLimits { max_age: Duration::from_secs(3600), max_bytes: 64 << 20, replicas: 1 });
    assert!(!state(&tighter, 1).await.settled);
    tighter.settle(log(1)).await.expect("settled");
    assert!(state(&tighter, 1).await.settled && !state(&world.publisher, 1).await.settled);
    assert_eq!(state(&tighter, 1).await.last, Position(6));
}

#[tokio::test]
async fn what_cannot_be_changed_is_refused() {
    let world = World::new().await;
    let memory = Config { storage: jetstream::stream::StorageType::Memory, ..world.foreign(1) };
    world.stranger.create_stream(memory).await.expect("made");
    assert!(!state(&world.publisher, 1).await.settled);
    assert!(matches!(world.publisher.settle(log(1)).await, Err(PublishError::Refused(_))), "memory does not become file");
    let impossible = publisher(&world.bus, StreamLimits { replicas: 3, ..LIMITS });
    world.publisher.create(log(2), Position(1)).await.expect("made");
    assert!(matches!(impossible.settle(log(2)).await, Err(PublishError::Refused(_))), "three replicas on one server");
}

#[tokio::test]
async fn a_subject_that_belongs_to_another_stream_is_told_apart() {
    let world = World::new().await;
    world.stranger.create_stream(Config { name: "theirs".into(), ..world.foreign(1) }).await.expect("made");
    let event = &History::of(log(1), "theirs").events(1)[0];
    assert_eq!(one(&world.publisher, event).await, Err(PublishError::ForeignStream));
    assert_eq!(world.publisher.create(log(1), Position(1)).await, Err(PublishError::ForeignStream));
    assert_eq!(world.publisher.state(log(1)).await, Ok(None));
}

#[tokio::test]
async fn a_stream_without_room_keeps_no_promise_about_age() {
    let world = World::new().await;
    let small = publisher(&world.bus, StreamLimits { max_bytes: 4 << 20, ..LIMITS });
    small.create(log(1), Position(1)).await.expect("made");
    let mut history = History::of(log(1), "small");
    assert!(state(&small, 1).await.keeps_after.is_some());
    let events: Vec<_> = (0..20).map(|_| history.event(500_000)).collect();
    publish(&small, &events).await;
    let full = state(&small, 1).await;
    assert!(full.first > Position(1) && full.whole && full.last == Position(20) && full.keeps_after.is_none(), "{full:?}");
}

#[tokio::test]
async fn messages_that_are_not_the_event_of_their_place_end_the_consumer() {
    let world = World::new().await;
    let events = History::of(log(1), "misplaced").events(3);
    let subject = world.bus.subjects().log(log(1));
    world.stranger.create_stream(world.foreign(1)).await.expect("made");
    publish(&world.publisher, &events[..1]).await;
    let third = to_wire(&events[2]).encode_to_vec();
    world.stranger.publish(subject.clone(), third.into()).await.expect("sent").await.expect("stored");
    world.stranger.publish(subject, "junk".into()).await.expect("sent").await.expect("stored");
    let mut consumer = world.bus.consume(log(1), Position(1)).await.expect("consumes");
    assert_eq!(take(&mut consumer, 1).await, events[..1]);
    let misplaced = failure(&mut consumer).await;
    assert!(matches!(misplaced, BusError::Misplaced { sequence: 2, position: Position(3), .. }), "{misplaced}");
    let mut consumer = world.bus.consume(log(1), Position(3)).await.expect("consumes");
    let junk = failure(&mut consumer).await;
    assert!(matches!(junk, BusError::Malformed(_)) && !junk.retryable(), "{junk}");
    assert_eq!(world.publisher.event(log(1), Position(3)).await, Ok(None));
}

/// Why a relay verifies the end of a stream event by event: the window goes on behind a message it does not own.
#[tokio::test]
async fn a_window_slips_in_behind_a_foreign_message() {
    let world = World::new().await;
    let events = History::of(log(1), "window").events(6);
    world.publisher.create(log(1), Position(1)).await.expect("made");
    publish(&world.publisher, &events[..2]).await;
    // What another owner, of another history, puts at position 3.
    let theirs = &History::of(log(1), "another history").events(3)[2];
    assert_eq!(one(&world.publisher, theirs).await, Ok(()));
    let mut outcomes = Vec::new();
    for event in &events[2..] {
        outcomes.push(one(&world.publisher, event).await);
    }
    assert_eq!(outcomes, [Err(PublishError::WrongSequence), Ok(()), Ok(()), Ok(())]);
    let end = world.publisher.event(log(1), Position(6)).await.expect("told");
    assert_eq!(end.as_ref(), Some(&events[5]), "the end alone looks right");
    assert!(state(&world.publisher, 1).await.whole);
    assert_eq!(world.publisher.event(log(1), Position(3)).await.expect("told").as_ref(), Some(theirs));
}
