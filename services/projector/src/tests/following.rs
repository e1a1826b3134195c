use std::collections::HashSet;

use futures::StreamExt;
use proptest::prelude::*;
use souk_bus::Feed;
use souk_event_sourcing::Region;
use souk_proto::{
    catalog::v1::{PriceSet, ProductCreated, ProductDetails},
    log::v1::{ChangeFeed, EpochStart},
};
use souk_read_store::Advance;
use souk_views::AVAILABILITY;

use super::*;
use crate::testing::{Writer, filled, history, rewritten};

fn start(epoch: u64, first_position: u64) -> EpochStart {
    EpochStart { epoch, first_position }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Law 5, from the consumer to the rows: any batching, duplication, loss, reordering and forgery of messages, any broken
    /// connection, and any coming and going of projectors, ends in the same rows.
    #[test]
    fn whatever_bus_and_store_do_the_rows_are_the_fold(
        lengths in prop::collection::vec(1..60usize, 1..4),
        bus in prop::collection::vec(any::<u8>(), 1..97),
        store in prop::collection::vec(any::<u8>(), 0..150),
        slowness in 0..40usize,
        guests in prop::collection::vec((any::<bool>(), 0..20u8), 0..4),
    ) {
        run(async {
            let world = World::new(lengths.len() as u16, Messy::new(bus), store);
            world.store.slowness.store(slowness, Ordering::Relaxed);
            let logs: Vec<_> = lengths.iter().zip(0..).map(|(length, partition)| filled(Writer::new(log(partition)), *length).events).collect();
            logs.iter().for_each(|events| world.publish(events));
            let first = world.start();
            for (number, (gracefully, turns)) in guests.into_iter().enumerate() {
                let guest = world.start_as(&format!("guest-{number}"));
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                if gracefully {
                    guest.stop().await;
                } else {
                    guest.shard.abort();
                }
            }
            for events in &logs {
                world.reach(events).await;
            }
            first.stop().await;
            for events in &logs {
                world.reach(events).await;
            }
        });
    }
}

/// Database and projector would wait for each other else.
#[tokio::test]
async fn a_backlog_is_folded_while_the_batch_before_it_is_written() {
    let world = World::new(1, Messy::tidy(), vec![]);
    world.store.slowness.store(50, Ordering::Relaxed);
    let mut writer = Writer::new(log(0));
    (0..60).for_each(|product| writer.receive(product, 1));
    world.publish(&writer.events);
    let running = world.start();
    world.reach(&writer.events).await;
    assert!(world.store.loads_meanwhile.load(Ordering::Relaxed) > 0, "no row was read while a batch was written");
    running.stop().await;
}

/// What waits behind a batch that was not written must not be written at the end.
#[tokio::test]
async fn a_projector_that_ends_while_its_database_is_away_leaves_no_hole() {
    for turns in 0..40 {
        let world = World::new(1, Messy::tidy(), vec![]);
        world.store.takes_none.store(true, Ordering::Relaxed);
        let mut writer = Writer::new(log(0));
        // No entity twice: none of them notices that an event of it is missing.
        (0..60).for_each(|product| writer.receive(product, 1));
        world.publish(&writer.events);
        let running = world.start();
        tokio::time::sleep(Duration::from_millis(3)).await;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        world.store.takes_none.store(false, Ordering::Relaxed);
        running.stop().await;
        let reached = world.checkpoint(log(0)).await.position.0 as usize;
        world.hold_fold_of(log(0), &writer.events[..reached]).await;
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

/// The epochs say so: the hashes of what was taken back continue what was not.
#[tokio::test]
async fn what_a_restore_took_back_is_not_taken_from_the_bus_again() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let old = history(12);
    world.publish(&old);
    let running = world.start();
    world.reach(&old).await;
    // Restored to 7 events and taken over, but not yet written on; the bus knows nothing of it.
    world.truth.put(&old[..7]);
    *world.truth.epochs.lock().unwrap() = vec![start(1, 1), start(2, 8)];
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let restored = async {
        loop {
            world.announce(&old[..7]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let heard = async {
        while feed.next().await.unwrap().position != 7 {}
        for _ in 0..20 {
            assert_eq!(feed.next().await.unwrap().position, 7, "views show again what was taken back");
        }
    };
    tokio::select! {
        () = restored => {}
        () = heard => {}
    }
    world.reach(&old[..7]).await;
    let new = rewritten(10, 7);
    world.publish(&new);
    world.reach(&new).await;
    running.stop().await;
}

/// It lies behind what they had read; nothing of it has to be taken out of them.
#[tokio::test]
async fn views_that_lag_do_not_take_what_a_restore_took_back() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let old = history(12);
    world.bus.holds.put(&old);
    world.truth.put(&old[..7]);
    world.heads.announce(&HeadAnnouncement { region: 1, position: 7, epochs: vec![start(1, 1), start(2, 8)], ..Default::default() });
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let running = world.start();
    world.reach(&old[..7]).await;
    let most = async { while feed.next().await.unwrap().position <= 7 {} };
    tokio::time::timeout(Duration::from_millis(200), most).await.expect_err("views show what was taken back");
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
async fn rows_that_somebody_changed_are_mended() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let events = history(12);
    world.publish(&events[..6]);
    let running = world.start();
    world.reach(&events[..6]).await;
    running.stop().await;
    let checkpoint = world.store.inner.claim(&[log(0)], "other", Duration::ZERO, UnixMillis(0)).await.unwrap()[0];
    let mut row = world.store.inner.scan(&AVAILABILITY, log(0), None, 1).await.unwrap().rows.remove(0);
    row.position = Position(7);
    row.values[0] = Value::Int(99);
    row.values[4] = Value::Bytes(Default::default());
    let Checkpoint { log, fence, epoch, position, hash, revision, written, .. } = checkpoint;
    let advance = Advance { log, fence, from_epoch: epoch, from_position: position, epoch, position, hash, whole: false };
    let tampered =
        Batch { advances: vec![advance], rows: [(AVAILABILITY.name, vec![row])].into(), revision, now: written, ..Batch::default() };
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
    let checkpoint = world.store.inner.claim(&[log(0)], "other", Duration::ZERO, UnixMillis(0)).await.unwrap()[0];
    let Checkpoint { log, fence, epoch, position, hash, .. } = checkpoint;
    let advance = Advance { log, fence, from_epoch: epoch, from_position: position, epoch, position, hash, whole: false };
    let older = Batch { advances: vec![advance], revision: souk_views::revision() - 1, ..Batch::default() };
    assert!(world.store.inner.write(&older).await.unwrap().lost.is_empty());
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let running = world.start();
    let first = feed.next().await.unwrap();
    assert_eq!((first.from_position, first.position), (0, 0), "caches hear that the log begins anew");
    let mut heard = first;
    while heard.rebuilding {
        heard = feed.next().await.unwrap();
        assert!(heard.rebuilding || heard.position == 6, "views that lack events are said to be whole at {}", heard.position);
    }
    world.reach(&events).await;
    running.stop().await;
    assert_eq!(world.checkpoint(log).await.revision, souk_views::revision());
}

/// Emptied by one that goes away before it can fold anything: whoever takes over knows, and goes on.
#[tokio::test]
async fn views_stay_unread_over_takeovers_until_they_are_whole() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let events = history(12);
    world.publish(&events);
    let running = world.start();
    world.reach(&events).await;
    running.stop().await;
    let mine = world.store.inner.claim(&[log(0)], "other", Duration::ZERO, UnixMillis(0)).await.unwrap()[0];
    assert!(world.store.inner.rewind(log(0), mine.fence, UnixMillis(0)).await.unwrap());
    // The bus has all events, but only the log can tell where it ends.
    world.truth.down.store(true, Ordering::Relaxed);
    for name in ["two", "three"] {
        let running = world.start_as(name);
        wait(|| async { running.board.partitions().first().is_some_and(|partition| partition.rebuilding) }).await;
        assert_eq!(world.checkpoint(log(0)).await.position, Position(0));
        running.stop().await;
        assert!(world.checkpoint(log(0)).await.rebuilding, "{name}");
    }
    world.truth.down.store(false, Ordering::Relaxed);
    let running = world.start();
    world.reach(&events).await;
    wait(|| async { !running.board.partitions()[0].rebuilding }).await;
    running.stop().await;
}

/// The views were at 12 when they were emptied, and will never come there again.
#[tokio::test]
async fn views_of_a_log_that_was_restored_are_whole_where_it_ends_now() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let old = history(12);
    world.publish(&old);
    let running = world.start();
    world.reach(&old).await;
    world.publish(&old[..7]);
    wait(|| async {
        world.announce(&old[..7]);
        world.checkpoint(log(0)).await.hash == old[6].hash
    })
    .await;
    world.reach(&old[..7]).await;
    running.stop().await;
}

/// One of many logs that went back at once meets a broken connection: none of the others is forgotten, though all are idle.
#[tokio::test]
async fn logs_that_go_back_together_are_all_folded_anew_whatever_breaks() {
    let world = World::new(8, Messy::tidy(), vec![]);
    let old: Vec<_> = (0..8).map(|partition| filled(Writer::new(log(partition)), 12).events).collect();
    old.iter().for_each(|events| world.publish(events));
    let running = world.start();
    for events in &old {
        world.reach(events).await;
    }
    world.store.broken_rewinds.store(3, Ordering::Relaxed);
    old.iter().for_each(|events| world.publish(&events[..7]));
    let back = |events: &Vec<RecordedEvent>| events[..7].to_vec();
    for events in old.iter().map(back) {
        world.reach(&events).await;
    }
    assert_eq!(world.store.broken_rewinds.load(Ordering::Relaxed), 0);
    running.stop().await;
}

/// A poison event on the way holds the log up: what is there of it is not shown as if it were all.
#[tokio::test]
async fn views_that_stand_still_on_the_way_are_not_whole() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let mut writer = filled(Writer::new(log(0)), 4);
    for number in 0..=world.config.parked_events_max {
        writer.push(&format!("stock-q-{number}"), &format!("{UNKNOWN}Thing"), Vec::new());
    }
    let events = filled(writer, 14).events;
    world.publish(&events);
    let mine = world.store.inner.claim(&[log(0)], "other", Duration::ZERO, UnixMillis(0)).await.unwrap()[0];
    assert!(world.store.inner.rewind(log(0), mine.fence, UnixMillis(0)).await.unwrap());
    let running = world.start();
    wait(|| async { running.board.halted() == 1 }).await;
    let stands = world.checkpoint(log(0)).await;
    assert!(stands.rebuilding && stands.position == Position(9), "{stands:?}");
    running.stop().await;
    assert!(world.checkpoint(log(0)).await.rebuilding);
}

/// The same behind the place where the log ended when its views were emptied: they are whole there.
#[tokio::test]
async fn views_that_stand_still_behind_the_place_where_they_are_whole_are_read() {
    let mut world = World::new(1, Messy::tidy(), vec![]);
    world.config.parked_events_max = 0;
    let mut writer = filled(Writer::new(log(0)), 4);
    writer.push("stock-q", &format!("{UNKNOWN}Thing"), Vec::new());
    world.publish(&writer.events);
    *world.truth.said.lock().unwrap() = Some(Position(4));
    let mine = world.store.inner.claim(&[log(0)], "other", Duration::ZERO, UnixMillis(0)).await.unwrap()[0];
    assert!(world.store.inner.rewind(log(0), mine.fence, UnixMillis(0)).await.unwrap());
    let running = world.start();
    wait(|| async { running.board.halted() == 1 }).await;
    wait(|| async { !world.checkpoint(log(0)).await.rebuilding }).await;
    running.stop().await;
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

/// Nobody waits any more for what began long ago, and no cache has it; what changed may be in one.
#[tokio::test]
async fn caches_are_not_filled_by_a_projector_that_is_far_behind() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let mut writer = Writer::new(log(0));
    for product in (0..50).chain(0..50) {
        writer.receive(product, 1);
    }
    world.publish(&writer.events);
    let running = world.start();
    let mut known = HashSet::new();
    let mut told = 0;
    while told < 100 {
        for row in feed.next().await.unwrap().rows {
            told += 1;
            assert_eq!(row.row.is_some(), !known.insert(row.key.clone()), "{}", row.key);
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn an_epoch_seen_in_events_is_told_before_it_is_announced() {
    let world = World::new(1, Messy::tidy(), vec![]);
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let events = rewritten(10, 5);
    world.heads.announce(&HeadAnnouncement { region: 1, epochs: vec![start(1, 1)], ..Default::default() });
    world.publish(&events);
    let running = world.start();
    loop {
        let change = feed.next().await.unwrap();
        let told = if change.epoch < 2 { vec![start(1, 1)] } else { vec![start(1, 1), start(2, 6)] };
        assert_eq!(change.epochs, told, "at {}", change.position);
        if change.position == 10 {
            break;
        }
    }
    world.heads.announce(&HeadAnnouncement { region: 1, epochs: vec![start(2, 6), start(3, 11)], ..Default::default() });
    while feed.next().await.unwrap().epochs != [start(2, 6), start(3, 11)] {}
    running.stop().await;
}

/// A price on a large product is a small event and a large row.
#[tokio::test]
async fn where_rows_are_large_a_batch_has_fewer_events() {
    const PAYLOAD: usize = 16 * 1024;
    let mut world = World::new(1, Messy::tidy(), vec![]);
    (world.config.batch_events, world.config.batch_bytes, world.config.row_cache_entries) = (64, PAYLOAD, 1_000);
    world.store.slowness.store(40, Ordering::Relaxed);
    let mut writer = Writer::new(log(0));
    let details = ProductDetails { description: "x".repeat(8_000), ..Default::default() };
    for product in 0..32 {
        let created = ProductCreated { details: Some(details.clone()), price: None };
        writer.push(&format!("product-p-{product}"), "ProductCreated", created.encode_to_vec());
    }
    for number in 0..320 {
        writer.push(&format!("product-p-{}", number % 32), "PriceSet", PriceSet { price: None }.encode_to_vec());
    }
    world.publish(&writer.events);
    let running = world.start();
    world.reach(&writer.events).await;
    running.stop().await;
    let largest = world.store.largest.load(Ordering::Relaxed);
    assert!((2 * 8_000..=4 * PAYLOAD).contains(&largest), "{largest} bytes of rows in one transaction");
}
