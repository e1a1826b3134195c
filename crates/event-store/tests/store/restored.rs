//! What the store keeps, and refuses to keep, of a history that is no more.

use std::time::Duration;

use souk_event_sourcing::{Epoch, Position, StreamId, Version};
use souk_event_store::{
    BatchOutcome, Lane, Lost, StoredSnapshot,
    conformance::{Part, after, log},
};

use crate::world::World;

fn stream() -> StreamId {
    StreamId::new("test", "a")
}

#[tokio::test]
async fn a_snapshot_of_lost_events_is_not_kept() {
    let (world, log) = (World::new().await, log(1));
    let mut lane = world.lane();
    let belief = world.take(log).await;
    let part = Part::of(log, belief).stream(&stream(), 0, 1).build();
    assert_eq!(lane.append(&[part]).await.expect("append"), [BatchOutcome::Done]);
    let snapshot = |position: u64| StoredSnapshot {
        version: Version(position),
        position: Position(position),
        fold_version: 1,
        state: vec![position as u8].into(),
    };
    let kept = async |epoch: Epoch, position: u64| {
        world.store.keep_snapshot(log, epoch, &stream(), &snapshot(position)).await.expect("keep");
        world.count("select coalesce(max(version), 0) from snapshot").await
    };
    assert_eq!(kept(belief.epoch, 2).await, 0, "made of an event that the log does not have");
    let next = world.take(log).await.epoch;
    assert_eq!(kept(belief.epoch, 1).await, 0, "made under an epoch that is over: the log may have gone back since");
    assert_eq!(kept(next, 1).await, 1);
}

#[tokio::test]
async fn what_was_lost_is_written_down_as_far_as_anybody_knew_of_it() {
    let (world, log) = (World::new().await, log(1));
    let mut lane = world.lane();
    let lost_under = world.take(log).await;
    let part = Part::of(log, lost_under).stream(&stream(), 0, 2).build();
    assert_eq!(lane.append(std::slice::from_ref(&part)).await.expect("append"), [BatchOutcome::Done]);
    let known = |position| Lost { epoch: lost_under.epoch, position: Position(position) };
    let record = async |position, by| world.store.record_restored(log, known(position), by).await.expect("record");
    assert_eq!(record(5, "owner").await, None, "nobody owns the log under another epoch yet");
    let went_on = world.take(log).await;
    assert_eq!(record(2, "owner").await, None, "nothing is lost of what is there");
    let place = Some((went_on.epoch, Position(2)));
    assert_eq!(record(5, "owner").await, place);
    assert_eq!(record(4, "relay").await, place);
    // A takeover in between changes nothing: the log went on under the first.
    let later = Part::of(log, went_on).stream(&stream(), 2, 1).build();
    assert_eq!(lane.append(std::slice::from_ref(&later)).await.expect("append"), [BatchOutcome::Done]);
    assert_eq!(after(&later).position, Position(3));
    world.take(log).await;
    assert_eq!(record(7, "relay").await, place);
    for _ in 0..2 {
        let events = [(Position(3), vec![3]), (Position(4), vec![4])];
        world.store.keep_lost(log, went_on.epoch, &events).await.expect("keep");
    }
    let all = world.store.restored().await.expect("read");
    let [one] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((one.log, one.epoch, one.fork, one.lost, one.found_by.as_str()), (log, went_on.epoch, Position(2), known(7), "owner"));
    assert_eq!((one.events(), one.kept), (5, 2));
    assert_eq!(world.store.lost_events(one, Position(4), 10).await.expect("read"), [vec![4]]);
}

#[tokio::test]
async fn a_log_is_taken_above_every_epoch_its_owner_knows_of() {
    let (world, log) = (World::new().await, log(1));
    let before = world.take(log).await;
    let known = Epoch(before.epoch.0 + 3_600_000);
    let taken = world.store.ownership("world").above(known).take("w1", &[log.partition], Duration::ZERO).await.expect("take");
    assert!(taken[0].belief.epoch > known, "{taken:?}: a clock that went back, or another replica's, must not bring an epoch twice");
}
