//! The rules of law 9, pure: no clock, no store, no locks.
//!
//! ```text
//! positions of one log    … 90 ······ 96 ········ 104 ······· 110
//!                               floor ┘     changed ┘      feed ┘
//! ```
//! Every change at a position in (floor, feed] is named in [`Changed`]. So a row read from a snapshot as of `a` is still the
//! row as of `feed`, if `a` is at or past the floor and at or past the last change named for the row's bucket.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use souk_event_sourcing::{Epoch, Position, UnixMillis};

/// How long one message of the feed proves that nothing else has happened. A log is announced every second.
pub(crate) const PROOF_AGE: Duration = Duration::from_secs(3);

/// Buckets per log. With few of them, one change makes many other rows look changed while they are being loaded.
const BUCKETS: usize = 4096;

/// A place in the history of one log. The order is that of epochs, then positions: within one history both grow
/// together, and a history that replaces another has the later epochs (law 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Mark {
    pub epoch: Epoch,
    pub position: Position,
}

/// What the feed says of one transaction of a projector, without the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Advance {
    pub epoch: Epoch,
    pub from: Position,
    pub to: Position,
    pub revision: u32,
}

/// How a message fits to what was heard before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing new: an announcement of an idle log, or a message heard before.
    Repeated,
    /// The next transaction.
    Continued,
    /// Something is missing between, or the log or its views went back, or another revision of the projections took
    /// over. All that was read before counts as a miss.
    Jumped,
}

/// Where a token stands against what is known of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// All it names is visible.
    Reached,
    /// Not visible yet.
    Ahead,
    /// It names a part of the log that a restore took back; waiting is in vain.
    Lost,
}

/// What is known of one log and its views from the change feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Horizon {
    /// How far the views are.
    pub feed: Mark,
    /// Entries as of an earlier place are misses: changes after them may have been missed.
    pub floor: Mark,
    /// Grows when the log or its views went back, so that what was read before is told from what was read after.
    pub history: u64,
    /// Of the projections that wrote the rows, all as one number.
    pub revision: u32,
    /// The earliest position known to be of `feed.epoch`.
    epoch_start: Position,
    /// When `feed` was last confirmed.
    heard: Option<Instant>,
    /// The same by the wall clock.
    pub time: UnixMillis,
}

/// What is known of a cached row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Provenance {
    /// The snapshot it was read from.
    pub as_of: Mark,
    /// Of the projections that had written that snapshot.
    pub revision: u32,
    /// [`Horizon::history`] when the reading began.
    pub history: u64,
}

impl Mark {
    /// Where a token for `self` stands, when the log is known to be at `known` and the epoch of `known` to hold at
    /// `epoch_start` already.
    ///
    /// Epochs grow with positions. So a token of an earlier epoch at a position that is known to be of a later one was
    /// written in a history that is no more. A restore that the log has outgrown since, with more epochs in between than
    /// are known here, is not noticed: such a token counts as reached.
    fn against(self, known: Self, epoch_start: Position) -> Standing {
        if self.epoch < known.epoch && self.position >= epoch_start {
            Standing::Lost
        } else if self <= known {
            Standing::Reached
        } else {
            Standing::Ahead
        }
    }

    /// Where a token for `self` stands against a snapshot of the store.
    pub fn against_snapshot(self, as_of: Self) -> Standing {
        self.against(as_of, as_of.position)
    }
}

impl Horizon {
    /// Takes in a message heard at `now`. The caller names the rows of a [`Step::Continued`] in [`Changed`], and
    /// replaces them in the cache, before it shows the new horizon to any reader.
    pub fn hear(&mut self, message: Advance, now: Instant, time: UnixMillis) -> Step {
        let to = Mark { epoch: message.epoch, position: message.to };
        self.heard = Some(now);
        self.time = time;
        if message.revision == self.revision {
            if to == self.feed {
                return Step::Repeated;
            }
            if message.epoch == self.feed.epoch && message.from == self.feed.position && message.to > message.from {
                self.feed = to;
                return Step::Continued;
            }
        }
        if to < self.feed {
            self.history += 1;
        }
        self.epoch_start = if to.epoch == self.feed.epoch { self.epoch_start.min(to.position) } else { to.position };
        self.revision = message.revision;
        self.feed = to;
        self.floor = to;
        Step::Jumped
    }

    /// Whether the feed has been heard of late, so that silence about a row means that it did not change.
    pub fn proven(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now.saturating_duration_since(heard) < PROOF_AGE)
    }

    /// When the last message ceases to be proof; `None` when nothing was heard yet.
    pub fn proof_ends(&self) -> Option<Instant> {
        self.heard.map(|heard| heard + PROOF_AGE)
    }

    /// Time since the last message.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.heard.map(|heard| now.saturating_duration_since(heard))
    }

    /// Where a token stands against the feed.
    pub fn standing(&self, token: Mark) -> Standing {
        token.against(self.feed, self.epoch_start)
    }

    /// Whether a row may be kept: read within this history, as of the floor or later, and not before the last change
    /// that was named for its bucket.
    pub fn admits(&self, row: Provenance, changed: Position) -> bool {
        self.comparable(row) && row.as_of >= self.named(changed)
    }

    /// Whether a kept row answers a reader with this token now. The reader looks at the horizon first and takes the row
    /// out of the cache afterwards: the other way round, a change between the two would go unnoticed.
    pub fn serves(&self, row: Provenance, token: Option<Mark>, now: Instant) -> bool {
        self.proven(now) && self.comparable(row) && token.is_none_or(|token| self.feed.max(row.as_of) >= token)
    }

    /// The least that a row must be as of to hold every change heard of so far, `changed` being the last one named for
    /// its bucket.
    pub fn least(&self, changed: Position) -> Mark {
        self.floor.max(self.named(changed))
    }

    /// Whether positions of the row and of the horizon mean the same, and no change after the row may have been missed.
    fn comparable(&self, row: Provenance) -> bool {
        row.history == self.history && row.revision == self.revision && row.as_of >= self.floor
    }

    /// Changes are named since the last jump only, and a new epoch is a jump.
    fn named(&self, changed: Position) -> Mark {
        Mark { epoch: self.feed.epoch, position: changed }
    }
}

/// Per bucket of keys, the last position the feed named a change at since the horizon last jumped; what came before is
/// below the floor.
pub(crate) struct Changed(Box<[AtomicU64]>);

impl Changed {
    pub fn new() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }

    /// The feed named a change of a key with this hash at `position`.
    pub fn name(&self, hash: u64, position: Position) {
        self.bucket(hash).fetch_max(position.0, Ordering::AcqRel);
    }

    /// The last change named for the bucket of this hash.
    pub fn last(&self, hash: u64) -> Position {
        Position(self.bucket(hash).load(Ordering::Acquire))
    }

    pub fn forget(&self) {
        self.0.iter().for_each(|bucket| bucket.store(0, Ordering::Release));
    }

    fn bucket(&self, hash: u64) -> &AtomicU64 {
        &self.0[hash as usize % BUCKETS]
    }
}

#[cfg(test)]
#[path = "freshness_tests.rs"]
mod tests;
