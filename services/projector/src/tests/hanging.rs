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
