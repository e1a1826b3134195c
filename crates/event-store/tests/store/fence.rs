//! Who may write, and in which order heads are locked.

use std::sync::Arc;

use souk_event_sourcing::{Epoch, Position, StreamId, Version};
use souk_event_store::{
    BatchOutcome, Belief, EventLog, Lane,
    conformance::{Part, after, log, request},
};
use sqlx::PgConnection;

use crate::world::{World, release};

const TRACES: &str = "select (select count(*) from event) + (select count(*) from stream_head) + (select count(*) from ledger)";

fn stream(name: &str) -> StreamId {
    StreamId::new("test", name)
}

#[tokio::test]
async fn a_fenced_part_leaves_no_trace_and_its_neighbour_is_written() {
    let world = World::new().await;
    let (one, two, a) = (log(1), log(2), stream("a"));
    let (first, second) = (world.take(one).await, world.take(two).await);
    let mine = Part::of(one, first).stream(&a, 0, 1).remember(&a, request(), "ok").build();
    let foreign = Belief { epoch: Epoch(second.epoch.0 + 1), ..second };
    let fenced = Part::of(two, foreign).stream(&a, 0, 1).remember(&a, request(), "no").build();

    let mut lane = world.lane();
    assert_eq!(lane.append(&[fenced, mine]).await.expect("append"), [BatchOutcome::Fenced, BatchOutcome::Done]);
    assert_eq!(world.count(TRACES).await, 3, "one event, stream head and ledger row");
    assert_eq!(lane.heads(&[two]).await.expect("heads"), [(two, second)]);
    let next = Part::of(two, second).stream(&a, 0, 1).build();
    assert_eq!(lane.append(&[next]).await.expect("append"), [BatchOutcome::Done], "the entity can still be written");
}

#[tokio::test]
async fn an_old_owner_that_waited_behind_its_successor_writes_nothing() {
    let world = World::new().await;
    let (one, two, a) = (log(1), log(2), stream("a"));
    let (old, other) = (world.take(one).await, world.take(two).await);
    let mut successor = world.hold(one).await;
    let mut lane = world.lane();
    let parts = [Part::of(one, old).stream(&a, 0, 1).remember(&a, request(), "no").build(), Part::of(two, other).stream(&a, 0, 1).build()];
    let append = tokio::spawn(async move { lane.append(&parts).await.expect("append") });
    world.until_waiting(1).await;

    sqlx::raw_sql("update partition_head set epoch = epoch + 1 where partition = 1").execute(&mut successor).await.expect("takeover");
    release(successor).await;
    assert_eq!(append.await.expect("append"), [BatchOutcome::Fenced, BatchOutcome::Done]);
    assert_eq!(world.count("select count(*) from event where partition = 1").await, 0);
    assert_eq!(world.count("select count(*) from stream_head where partition = 1").await, 0);
    assert_eq!(world.count("select count(*) from ledger").await, 0);
}

#[tokio::test]
async fn a_refused_part_leaves_no_trace() {
    let world = World::new().await;
    let (log, cart, order, id) = (log(1), stream("cart"), stream("order"), request());
    let mut lane = world.lane();
    let first = Part::of(log, world.take(log).await).stream(&cart, 0, 2).remember(&cart, id, "ok").build();
    assert_eq!(lane.append(std::slice::from_ref(&first)).await.expect("append"), [BatchOutcome::Done]);
    let (before, belief) = (world.count(TRACES).await, after(&first));

    let stale = Part::of(log, belief).stream(&cart, 1, 1).stream(&order, 0, 1).remember(&order, request(), "no").build();
    let repeat = Part::of(log, belief).stream(&order, 0, 1).remember(&cart, id, "no").remember(&order, request(), "no").build();
    let without_events = Part::of(log, belief).stream(&cart, 1, 0).remember(&order, request(), "no").build();
    for refused in [stale, repeat, without_events] {
        let outcomes = lane.append(&[refused]).await.expect("append");
        assert!(matches!(outcomes[..], [BatchOutcome::Refused { .. }]), "{outcomes:?}");
        assert_eq!(world.count(TRACES).await, before);
        assert_eq!(lane.heads(&[log]).await.expect("heads"), [(log, belief)]);
    }
}

#[tokio::test]
async fn commands_on_one_stream_follow_each_other_within_a_part() {
    let world = World::new().await;
    let (log, hot) = (log(1), stream("hot"));
    let mut part = Part::of(log, world.take(log).await).stream(&hot, 0, 50);
    for _ in 0..50 {
        part = part.remember(&hot, request(), "ok");
    }
    let mut lane = world.lane();
    assert_eq!(lane.append(&[part.build()]).await.expect("append"), [BatchOutcome::Done]);
    let loaded = lane.load(&[(log, hot)], 1).await.expect("load");
    assert_eq!(loaded[0].events.last().map(|event| event.version), Some(Version(50)));
}

#[tokio::test]
async fn an_answer_without_events_is_fenced() {
    let world = World::new().await;
    let (log, cart) = (log(1), stream("cart"));
    let sleeper = world.take(log).await;
    let mut lane = world.lane();
    let line_added = Part::of(log, world.take(log).await).stream(&cart, 0, 1).build();
    assert_eq!(lane.append(std::slice::from_ref(&line_added)).await.expect("append"), [BatchOutcome::Done]);

    // "There is no such line" was true when the sleeper last looked.
    let unlooked = Part::of(log, sleeper).ask(&cart, request()).build();
    let asked = Part::of(log, sleeper).stream(&cart, 0, 0).ask(&cart, request()).build();
    let refused = Part::of(log, sleeper).stream(&cart, 0, 0).remember(&cart, request(), "no such line").build();
    assert_eq!(lane.append(&[unlooked]).await.expect("append"), [BatchOutcome::Fenced]);
    for answer in [asked, refused] {
        assert_ne!(lane.append(&[answer]).await.expect("append"), [BatchOutcome::Done]);
    }
    assert_eq!(world.count("select count(*) from ledger").await, 0);
    assert_eq!(lane.heads(&[log]).await.expect("heads"), [(log, after(&line_added))]);
}

#[tokio::test]
async fn heads_are_locked_in_order_of_partition() {
    let world = World::new().await;
    let a = stream("a");
    let (mut lane, mut parts) = (world.lane(), Vec::new());
    for number in [3, 2, 1] {
        parts.push(Part::of(log(number), world.take(log(number)).await).stream(&a, 0, 1).build());
    }
    let holder = world.hold(log(2)).await;
    let append = tokio::spawn(async move { lane.append(&parts).await.expect("append") });
    world.until_waiting(1).await;

    let mut probe = world.sql().await;
    assert!(is_locked(&mut probe, 1).await, "the first head is locked while the second is waited for");
    assert!(!is_locked(&mut probe, 3).await, "the third is not, though its part stands first");
    assert!(world.store.read(log(1), Position(1), 10).await.expect("read").is_empty(), "nothing is seen before all is committed");
    release(holder).await;
    assert_eq!(append.await.expect("append")[0], BatchOutcome::Done);
    assert_eq!(world.store.read(log(1), Position(1), 10).await.expect("read").len(), 1);
}

async fn is_locked(probe: &mut PgConnection, partition: i32) -> bool {
    let locked = sqlx::query("select from partition_head where partition = $1 for update nowait").bind(partition).execute(probe).await;
    match locked {
        Ok(_) => false,
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => true,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_over_the_same_streams_in_opposite_order_do_not_deadlock() {
    let world = World::new().await;
    let logs: Vec<_> = (0..8).map(log).collect();
    for log in &logs {
        world.take(*log).await;
    }
    let writer = |logs: Vec<_>, reverse: bool| {
        let mut lane = world.lane();
        async move {
            let mut done = 0;
            for _ in 0..40 {
                let beliefs = lane.heads(&logs).await.expect("heads");
                let streams: Vec<_> = logs.iter().flat_map(|log| (0..5).map(|number| (*log, stream(&number.to_string())))).collect();
                let loaded = lane.load(&streams, 1).await.expect("load");
                let mut parts = Vec::new();
                for (log, belief) in beliefs {
                    let mut of_log: Vec<_> = streams.iter().zip(&loaded).filter(|((of, _), _)| *of == log).collect();
                    if reverse {
                        of_log.reverse();
                    }
                    let part = of_log
                        .iter()
                        .fold(Part::of(log, belief), |part, ((_, stream), stored)| part.stream(stream, stored.events.len() as u64, 1));
                    parts.push(part.build());
                }
                if reverse {
                    parts.reverse();
                }
                let outcomes = lane.append(&parts).await.expect("append without a deadlock");
                done += outcomes.iter().filter(|outcome| **outcome == BatchOutcome::Done).count();
            }
            done
        }
    };
    let (up, down) = (tokio::spawn(writer(logs.clone(), false)), tokio::spawn(writer(logs, true)));
    let done = up.await.expect("up") + down.await.expect("down");
    assert_eq!(world.count("select count(*) from event").await, 5 * done as i64);
    assert_eq!(world.count("select deadlocks from pg_stat_database where datname = current_database()").await, 0);
}

#[tokio::test]
async fn a_takeover_behind_a_takeover_knows_the_epoch_of_the_last_event() {
    let world = Arc::new(World::new().await);
    let log = log(1);
    let first = Part::of(log, world.take(log).await).stream(&stream("a"), 0, 1).build();
    assert_eq!(world.lane().append(&[first]).await.expect("append"), [BatchOutcome::Done]);
    let mut rival = world.hold(log).await;
    let waiting = world.clone();
    let behind = tokio::spawn(async move { waiting.taken(log).await });
    world.until_waiting(1).await;

    let takes_and_appends =
        "with taken as (update partition_head set epoch = epoch + 1, position = 2, batch = 2 where partition = 1 returning *),
        history as (insert into epoch_start select region, partition, epoch, 2, 'rival', 0 from taken),
        events as (insert into event select region, partition, 2, epoch, hash, 'test-b', 1, 'Tested', 1, '', gen_random_uuid(),
          null, null, null, '', 0, '', 0, null from taken)
        select epoch from taken";
    let epoch = Epoch(sqlx::query_scalar::<_, i64>(takes_and_appends).fetch_one(&mut rival).await.expect("rival") as u64);
    release(rival).await;
    let taken = behind.await.expect("takeover");
    assert_eq!((taken.belief.position, taken.written), (Position(2), epoch));
    assert_eq!(world.taken(log).await.written, epoch, "nothing was written under the epoch in between");
}
