use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream};
use metrics::counter;
use souk_bus_publisher::{LogPublisher, PublishError, StreamState};
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent, UnixMillis};
use souk_event_store::{EventLog, Head, StoreError};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{OwnedLog, Relays, pump::MOST_FLIGHTS};

/// Events at a stream's end that are proven one by one.
const PROVEN_END: u64 = 2 * MOST_FLIGHTS as u64;
/// Lost events of one log that are kept at most, the earliest of them.
const LOST_KEPT: usize = 10_000;
/// Of which so many are read at a time.
const READS: usize = 16;

/// Why a relay cannot go on for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("the stream is {0} again, and was made anew only just now")]
    TooSoon(&'static str),
    /// The log has another owner: this relay must not touch its stream.
    #[error("the log has another owner")]
    NotOwner,
    /// Its owner takes it anew under another epoch, and a relay of that one sees to the stream.
    #[error("the log went back")]
    WentBack,
}

/// How far the stream is a copy of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Copied {
    /// Of the stream: another one in its place may end alike.
    pub incarnation: u64,
    /// First position the stream keeps.
    pub first: Position,
    pub last: Position,
    /// Running hash at `last`.
    pub hash: LogHash,
    /// When the event at `last` was committed.
    pub committed: UnixMillis,
}

/// Deletions of one stream. They are not fenced, and what makes one necessary may come back at once, as when two
/// installations share a prefix: the first is free, each further one waits longer.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    last: Option<Instant>,
    pause: Duration,
}

impl Deletions {
    const FIRST_PAUSE: Duration = Duration::from_secs(1);
    const LONGEST_PAUSE: Duration = Duration::from_secs(60);
    /// After this long without one the next is free again.
    const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

    /// Whether the stream may be deleted now; if so, that counts as done.
    fn allow(&mut self, now: Instant) -> bool {
        match self.last.map(|last| now - last) {
            Some(since) if since < self.pause => return false,
            Some(since) if since < Self::FORGIVEN_AFTER => self.pause = (self.pause * 4).min(Self::LONGEST_PAUSE),
            _ => self.pause = Self::FIRST_PAUSE,
        }
        self.last = Some(now);
        true
    }
}

/// What a relay remembers of its stream from one check to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    deletions: Deletions,
    /// The incarnation last made or found to be a copy. Nobody else makes streams of this log: another one in its place is
    /// foreign, however alike their ends are.
    incarnation: Option<u64>,
    /// Positions that were published and whose answer was not heard, or was lost, since the stream was found to be a copy there.
    pub unheard: BTreeSet<Position>,
}

impl Memory {
    /// The stream was found to be a copy up to there.
    fn proven(&mut self, last: Position) {
        self.unheard = self.unheard.split_off(&last.next());
    }
}

/// Looks at the stream of a log, makes its settings as they should be, and makes it anew unless it is a copy of the
/// log's end: whole, not ahead, not further behind than a new one would be, nothing gone that limits do not explain,
/// and with the log's own event at its last position. By the hash chain that event stands for all before it.
pub(super) async fn check<S: OwnedLog, P: LogPublisher, F>(
    relays: &Relays<S, P, F>,
    log: LogId,
    epoch: Epoch,
    memory: &mut Memory,
) -> Result<Copied, Trouble> {
    let (store, publisher) = (&*relays.store, &*relays.publisher);
    // The stream first: what it holds was committed before, so a head read later is never behind it without reason.
    let state = publisher.state(log).await?;
    let head = store.head(log).await?;
    if head.epoch != epoch {
        return Err(Trouble::NotOwner);
    }
    if let Some(state) = state {
        let replaced = memory.incarnation.is_some_and(|known| known != state.incarnation);
        let compared =
            if replaced { Err("replaced") } else { compare(relays, log, head.position, state, memory.unheard.first().copied()).await? };
        let flaw = match compared {
            Ok(copied) => match settled(publisher, log, state).await? {
                true => {
                    memory.incarnation = Some(copied.incarnation);
                    memory.proven(copied.last);
                    return Ok(copied);
                }
                false => "foreign",
            },
            Err(flaw) => flaw,
        };
        if !store.still_owner(log, epoch).await? {
            return Err(Trouble::NotOwner);
        }
        // What follows is for ever: once the stream is gone, nobody knows what was in it.
        let lost = lost_end(relays, log, &head, state).await?;
        if store.is_taken_anew() && lost.last().is_some_and(|last| last.epoch == epoch) {
            return Err(Trouble::WentBack);
        }
        store.keep_lost(log, &lost).await?;
        if !memory.deletions.allow(Instant::now()) {
            return Err(Trouble::TooSoon(flaw));
        }
        warn!(%log, flaw, first = %state.first, last = %state.last, head = %head.position, "the stream is no copy of the log: it is made anew");
        counter!("souk_relay_rebuilds_total", "flaw" => flaw).increment(1);
        publisher.delete(log).await?;
    }
    let first = Position(head.position.0.saturating_sub(relays.tuning.refill) + 1);
    // If this fails half way, the next check finds a stream of its own making.
    (memory.incarnation, memory.unheard) = (None, BTreeSet::new());
    publisher.create(log, first).await?;
    info!(%log, %first, head = %head.position, "the stream is made");
    let incarnation = publisher.state(log).await?.ok_or(PublishError::NoStream)?.incarnation;
    memory.incarnation = Some(incarnation);
    Ok(Copied { incarnation, ..at(store, log, first, Position(first.0 - 1)).await? })
}

/// Whether the stream still is what the relay left behind, walked from the first position whose answer was not heard, if there is
/// one. Asks the database only when the stream was shortened.
pub(super) async fn unchanged<S: EventLog, P: LogPublisher, F>(
    relays: &Relays<S, P, F>,
    log: LogId,
    memory: &mut Memory,
    copied: Copied,
) -> Result<bool, Trouble> {
    let publisher = &*relays.publisher;
    let Some(state) = publisher.state(log).await? else { return Ok(false) };
    if !as_left(state, copied) {
        return Ok(false);
    }
    if state.first != copied.first && truncated(&*relays.store, log, state).await? {
        return Ok(false);
    }
    let walk = Walk::since(log, state, memory.unheard.first().copied(), copied);
    let unchanged = ends_as(publisher, log, walk).await?;
    if unchanged {
        memory.proven(copied.last);
    }
    Ok(unchanged)
}

/// Compares stream and log; a flaw is named.
async fn compare<S: EventLog, P: LogPublisher, F>(
    relays: &Relays<S, P, F>,
    log: LogId,
    head: Position,
    state: StreamState,
    unheard: Option<Position>,
) -> Result<Result<Copied, &'static str>, Trouble> {
    let (store, publisher) = (&*relays.store, &*relays.publisher);
    if let Some(flaw) = misfit(state, head, relays.tuning.refill) {
        return Ok(Err(flaw));
    }
    let copied = Copied { incarnation: state.incarnation, ..at(store, log, state.first, state.last).await? };
    if !ends_as(publisher, log, Walk::along(log, copied, unheard)).await? {
        return Ok(Err("different"));
    }
    Ok(if truncated(store, log, state).await? { Err("truncated") } else { Ok(copied) })
}

/// What is wrong with the stream of a log that ends at `head`, as far as its state tells.
pub(super) fn misfit(state: StreamState, head: Position, refill: u64) -> Option<&'static str> {
    if !state.whole {
        Some("holes")
    } else if state.last > head {
        Some("ahead")
    } else if head.0 - state.last.0 > refill {
        Some("far behind")
    } else {
        None
    }
}

/// Whether the stream's state is still what the relay left behind.
pub(super) fn as_left(state: StreamState, copied: Copied) -> bool {
    state.settled && state.whole && (state.incarnation, state.last) == (copied.incarnation, copied.last)
}

/// A walk along the end of a stream. The last hash alone proves no prefix: when somebody else's message took a position,
/// or the stream was replaced by one as long, later publishes found the sequence they expected and were stored. So the end
/// is walked event by event, for longer than a window can have gone on.
pub(super) struct Walk {
    log: LogId,
    from: Position,
    last: Position,
    /// Running hash that the walk must meet at its end.
    hash: LogHash,
    before: Option<LogHash>,
}

impl Walk {
    /// Along the end of a stream, from further back if there is a position whose answer was not heard.
    pub fn along(log: LogId, copied: Copied, unheard: Option<Position>) -> Self {
        let end = Position((copied.last.0 + 1).saturating_sub(PROVEN_END));
        let from = unheard.map_or(end, |unheard| unheard.min(end)).max(copied.first);
        Self { log, from, last: copied.last, hash: copied.hash, before: None }
    }

    /// Along what the relay published itself. Every answer that was heard says what stands at that position, so that only
    /// those that were not leave anything to be seen, and the end, should the stream be another's.
    pub fn since(log: LogId, state: StreamState, unheard: Option<Position>, copied: Copied) -> Self {
        let from = unheard.unwrap_or(copied.last).max(state.first);
        Self { log, from, last: copied.last, hash: copied.hash, before: None }
    }

    /// The positions to look at, in order.
    pub fn positions(&self) -> impl Iterator<Item = Position> + use<> {
        (self.from.0.max(1)..=self.last.0).map(Position)
    }

    /// Whether the event at a position is the log's, as far as the one before it and what is known tell.
    pub fn step(&mut self, at: Position, event: &RecordedEvent) -> bool {
        let chained = self.before.is_none_or(|hash| event.continues(Position(at.0 - 1), hash));
        let known = at != self.last || self.hash == event.hash;
        self.before = Some(event.hash);
        event.log == self.log && event.position == at && chained && known
    }

    /// Limits have taken the event: nothing is known of those before the next.
    pub fn skip(&mut self) {
        self.before = None;
    }
}

/// Whether the stream's end is the log's.
async fn ends_as(publisher: &impl LogPublisher, log: LogId, mut walk: Walk) -> Result<bool, PublishError> {
    let mut end = stream::iter(walk.positions()).map(|at| async move { (at, publisher.event(log, at).await) }).buffered(READS);
    while let Some((at, event)) = end.next().await {
        let Some(event) = event? else {
            // Limits may have taken it since the stream was looked at.
            let now = publisher.state(log).await?;
            if now.is_none_or(|now| now.first <= at) {
                return Ok(false);
            }
            walk.skip();
            continue;
        };
        if !walk.step(at, &event) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The end of a stream of ours that the log no longer has, because it went back (law 13): the events behind the last
/// position that both have, as far as they are a chain, and the very last one in any case.
async fn lost_end<S: EventLog, P: LogPublisher, F>(
    relays: &Relays<S, P, F>,
    log: LogId,
    head: &Head,
    state: StreamState,
) -> Result<Vec<RecordedEvent>, Trouble> {
    let publisher = &*relays.publisher;
    let Some(last) = publisher.event(log, state.last).await?.filter(|last| state.settled && last.log == log) else {
        return Ok(Vec::new());
    };
    // Epochs are never used twice: what the log has under a later one, it has in the stead of this event.
    let fork = head.epochs.iter().find(|start| start.epoch > last.epoch).map_or(head.position.0, |start| start.first.0 - 1);
    if last.position.0 <= fork {
        return Ok(Vec::new());
    }
    let from = state.first.0.max(fork + 1);
    let mut before = if from == fork + 1 { Some(at(&*relays.store, log, state.first, Position(fork)).await?.hash) } else { None };
    let positions = (from..=state.last.0).take(LOST_KEPT).map(Position);
    let mut end = stream::iter(positions).map(|at| async move { (at, publisher.event(log, at).await) }).buffered(READS);
    let mut lost: Vec<RecordedEvent> = Vec::new();
    while let Some((at, event)) = end.next().await {
        let chained = |event: &RecordedEvent| before.is_none_or(|hash| event.continues(Position(at.0 - 1), hash));
        let Some(event) = event?.filter(|event| event.log == log && event.position == at && chained(event)) else { break };
        before = Some(event.hash);
        lost.push(event);
    }
    // Somebody else's message, or the first of a history that never was this log's.
    if lost.is_empty() {
        return Ok(lost);
    }
    if lost.len() == LOST_KEPT && lost.last().is_some_and(|kept| kept.position < last.position) {
        lost.push(last);
    }
    Ok(lost)
}

/// Whether something took events from the stream's beginning before their time, as a purge does. The last of them
/// decides: it is the youngest.
async fn truncated(store: &impl EventLog, log: LogId, state: StreamState) -> Result<bool, StoreError> {
    if state.keeps_after.is_none() || state.first <= state.begin {
        return Ok(false);
    }
    let gone = at(store, log, state.first, Position(state.first.0 - 1)).await?;
    Ok(before_its_time(state, gone.committed))
}

/// Whether an event right before the stream's beginning, committed then, should be in the stream still.
pub(super) fn before_its_time(state: StreamState, committed: UnixMillis) -> bool {
    state.first > state.begin && state.keeps_after.is_some_and(|keeps_after| committed > keeps_after)
}

/// Makes the stream's settings as they should be; `false` when that cannot be.
async fn settled(publisher: &impl LogPublisher, log: LogId, state: StreamState) -> Result<bool, Trouble> {
    if state.settled {
        return Ok(true);
    }
    match publisher.settle(log).await {
        Ok(()) => {
            info!(%log, "the stream has its settings now");
            Ok(true)
        }
        Err(PublishError::Refused(reason)) => {
            warn!(%log, reason, "the stream's settings cannot be changed");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// The log at a position, of a stream that is not known yet.
async fn at(store: &impl EventLog, log: LogId, first: Position, last: Position) -> Result<Copied, StoreError> {
    if last.0 == 0 {
        return Ok(Copied { incarnation: 0, first, last, hash: LogHash::EMPTY, committed: UnixMillis::now() });
    }
    let event = store.read(log, last, 1).await?.pop().filter(|event| event.position == last);
    let event = event.ok_or_else(|| StoreError::Corrupt(format!("log {log} has no event at {last}")))?;
    Ok(Copied { incarnation: 0, first, last, hash: event.hash, committed: event.hlc.time() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_come_ever_more_slowly_until_they_are_forgiven() {
        let (mut deletions, start) = (Deletions::default(), Instant::now());
        let allowed: Vec<u64> = (0..300).filter(|second| deletions.allow(start + Duration::from_secs(*second))).collect();
        assert_eq!(allowed, [0, 1, 5, 21, 81, 141, 201, 261]);
        let (quiet, second) = (start + Duration::from_secs(261 + 600), Duration::from_secs(1));
        assert!(deletions.allow(quiet) && !deletions.allow(quiet + second / 2) && deletions.allow(quiet + second));
    }
}
