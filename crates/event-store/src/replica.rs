use bytes::Bytes;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent, RequestId, StreamId, UnixMillis};

use crate::{Bucket, EpochStart, EventLog, Head, StoreError};

/// A run of events of a log that another region writes, as its origin has them.
#[derive(Debug, Clone)]
pub struct ReplicaBatch {
    pub log: LogId,
    /// In order, without holes.
    pub events: Vec<RecordedEvent>,
    /// What the origin remembers of their commands.
    pub ledger: Vec<LedgerRow>,
    /// Epochs the origin's log went through; those that begin behind the batch's end are left out.
    pub epochs: Vec<EpochStart>,
}

/// A command as it stands in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRow {
    pub stream: StreamId,
    pub request_id: RequestId,
    pub bucket: Bucket,
    pub method: String,
    pub command: Bytes,
    pub fingerprint: Bytes,
    pub reply: Bytes,
    pub actor: String,
    pub recorded: UnixMillis,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replicated {
    /// The copy holds all of it and ends here.
    Done(End),
    /// It begins behind the copy's end, where nothing was written.
    Hole(End),
    /// It does not continue the copy, or goes on under an epoch that is over, and nothing was written: one of them is another
    /// history.
    Forked(End),
}

/// Where a copy ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub epoch: Epoch,
    pub position: Position,
    pub hash: LogHash,
}

/// Copies of logs that other regions write, beside this region's own.
///
/// Its law: a copy is at every moment a prefix of what was given to it, event by event proven by the running hash; events, ledger,
/// epochs and head change together, whoever else writes the same copy. What is there already is not written again, but for
/// rows of the ledger that come late. Logs of this region are refused.
#[async_trait::async_trait]
pub trait Copies: EventLog {
    /// Adds what the copy does not have of a batch.
    ///
    /// # Errors
    /// `Corrupt` when the batch itself has a hole or breaks the chain, `Setup` for a log of this region.
    async fn replicate(&self, batch: &ReplicaBatch) -> Result<Replicated, StoreError>;

    /// Adds what a third region has of the log, for which its origin does not vouch: together with the events the copy is marked as
    /// proven up to where it ended. A mark that is there stays.
    ///
    /// # Errors
    /// As [`Copies::replicate`].
    async fn borrow(&self, batch: &ReplicaBatch) -> Result<Replicated, StoreError>;

    /// Takes back what lies behind `fork`, if the copy still ends at `seen`; says whether it did (law 13). Its epochs are then
    /// those of `epochs` that begin no later than right behind the fork. A mark at the fork or behind it goes, too.
    async fn rewind(&self, log: LogId, fork: Position, seen: End, epochs: &[EpochStart]) -> Result<bool, StoreError>;

    /// Takes the mark away, if the copy still ends at `seen`: the origin has the same. Says whether it did.
    async fn prove(&self, log: LogId, seen: End) -> Result<bool, StoreError>;

    /// The last position the origin vouches for, if there is a mark.
    async fn unproven(&self, log: LogId) -> Result<Option<Position>, StoreError>;
}

impl From<&Head> for End {
    fn from(head: &Head) -> Self {
        Self { epoch: head.epoch, position: head.position, hash: head.hash }
    }
}

/// What a batch adds to a copy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// From this event on.
    From(usize),
    Hole,
    Forked,
}

impl ReplicaBatch {
    /// Holds the batch against the end of the copy.
    pub(crate) fn fit(&self, end: End) -> Result<Fit, StoreError> {
        for pair in self.events.windows(2) {
            if pair[1].log != self.log || !pair[1].continues(pair[0].position, pair[0].hash) {
                return Err(StoreError::Corrupt(format!("log {}: a batch breaks at position {}", self.log, pair[1].position)));
            }
        }
        let Some(first) = self.events.first() else { return Ok(Fit::From(0)) };
        if first.log != self.log {
            return Err(StoreError::Corrupt(format!("an event of log {} for the copy of {}", first.log, self.log)));
        }
        if first.position > end.position.next() {
            return Ok(Fit::Hole);
        }
        if first.position == end.position.next() {
            let follows = first.continues(end.position, end.hash) && self.keeps_epoch(0, end);
            return Ok(if follows { Fit::From(0) } else { Fit::Forked });
        }
        // The chain proves all that both have by the last event that both have.
        let known = (end.position.0 - first.position.0) as usize;
        let from = self.events.len().min(known + 1);
        Ok(match self.events.get(known) {
            Some(event) if event.hash != end.hash || !self.keeps_epoch(from, end) => Fit::Forked,
            _ => Fit::From(from),
        })
    }

    /// Whether the events from `from` on are of the epoch in force at the copy's end or later ones, in order.
    fn keeps_epoch(&self, from: usize, end: End) -> bool {
        let epochs = self.events[from..].iter().map(|event| event.epoch);
        std::iter::once(end.epoch).chain(epochs).is_sorted()
    }

    /// Where a copy that ended at `end` ends with the events from `from` on.
    pub(crate) fn end(&self, from: usize, end: End) -> End {
        let last = self.events[from..].last();
        let (position, hash) = last.map_or((end.position, end.hash), |last| (last.position, last.hash));
        let begun = self.epochs.iter().filter(|start| start.first <= position.next()).map(|start| start.epoch);
        let epoch = begun.chain(last.map(|last| last.epoch)).fold(end.epoch, Epoch::max);
        End { epoch, position, hash }
    }
}
