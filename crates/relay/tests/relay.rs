//! The relay over a real nats-server: whatever happens to server, store or stream, the stream becomes a copy of the
//! log again, unattended.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::jetstream::stream::Config;
use futures::StreamExt;
use prost::Message;
use souk_bus::{Feed, to_wire};
use souk_bus_publisher::conformance::{History, log, within};
use souk_event_sourcing::{MAX_PAYLOAD_BYTES, Position, Region};
use souk_event_store::{EventLog, MemoryStore};
use souk_relay::{Head, Tuning};
use tokio::time::Instant;

use world::{LOG, Owned, TUNING, World};

#[path = "relay/world.rs"]
mod world;

fn history() -> History {
    History::of(LOG, "truth")
}

#[tokio::test]
async fn what_is_committed_is_published_also_when_the_ring_overflows() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(10).await;
    owned.copied().await;
    // Many times the ring, without a pause: most of it comes from the table.
    owned.commit(2_000).await;
    owned.copied().await;
    for _ in 0..20 {
        owned.commit(1).await;
        owned.copied().await;
    }
    assert_eq!((owned.relay.progress.head(), owned.relay.progress.lag_seconds()), (Position(2_030), 0.0));
    assert!(owned.relay.ring.get(Position(2_030)).is_none(), "what is acknowledged is forgotten");
}

#[tokio::test]
async fn events_the_relay_was_not_told_of_are_read_from_the_table() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(10).await;
    owned.copied().await;
    let unheard = owned.history.events(300);
    owned.append_unheard(unheard).await;
    owned.relay.ring.ends_at(Head { position: owned.belief.position, hash: owned.belief.hash });
    owned.copied().await;
    owned.commit(10).await;
    owned.copied().await;
}

#[tokio::test]
async fn a_lost_stream_is_filled_with_the_latest_events() {
    let world = World::with(Tuning { refill: 100, ..TUNING }, 256).await;
    let mut owned = world.own(history());
    owned.copied().await;
    owned.commit(250).await;
    owned.copied().await;
    // Made anew while the relay runs …
    world.stranger.delete_stream(world.stream_name()).await.expect("deleted");
    owned.copied_from(151).await;
    owned.commit(10).await;
    owned.copied_from(151).await;
    // … and when a relay starts without one.
    let history = owned.history.clone();
    owned.stop().await;
    world.stranger.delete_stream(world.stream_name()).await.expect("deleted");
    world.own(history).copied_from(161).await;
}

#[tokio::test]
async fn an_empty_stream_far_behind_is_filled_with_the_latest_events() {
    let mut world = World::with(Tuning { refill: 100, ..TUNING }, 256).await;
    let mut owned = world.own(history());
    owned.copied().await;
    world.nats.kill9().await.expect("killed");
    owned.commit(250).await;
    world.nats.start_again().await.expect("restarted");
    owned.copied_from(151).await;
}

#[tokio::test]
async fn a_killed_server_is_caught_up_with() {
    let mut world = World::new().await;
    let mut owned = world.own(history());
    for _ in 0..5 {
        owned.commit(200).await;
        world.nats.kill9().await.expect("killed");
        // More than the ring holds, while nobody takes it.
        owned.commit(200).await;
        world.nats.start_again().await.expect("restarted");
        owned.commit(200).await;
        owned.copied().await;
    }
}

#[tokio::test]
async fn a_wiped_store_is_filled_again() {
    let mut world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(500).await;
    owned.copied().await;
    world.nats.kill9().await.expect("killed");
    world.nats.wipe().expect("wiped");
    world.nats.start_again().await.expect("restarted");
    owned.commit(100).await;
    owned.copied().await;
}

#[tokio::test]
async fn a_server_that_lost_the_end_of_its_file_is_filled_up() {
    let mut world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(900).await;
    owned.copied().await;
    world.nats.kill9().await.expect("killed");
    let blocks = world.folder.path().join(format!("nats/jetstream/$G/streams/{}/msgs", world.stream_name()));
    let files = std::fs::read_dir(blocks).expect("the blocks are there").map(|file| file.expect("listed").path());
    let block = files.filter(|file| file.extension().is_some_and(|extension| extension == "blk")).max().expect("a block");
    let file = std::fs::File::options().write(true).open(&block).expect("the block is there");
    file.set_len(file.metadata().expect("known").len() / 2).expect("cut");
    // Without its index the server has to believe the block.
    let _ = std::fs::remove_file(block.with_file_name("index.db"));
    let starts = owned.relay.progress.acknowledged();
    world.nats.start_again().await.expect("restarted");
    assert_eq!(starts, Position(900));
    owned.copied().await;
    owned.commit(10).await;
    owned.copied().await;
}

#[tokio::test]
async fn a_stream_with_a_hole_is_made_anew() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(300).await;
    owned.copied().await;
    let stored = world.relays.store.read(LOG, Position(1), 300).await.expect("read");
    let history = owned.history.clone();
    owned.stop().await;
    // Far from the end, which is right; only the count of messages tells.
    world.foreign(&stored).await.delete_message(20).await.expect("deleted");
    let mut owned = world.own(history);
    owned.commit(10).await;
    owned.copied().await;
}

#[tokio::test]
async fn a_purged_stream_is_made_anew() {
    for keep in [0, 10] {
        let world = World::new().await;
        let mut owned = world.own(history());
        owned.commit(50).await;
        owned.copied().await;
        let stored = world.relays.store.read(LOG, Position(1), 50).await.expect("read");
        let history = owned.history.clone();
        owned.stop().await;
        let stream = world.foreign(&stored).await;
        match keep {
            0 => stream.purge().await,
            keep => stream.purge().keep(keep).await,
        }
        .expect("purged");
        let owned = world.own(history);
        owned.copied().await;
    }
}

#[tokio::test]
async fn a_stream_of_the_log_with_other_settings_is_kept_and_settled() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(50).await;
    owned.copied().await;
    let stored = world.relays.store.read(LOG, Position(1), 50).await.expect("read");
    let history = owned.history.clone();
    owned.stop().await;
    world.foreign(&stored).await;
    let created = world.created().await;
    let mut owned = world.own(history);
    owned.commit(10).await;
    owned.copied().await;
    assert_eq!(world.created().await, created);
}

#[tokio::test]
async fn a_stream_that_is_ahead_or_of_another_history_is_made_anew() {
    for theirs in [80, 30] {
        let world = World::new().await;
        let mut owned = world.own(history());
        owned.commit(50).await;
        owned.copied().await;
        let history = owned.history.clone();
        owned.stop().await;
        world.foreign(&History::of(LOG, "another history").events(theirs)).await;
        let mut owned = world.own(history);
        owned.commit(10).await;
        owned.copied().await;
    }
}

#[tokio::test]
async fn a_log_that_went_back_takes_its_stream_along() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(100).await;
    owned.copied().await;
    world.relays.store.restore(MemoryStore::default());
    let mut restored = world.own(History::of(LOG, "after the restore"));
    restored.commit(40).await;
    restored.copied().await;
    let lost: Vec<_> = world.relays.store.lost.lock().expect("not poisoned").iter().map(|event| event.position.0).collect();
    assert_eq!(lost, (1..=100).collect::<Vec<_>>(), "written down before the stream was deleted");
    restored.commit(100).await;
    restored.copied().await;
    drop(owned);
}

#[tokio::test]
async fn a_message_somebody_else_put_into_the_stream_is_got_rid_of() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(50).await;
    owned.copied().await;
    let subject = world.relays.feed.subjects().log(LOG);
    world.stranger.publish(subject.clone(), "junk".into()).await.expect("sent").await.expect("stored");
    owned.copied().await;
    // A duplicate of an event, at a sequence that is not its position.
    let last = world.relays.store.read(LOG, Position(50), 1).await.expect("read").remove(0);
    let again = to_wire(&last).encode_to_vec();
    world.stranger.publish(subject, again.into()).await.expect("sent").await.expect("stored");
    owned.commit(50).await;
    owned.copied().await;
}

#[tokio::test]
async fn a_foreign_event_with_the_log_s_own_behind_it_is_found() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(100).await;
    owned.copied().await;
    let stored = world.relays.store.read(LOG, Position(1), 100).await.expect("read");
    let history = owned.history.clone();
    owned.stop().await;
    // As two owners of different histories leave it when one is killed: only the middle is wrong.
    let theirs = History::of(LOG, "another history").events(60).pop().expect("some");
    let mut mixed = stored.clone();
    mixed[59] = theirs;
    world.foreign(&mixed).await;
    world.own(history).copied().await;
}

#[tokio::test]
async fn a_stream_put_in_the_place_of_ours_is_made_anew_however_alike_it_ends() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(400).await;
    owned.copied().await;
    let mut mixed = world.relays.store.read(LOG, Position(1), 400).await.expect("read");
    // Far behind the end that is walked event by event.
    mixed[10] = History::of(LOG, "another history").events(11).pop().expect("some");
    let foreign = world.foreign(&mixed).await.cached_info().created.to_string();
    within(async {
        while world.created().await == foreign {
            tokio::task::yield_now().await;
        }
    })
    .await;
    owned.commit(10).await;
    owned.copied().await;
}

#[tokio::test]
async fn two_relays_of_one_log_do_not_harm_each_other() {
    let world = World::new().await;
    let mut owned = world.own(history());
    let other = world.relay(owned.belief, history());
    owned.commit(1).await;
    owned.copied().await;
    let created = world.created().await;
    for _ in 0..40 {
        let from = owned.belief.position.next();
        owned.commit(25).await;
        for event in world.relays.store.read(LOG, from, 25).await.expect("read") {
            other.relay.ring.push(Arc::new(event));
        }
    }
    owned.copied().await;
    within(async {
        while other.relay.progress.acknowledged() != owned.belief.position {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(world.created().await, created, "nobody made the stream anew");
}

#[tokio::test]
async fn a_relay_whose_log_was_taken_over_touches_nothing_and_ends() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(20).await;
    owned.copied().await;
    world.relays.store.take(LOG);
    world.stranger.delete_stream(world.stream_name()).await.expect("deleted");
    within(owned.relay.stopped()).await;
    assert_eq!(world.state(LOG).await, None);
}

#[tokio::test]
async fn the_largest_events_pass() {
    let world = World::new().await;
    let mut owned = world.own(history());
    for _ in 0..4 {
        let events = (0..10).map(|_| owned.history.event(MAX_PAYLOAD_BYTES)).collect();
        owned.append(events).await;
    }
    owned.copied().await;
}

#[tokio::test]
async fn many_logs_share_a_small_window() {
    let world = World::with(TUNING, 8).await;
    let mut owned: Vec<Owned> = (0..64).map(|partition| world.own(History::of(log(partition), "many"))).collect();
    for log in &mut owned {
        log.commit(100).await;
    }
    for log in &owned {
        log.copied().await;
    }
    assert_eq!(world.relays.window.available_permits(), 8);
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_stops_nothing_for_good() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(50).await;
    owned.copied().await;
    world.relays.store.away.store(true, Ordering::SeqCst);
    world.stranger.delete_stream(world.stream_name()).await.expect("deleted");
    // Far more than the ring holds, so that the table is needed.
    owned.commit(300).await;
    let mut heads = world.relays.feed.subscribe_heads(Region(1)).await.expect("subscribes");
    while within(heads.next()).await.expect("goes on").position != 350 {}
    assert_eq!(world.state(LOG).await, None);
    world.relays.store.away.store(false, Ordering::SeqCst);
    owned.copied().await;
}

#[tokio::test]
async fn heads_are_announced_also_when_the_stream_cannot_be_written() {
    let world = World::new().await;
    let subject = world.relays.feed.subjects().log(LOG);
    let theirs = Config { name: "theirs".into(), subjects: vec![subject], ..Config::default() };
    world.stranger.create_stream(theirs).await.expect("made");
    let mut heads = world.relays.feed.subscribe_heads(Region(1)).await.expect("subscribes");
    let mut owned = world.own(history());
    owned.commit(5).await;
    let hash = owned.belief.hash.0.to_vec();
    loop {
        let head = within(heads.next()).await.expect("goes on");
        assert_eq!((head.region, head.partition, head.epoch), (1, 1, owned.belief.epoch.0));
        if head.position == 5 {
            assert_eq!(head.hash, hash);
            break;
        }
    }
    assert_eq!(owned.relay.progress.acknowledged(), Position(0));
    // The relay finds its way when the other stream is gone.
    world.stranger.delete_stream("theirs").await.expect("deleted");
    owned.copied().await;
}

#[tokio::test]
async fn a_stopping_relay_publishes_what_it_has() {
    let world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(500).await;
    owned.stop().await;
    let state = world.state(LOG).await.expect("there");
    assert_eq!((state.first, state.last, state.whole), (Position(1), Position(500), true));
}

#[tokio::test]
async fn a_relay_stops_soon_and_holds_little_while_nats_is_away() {
    let mut world = World::new().await;
    let mut owned = world.own(history());
    owned.commit(10).await;
    owned.copied().await;
    world.nats.kill9().await.expect("killed");
    owned.commit(3_000).await;
    let kept = (1..=3_010).filter(|position| owned.relay.ring.get(Position(*position)).is_some()).count();
    assert_eq!(kept, TUNING.ring_capacity);
    assert_eq!(owned.relay.progress.head(), Position(3_010));
    let started = Instant::now();
    owned.stop().await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn messages_carry_the_trace_of_their_command() {
    let world = World::new().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut owned = world.own(history());
    owned.history.traceparent = traceparent;
    owned.commit(1).await;
    owned.history.traceparent = "";
    owned.commit(1).await;
    owned.copied().await;
    let stream = world.stranger.get_stream(world.stream_name()).await.expect("found");
    let with = stream.get_raw_message(1).await.expect("there").headers;
    assert_eq!(with.get("traceparent").map(|value| value.as_str()), Some(traceparent));
    assert_eq!(with.get("Nats-Expected-Last-Sequence").map(|value| value.as_str()), Some("0"));
    assert!(with.get("Nats-Msg-Id").is_none());
    let without = stream.get_raw_message(2).await.expect("there").headers;
    assert!(without.get("traceparent").is_none());
}

#[tokio::test]
async fn a_log_that_went_back_under_its_owners_own_epoch_keeps_its_stream_until_it_is_taken_anew() {
    let world = World::new().await;
    let truth = &world.relays.store;
    let belief = truth.take(LOG);
    let mut history = history();
    history.epoch = belief.epoch;
    let mut owned = world.relay(belief, history);
    owned.commit(40).await;
    let (backup, belief, mut history) = (truth.back_up(), owned.belief, owned.history.clone());
    owned.commit(60).await;
    owned.copied().await;
    let created = world.created().await;
    owned.stop().await;
    truth.restore(backup);
    // The owner has not noticed: its relay, which looks at least once before it ends, finds its own stream ahead.
    world.relay(belief, history.clone()).stop().await;
    assert_eq!(world.created().await, created, "deleted, it would not be known any more what is lost");
    let belief = truth.take(LOG);
    (history.epoch, history.name) = (belief.epoch, "after the restore");
    let mut aware = world.relay(belief, history);
    aware.commit(5).await;
    aware.copied().await;
    let lost: Vec<_> = truth.lost.lock().expect("not poisoned").iter().map(|event| event.position.0).collect();
    assert_eq!(lost, (41..=100).collect::<Vec<_>>());
}
