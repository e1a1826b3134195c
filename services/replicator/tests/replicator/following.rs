//! One origin, and what may be wrong with it.

use souk_event_sourcing::Position;
use souk_event_store::{Copies, End, EventLog};

use crate::world::{LOG, World, emptied, first_events, onward, until, wait};

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_where_it_was_after_an_end_in_the_middle() {
    let world = World::start().await;
    let all = first_events(600);
    world.origin.holds(until(&all, 300));
    let replicator = world.replicator().await;
    world.copies(&until(&all, 300)).await;
    world.origin.holds(all.clone());
    wait("it is in the middle", async || world.position().await > 300).await;
    replicator.stop().await;
    let stopped = world.position().await;
    assert!((301..600).contains(&stopped), "in the middle: {stopped}");
    let replicator = world.replicator().await;
    world.copies(&all).await;
    world.remembers(&all).await;
    assert_eq!((replicator.figure("lag_events.2").await, replicator.figure("reachable.2").await), (0.0, 1.0));
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicators_that_copy_the_same_write_nothing_twice() {
    let world = World::start().await;
    let all = first_events(400);
    world.origin.holds(until(&all, 100));
    let first = world.replicator().await;
    wait("the first copies", async || world.position().await > 0).await;
    // Nobody is told that it ends: for a while its successor and what is left of it write the same copy.
    first.kill().await;
    let second = world.replicator().await;
    world.origin.holds(all.clone());
    world.copies(&all).await;
    world.remembers(&all).await;
    assert_eq!(second.figure("refused.2").await, 0.0);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_restored_to_an_earlier_time_is_filled_again_while_its_log_is_idle() {
    let world = World::start().await;
    let all = first_events(40);
    world.origin.holds(all.clone());
    let replicator = world.replicator().await;
    world.copies(&all).await;
    let seen = End::from(&world.store.head(LOG).await.unwrap());
    assert!(world.store.rewind(LOG, Position(25), seen, &all.epochs).await.unwrap());
    world.copies(&all).await;
    assert_eq!(replicator.figure("refused.2").await, 0.0, "the origin is not to blame");
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_restored_to_before_its_first_event_gets_its_tables_again() {
    let world = World::start().await;
    let all = first_events(40);
    world.origin.holds(all.clone());
    let replicator = world.replicator().await;
    world.copies(&all).await;
    let seen = End::from(&world.store.head(LOG).await.unwrap());
    world.forget_tables().await;
    assert!(world.store.rewind(LOG, Position(0), seen, &all.epochs).await.unwrap());
    world.copies(&all).await;
    assert_eq!(replicator.figure("refused.2").await, 0.0, "the origin is not to blame");
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_copy_cannot_be_written_the_origin_is_held_back() {
    let world = World::start().await;
    let few = first_events(10);
    world.origin.holds(few.clone());
    let replicator = world.replicator().await;
    world.copies(&few).await;
    let locked = world.locked().await;
    world.origin.holds(onward(&few, 7, 19_990));
    let mut tailed = world.origin.said().tailed;
    wait("the origin waits", async || {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let before = std::mem::replace(&mut tailed, world.origin.said().tailed);
        tailed > 10 && tailed == before
    })
    .await;
    assert!(tailed < 15_000, "{tailed} events are under way to where none can be written");
    drop(locked);
    wait("all is copied", async || world.position().await == 20_000).await;
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_origin_is_refused_and_seen() {
    let world = World::start().await;
    let all = first_events(40);
    world.origin.holds(until(&all, 20));
    let replicator = world.replicator().await;
    world.copies(&until(&all, 20)).await;
    world.origin.said().lie = Some(|event| {
        if event.position > Position(20) {
            event.actor = "somebody else".into();
        }
    });
    world.origin.holds(all.clone());
    wait("it is refused", async || replicator.figure("refused.2").await >= 2.0).await;
    assert_eq!(world.position().await, 20);
    assert_eq!(replicator.figure("lag_events.2").await, 20.0);
    world.origin.said().lie = None;
    world.copies(&all).await;
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_follows_an_origin_that_went_back_to_before_its_first_event() {
    let world = World::start().await;
    let all = first_events(20);
    world.origin.holds(all.clone());
    let replicator = world.replicator().await;
    world.copies(&all).await;
    let nothing = emptied(&all, 8);
    world.origin.holds(nothing.clone());
    world.copies(&nothing).await;
    assert_eq!(world.lost(8, 0).await, 20, "what was lost is written down");
    let others = onward(&nothing, 8, 10);
    world.origin.holds(others.clone());
    world.copies(&others).await;
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_has_nothing_in_common_with_its_origin_is_kept() {
    let world = World::start().await;
    let (ours, others) = (first_events(20), first_events(40));
    world.origin.holds(ours.clone());
    let replicator = world.replicator().await;
    world.copies(&ours).await;
    let asked = world.third.said().asked(LOG);
    world.third.holds(onward(&ours, 7, 40));
    world.origin.holds(others);
    wait("it is heard", async || replicator.figure("lag_events.2").await == 20.0).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    world.copies(&ours).await;
    assert_eq!(world.third.said().asked(LOG), asked, "nobody lends while the origin tells");
    // The origin's log went on after all.
    let longer = onward(&ours, 7, 20);
    world.origin.holds(longer.clone());
    world.copies(&longer).await;
    replicator.stop().await;
}
