//! Data that is refused, tables that are missing, and histories that go back.

use std::sync::Arc;

use souk_event_sourcing::{LogId, Position, Region, StreamId, UnixMillis};
use souk_event_store::{
    BatchOutcome, Belief, EventLog, Lane, LogBatch, PostgresStore, StoreError,
    conformance::{Part, after, log, request},
};
use tokio::task::JoinSet;

use crate::world::{RETENTION, World, connect, until};

fn stream() -> StreamId {
    StreamId::new("test", "a")
}

fn one_event(log: LogId, belief: Belief) -> LogBatch {
    Part::of(log, belief).stream(&stream(), 0, 1).remember(&stream(), request(), "ok").build()
}

#[tokio::test]
async fn a_text_the_database_refuses_writes_nothing_and_can_be_left_out() {
    let world = World::new().await;
    let (innocent, mut culprit) = (one_event(log(1), world.take(log(1)).await), one_event(log(2), world.take(log(2)).await));
    culprit.ledger[0].actor = "NUL\0".into();
    let mut lane = world.lane();
    let refused = lane.append(&[innocent.clone(), culprit.clone()]).await;
    assert!(matches!(&refused, Err(StoreError::Data { sqlstate, .. }) if sqlstate == "22021"), "{refused:?}");
    assert_eq!(world.count("select (select count(*) from event) + (select count(*) from ledger)").await, 0);
    assert_eq!(lane.append(&[innocent]).await.expect("append"), [BatchOutcome::Done], "what was believed still holds");
    assert!(matches!(lane.append(std::slice::from_ref(&culprit)).await, Err(StoreError::Data { .. })));
    culprit.ledger[0].actor = "text".into();
    assert_eq!(lane.append(&[culprit]).await.expect("append"), [BatchOutcome::Done]);
}

/// Every append would parse it for each child that it writes to.
#[tokio::test]
async fn children_keep_no_check_once_they_are_attached() {
    let world = World::new().await;
    let children = "select count(*) from pg_inherits where inhrelid::regclass::text ~ '^(event_r[0-9]+_p[0-9]+_|ledger_)[0-9]+$'";
    assert!(world.count(children).await > 10);
    assert_eq!(
        world.count("select count(*) from pg_constraint where contype = 'c' and conrelid::regclass::text ~ '^(event|ledger)'").await,
        0
    );
}

/// Pretends that a log has grown to where it has no child to write to.
async fn outgrow(world: &World, log: LogId, belief: Belief) -> Belief {
    let position = (0..3).fold(belief.position, |position, _| PostgresStore::next_upkeep(position));
    sqlx::query("update partition_head set position = $1 where partition = $2")
        .bind(position.0 as i64)
        .bind(i32::from(log.partition.0))
        .execute(&mut world.sql().await)
        .await
        .expect("outgrow");
    Belief { position, ..belief }
}

#[tokio::test]
async fn without_a_child_for_its_position_nothing_is_written_until_there_is_one() {
    let world = World::new().await;
    let (ready, grown) = (log(1), log(2));
    let (first, second) = (world.take(ready).await, world.take(grown).await);
    let second = outgrow(&world, grown, second).await;
    let parts = [one_event(ready, first), one_event(grown, second)];
    let mut lane = world.lane();
    let refused = lane.append(&parts).await;
    assert!(matches!(&refused, Err(StoreError::Data { sqlstate, .. }) if sqlstate == "23514"), "{refused:?}");
    assert!(world.store.read(ready, Position(1), 1).await.expect("read").is_empty());

    world.store.prepare("w1", &[(grown, second.position)], RETENTION, UnixMillis::now()).await.expect("prepare");
    assert_eq!(lane.append(&parts).await.expect("append"), [BatchOutcome::Done, BatchOutcome::Done]);
}

#[tokio::test]
async fn children_are_added_beside_a_long_reader_and_hold_up_no_append() {
    let world = World::new().await;
    let log = log(1);
    let first = one_event(log, world.take(log).await);
    let mut lane = world.lane();
    assert_eq!(lane.append(std::slice::from_ref(&first)).await.expect("append"), [BatchOutcome::Done]);
    let mut reader = world.sql().await;
    sqlx::raw_sql("begin isolation level repeatable read; select count(*) from event; select count(*) from ledger")
        .execute(&mut reader)
        .await
        .expect("reader");

    // It would be refused after two seconds of waiting for a lock.
    let ahead = PostgresStore::next_upkeep(PostgresStore::next_upkeep(Position(1)));
    world.store.prepare("w1", &[(log, ahead)], RETENTION, UnixMillis::now().plus_ms(10 * 86_400_000)).await.expect("prepare");
    let second = Part::of(log, after(&first)).stream(&stream(), 1, 1).build();
    assert_eq!(lane.append(&[second]).await.expect("append"), [BatchOutcome::Done]);
    let seen: i64 = sqlx::query_scalar("select count(*) from event").fetch_one(&mut reader).await.expect("reader");
    assert_eq!(seen, 1, "the reader still has its snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_replicas_may_add_the_same_children_at_once() {
    let world = World::new().await;
    let mut stores = Vec::new();
    for _ in 0..6 {
        stores.push(Arc::new(connect(&world.url).await));
    }
    // Each round adds what does not exist yet: a day, and in every other round the next millions of positions.
    for round in 1..=20 {
        let (ahead, day) = (Position(round * 3_000_000), UnixMillis::now().plus_ms(round as i64 * 10 * 86_400_000));
        let logs = if round % 2 == 0 { vec![(log(1), ahead)] } else { vec![] };
        let mut replicas = JoinSet::new();
        for store in &stores {
            let (store, logs) = (store.clone(), logs.clone());
            replicas.spawn(async move { store.prepare("w1", &logs, RETENTION, day).await });
        }
        while let Some(prepared) = replicas.join_next().await {
            prepared.expect("no panic").expect("prepared");
        }
    }
}

#[tokio::test]
async fn an_epoch_that_was_lost_with_the_end_of_a_log_is_not_given_again() {
    let world = World::new().await;
    let log = log(1);
    let kept = one_event(log, world.take(log).await);
    let mut lane = world.lane();
    assert_eq!(lane.append(std::slice::from_ref(&kept)).await.expect("append"), [BatchOutcome::Done]);
    let mut backup = world.sql().await;
    sqlx::raw_sql("create table backup as table partition_head").execute(&mut backup).await.expect("backup");
    let lost = Part::of(log, world.take(log).await).stream(&stream(), 1, 1).build();
    assert_eq!(lane.append(std::slice::from_ref(&lost)).await.expect("append"), [BatchOutcome::Done]);

    let restore = "delete from event where position > 1; update stream_head set version = 1; delete from epoch_start where first_position > 1;
        update partition_head h set epoch = b.epoch, batch = b.batch, position = b.position, hash = b.hash from backup b where h.partition = b.partition";
    sqlx::raw_sql(restore).execute(&mut backup).await.expect("restore");
    until("the clock has passed the lost epoch", async || UnixMillis::now().0 as u64 > lost.belief.epoch.0).await;
    let taken = world.taken(log).await;
    assert!(taken.belief.epoch > lost.belief.epoch, "{taken:?} after {:?}", lost.belief);
    assert_eq!((taken.belief.position, taken.belief.hash, taken.written), (Position(1), kept.events[0].hash, kept.belief.epoch));
    // The other history's next event has the lost one's position, and can be told from it.
    let other = Part::of(log, taken.belief).stream(&stream(), 1, 1).build();
    assert_eq!(lane.append(std::slice::from_ref(&other)).await.expect("append"), [BatchOutcome::Done]);
    let head = world.store.head(log).await.expect("head");
    assert_eq!(head.position, lost.events[0].position);
    assert_ne!((head.epoch, head.hash), (lost.belief.epoch, lost.events[0].hash));
    // Whoever held on to the lost history is fenced.
    let onward = Part::of(log, after(&lost)).stream(&stream(), 2, 1).build();
    assert_ne!(lane.append(&[onward]).await.expect("append"), [BatchOutcome::Done]);
}

#[tokio::test]
async fn of_a_log_without_tables_nothing_is_loaded() {
    let world = World::new().await;
    let elsewhere = LogId { region: Region(9), partition: log(1).partition };
    let loaded = world.store.load(elsewhere, &[stream()], 1).await.expect("load");
    assert!(loaded.len() == 1 && loaded[0].snapshot.is_none() && loaded[0].events.is_empty(), "{loaded:?}");
}
