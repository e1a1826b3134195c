use futures::StreamExt;
use souk_bus::Feed;
use souk_event_sourcing::Region;

use super::*;
use crate::testing::{Writer, filled};

/// Short, and long enough that nothing else takes as long.
const WATCHDOG: Duration = Duration::from_millis(250);

#[tokio::test]
async fn a_reader_that_hangs_is_started_anew() {
    let mut world = World::new(2, Messy::tidy(), vec![]);
    world.config.watchdog_after = WATCHDOG;
    world.bus.hangs.store(1, Ordering::Relaxed);
    let logs = [filled(Writer::new(log(0)), 20).events, filled(Writer::new(log(1)), 20).events];
    logs.iter().for_each(|events| world.publish(events));
    let running = world.start();
    for events in &logs {
        world.reach(events).await;
    }
    assert_eq!(running.board.restarts(), 1, "only the one that hung");
    running.stop().await;
}

#[tokio::test]
async fn a_write_that_never_returns_is_broken_off() {
    let mut world = World::new(2, Messy::tidy(), vec![]);
    world.config.watchdog_after = WATCHDOG;
    world.store.hangs.store(1, Ordering::Relaxed);
    let logs = [filled(Writer::new(log(0)), 20).events, filled(Writer::new(log(1)), 20).events];
    logs.iter().for_each(|events| world.publish(events));
    let running = world.start();
    for events in &logs {
        world.reach(events).await;
    }
    assert_eq!(running.board.restarts(), 1);
    wait(|| async { world.health.is_ready() }).await;
    running.stop().await;
}

/// Neither a log at its end nor one that stands still for a reason is anything to start anew.
#[tokio::test]
async fn what_has_nothing_to_do_is_left_alone() {
    let mut world = World::new(2, Messy::tidy(), vec![]);
    world.config.watchdog_after = Duration::from_millis(30);
    world.config.parked_events_max = 0;
    let idle = filled(Writer::new(log(0)), 5).events;
    let mut full = Writer::new(log(1));
    full.push("stock-p-1", "UnknownThing", vec![]);
    world.publish(&idle);
    world.publish(&full.events);
    let running = world.start();
    world.reach(&idle).await;
    wait(|| async { running.board.halted() == 1 }).await;
    // Announcements of a while that is many times the watchdog's.
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    for _ in 0..40 {
        let change = feed.next().await.unwrap();
        assert_eq!(change.position, if change.partition == 0 { 5 } else { 0 });
    }
    assert_eq!(running.board.restarts(), 0);
    running.stop().await;
}

#[tokio::test]
async fn what_was_at_its_end_for_long_has_not_hung_by_its_next_event() {
    let mut world = World::new(1, Messy::tidy(), vec![]);
    world.config.watchdog_after = Duration::from_secs(1);
    let events = filled(Writer::new(log(0)), 21).events;
    world.publish(&events[..20]);
    let running = world.start();
    world.reach(&events[..20]).await;
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let idle = std::time::Instant::now();
    while idle.elapsed() <= world.config.watchdog_after {
        feed.next().await.unwrap();
    }
    // The head is heard of, the event is on its way; three announcements are far fewer than the watchdog waits for.
    world.announce(&events);
    for _ in 0..3 {
        feed.next().await.unwrap();
    }
    assert_eq!(running.board.restarts(), 0);
    wait(|| async { running.board.restarts() > 0 }).await;
    world.publish(&events);
    world.reach(&events).await;
    running.stop().await;
}
