//! Copies of other regions' logs on real Postgres: several writers at once, and what travels with the events.

use std::sync::Arc;

use souk_event_sourcing::{Position, UnixMillis};
use souk_event_store::{
    Copies, EventLog, ReplicaBatch, Replicated, StoreError,
    conformance::{Part, beginning, foreign, history, log},
};
use tokio::task::JoinSet;

use crate::world::{RETENTION, World, connect};

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_one_copy_get_in_each_others_way_and_write_nothing_twice() {
    let world = World::new().await;
    let copy = foreign(1);
    world.store.prepare("w1", &[(copy, Position(0))], RETENTION, UnixMillis::now()).await.expect("prepare");
    let all = Arc::new(history(copy, beginning(7), 300));
    let mut writers = JoinSet::new();
    for size in [7, 10, 13, 16] {
        let (all, store) = (all.clone(), connect(&world.url).await);
        writers.spawn(async move {
            for (events, ledger) in all.events.chunks(size).zip(all.ledger.chunks(size)) {
                let batch = ReplicaBatch { events: events.to_vec(), ledger: ledger.to_vec(), ..(*all).clone() };
                let done = store.replicate(&batch).await.expect("replicated");
                assert!(matches!(done, Replicated::Done(_)), "{done:?}");
            }
        });
    }
    writers.join_all().await;
    assert_eq!(world.store.read(copy, Position(1), 1_000).await.expect("read"), all.events);
    assert_eq!(world.store.ledger_of(copy, &all.events, RETENTION).await.expect("ledger"), all.ledger);
    assert_eq!(world.count("select count(*) from ledger where region = 2").await, 300);
    let loaded = world.store.load(copy, &[all.events[0].stream.clone()], 1).await.expect("load");
    assert_eq!(loaded[0].events.len(), 150);
}

#[tokio::test]
async fn nobody_writes_a_copy_of_this_regions_own_log() {
    let world = World::new().await;
    let belief = world.take(log(1)).await;
    let part = Part::of(log(1), belief).build();
    let batch = ReplicaBatch { log: part.log, ..history(foreign(1), beginning(1), 1) };
    assert!(matches!(world.store.replicate(&batch).await, Err(StoreError::Setup(_))));
    let head = (&world.store.head(log(1)).await.expect("head")).into();
    assert!(matches!(world.store.rewind(log(1), Position(0), head, &[]).await, Err(StoreError::Setup(_))));
}

#[tokio::test]
async fn all_ends_are_the_heads_of_all_logs_that_were_written() {
    let world = World::new().await;
    let copy = foreign(1);
    world.store.prepare("w1", &[(copy, Position(0))], RETENTION, UnixMillis::now()).await.expect("prepare");
    world.store.replicate(&history(copy, beginning(7), 3)).await.expect("replicated");
    world.take(log(1)).await;
    let ends = world.store.ends().await.expect("ends");
    assert_eq!(ends[&copy].position, Position(3));
    for log in [copy, log(1)] {
        assert_eq!(ends[&log], (&world.store.head(log).await.expect("head")).into());
    }
    assert_eq!(ends.get(&foreign(2)), None, "nothing was copied yet");
}
