//! What every adapter of the port promises.

use std::time::Duration;

use souk_event_sourcing::{Epoch, LogHash, Position, StreamId, UnixMillis};
use souk_read_store::{Advance, Batch, Checkpoint, Fence, ParkedEvent, ParkedQuery, Replica, Row, Value, ViewStore};

use super::*;

/// Everything the port promises, on an empty store with logs 0 to 3.
pub async fn the_laws_of_the_port(store: &dyn ViewStore) {
    a_write_is_all_or_nothing_per_log(store).await;
    a_claim_shuts_out_every_earlier_fence(store).await;
    logs_go_from_hand_to_hand(store).await;
    rows_never_go_back_and_sums_add_up(store).await;
    events_are_set_aside_and_released_with_the_checkpoint(store).await;
    a_rewind_empties_one_log_only(store).await;
    a_log_is_rebuilding_until_it_is_said_to_be_whole(store).await;
    rows_are_read_in_pages_with_the_checkpoint(store).await;
}

async fn a_write_is_all_or_nothing_per_log(store: &dyn ViewStore) {
    let mine = store.claim(&[log(0), log(1)], ME, Duration::ZERO, NOW).await.unwrap();
    assert_eq!(mine.len(), 2);
    assert!(mine.iter().all(|checkpoint| checkpoint.fence >= Fence(NOW.0 as u64) && checkpoint.position == Position(0)));
    let [first, second] = [0, 1].map(|partition| *mine.iter().find(|checkpoint| checkpoint.log == log(partition)).unwrap());
    let wrong = Advance { from_position: Position(1), ..step(&second, 2) };
    let rows = [thing(0, "a", 2, b"one"), thing(1, "b", 2, b"two")];
    let written = store.write(&batch([step(&first, 2), wrong], rows, [tally(0, "x", 2, 5), tally(1, "x", 2, 7)])).await.unwrap();
    assert_eq!(written.lost, [log(1)]);
    assert_eq!(stored(store, &THING, 0).await, [thing(0, "a", 2, b"one")]);
    assert_eq!(stored(store, &TALLY, 0).await, [tally(0, "x", 2, 5)]);
    assert!(stored(store, &THING, 1).await.is_empty() && stored(store, &TALLY, 1).await.is_empty());
    assert_eq!(checkpoint(store, 1).await, second);
    let moved = checkpoint(store, 0).await;
    assert_eq!((moved.epoch, moved.position, moved.hash, moved.revision, moved.written), (Epoch(9), Position(2), LogHash([2; 16]), 5, NOW));
    for believed in [
        Advance { from_epoch: Epoch(8), ..step(&moved, 3) },
        Advance { from_position: Position(1), ..step(&moved, 3) },
        Advance { fence: Fence(moved.fence.0 - 1), ..step(&moved, 3) },
    ] {
        let written = store.write(&batch([believed], [thing(0, "a", 3, b"no")], [])).await.unwrap();
        assert_eq!(written.lost, [log(0)], "{believed:?}");
    }
    assert_eq!(stored(store, &THING, 0).await, [thing(0, "a", 2, b"one")]);
}

async fn a_claim_shuts_out_every_earlier_fence(store: &dyn ViewStore) {
    let zombie = checkpoint(store, 0).await;
    let owner = store.claim(&[log(0)], ME, Duration::ZERO, NOW).await.unwrap()[0];
    assert!(owner.fence > zombie.fence && owner.position == zombie.position);
    // FINDINGS 27: the zombie's rows must not be written although only its checkpoint is refused.
    let written = store.write(&batch([step(&zombie, 5)], [thing(0, "a", 5, b"zombie")], [tally(0, "x", 5, 100)])).await.unwrap();
    assert_eq!(written.lost, [log(0)]);
    let written = store.write(&batch([step(&owner, 4)], [thing(0, "a", 4, b"owner")], [tally(0, "x", 4, 1)])).await.unwrap();
    assert!(written.lost.is_empty());
    assert_eq!(stored(store, &THING, 0).await, [thing(0, "a", 4, b"owner")]);
    assert_eq!(stored(store, &TALLY, 0).await, [tally(0, "x", 4, 6)]);
    assert!(!store.rewind(log(0), zombie.fence, NOW).await.unwrap());
}

async fn logs_go_from_hand_to_hand(store: &dyn ViewStore) {
    const TTL: Duration = Duration::from_secs(3600);
    let replica = |id: &str| Replica { id: id.to_owned(), address: format!("http://{id}") };
    let claim = async |who: &str| {
        let claimed = store.claim(&[log(2), log(3)], who, TTL, NOW).await.unwrap();
        claimed.iter().map(|checkpoint| (checkpoint.log, checkpoint.fence)).collect::<Vec<_>>()
    };
    for id in ["a", "b"] {
        store.heartbeat(&replica(id)).await.unwrap();
    }
    let first = claim("a").await;
    assert_eq!(first.iter().map(|(log, _)| *log).collect::<Vec<_>>(), [log(2), log(3)]);
    let members = store.members(TTL).await.unwrap();
    assert_eq!(members.live, [replica("a"), replica("b")]);
    assert_eq!((members.holders[&log(2)].as_str(), members.holders[&log(3)].as_str()), ("a", "a"));
    assert_eq!(claim("b").await, [], "a lives and holds them");
    assert!(claim("a").await > first, "one's own may be claimed again");
    store.release(&[log(2)], "b").await.unwrap();
    assert_eq!(claim("b").await, [], "b cannot give up what a holds");
    store.release(&[log(2)], "a").await.unwrap();
    assert_eq!(claim("b").await.iter().map(|(log, _)| *log).collect::<Vec<_>>(), [log(2)]);
    store.leave("a").await.unwrap();
    let members = store.members(TTL).await.unwrap();
    assert_eq!((members.live, members.holders[&log(3)].as_str()), (vec![replica("b")], "a"));
    assert_eq!(claim("b").await.len(), 2, "who left lives no longer");
    assert!(store.members(Duration::ZERO).await.unwrap().live.is_empty());
    let dead = store.claim(&[log(2)], "c", Duration::ZERO, NOW).await.unwrap();
    assert_eq!(dead.len(), 1, "b has not been heard of for nothing at all");
    store.leave("b").await.unwrap();
}

async fn rows_never_go_back_and_sums_add_up(store: &dyn ViewStore) {
    let mine = store.claim(&[log(2)], ME, Duration::ZERO, NOW).await.unwrap()[0];
    store.write(&batch([step(&mine, 9)], [thing(2, "a", 9, b"late")], [tally(2, "x", 9, i64::MAX - 1)])).await.unwrap();
    let next = checkpoint(store, 2).await;
    store.write(&batch([step(&next, 10)], [thing(2, "a", 9, b"again")], [tally(2, "x", 10, 5)])).await.unwrap();
    assert_eq!(stored(store, &THING, 2).await, [thing(2, "a", 9, b"late")]);
    assert_eq!(stored(store, &TALLY, 2).await, [tally(2, "x", 10, i64::MAX)], "sums saturate");
    // Another log's higher position has no say over these rows (FINDINGS 26).
    let other = store.claim(&[log(3)], ME, Duration::ZERO, NOW).await.unwrap()[0];
    store.write(&batch([step(&other, 1)], [], [tally(3, "x", 1, 4)])).await.unwrap();
    assert_eq!(stored(store, &TALLY, 3).await, [tally(3, "x", 1, 4)]);
}

fn parked(partition: u16, stream: &str, position: u64) -> ParkedEvent {
    ParkedEvent {
        log: log(partition),
        position: Position(position),
        stream: stream.parse().unwrap(),
        envelope: format!("event {position}").into(),
        reason: format!("reason {position}"),
        since: NOW,
    }
}

/// A row as [`thing`], of an entity parked at `at`.
pub fn marked(partition: u16, key: &str, position: u64, at: u64) -> Row {
    let mut row = thing(partition, key, position, b"before");
    (row.values[1], row.values[2]) = (Value::Int(NOW.0), Value::Int(at as i64));
    row
}

async fn events_are_set_aside_and_released_with_the_checkpoint(store: &dyn ViewStore) {
    let mine = store.claim(&[log(0), log(1)], ME, Duration::ZERO, NOW).await.unwrap();
    let [first, second] = [0, 1].map(|partition| *mine.iter().find(|checkpoint| checkpoint.log == log(partition)).unwrap());
    let zombie = Advance { fence: Fence(1), ..step(&second, 9) };
    let to = step(&first, 20);
    let rows = [thing(0, "p", 15, b"before"), marked(0, "q", 0, 17)];
    store.write(&batch([step(&first, 16)], [rows[0].clone()], [tally(0, "p", 16, 1)])).await.unwrap();
    let first = checkpoint(store, 0).await;
    // The row of "p" gets its mark although its position stays.
    let rows = [marked(0, "p", 15, 18), rows[1].clone()];
    let aside = vec![parked(0, "thing-q", 17), parked(0, "thing-p", 18), parked(0, "thing-q", 19), parked(1, "thing-z", 9)];
    let batch_of = |advances: Vec<Advance>, parked| Batch { parked, ..batch(advances, rows.clone(), []) };
    let to = Advance { from_epoch: first.epoch, from_position: first.position, ..to };
    let written = store.write(&batch_of(vec![to, zombie], aside.clone())).await.unwrap();
    assert_eq!(written.lost, [log(1)]);
    let [now] = written.moved[..] else { panic!("one log moved") };
    assert_eq!((now.log, now.position, now.parked, now.repaired), (log(0), Position(20), 3, UnixMillis(0)));
    assert_eq!((checkpoint(store, 0).await, checkpoint(store, 1).await.parked), (now, 0));
    let stored_things = stored(store, &THING, 0).await;
    assert!(rows.iter().all(|row| stored_things.contains(row)), "{stored_things:?}");

    let logs = [log(0), log(1)];
    let entities = store.parked_entities(ParkedQuery::all(&logs, 10)).await.unwrap();
    let seen: Vec<_> =
        entities.iter().map(|entity| (entity.stream.as_str(), entity.events, entity.parked.at.0, entity.reason.as_str())).collect();
    assert_eq!(seen, [("thing-p", 1, 18, "reason 18"), ("thing-q", 2, 17, "reason 17")]);
    assert_eq!(store.parked_entities(ParkedQuery::all(&logs, 1)).await.unwrap(), entities[..1]);
    let p: StreamId = "thing-p".parse().unwrap();
    let q: StreamId = "thing-q".parse().unwrap();
    let after = ParkedQuery { after: Some((log(0), &p)), ..ParkedQuery::all(&logs, 10) };
    assert_eq!(store.parked_entities(after).await.unwrap(), entities[1..]);
    let only = ParkedQuery { stream: Some(&p), ..ParkedQuery::all(&logs, 10) };
    assert_eq!(store.parked_entities(only).await.unwrap(), entities[..1]);
    assert_eq!(store.parked_events(log(0), &q, Position(0), 10).await.unwrap(), [aside[0].clone(), aside[2].clone()]);
    assert_eq!(store.parked_events(log(0), &q, Position(17), 10).await.unwrap(), [aside[2].clone()]);
    assert_eq!(store.parked_events(log(0), &q, Position(0), 1).await.unwrap(), [aside[0].clone()]);
    assert!(!store.blame(log(0), Fence(1), &q, "another").await.unwrap());
    assert!(store.blame(log(0), now.fence, &q, "another").await.unwrap());
    assert_eq!(store.parked_entities(ParkedQuery::all(&logs, 10)).await.unwrap()[1].reason, "another");

    // Released: the rows come, sums at a position that others have passed, and no position moves.
    let release = |from: Checkpoint| Batch {
        released: vec![(log(0), q.clone())],
        ..batch([step(&from, from.position.0)], [thing(0, "q", 19, b"whole")], [tally(0, "p", 12, 5)])
    };
    let stale = Checkpoint { fence: Fence(1), ..now };
    assert_eq!(store.write(&release(stale)).await.unwrap().lost, [log(0)]);
    assert_eq!(checkpoint(store, 0).await, now);
    let written = store.write(&release(now)).await.unwrap();
    let released = written.moved[0];
    assert_eq!((released.position, released.parked, released.repaired), (Position(20), 1, NOW));
    assert!(stored(store, &THING, 0).await.contains(&thing(0, "q", 19, b"whole")));
    let sum = stored(store, &TALLY, 0).await.into_iter().find(|row| row.key == tally(0, "p", 0, 0).key);
    assert_eq!(sum, Some(tally(0, "p", 16, 6)));
    let again = Batch { released: vec![(log(0), p)], ..batch([step(&released, 20)], [], []) };
    assert_eq!(store.write(&again).await.unwrap().moved[0].repaired, UnixMillis(NOW.0 + 1), "never the same twice");
    assert_eq!((checkpoint(store, 0).await.parked, store.parked_entities(ParkedQuery::all(&logs, 10)).await.unwrap()), (0, vec![]));
}

async fn a_rewind_empties_one_log_only(store: &dyn ViewStore) {
    let before = checkpoint(store, 2).await;
    let fence = before.fence;
    store.write(&Batch { parked: vec![parked(2, "thing-a", 11)], ..batch([step(&before, 11)], [], []) }).await.unwrap();
    assert!(store.rewind(log(2), fence, NOW).await.unwrap());
    assert!(store.parked_entities(ParkedQuery::all(&[log(2)], 10)).await.unwrap().is_empty());
    assert_eq!(checkpoint(store, 2).await.parked, 0);
    assert!(stored(store, &THING, 2).await.is_empty() && stored(store, &TALLY, 2).await.is_empty());
    let start = checkpoint(store, 2).await;
    assert_eq!((start.fence, start.epoch, start.position, start.hash), (fence, Epoch(0), Position(0), LogHash::EMPTY));
    assert_eq!((stored(store, &THING, 0).await.len(), stored(store, &TALLY, 3).await.len()), (3, 1));
    let written = store.write(&batch([step(&start, 1)], [thing(2, "a", 1, b"anew")], [])).await.unwrap();
    assert!(written.lost.is_empty());
}

async fn a_log_is_rebuilding_until_it_is_said_to_be_whole(store: &dyn ViewStore) {
    let zombie = checkpoint(store, 2).await;
    assert!(zombie.rebuilding, "emptied above, and one event has come since");
    assert!(!checkpoint(store, 0).await.rebuilding && !checkpoint(store, 3).await.rebuilding);
    let whole = |from: &Checkpoint, position| Advance { whole: true, ..step(from, position) };
    let heir = store.claim(&[log(2)], "heir", Duration::ZERO, NOW).await.unwrap()[0];
    assert!(heir.rebuilding, "whoever takes the log over goes on");
    assert_eq!(store.write(&batch([whole(&zombie, 1)], [], [])).await.unwrap().lost, [log(2)]);
    let moved = store.write(&batch([step(&heir, 2)], [thing(2, "a", 2, b"more")], [])).await.unwrap().moved[0];
    assert!(moved.rebuilding && checkpoint(store, 2).await == moved);
    let moved = store.write(&batch([whole(&moved, 2)], [], [])).await.unwrap().moved[0];
    assert!(!moved.rebuilding && moved.position == Position(2) && checkpoint(store, 2).await == moved);
    let moved = store.write(&batch([step(&moved, 3)], [], [])).await.unwrap().moved[0];
    assert!(!moved.rebuilding, "and stays whole");
    assert!(store.rewind(log(2), heir.fence, NOW).await.unwrap());
    let again = checkpoint(store, 2).await;
    assert!(again.rebuilding && again.repaired > moved.repaired, "positions come again, the time of a rewind never does: {again:?}");
}

async fn rows_are_read_in_pages_with_the_checkpoint(store: &dyn ViewStore) {
    let before = checkpoint(store, 3).await;
    let mut rows: Vec<_> = ["b", "a", "B", "ä", "a-1"].iter().map(|key| thing(3, key, 2, b"x")).collect();
    store.write(&batch([step(&before, 2)], rows.clone(), [tally(3, "y", 2, 1), tally(3, "z", 2, 1)])).await.unwrap();
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    let mut read = Vec::new();
    loop {
        let page = store.scan(&THING, log(3), read.last().map(|row: &Row| &row.key), 2).await.unwrap();
        assert_eq!(page.checkpoint.position, Position(2));
        let last = page.rows.len() < 2;
        read.extend(page.rows);
        if last {
            break;
        }
    }
    assert_eq!(read, rows, "in order of bytes");
    let after = tally(3, "x", 1, 4).key;
    let rest = store.scan(&TALLY, log(3), Some(&after), 10).await.unwrap().rows;
    assert_eq!(rest, [tally(3, "y", 2, 1), tally(3, "z", 2, 1)]);
    let wanted = [rows[1].key.clone(), thing(3, "missing", 1, b"").key, thing(1, "a", 1, b"").key];
    assert_eq!(store.load(&THING, &wanted).await.unwrap(), [rows[1].clone()]);
    assert_eq!(store.load(&TALLY, &[after]).await.unwrap(), [tally(3, "x", 1, 4)]);
}
