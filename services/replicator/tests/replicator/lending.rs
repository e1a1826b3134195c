//! An origin that is away or lacks something, and third regions.

use souk_event_sourcing::Position;
use souk_event_store::Copies;

use crate::{
    region::Region,
    world::{LOG, Replicator, World, first_events, onward, until, wait},
};

/// A copy of the first 20 events, and the origin away.
async fn cut_off(world: &World, held: &souk_event_store::ReplicaBatch) -> Replicator {
    world.origin.holds(until(held, 20));
    let replicator = world.replicator().await;
    world.copies(&until(held, 20)).await;
    world.origin.said().away = true;
    replicator
}

/// The region was asked some times more where the log ends.
async fn asked_again(region: &Region) {
    let before = region.said().asked(LOG);
    wait("it is asked", async || region.said().asked(LOG) > before + 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_third_region_has_is_taken_while_the_origin_is_away() {
    let world = World::start().await;
    let all = first_events(600);
    let replicator = cut_off(&world, &all).await;
    world.third.holds(until(&all, 590));
    world.copies(&until(&all, 590)).await;
    assert_eq!(world.store.unproven(LOG).await.unwrap(), Some(Position(20)));
    wait("it is shown", async || replicator.figure("unproven_events.2").await == 570.0).await;
    // No hash proves what a third region says of the ledger.
    assert_eq!(world.remembered(&all).await, 20);

    world.origin.holds(all.clone());
    world.origin.said().away = false;
    world.copies(&all).await;
    world.is_proven().await;
    world.remembers(&all).await;
    assert_eq!((replicator.figure("unproven_events.2").await, replicator.figure("refused.3").await), (0.0, 0.0));
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_never_heard_the_origin_gets_its_log_from_a_third() {
    let world = World::start().await;
    let all = first_events(40);
    world.origin.said().away = true;
    world.third.holds(all.clone());
    let replicator = world.replicator().await;
    world.copies(&all).await;
    replicator.stop().await;
    // What it knows of that outlives it.
    let replicator = world.replicator().await;
    world.origin.holds(all.clone());
    world.origin.said().away = false;
    world.is_proven().await;
    world.remembers(&all).await;
    world.copies(&all).await;
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_the_origin_lacks_comes_from_a_third_region() {
    let world = World::start().await;
    let all = first_events(60);
    world.origin.said().lacks = (21..=30).collect();
    world.origin.holds(all.clone());
    let replicator = world.replicator().await;
    wait("it stands before the hole", async || world.position().await == 20).await;
    wait("it is seen", async || replicator.figure("refused.2").await >= 1.0).await;
    assert_eq!(world.position().await, 20);
    world.third.holds(until(&all, 40));
    world.copies(&all).await;
    world.is_proven().await;
    // Lent from before the hole on, it is proven across it.
    let longer = onward(&all, 7, 20);
    world.origin.said().away = true;
    world.third.holds(longer.clone());
    world.copies(&longer).await;
    world.origin.said().lacks = (65..=66).collect();
    world.origin.holds(longer.clone());
    world.origin.said().away = false;
    world.is_proven().await;
    world.copies(&longer).await;
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_region_that_sends_a_wrong_hash_is_refused_and_seen() {
    let world = World::start().await;
    let all = first_events(40);
    let replicator = cut_off(&world, &all).await;
    world.third.said().lie = Some(|event| event.hash.0[0] ^= 1);
    world.third.holds(all.clone());
    wait("it is refused", async || replicator.figure("refused.3").await >= 1.0).await;
    world.copies(&until(&all, 20)).await;
    world.origin.holds(all.clone());
    world.origin.said().away = false;
    world.copies(&all).await;
    world.is_proven().await;
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_event_than_the_origin_told_of_is_refused() {
    let world = World::start().await;
    let (all, mut other) = (first_events(40), first_events(40));
    world.origin.said().withholds = Some(Position(20));
    world.origin.holds(until(&all, 30));
    let replicator = world.replicator().await;
    wait("it has heard of the head", async || replicator.figure("lag_events.2").await == 10.0).await;
    world.origin.said().away = true;
    // Well made from the 20th event on, but the 30th is another.
    other = onward(&until(&all, 20), 7, other.events.len() as u64 - 20);
    world.third.holds(other);
    wait("it is refused", async || replicator.figure("refused.3").await >= 1.0).await;
    assert_eq!(world.position().await, 20);
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_third_region_made_up_is_taken_back_when_the_origin_has_another_log() {
    let world = World::start().await;
    let all = first_events(60);
    let replicator = cut_off(&world, &all).await;
    // Under the origin's epoch and a later one, neither of which the origin ever wrote.
    let made_up = onward(&onward(&until(&all, 20), 7, 10), 99, 40);
    world.third.holds(made_up.clone());
    world.copies(&made_up).await;
    world.origin.holds(until(&all, 40));
    world.origin.said().away = false;
    world.copies(&until(&all, 40)).await;
    world.is_proven().await;
    world.remembers(&until(&all, 40)).await;
    // Nobody asks it again.
    world.origin.said().away = true;
    let asked = world.third.said().asked(LOG);
    world.origin.holds(all.clone());
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(world.third.said().asked(LOG), asked);
    world.origin.said().away = false;
    world.copies(&all).await;
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_went_back_is_followed_though_a_third_region_has_the_lost_part() {
    let world = World::start().await;
    let lost = first_events(40);
    world.origin.holds(lost.clone());
    world.third.holds(lost.clone());
    let replicator = world.replicator().await;
    world.copies(&lost).await;
    // Restored, and taken anew.
    let restored = onward(&until(&lost, 20), 8, 10);
    world.origin.holds(restored.clone());
    world.copies(&restored).await;
    world.origin.said().away = true;
    asked_again(&world.third).await;
    world.copies(&restored).await;
    assert_eq!((world.store.unproven(LOG).await.unwrap(), replicator.figure("refused.3").await), (None, 0.0));
    let longer = onward(&restored, 8, 20);
    world.origin.holds(longer.clone());
    world.origin.said().away = false;
    world.copies(&longer).await;
    world.remembers(&longer).await;
    replicator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_went_back_is_followed_though_a_third_region_lent_the_lost_part() {
    // Behind what the origin vouched for, and within it.
    for fork in [30, 10] {
        let world = World::start().await;
        let lost = first_events(40);
        let replicator = cut_off(&world, &lost).await;
        world.third.holds(lost.clone());
        world.copies(&lost).await;
        let restored = onward(&until(&lost, fork), 8, 20);
        world.origin.holds(restored.clone());
        world.origin.said().away = false;
        world.copies(&restored).await;
        world.is_proven().await;
        assert_eq!(world.lost(8, fork).await, 40 - fork, "what it had is written down");
        // It lent in good faith.
        world.origin.said().away = true;
        let longer = onward(&restored, 8, 20);
        world.third.holds(longer.clone());
        world.copies(&longer).await;
        replicator.stop().await;
    }
}
