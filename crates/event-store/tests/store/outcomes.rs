//! Appends whose outcome their sender does not get to know, and requests that are sent again.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use souk_event_sourcing::{Position, StreamId};
use souk_event_store::{
    BatchOutcome, EventLog, Lane, StoreError, StoredReply,
    conformance::{Part, after, log, request},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::world::{World, connect, process, release, started_for, until};

fn stream() -> StreamId {
    StreamId::new("test", "a")
}

/// The reply remembered of the first command of a part that was refused for nothing but that.
fn remembered(outcomes: &[BatchOutcome]) -> &StoredReply {
    let [BatchOutcome::Refused { repeats, stale }] = outcomes else { panic!("{outcomes:?}") };
    assert!(stale.is_empty(), "{stale:?}");
    &repeats[0].1
}

#[tokio::test]
async fn a_request_that_races_with_itself_is_carried_out_once() {
    let world = World::new().await;
    for (partition, events) in [(1, 1), (2, 0)] {
        let (log, id) = (log(partition), request());
        let belief = world.take(log).await;
        let holder = world.hold(log).await;
        let mut racers = Vec::new();
        for (waiting, reply) in [(1, "first"), (2, "second")] {
            let mut lane = world.lane();
            let part = Part::of(log, belief).stream(&stream(), 0, events).remember(&stream(), id, reply).build();
            racers.push(tokio::spawn(async move { lane.append(&[part]).await.expect("append").remove(0) }));
            world.until_waiting(waiting).await;
        }
        release(holder).await;
        let mut outcomes = Vec::new();
        for racer in racers {
            outcomes.push(racer.await.expect("racer"));
        }
        let winner = outcomes.iter().position(|outcome| *outcome == BatchOutcome::Done).expect("one is done");
        assert_eq!(outcomes[1 - winner], BatchOutcome::Fenced);

        let mut lane = world.lane();
        let (_, now) = lane.heads(&[log]).await.expect("heads")[0];
        assert_eq!((now.batch, now.position), (belief.batch + 1, Position(events)));
        let again = Part::of(log, now).stream(&stream(), events, events).remember(&stream(), id, "third").build();
        let outcomes = lane.append(&[again]).await.expect("append");
        assert_eq!(remembered(&outcomes).reply, ["first", "second"][winner]);
    }
}

#[tokio::test]
async fn a_request_twice_within_a_part_writes_nothing() {
    let world = World::new().await;
    let (log, id) = (log(1), request());
    let belief = world.take(log).await;
    let mut lane = world.lane();
    let twice = Part::of(log, belief).stream(&stream(), 0, 1).remember(&stream(), id, "once").remember(&stream(), id, "twice").build();
    assert!(matches!(lane.append(&[twice]).await, Err(StoreError::Data { sqlstate, .. }) if sqlstate == "23505"));
    let once = Part::of(log, belief).stream(&stream(), 0, 1).remember(&stream(), id, "once").build();
    assert_eq!(lane.append(&[once]).await.expect("append"), [BatchOutcome::Done]);
}

#[tokio::test]
async fn an_append_its_caller_dropped_is_found_on_the_same_lane() {
    let world = World::new().await;
    let (log, id) = (log(1), request());
    let part = Part::of(log, world.take(log).await).stream(&stream(), 0, 1).remember(&stream(), id, "dropped").build();
    let holder = world.hold(log).await;
    let mut lane = world.lane();
    tokio::select! {
        outcome = lane.append(std::slice::from_ref(&part)) => panic!("{outcome:?}"),
        () = world.until_waiting(1) => {}
    }
    release(holder).await;
    assert_eq!(lane.heads(&[log]).await.expect("heads"), [(log, after(&part))]);
    let again = Part::of(log, after(&part)).stream(&stream(), 1, 1).remember(&stream(), id, "again").build();
    assert_eq!(remembered(&lane.append(&[again]).await.expect("append")).reply, "dropped");
}

#[tokio::test]
async fn heads_wait_for_what_a_lost_connection_left_behind() {
    let world = World::new().await;
    let log = log(1);
    let part = Part::of(log, world.take(log).await).stream(&stream(), 0, 1).build();
    let holder = world.hold(log).await;
    let (mut lost, sent) = (world.lane(), part.clone());
    let append = tokio::spawn(async move { lost.append(&[sent]).await });
    world.until_waiting(1).await;
    append.abort();
    assert!(append.await.is_err_and(|ended| ended.is_cancelled()));

    let mut lane = world.lane();
    let heads = tokio::spawn(async move { lane.heads(&[log]).await });
    world.until_waiting(2).await;
    release(holder).await;
    assert_eq!(heads.await.expect("heads").expect("heads"), [(log, after(&part))]);
}

#[tokio::test]
async fn a_terminated_backend_leaves_an_unknown_outcome() {
    let world = World::new().await;
    let log = log(1);
    let part = Part::of(log, world.take(log).await).stream(&stream(), 0, 1).build();
    let holder = world.hold(log).await;
    let (mut lane, sent) = (world.lane(), part.clone());
    let append = tokio::spawn(async move { (lane.append(&[sent]).await, lane) });
    world.until_waiting(1).await;
    let terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and query like '-- heads%' and wait_event_type = 'Lock'";
    assert_eq!(world.count(terminate).await, 1);
    let (outcome, mut lane) = append.await.expect("append");
    assert!(matches!(outcome, Err(StoreError::Unknown(_))), "{outcome:?}");

    release(holder).await;
    assert_eq!(lane.heads(&[log]).await.expect("heads"), [(log, part.belief)]);
    assert_eq!(lane.append(&[part]).await.expect("append"), [BatchOutcome::Done]);
}

/// Takes log 1, waits for a line, then appends until it is fenced.
#[tokio::test]
#[ignore = "started by a test as a process of its own"]
async fn owner() {
    let Some(url) = started_for() else { return };
    let (store, log) = (connect(&url).await, log(1));
    let taken = store.ownership("stopped").take("w1", &[log.partition], Duration::ZERO).await.expect("take");
    println!("taken");
    let line = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    line.await.expect("line").expect("line");
    let (mut belief, mut lane) = (taken[0].belief, store.lane("w1").expect("configured"));
    for version in 0.. {
        let part = Part::of(log, belief).stream(&stream(), version, 1).build();
        let outcome = lane.append(std::slice::from_ref(&part)).await.expect("append").remove(0);
        println!("append {outcome:?}");
        if outcome != BatchOutcome::Done {
            break;
        }
        belief = after(&part);
    }
}

#[tokio::test]
async fn a_stopped_process_holds_no_lock_and_is_fenced_when_it_wakes() {
    let world = World::new().await;
    let log = log(1);
    let mut owner = process("outcomes::owner", &world.url).spawn().expect("process");
    let pid = Pid::from_raw(owner.id().expect("runs") as i32);
    let mut lines = BufReader::new(owner.stdout.take().expect("piped")).lines();
    let mut next = async || loop {
        let line = lines.next_line().await.expect("line").expect("the process goes on");
        if line == "taken" || line.starts_with("append ") {
            break line;
        }
    };
    assert_eq!(next().await, "taken");
    let holder = world.hold(log).await;
    owner.stdin.as_mut().expect("piped").write_all(b"go\n").await.expect("go");
    world.until_waiting(1).await;

    // It is stopped in the midst of its statement, which its backend ends without it.
    kill(pid, Signal::SIGSTOP).expect("stop");
    release(holder).await;
    until("the stopped process's event is there", async || world.store.head(log).await.expect("head").position == Position(1)).await;
    let belief = tokio::time::timeout(Duration::from_secs(10), world.take(log)).await.expect("a takeover without waiting");
    let part = Part::of(log, belief).stream(&StreamId::new("test", "b"), 0, 1).build();
    assert_eq!(world.lane().append(&[part]).await.expect("append"), [BatchOutcome::Done]);

    kill(pid, Signal::SIGCONT).expect("continue");
    assert_eq!(next().await, "append Done");
    assert_eq!(next().await, "append Fenced");
    assert!(owner.wait().await.expect("wait").success());
}

#[tokio::test]
async fn a_cancelled_wait_for_a_standby_is_an_unknown_outcome() {
    let world = World::alone().await;
    let log = log(1);
    let belief = world.take(log).await;
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'";
    configure(&world, "alter system set synchronous_standby_names = 'nobody'").await;

    // The server takes the setting in its own time; the first append that waits is the one that is meant.
    let mut lane = world.lane();
    let append = tokio::spawn(async move {
        let mut belief = belief;
        loop {
            let part = Part::of(log, belief).ask(&stream(), request()).build();
            match lane.append(std::slice::from_ref(&part)).await {
                Ok(outcomes) => assert_eq!(outcomes, [BatchOutcome::Done]),
                Err(error) => return (error, lane, belief),
            }
            belief = after(&part);
        }
    });
    until("an append waits for the standby", async || world.count(waiting).await == 1).await;
    assert_eq!(world.count(cancel).await, 1);
    let ended = tokio::time::timeout(Duration::from_secs(10), append).await.expect("the append was not done");
    let (error, mut lane, belief) = ended.expect("append");
    assert!(matches!(error, StoreError::Unknown(_)), "{error:?}");

    // What the heads tell must be on the standby as well.
    let asking = tokio::spawn(async move { (lane.heads(&[log]).await, lane) });
    until("the heads wait for the standby", async || world.count(waiting).await == 1).await;
    assert_eq!(world.count(cancel).await, 1);
    let (heads, mut lane) = asking.await.expect("heads");
    assert!(matches!(heads, Err(StoreError::Unknown(_))), "{heads:?}");
    configure(&world, "alter system reset synchronous_standby_names").await;
    let heads = lane.heads(&[log]).await.expect("heads");
    assert_eq!(heads[0].1.batch, belief.batch + 1, "it had been committed");
}

#[tokio::test]
async fn without_room_on_its_disk_an_append_wrote_nothing_and_the_next_one_may() {
    let world = World::new().await;
    let log = log(1);
    let belief = world.take(log).await;
    let mut connection = world.sql().await;
    let full = "create function full_disk() returns trigger language plpgsql as $$ begin \
                raise exception 'could not extend file' using errcode = 'disk_full'; end $$; \
                create trigger full_disk before update on partition_head for each row execute function full_disk()";
    sqlx::raw_sql(full).execute(&mut connection).await.expect(full);
    let mut lane = world.lane();
    let part = Part::of(log, belief).ask(&stream(), request()).build();
    let refused = lane.append(std::slice::from_ref(&part)).await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert_eq!(lane.heads(&[log]).await.expect("heads"), [(log, belief)]);
    let room = "drop trigger full_disk on partition_head";
    sqlx::raw_sql(room).execute(&mut connection).await.expect(room);
    assert_eq!(lane.append(&[part]).await.expect("append"), [BatchOutcome::Done]);
}

async fn configure(world: &World, sql: &'static str) {
    let mut connection = world.sql().await;
    sqlx::raw_sql(sql).execute(&mut connection).await.expect(sql);
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut connection).await.expect("reload");
}
