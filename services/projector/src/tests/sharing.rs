use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use futures::StreamExt;
use souk_bus::Feed;
use souk_event_sourcing::{Partition, Region, rendezvous};

use super::*;
use crate::testing::{Writer, filled};

const LOGS: u16 = 16;

impl Running {
    /// The partitions it says it holds.
    fn holds(&self) -> BTreeSet<u16> {
        self.board.partitions().iter().map(|partition| partition.partition as u16).collect()
    }
}

fn share(replicas: &[&str], of: &str) -> BTreeSet<u16> {
    (0..LOGS).filter(|partition| rendezvous(log(*partition), replicas.iter().copied()) == Some(of)).collect()
}

fn histories(length: usize) -> Vec<Vec<RecordedEvent>> {
    (0..LOGS).map(|partition| filled(Writer::new(log(partition)), length).events).collect()
}

impl World {
    /// Publishes all logs up to `length` events and waits until the views have them.
    async fn all_reach(&self, length: usize) {
        let logs = histories(length);
        logs.iter().for_each(|events| self.publish(events));
        for events in &logs {
            self.reach(events).await;
        }
    }
}

#[tokio::test]
async fn projectors_share_logs_and_hand_them_over_without_a_gap_in_the_feed() {
    let world = World::new(LOGS, Messy::tidy(), vec![]);
    let mut feed = world.feed.subscribe_changes(Region(1)).await.unwrap();
    let listening = tokio::spawn(async move {
        let mut known: BTreeMap<u32, u64> = BTreeMap::new();
        while known.len() < usize::from(LOGS) || known.values().any(|position| *position < 40) {
            let change = feed.next().await.unwrap();
            let before = known.insert(change.partition, change.position).unwrap_or(0);
            assert_eq!(change.from_position, before, "partition {} continues", change.partition);
        }
    });
    let one = world.start_as("one");
    world.all_reach(10).await;
    assert_eq!(one.holds().len(), usize::from(LOGS));
    let two = world.start_as("two");
    let both = ["one", "two"];
    wait(|| async { one.holds() == share(&both, "one") && two.holds() == share(&both, "two") }).await;
    assert!(!one.holds().is_empty() && !two.holds().is_empty());
    world.all_reach(20).await;
    let three = world.start_as("three");
    let all = ["one", "two", "three"];
    wait(|| async { [&one, &two, &three].iter().zip(all).all(|(running, name)| running.holds() == share(&all, name)) }).await;
    world.all_reach(30).await;
    let members = world.store.inner.members(Duration::from_secs(60)).await.unwrap();
    assert_eq!(members.live.iter().map(|replica| replica.id.as_str()).collect::<Vec<_>>(), ["one", "three", "two"]);

    // Who leaves hands over before it ends: nobody waits until it counts as dead.
    two.stop().await;
    let left = ["one", "three"];
    let holders = world.store.inner.members(Duration::ZERO).await.unwrap().holders;
    let moved = share(&all, "two");
    assert!(moved.iter().all(|partition| holders[&log(*partition)] == rendezvous(log(*partition), left).unwrap()), "{holders:?}");
    world.all_reach(40).await;
    listening.await.unwrap();
    one.stop().await;
    three.stop().await;
    assert!(world.store.inner.members(Duration::from_secs(60)).await.unwrap() == Members::default(), "the last gives all up");
}

#[tokio::test]
async fn writers_of_one_projector_have_their_shares_and_leave_in_any_order() {
    let world = World::new(LOGS, Messy::tidy(), vec![]);
    let start = |name| [world.start_writer(name, 0, 2), world.start_writer(name, 1, 2)];
    let [even, odd] = start("one");
    wait(|| async { even.holds().len() + odd.holds().len() == usize::from(LOGS) }).await;
    assert!(even.holds().iter().all(|partition| partition % 2 == 0) && odd.holds().iter().all(|partition| partition % 2 == 1));
    world.all_reach(10).await;
    // Another that has one writer, and then one that has two.
    let two = world.start_as("two");
    let both = ["one", "two"];
    let held_by_one = || even.holds().union(&odd.holds()).copied().collect::<BTreeSet<_>>();
    wait(|| async { held_by_one() == share(&both, "one") && two.holds() == share(&both, "two") }).await;
    world.all_reach(20).await;
    odd.stop().await;
    even.stop().await;
    wait(|| async { two.holds().len() == usize::from(LOGS) }).await;
    let [even, odd] = start("three");
    let both = ["two", "three"];
    let held_by_three = || even.holds().union(&odd.holds()).copied().collect::<BTreeSet<_>>();
    wait(|| async { held_by_three() == share(&both, "three") && two.holds() == share(&both, "two") }).await;
    world.all_reach(30).await;
    even.stop().await;
    odd.stop().await;
    wait(|| async { two.holds().len() == usize::from(LOGS) }).await;
    world.all_reach(40).await;
    two.stop().await;
    assert!(world.store.inner.members(Duration::from_secs(60)).await.unwrap() == Members::default(), "the last gives all up");
}

#[tokio::test]
async fn who_dies_is_replaced_when_its_heartbeat_is_old() {
    let world = World::new(LOGS, Messy::tidy(), vec![]);
    let (one, two) = (world.start_as("one"), world.start_as("two"));
    let both = ["one", "two"];
    wait(|| async { one.holds() == share(&both, "one") && two.holds() == share(&both, "two") }).await;
    world.all_reach(10).await;
    let mine = log(*two.holds().first().unwrap());
    let fence = world.checkpoint(mine).await.fence;
    two.shard.abort();
    world.all_reach(20).await;
    assert!(world.checkpoint(mine).await.fence > fence);
    wait(|| async { one.holds().len() == usize::from(LOGS) }).await;
    one.stop().await;
}

/// After an outage of the database all heartbeats are old; who comes back first must not take everything.
#[tokio::test]
async fn nobody_is_dead_to_a_replica_that_was_away_itself() {
    let world = World::new(LOGS, Messy::tidy(), vec![]);
    let (ttl, claimed) = (world.config.lease_ttl, (0..LOGS).map(log).collect::<Vec<_>>());
    world.store.inner.claim(&claimed, "two", Duration::ZERO, UnixMillis(0)).await.unwrap();
    world.store.inner.heartbeat(&Replica { id: "two".to_owned(), address: String::new() }).await.unwrap();
    wait(|| async { world.store.inner.members(ttl).await.unwrap().live.is_empty() }).await;
    let begun = Instant::now();
    let one = world.start_as("one");
    wait(|| async { one.holds().len() == usize::from(LOGS) }).await;
    assert!(begun.elapsed() >= ttl);
    one.stop().await;
}

#[tokio::test]
async fn a_crash_that_takes_a_claim_back_leaves_no_log_behind() {
    let world = World::new(2, Messy::tidy(), vec![]);
    let running = world.start();
    let logs: Vec<_> = (0..2).map(|partition| filled(Writer::new(log(partition)), 10).events).collect();
    logs.iter().for_each(|events| world.publish(events));
    for events in &logs {
        world.reach(events).await;
    }
    // As after a restart of the database that lost its last commits: somebody else is said to hold the log.
    world.store.inner.claim(&[log(0)], "ghost", Duration::ZERO, UnixMillis(0)).await.unwrap();
    let longer = filled(Writer::new(log(0)), 20).events;
    world.publish(&longer);
    world.reach(&longer).await;
    running.stop().await;
}

#[tokio::test]
async fn an_errand_for_a_log_of_another_projector_is_refused() {
    let world = World::new(LOGS, Messy::tidy(), vec![]);
    let (one, two) = (world.start_as("one"), world.start_as("two"));
    let both = ["one", "two"];
    wait(|| async { one.holds() == share(&both, "one") && two.holds() == share(&both, "two") }).await;
    let theirs = LogId { region: Region(1), partition: Partition(*two.holds().first().unwrap()) };
    let refused = one.errands.run(theirs, "stock-p-1".parse().unwrap(), crate::parking::Wish::Replay).await;
    assert!(matches!(refused, Err(crate::parking::Refused::NotHeld(log)) if log == theirs));
    one.stop().await;
    two.stop().await;
}
