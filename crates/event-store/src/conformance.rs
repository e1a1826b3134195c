//! The law of [`Lane`], [`EventLog`] and [`Copies`] as tests. An adapter passes [`all`] on a fresh store.

mod copies;

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use souk_event_sourcing::{
    Epoch, EventId, Hlc, LogHash, LogId, Partition, Position, RecordedEvent, Region, RequestId, StreamId, UnixMillis, Version,
};
use uuid::Uuid;

pub use copies::*;

use crate::{BatchOutcome, Belief, Copies, EventLog, Fingerprint, Lane, LedgerEntry, LogBatch, ReplicaBatch, StreamAdvance};

/// What a suite needs of an adapter.
pub trait Adapter {
    type Lane: Lane;
    type Log: Copies;

    /// Another committer's door to the same store.
    fn lane(&self) -> Self::Lane;
    fn log(&self) -> &Self::Log;
    /// Takes a log over: raises its epoch.
    fn take(&self, log: LogId) -> impl Future<Output = Belief>;
    /// Replies the ledger remembers of the batch's commands, in order of its rows.
    fn remembered(&self, batch: &ReplicaBatch) -> impl Future<Output = Vec<Bytes>>;
}

/// Builds one log's part of an append.
pub struct Part {
    batch: LogBatch,
    time: u64,
}

impl Part {
    pub fn of(log: LogId, belief: Belief) -> Self {
        Self { batch: LogBatch { log, belief, ledger: Vec::new(), streams: Vec::new(), events: Vec::new() }, time: 1_000 }
    }

    /// A stream the decision rests on, and how many events it gets.
    pub fn stream(mut self, stream: &StreamId, expected: u64, events: u64) -> Self {
        for version in expected + 1..=expected + events {
            self.push(stream, version);
        }
        self.batch.streams.push(StreamAdvance { stream: stream.clone(), expected: Version(expected), new: Version(expected + events) });
        self
    }

    /// A command to be remembered.
    pub fn remember(self, stream: &StreamId, id: RequestId, reply: &str) -> Self {
        self.command(stream, id, Some(Bytes::copy_from_slice(reply.as_bytes())))
    }

    /// A command whose answer must not be remembered.
    pub fn ask(self, stream: &StreamId, id: RequestId) -> Self {
        self.command(stream, id, None)
    }

    fn command(mut self, stream: &StreamId, id: RequestId, reply: Option<Bytes>) -> Self {
        self.batch.ledger.push(LedgerEntry {
            stream: stream.clone(),
            request_id: id,
            method: "test/Command",
            command: Bytes::from_static(b"command"),
            fingerprint: Fingerprint::new([9; 16]),
            reply,
            actor: "conformance".into(),
            recorded: UnixMillis::now(),
        });
        self
    }

    pub fn build(self) -> LogBatch {
        self.batch
    }

    fn push(&mut self, stream: &StreamId, version: u64) {
        let batch = &mut self.batch;
        let position = Position(batch.belief.position.0 + batch.events.len() as u64 + 1);
        let previous = batch.events.last().map_or(batch.belief.hash, |event| event.hash);
        self.time += 1;
        let mut event = RecordedEvent {
            log: batch.log,
            position,
            epoch: batch.belief.epoch,
            hash: LogHash::EMPTY,
            stream: stream.clone(),
            version: Version(version),
            kind: "Tested".into(),
            schema_version: 1,
            payload: Bytes::from(format!("{stream}@{version}")),
            event_id: EventId(Uuid::new_v4()),
            request_id: Some(RequestId(Uuid::new_v4())),
            causation_id: None,
            correlation_id: Some(Uuid::new_v4()),
            actor: "conformance".into(),
            hlc: Hlc(self.time),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = previous.after(&event);
        batch.events.push(Arc::new(event));
    }
}

/// A log of the suite; partitions 0–15 must be free.
pub const fn log(partition: u16) -> LogId {
    LogId { region: Region(1), partition: Partition(partition) }
}

/// A version 7 request id made now.
pub fn request() -> RequestId {
    RequestId(Uuid::now_v7())
}

/// The belief after `batch` was done.
pub fn after(batch: &LogBatch) -> Belief {
    batch.after()
}

/// Runs the whole suite.
///
/// # Panics
/// When the adapter breaks the law.
pub async fn all<A: Adapter>(adapter: &A) {
    what_is_appended_is_read_back_dense(adapter).await;
    another_belief_writes_nothing(adapter).await;
    a_repeated_request_gets_its_reply_and_holds_up_only_its_own_log(adapter).await;
    a_stale_stream_refuses_every_stream_of_the_part(adapter).await;
    a_command_without_events_is_remembered_and_counted(adapter).await;
    after_a_takeover_the_old_owner_is_fenced(adapter).await;
    a_version_4_request_is_found_again(adapter).await;
    streams_load_in_order_of_version(adapter).await;
    streams_of_several_logs_load_together_as_they_do_alone(adapter).await;
    a_copy_holds_what_it_was_given_and_nothing_twice(adapter).await;
    a_hole_a_broken_chain_and_another_history_add_nothing(adapter).await;
    a_copy_goes_back_to_the_fork_and_on_from_there(adapter).await;
    an_epoch_that_is_over_adds_nothing(adapter).await;
    what_a_ledger_lacked_of_known_events_is_added(adapter).await;
    a_copy_remembers_up_to_where_its_origin_vouches(adapter).await;
}

async fn append<L: Lane>(lane: &mut L, batch: &LogBatch) -> BatchOutcome {
    lane.append(std::slice::from_ref(batch)).await.expect("append").remove(0)
}

/// Positions are dense and each event carries the hash of all before it.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn what_is_appended_is_read_back_dense<A: Adapter>(adapter: &A) {
    let (log, a, b) = (log(0), StreamId::new("test", "a"), StreamId::new("test", "b"));
    let first = Part::of(log, adapter.take(log).await).stream(&a, 0, 2).stream(&b, 0, 1).remember(&a, request(), "ok").build();
    let mut lane = adapter.lane();
    assert_eq!(append(&mut lane, &first).await, BatchOutcome::Done);
    let second = Part::of(log, after(&first)).stream(&a, 2, 1).build();
    assert_eq!(append(&mut lane, &second).await, BatchOutcome::Done);

    let events = adapter.log().read(log, Position(1), 100).await.expect("read");
    let written: Vec<_> = first.events.iter().chain(&second.events).map(|event| RecordedEvent::clone(event)).collect();
    assert_eq!(events, written);
    let mut end = (Position(0), LogHash::EMPTY);
    for event in &events {
        assert!(event.continues(end.0, end.1));
        end = (event.position, event.hash);
    }
    let head = adapter.log().head(log).await.expect("head");
    assert_eq!((head.position, head.hash, head.epoch), (end.0, end.1, first.belief.epoch));
    assert_eq!(adapter.log().read(log, Position(3), 1).await.expect("read"), written[2..3]);
    for beyond in [1_000, i64::MAX.cast_unsigned(), u64::MAX - 10, u64::MAX] {
        assert_eq!(adapter.log().read(log, Position(beyond), 100).await.expect("read"), [], "from {beyond}");
    }
    assert_eq!(lane.heads(&[log]).await.expect("heads"), [(log, after(&second))]);
}

/// A part whose belief differs from the head in epoch, batch or position is fenced.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn another_belief_writes_nothing<A: Adapter>(adapter: &A) {
    let (log, a) = (log(1), StreamId::new("test", "a"));
    let belief = adapter.take(log).await;
    let mut lane = adapter.lane();
    let done = Part::of(log, belief).stream(&a, 0, 1).build();
    assert_eq!(append(&mut lane, &done).await, BatchOutcome::Done);
    let now = after(&done);
    let lies = [
        Belief { epoch: Epoch(now.epoch.0 + 1), ..now },
        Belief { batch: now.batch + 1, ..now },
        Belief { batch: now.batch - 1, ..now },
        Belief { position: Position(now.position.0 + 1), ..now },
    ];
    for lie in lies {
        let part = Part::of(log, lie).stream(&a, 1, 1).remember(&a, request(), "lie").build();
        assert_eq!(append(&mut lane, &part).await, BatchOutcome::Fenced, "{lie:?}");
    }
    assert_eq!(lane.heads(&[log]).await.expect("heads"), [(log, now)]);
    let truth = Part::of(log, now).stream(&a, 1, 1).build();
    assert_eq!(append(&mut lane, &truth).await, BatchOutcome::Done);
}

/// A repeat is answered from the ledger, and other logs of the call are written.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn a_repeated_request_gets_its_reply_and_holds_up_only_its_own_log<A: Adapter>(adapter: &A) {
    let (one, two, a, id) = (log(2), log(3), StreamId::new("test", "a"), request());
    let mut lane = adapter.lane();
    let first = Part::of(one, adapter.take(one).await).stream(&a, 0, 1).remember(&a, id, "first").build();
    let other = Part::of(two, adapter.take(two).await).stream(&a, 0, 1).remember(&a, id, "other").build();
    // The same id on another log is another command.
    assert_eq!(lane.append(&[first.clone(), other.clone()]).await.expect("append"), [BatchOutcome::Done, BatchOutcome::Done]);
    let repeat = Part::of(one, after(&first)).stream(&a, 1, 1).remember(&a, request(), "new").remember(&a, id, "again").build();
    let onward = Part::of(two, after(&other)).stream(&a, 1, 1).build();
    let outcomes = lane.append(&[repeat, onward]).await.expect("append");
    let BatchOutcome::Refused { repeats, stale } = &outcomes[0] else { panic!("{outcomes:?}") };
    assert!(stale.is_empty());
    let [(1, stored)] = repeats.as_slice() else { panic!("{repeats:?}") };
    assert_eq!((stored.reply.as_ref(), stored.fingerprint.as_slice()), (b"first".as_slice(), Fingerprint::new([9; 16]).0.as_slice()));
    assert_eq!(outcomes[1], BatchOutcome::Done);
    assert_eq!(adapter.log().head(one).await.expect("head").position, Position(1));
    assert_eq!(adapter.log().head(two).await.expect("head").position, Position(2));
}

/// A part is all or nothing.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn a_stale_stream_refuses_every_stream_of_the_part<A: Adapter>(adapter: &A) {
    let (log, a, b) = (log(4), StreamId::new("test", "a"), StreamId::new("test", "b"));
    let mut lane = adapter.lane();
    let first = Part::of(log, adapter.take(log).await).stream(&a, 0, 2).build();
    assert_eq!(append(&mut lane, &first).await, BatchOutcome::Done);
    let stale = Part::of(log, after(&first)).stream(&a, 1, 1).stream(&b, 0, 1).remember(&b, request(), "no").build();
    assert_eq!(append(&mut lane, &stale).await, BatchOutcome::Refused { repeats: vec![], stale: vec![(a.clone(), Version(2))] });
    // A stream that is only looked at counts as well.
    let looked = Part::of(log, after(&first)).stream(&a, 3, 0).stream(&b, 0, 1).build();
    assert_eq!(append(&mut lane, &looked).await, BatchOutcome::Refused { repeats: vec![], stale: vec![(a.clone(), Version(2))] });
    let right = Part::of(log, after(&first)).stream(&a, 2, 0).stream(&b, 0, 1).build();
    assert_eq!(append(&mut lane, &right).await, BatchOutcome::Done);
    let again = Part::of(log, after(&right)).stream(&b, 1, 1).stream(&a, 2, 1).build();
    assert_eq!(append(&mut lane, &again).await, BatchOutcome::Done);
}

/// The batch number moves without events, too.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn a_command_without_events_is_remembered_and_counted<A: Adapter>(adapter: &A) {
    let (log, a, id) = (log(5), StreamId::new("test", "a"), request());
    let mut lane = adapter.lane();
    let refusal = Part::of(log, adapter.take(log).await).stream(&a, 0, 0).remember(&a, id, "refused").build();
    assert_eq!(append(&mut lane, &refusal).await, BatchOutcome::Done);
    assert_eq!(
        append(&mut lane, &Part::of(log, refusal.belief).stream(&a, 0, 1).build()).await,
        BatchOutcome::Fenced,
        "the batch number moved"
    );
    let repeat = Part::of(log, after(&refusal)).stream(&a, 0, 1).remember(&a, id, "accepted").build();
    let BatchOutcome::Refused { repeats, .. } = append(&mut lane, &repeat).await else { panic!("a remembered refusal was forgotten") };
    assert_eq!(repeats[0].1.reply.as_ref(), b"refused");
    // An answer that must not be remembered is not, and still an earlier one is found.
    let asked = Part::of(log, after(&refusal)).stream(&a, 0, 0).ask(&a, request()).build();
    assert_eq!(append(&mut lane, &asked).await, BatchOutcome::Done);
    let again = Part::of(log, after(&asked)).stream(&a, 0, 1).remember(&a, asked.ledger[0].request_id, "now").build();
    assert_eq!(append(&mut lane, &again).await, BatchOutcome::Done);
    let stale = Part::of(log, after(&again)).stream(&a, 1, 0).ask(&a, id).build();
    assert!(matches!(append(&mut lane, &stale).await, BatchOutcome::Refused { repeats, .. } if repeats.len() == 1));
}

/// Whoever took the log last is the only one to write it.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn after_a_takeover_the_old_owner_is_fenced<A: Adapter>(adapter: &A) {
    let (log, a) = (log(6), StreamId::new("test", "a"));
    let old = adapter.take(log).await;
    let new = adapter.take(log).await;
    assert!(new.epoch > old.epoch);
    let (mut zombie, mut owner) = (adapter.lane(), adapter.lane());
    assert_eq!(append(&mut zombie, &Part::of(log, old).stream(&a, 0, 1).build()).await, BatchOutcome::Fenced);
    let first = Part::of(log, new).stream(&a, 0, 1).build();
    assert_eq!(append(&mut owner, &first).await, BatchOutcome::Done);
    assert_eq!(
        append(&mut zombie, &Part::of(log, Belief { epoch: old.epoch, ..after(&first) }).stream(&a, 1, 1).build()).await,
        BatchOutcome::Fenced
    );
    let epochs = adapter.log().head(log).await.expect("head").epochs;
    assert_eq!(
        epochs.iter().map(|start| (start.epoch, start.first)).collect::<Vec<_>>(),
        [(old.epoch, Position(1)), (new.epoch, Position(1))]
    );
}

/// The ledger finds ids that do not tell their day.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn a_version_4_request_is_found_again<A: Adapter>(adapter: &A) {
    let (log, a, id) = (log(7), StreamId::new("test", "a"), RequestId(Uuid::new_v4()));
    let mut lane = adapter.lane();
    let first = Part::of(log, adapter.take(log).await).stream(&a, 0, 1).remember(&a, id, "first").build();
    assert_eq!(append(&mut lane, &first).await, BatchOutcome::Done);
    let BatchOutcome::Refused { repeats, .. } =
        append(&mut lane, &Part::of(log, after(&first)).stream(&a, 1, 1).remember(&a, id, "x").build()).await
    else {
        panic!("a repeat was carried out")
    };
    assert_eq!(repeats.len(), 1);
}

/// Histories of streams of several logs are the same in one load as one by one.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn streams_of_several_logs_load_together_as_they_do_alone<A: Adapter>(adapter: &A) {
    let (a, b) = (StreamId::new("test", "together-a"), StreamId::new("test", "together-b"));
    let mut lane = adapter.lane();
    let mut wanted = Vec::new();
    for partition in 1..16 {
        let log = log(partition);
        let taken = adapter.take(log).await;
        let part = Part::of(log, taken).stream(&a, 0, u64::from(partition) % 3 + 1).stream(&b, 0, 2).build();
        assert_eq!(append(&mut lane, &part).await, BatchOutcome::Done);
        wanted.extend([(log, b.clone()), (log, a.clone())]);
    }
    let mut alone = Vec::new();
    for stream in &wanted {
        alone.extend(lane.load(std::slice::from_ref(stream), 1).await.expect("load"));
    }
    assert!(wanted.iter().zip(&alone).all(|((log, stream), loaded)| {
        let events = if *stream == a { usize::from(log.partition.0) % 3 + 1 } else { 2 };
        loaded.events.len() == events && loaded.events.iter().all(|event| event.log == *log && event.stream == *stream)
    }));
    for count in 1..=wanted.len() {
        let together = lane.load(&wanted[..count], 1).await.expect("load");
        assert!(together.iter().map(|loaded| &loaded.events).eq(alone[..count].iter().map(|loaded| &loaded.events)), "{count} at once");
    }
}

/// Histories come whole and in order.
///
/// # Panics
/// When the adapter breaks this law.
pub async fn streams_load_in_order_of_version<A: Adapter>(adapter: &A) {
    let (log, a, b) = (log(8), StreamId::new("test", "a"), StreamId::new("test", "b"));
    let mut lane = adapter.lane();
    let mut belief = adapter.take(log).await;
    for round in 0..5 {
        let part = Part::of(log, belief).stream(&a, round, 1).stream(&b, round * 2, 2).build();
        assert_eq!(append(&mut lane, &part).await, BatchOutcome::Done);
        belief = after(&part);
    }
    let unknown = StreamId::new("test", "unknown");
    let loaded = lane.load(&[(log, b.clone()), (log, unknown), (log, a)], 1).await.expect("load");
    let versions = |at: usize| loaded[at].events.iter().map(|event| event.version.0).collect::<Vec<_>>();
    assert_eq!((versions(0), versions(1), versions(2)), ((1..=10).collect(), vec![], (1..=5).collect()));
    assert!(loaded[0].events.iter().all(|event| event.stream == b));
}
