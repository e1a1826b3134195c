use std::collections::{HashMap, HashSet};

use futures::StreamExt;
use proptest::prelude::*;
use prost::Message;
use souk_bus::Feed;
use souk_event_sourcing::Region;
use souk_proto::{
    common::v1::Money,
    orders::v1::{OrderLine, OrderPlaced, PaymentRecorded},
    stock::v1::StockReceived,
};
use souk_views::{AVAILABILITY, SALES_DAY};

use super::*;
use crate::{
    parking::{Done, Refused, Wish},
    testing::{Writer, filled},
};

/// Puts an event that no code here knows behind the others; newer code knows it as a receipt of one unit.
fn unknown(writer: &mut Writer, stream: &str) {
    writer.push(stream, "UnknownStockReceived", StockReceived { quantity: 1 }.encode_to_vec());
}

/// Events as newer code knows them.
fn learned(events: &[RecordedEvent]) -> Vec<RecordedEvent> {
    let known = |event: &RecordedEvent| RecordedEvent { kind: event.kind.trim_start_matches(UNKNOWN).to_owned(), ..event.clone() };
    events.iter().map(known).collect()
}

/// Those that are applied as long as the code does not know the others: per stream, the ones before the first unknown.
fn before_parked(events: &[RecordedEvent]) -> Vec<RecordedEvent> {
    let first_unknown = |stream: &StreamId| events.iter().find(|event| event.stream == *stream && event.kind.starts_with(UNKNOWN));
    let applied = |event: &&RecordedEvent| first_unknown(&event.stream).is_none_or(|first| event.position < first.position);
    events.iter().filter(applied).cloned().collect()
}

fn stream(name: &str) -> StreamId {
    name.parse().unwrap()
}

impl World {
    async fn passed(&self, events: &[RecordedEvent]) {
        let end = events.last().unwrap();
        wait(|| async { self.checkpoint(end.log).await.position == end.position }).await;
    }

    async fn parked(&self) -> Vec<(String, u64, u64)> {
        let entities = self.store.inner.parked_entities(ParkedQuery::all(&self.logs, usize::MAX)).await.unwrap();
        entities.into_iter().map(|entity| (entity.stream.to_string(), entity.events, entity.parked.at.0)).collect()
    }

    async fn availability(&self, product: &str) -> Row {
        let key = RowKey { log: log(0), key: vec![Value::from(product)] };
        self.store.inner.load(&AVAILABILITY, &[key]).await.unwrap().remove(0)
    }

    /// The rows are the fold of what came before the first unknown event of each entity.
    async fn only_parked_entities_stand_still(&self, events: &[RecordedEvent]) {
        self.hold_fold_of(events[0].log, &before_parked(events)).await;
    }
}

#[tokio::test]
async fn a_poison_event_parks_its_entity_and_every_other_goes_on() {
    let world = World::new(2, Messy::tidy(), vec![]);
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let mut poisoned = filled(Writer::new(log(0)), 5);
    unknown(&mut poisoned, "stock-p-1");
    unknown(&mut poisoned, "stock-p-7");
    poisoned.push("pigeon-p-1", "UnknownFlight", vec![]);
    let poisoned = filled(poisoned, 12).events;
    let good = filled(Writer::new(log(1)), 30).events;
    world.publish(&poisoned);
    world.publish(&good);
    let running = world.start();
    world.reach(&good).await;
    world.passed(&poisoned).await;
    world.only_parked_entities_stand_still(&poisoned).await;
    // Behind the poison two more events of p-1 came.
    let parked = [("pigeon-p-1".to_owned(), 1, 8), ("stock-p-1".to_owned(), 2, 6), ("stock-p-7".to_owned(), 1, 7)];
    assert_eq!(world.parked().await, parked);
    let marks = |row: Row| (row.position.0, row.values[0].as_int(), row.values[1].as_int().is_some(), row.values[2].as_int());
    assert_eq!(marks(world.availability("p-1").await), (5, Some(2), true, Some(6)));
    assert_eq!(marks(world.availability("p-7").await), (0, Some(0), true, Some(7)), "a marker stands in for the row");
    let status: Vec<_> = running.board.partitions().iter().map(|partition| partition.parked).collect();
    assert_eq!((status, running.board.halted()), (vec![4, 0], 0));
    assert!(world.health.is_ready());
    let mut last = HashMap::new();
    loop {
        let change = feed.next().await.unwrap();
        if change.partition == 0 {
            last.extend(change.rows.into_iter().map(|row| (row.key, row.row.is_some())));
            if change.position == 12 {
                break;
            }
        }
    }
    let told = ["p-0", "p-1", "p-2", "p-7"].map(|product| last.get(product).copied());
    assert_eq!(told, [Some(true), Some(false), Some(true), Some(false)], "rows of parked entities are told without body");
    running.stop().await;
}

#[tokio::test]
async fn a_partition_with_too_much_set_aside_stands_still_until_there_is_room() {
    let mut world = World::new(2, Messy::tidy(), vec![]);
    world.config.parked_events_max = 3;
    let mut poisoned = filled(Writer::new(log(0)), 4);
    for product in [8, 9, 9, 9, 8] {
        unknown(&mut poisoned, &format!("stock-p-{product}"));
    }
    let poisoned = filled(poisoned, 14).events;
    let good = filled(Writer::new(log(1)), 20).events;
    world.publish(&poisoned);
    world.publish(&good);
    let running = world.start();
    world.reach(&good).await;
    wait(|| async { world.health.reasons().iter().any(|reason| reason.contains("parked_events_max")) }).await;
    assert_eq!((world.checkpoint(log(0)).await.position, running.board.halted()), (Position(7), 1));
    // It is not in anybody's way, and making room lets it go on at once.
    let done = running.errands.run(log(0), stream("stock-p-9"), Wish::Drop).await.unwrap();
    assert_eq!(done, Done { events: 2, failure: None });
    world.passed(&poisoned).await;
    wait(|| async { world.health.is_ready() }).await;
    assert_eq!(world.parked().await, [("stock-p-8".to_owned(), 2, 5), ("stock-p-9".to_owned(), 1, 8)]);
    running.stop().await;
}

#[tokio::test]
async fn a_replay_that_fails_changes_nothing_but_the_reason() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let mut poisoned = filled(Writer::new(log(0)), 5);
    unknown(&mut poisoned, "stock-p-1");
    poisoned.push("stock-p-1", "StockReceived", b"garbled".to_vec());
    let poisoned = filled(poisoned, 12).events;
    world.publish(&poisoned);
    let running = world.start();
    world.passed(&poisoned).await;
    let before = (world.checkpoint(log(0)).await, world.availability("p-1").await, world.parked().await);
    world.store.learned.store(true, Ordering::Relaxed);
    for wish in [Wish::Try, Wish::Replay] {
        let done = running.errands.run(log(0), stream("stock-p-1"), wish).await.unwrap();
        assert_eq!((done.events, done.failure.unwrap().contains("event 7")), (1, true));
    }
    assert_eq!((world.checkpoint(log(0)).await, world.availability("p-1").await, world.parked().await), before);
    let entities = world.store.inner.parked_entities(ParkedQuery::all(&[log(0)], 1)).await.unwrap();
    assert!(entities[0].reason.contains("event 7"), "{}", entities[0].reason);
    let missing = running.errands.run(log(0), stream("stock-p-0"), Wish::Replay).await;
    assert!(matches!(missing, Err(Refused::NotParked(_))));
    running.stop().await;
}

#[tokio::test]
async fn a_dropped_event_is_counted_and_later_ones_are_applied() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let mut poisoned = filled(Writer::new(log(0)), 5);
    unknown(&mut poisoned, "stock-p-1");
    let events = filled(poisoned, 9).events;
    world.publish(&events[..6]);
    let running = world.start();
    world.passed(&events[..6]).await;
    let before = world.checkpoint(log(0)).await;
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let done = running.errands.run(log(0), stream("stock-p-1"), Wish::Drop).await.unwrap();
    assert_eq!(done, Done { events: 1, failure: None });
    assert!(world.parked().await.is_empty());
    let repaired = world.checkpoint(log(0)).await;
    assert_eq!((repaired.position, repaired.parked, repaired.repaired > before.repaired), (Position(6), 0, true));
    // Caches hear of it although no position moves: at once, and again with every announcement.
    for with_rows in [true, false] {
        let change = loop {
            let change = feed.next().await.unwrap();
            if change.repaired_ms == repaired.repaired.0 {
                break change;
            }
        };
        assert_eq!((change.position, change.rows.iter().any(|row| row.row.is_some())), (6, with_rows));
    }
    world.publish(&events);
    world.passed(&events).await;
    let row = world.availability("p-1").await;
    assert_eq!((row.values[0].as_int(), row.values[2].clone(), row.position.0), (Some(4), Value::Null, 8));
    running.stop().await;
}

/// A row that the database refuses parks its entity as well; it would stop the log of everybody else.
#[tokio::test]
async fn what_the_database_refuses_is_set_aside_alone() {
    let (mut world, logs) = refusing(3, Position(u64::MAX));
    world.config.parked_events_max = 10;
    let running = world.start();
    world.reach(&logs[1]).await;
    world.only_the_refused_is_set_aside(&logs[0]).await;
    let refused = running.errands.run(log(0), stream("stock-p-1"), Wish::Replay).await.unwrap();
    assert!(refused.failure.is_some_and(|failure| failure.contains("invalid byte sequence")));
    *world.store.refuses.lock().unwrap() = None;
    let done = running.errands.run(log(0), stream("stock-p-1"), Wish::Replay).await.unwrap();
    assert_eq!(done, Done { events: 10, failure: None });
    world.hold_fold_of(log(0), &logs[0]).await;
    running.stop().await;
}

/// The batch behind it was folded without knowing of the refusal, and nothing in it would be refused.
#[tokio::test]
async fn what_was_folded_meanwhile_is_folded_again_behind_a_refusal() {
    let (mut world, logs) = refusing(3, Position(5));
    world.config.parked_events_max = 10;
    world.store.slowness.store(50, Ordering::Relaxed);
    let running = world.start();
    world.reach(&logs[1]).await;
    world.only_the_refused_is_set_aside(&logs[0]).await;
    running.stop().await;
}

/// What was taken meanwhile must not carry a log over the event it stands still at.
#[tokio::test]
async fn a_log_that_stands_still_does_not_go_on_with_what_was_folded_meanwhile() {
    // No entity twice: none of them notices that an event of it is missing.
    let (mut world, logs) = refusing(30, Position(5));
    world.config.parked_events_max = 0;
    world.store.slowness.store(50, Ordering::Relaxed);
    let running = world.start();
    world.reach(&logs[1]).await;
    wait(|| async { running.board.halted() == 1 }).await;
    assert_eq!(world.checkpoint(log(0)).await.position, Position(1));
    world.hold_fold_of(log(0), &logs[0][..1]).await;
    running.stop().await;
}

/// Two logs of so many products; rows of one in the first are refused as long as they do not reach beyond a position.
fn refusing(products: u64, until: Position) -> (World, [Vec<RecordedEvent>; 2]) {
    let world = World::new(2, Messy::tidy(), vec![]);
    let logs = [0, 1].map(|partition| {
        let mut writer = Writer::new(log(partition));
        (0..30).for_each(|number| writer.receive(number % products, number as i64 + 1));
        writer.events
    });
    *world.store.refuses.lock().unwrap() = Some((RowKey { log: log(0), key: vec![Value::from("p-1")] }, until));
    logs.iter().for_each(|events| world.publish(events));
    (world, logs)
}

impl World {
    async fn only_the_refused_is_set_aside(&self, events: &[RecordedEvent]) {
        self.passed(events).await;
        let others: Vec<_> = events.iter().filter(|event| event.stream.id() != "p-1").cloned().collect();
        self.hold_fold_of(log(0), &others).await;
        assert_eq!(self.parked().await, [("stock-p-1".to_owned(), 10, 2)]);
    }
}

/// Events of stocks and orders, some of them unknown to the code.
fn random_log(choices: &[(u8, bool)]) -> Vec<RecordedEvent> {
    let mut writer = Writer::new(log(0));
    let eur = |minor_units| Some(Money { currency: "EUR".to_owned(), minor_units });
    let mut seen = HashSet::new();
    for (number, (choice, unknown)) in choices.iter().enumerate() {
        let entity = choice % 3;
        let (stream, kind, payload) = if choice % 2 == 0 {
            (format!("stock-p-{entity}"), "StockReceived", StockReceived { quantity: number as i64 + 1 }.encode_to_vec())
        } else if seen.insert(entity) {
            let line = OrderLine { product_id: "p-1".to_owned(), quantity: 2, unit_price: eur(5), product_version: 1 };
            let placed = OrderPlaced { lines: vec![line], total: eur(10), ..OrderPlaced::default() };
            (format!("order-o-{entity}"), "OrderPlaced", placed.encode_to_vec())
        } else {
            (format!("order-o-{entity}"), "PaymentRecorded", PaymentRecorded { amount: eur(10), ..Default::default() }.encode_to_vec())
        };
        let kind = if *unknown { format!("{UNKNOWN}{kind}") } else { kind.to_owned() };
        writer.push(&stream, &kind, payload);
    }
    writer.events
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is set aside and replayed, through whatever trouble of bus and store, the rows are the fold: before, of what
    /// came before the first unknown event of each entity, and afterwards of everything, sums included.
    #[test]
    fn whatever_is_parked_and_replayed_the_rows_are_the_fold(
        choices in prop::collection::vec((any::<u8>(), prop::bool::weighted(0.15)), 1..60),
        more in prop::collection::vec((any::<u8>(), Just(false)), 1..10),
        bus in prop::collection::vec(any::<u8>(), 1..97),
        store in prop::collection::vec(any::<u8>(), 0..100),
        slowness in 0..40usize,
    ) {
        run(async {
            let mut world = World::new(1, Messy::new(bus), store);
            world.store.slowness.store(slowness, Ordering::Relaxed);
            world.config.parked_events_max = 1000;
            let all = random_log(&[choices.clone(), more].concat());
            let events = &all[..choices.len()];
            world.publish(events);
            let running = world.start();
            world.passed(events).await;
            world.only_parked_entities_stand_still(events).await;
            let aside = events.len() - before_parked(events).len();
            prop_assert_eq!(world.parked().await.iter().map(|(_, events, _)| *events).sum::<u64>(), aside as u64);
            prop_assert_eq!(world.checkpoint(log(0)).await.parked, aside as u32);

            world.store.learned.store(true, Ordering::Relaxed);
            for (name, events, _) in world.parked().await {
                // The connection may break, before or after the replay.
                loop {
                    match running.errands.run(log(0), stream(&name), Wish::Replay).await {
                        Ok(done) => {
                            prop_assert_eq!(done, Done { events, failure: None });
                            break;
                        }
                        Err(Refused::NotParked(_)) => break,
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
            }
            world.hold_fold_of(log(0), &learned(events)).await;
            prop_assert_eq!(world.checkpoint(log(0)).await.parked, 0);
            world.publish(&all);
            world.passed(&all).await;
            world.hold_fold_of(log(0), &learned(&all)).await;
            running.stop().await;
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_replayed_payment_is_counted_once_behind_later_ones() {
    let world = World::new(1, Messy::tidy(), vec![]);
    // Order 1 is placed, its payment unknown; order 0 is placed and paid later, into the same sum.
    let events = random_log(&[(1, false), (1, true), (3, false), (3, false)]);
    world.publish(&events);
    let running = world.start();
    world.passed(&events).await;
    let sold = || async { world.store.inner.scan(&SALES_DAY, log(0), None, 10).await.unwrap().rows.remove(0).values[0].clone() };
    assert_eq!(sold().await, Value::Int(2));
    world.store.learned.store(true, Ordering::Relaxed);
    let done = running.errands.run(log(0), stream("order-o-1"), Wish::Replay).await.unwrap();
    assert_eq!((done.events, sold().await), (1, Value::Int(4)));
    let again = running.errands.run(log(0), stream("order-o-1"), Wish::Replay).await;
    assert!(matches!(again, Err(Refused::NotParked(_))));
    world.hold_fold_of(log(0), &learned(&events)).await;
    running.stop().await;
}
