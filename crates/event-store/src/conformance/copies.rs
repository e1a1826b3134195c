//! The law of [`Copies`].

use bytes::Bytes;
use souk_event_sourcing::{Epoch, LogHash, LogId, Partition, Position, RecordedEvent, Region, StreamId, UnixMillis};

use super::{Adapter, Part};
use crate::{Belief, Bucket, Copies, End, EpochStart, EventLog, Head, LedgerRow, ReplicaBatch, Replicated, StoreError};

/// A log of another region.
pub const fn foreign(partition: u16) -> LogId {
    LogId { region: Region(2), partition: Partition(partition) }
}

/// A history of another region: versions of two streams by turns under one epoch, from `after` on.
pub fn history(log: LogId, after: End, events: u64) -> ReplicaBatch {
    let belief = Belief { epoch: after.epoch, batch: 0, position: after.position, hash: after.hash };
    let (a, b) = (StreamId::new("test", "a"), StreamId::new("test", "b"));
    let done = after.position.0 / 2;
    let part = (0..events.div_ceil(2)).fold(Part::of(log, belief), |part, turn| {
        part.stream(&a, done + turn, 1).stream(&b, done + turn, u64::from(turn * 2 + 1 < events))
    });
    let events: Vec<_> = part.batch.events.iter().map(|event| RecordedEvent::clone(event)).collect();
    let ledger = events.iter().map(|event| LedgerRow {
        stream: event.stream.clone(),
        request_id: event.request_id.expect("made with one"),
        bucket: Bucket::of(UnixMillis::now()),
        method: "test/Command".into(),
        command: Bytes::from_static(b"command"),
        fingerprint: Bytes::from_static(&[9; 17]),
        reply: Bytes::from(format!("reply {}", event.position)),
        actor: "conformance".into(),
        recorded: UnixMillis::now(),
    });
    let (ledger, first) = (ledger.collect(), after.position.next());
    ReplicaBatch { log, events, ledger, epochs: vec![EpochStart { epoch: after.epoch, first }] }
}

/// Before the first event, under an epoch.
pub const fn beginning(epoch: u64) -> End {
    End { epoch: Epoch(epoch), position: Position(0), hash: LogHash::EMPTY }
}

fn cut(batch: &ReplicaBatch, events: std::ops::Range<usize>) -> ReplicaBatch {
    ReplicaBatch { events: batch.events[events.clone()].to_vec(), ledger: batch.ledger[events].to_vec(), ..batch.clone() }
}

fn end_of(batch: &ReplicaBatch) -> End {
    let last = batch.events.last().expect("some");
    End { epoch: last.epoch, position: last.position, hash: last.hash }
}

async fn replicate<R: Copies>(copy: &R, batch: &ReplicaBatch) -> Replicated {
    copy.replicate(batch).await.expect("replicated")
}

/// Batches that overlap, repeat and come from several writers add up to the origin's log.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn a_copy_holds_what_it_was_given_and_nothing_twice<A: Adapter>(adapter: &A) {
    let (log, copy) = (foreign(0), adapter.log());
    assert_eq!(copy.head(log).await.expect("head"), Head::EMPTY);
    let all = history(log, beginning(7), 9);
    for (range, ends) in [(0..3, 3), (0..3, 3), (1..5, 5), (0..2, 5), (5..9, 9)] {
        assert_eq!(replicate(copy, &cut(&all, range.clone())).await, Replicated::Done(end_of(&cut(&all, 0..ends))), "{range:?}");
    }
    assert_eq!(replicate(copy, &all).await, Replicated::Done(end_of(&all)));
    assert_eq!(copy.read(log, Position(1), 100).await.expect("read"), all.events);
    let head = copy.head(log).await.expect("head");
    assert_eq!((End::from(&head), head.epochs), (end_of(&all), all.epochs.clone()));
    // An epoch without events is taken over, too.
    let next = EpochStart { epoch: Epoch(8), first: Position(10) };
    let idle = ReplicaBatch { events: vec![], ledger: vec![], epochs: vec![next], ..all.clone() };
    assert_eq!(replicate(copy, &idle).await, Replicated::Done(End { epoch: Epoch(8), ..end_of(&all) }));
    assert_eq!(copy.head(log).await.expect("head").epochs, [all.epochs[0], next]);
}

/// Nothing is added that does not continue the copy.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn a_hole_a_broken_chain_and_another_history_add_nothing<A: Adapter>(adapter: &A) {
    let (log, copy) = (foreign(1), adapter.log());
    let (all, other) = (history(log, beginning(7), 6), history(log, beginning(7), 6));
    assert_eq!(replicate(copy, &cut(&all, 0..3)).await, Replicated::Done(end_of(&cut(&all, 0..3))));
    let end = end_of(&cut(&all, 0..3));
    assert_eq!(replicate(copy, &cut(&all, 4..6)).await, Replicated::Hole(end));
    assert_eq!(replicate(copy, &cut(&other, 3..6)).await, Replicated::Forked(end), "right behind the fork");
    assert_eq!(replicate(copy, &cut(&other, 1..6)).await, Replicated::Forked(end), "across it");
    let mut broken = all.clone();
    broken.events.remove(4);
    assert!(matches!(copy.replicate(&broken).await, Err(StoreError::Corrupt(_))));
    let stray = ReplicaBatch { log: foreign(9), ..cut(&all, 3..4) };
    assert!(matches!(copy.replicate(&stray).await, Err(StoreError::Corrupt(_))));
    assert_eq!(copy.read(log, Position(1), 100).await.expect("read"), all.events[..3]);
    assert_eq!(replicate(copy, &all).await, Replicated::Done(end_of(&all)));
}

/// What lies behind the fork goes with all that belongs to it; another history can follow.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn a_copy_goes_back_to_the_fork_and_on_from_there<A: Adapter>(adapter: &A) {
    let (log, copy) = (foreign(2), adapter.log());
    let lost = history(log, beginning(7), 6);
    replicate(copy, &lost).await;
    let (kept, seen) = (cut(&lost, 0..4), end_of(&lost));
    assert!(!copy.rewind(log, Position(4), end_of(&kept), &lost.epochs).await.expect("rewound"), "it does not end there");
    assert!(copy.rewind(log, Position(4), seen, &lost.epochs).await.expect("rewound"));
    assert!(!copy.rewind(log, Position(4), seen, &lost.epochs).await.expect("rewound"), "somebody else was faster");
    assert_eq!(copy.read(log, Position(1), 100).await.expect("read"), kept.events);
    // The same versions and request ids may come again under a later epoch.
    let mut onward = history(log, End { epoch: Epoch(8), ..end_of(&kept) }, 4);
    onward.ledger[0].request_id = lost.ledger[4].request_id;
    assert_eq!(replicate(copy, &onward).await, Replicated::Done(end_of(&onward)));
    let events: Vec<_> = kept.events.iter().chain(&onward.events).cloned().collect();
    assert_eq!(copy.read(log, Position(1), 100).await.expect("read"), events);
    assert_eq!(copy.head(log).await.expect("head").epochs.iter().map(|start| start.epoch.0).collect::<Vec<_>>(), [7, 8]);
    assert!(copy.rewind(log, Position(0), end_of(&onward), &[]).await.expect("rewound"));
    assert_eq!(copy.head(log).await.expect("head"), Head::EMPTY);
}

/// What was written before an epoch began is not added after it began: its place is another event's.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn an_epoch_that_is_over_adds_nothing<A: Adapter>(adapter: &A) {
    let (log, copy) = (foreign(3), adapter.log());
    let all = history(log, beginning(7), 6);
    replicate(copy, &cut(&all, 0..4)).await;
    let over = ReplicaBatch { events: vec![], ledger: vec![], epochs: vec![EpochStart { epoch: Epoch(8), first: Position(5) }], log };
    let end = End { epoch: Epoch(8), ..end_of(&cut(&all, 0..4)) };
    assert_eq!(replicate(copy, &over).await, Replicated::Done(end));
    assert_eq!(replicate(copy, &cut(&all, 4..6)).await, Replicated::Forked(end));
    assert_eq!(replicate(copy, &all).await, Replicated::Forked(end));
    assert_eq!(replicate(copy, &cut(&all, 0..4)).await, Replicated::Done(end), "what is there already is no harm");
    let onward = history(log, end, 2);
    assert_eq!(replicate(copy, &onward).await, Replicated::Done(end_of(&onward)));
}

/// Events may come before what the ledger remembers of their commands.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn what_a_ledger_lacked_of_known_events_is_added<A: Adapter>(adapter: &A) {
    let (log, copy) = (foreign(4), adapter.log());
    let all = history(log, beginning(7), 4);
    replicate(copy, &ReplicaBatch { ledger: vec![], ..all.clone() }).await;
    assert!(adapter.remembered(&all).await.is_empty());
    assert_eq!(replicate(copy, &cut(&all, 1..3)).await, Replicated::Done(end_of(&all)));
    assert_eq!(adapter.remembered(&all).await, [1, 2].map(|at| all.ledger[at].reply.clone()));
    assert_eq!(copy.read(log, Position(1), 100).await.expect("read"), all.events);
}

/// The mark stays where it was made first, until it is taken away.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn a_copy_remembers_up_to_where_its_origin_vouches<A: Adapter>(adapter: &A) {
    let (log, copy) = (foreign(5), adapter.log());
    let unproven = async || copy.unproven(log).await.expect("read").map(|position| position.0);
    let all = history(log, beginning(7), 12);
    replicate(copy, &cut(&all, 0..5)).await;
    let borrow = async |from, to| copy.borrow(&ReplicaBatch { ledger: vec![], ..cut(&all, from..to) }).await.expect("borrowed");
    borrow(2, 5).await;
    assert_eq!(unproven().await, None, "nothing new was lent");
    assert_eq!(borrow(8, 9).await, Replicated::Hole(end_of(&cut(&all, 0..5))));
    assert_eq!(unproven().await, None, "nothing was lent");
    for (from, to) in [(4, 7), (7, 10)] {
        assert_eq!(borrow(from, to).await, Replicated::Done(end_of(&cut(&all, 0..to))));
        assert_eq!(unproven().await, Some(5), "the mark stays where it was made first");
    }
    replicate(copy, &cut(&all, 5..11)).await;
    assert_eq!(unproven().await, Some(5), "it is taken away by nothing but the origin's word");
    assert_eq!(copy.unproven(foreign(4)).await.expect("read"), None);
    assert!(!copy.prove(log, end_of(&cut(&all, 0..10))).await.expect("left"), "it does not end there");
    assert_eq!(unproven().await, Some(5));
    let end = end_of(&cut(&all, 0..11));
    assert!(copy.prove(log, end).await.expect("taken away"));
    assert!(!copy.prove(log, end).await.expect("left"), "there is none");
    assert_eq!(unproven().await, None);
    borrow(11, 12).await;
    assert_eq!(unproven().await, Some(11));
    for (end, fork, left) in [(12, 8, None), (12, 10, Some(8)), (10, 8, None)] {
        let seen = end_of(&cut(&all, 0..end));
        assert!(copy.rewind(log, Position(fork), seen, &all.epochs).await.expect("rewound"));
        assert_eq!(unproven().await, left, "back to {fork}");
        if fork == 8 {
            borrow(8, 12).await;
            assert_eq!(unproven().await, Some(8));
        }
    }
    assert_eq!(copy.read(log, Position(1), 100).await.expect("read"), all.events);
}
