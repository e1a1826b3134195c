//! The rules of law 9, pure: no clock, no store, no locks.
//!
//! ```text
//! positions of one log    … 90 ······ 96 ········ 104 ······· 110
//!                               floor ┘     changed ┘      feed ┘
//! ```
//! Every change at a position in (floor, feed] is named in [`Changed`]. So a row read from a snapshot as of `a` is still the
//! row as of `feed`, if `a` is at or past the floor and at or past the last change named for the row's bucket.
//!
//! A row read ahead of the feed says of itself only that it was true when it was read: the log may be restored before the
//! feed ever tells of that place. It is trusted as long as a message is, and from when the feed reaches it on.
//!
//! A row that is served was true at a moment no longer ago than one message proves ([`Horizon::proven`]) and takes from the
//! projector to here; and it holds all that the reader's token names, whatever was lost, doubled or late.

use std::time::{Duration, Instant};

use souk_event_sourcing::{Epoch, Position, UnixMillis};

use super::sync::{AtomicU64, Ordering};

/// A place in the history of one log. The order is that of epochs, then positions: within one history both grow
/// together, and a history that replaces another has the later epochs (law 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Mark {
    pub epoch: Epoch,
    pub position: Position,
}

/// What made the rows of a place in the log. Rows of one place may differ when it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub(crate) struct Making {
    /// Of the projections, all as one number.
    pub revision: u32,
    /// When parked events were last replayed or dropped.
    pub repaired: UnixMillis,
    /// They are being made anew, and answer nobody until they are what they were.
    pub rebuilding: bool,
}

/// What the feed says of one transaction of a projector, without the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Advance {
    pub epoch: Epoch,
    pub from: Position,
    pub to: Position,
    pub making: Making,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Horizon {
    /// How long one message proves that nothing else has happened. A log is announced every second.
    proof_age: Duration,
    /// How far the views are.
    pub feed: Mark,
    /// Entries as of an earlier place are misses: changes after them may have been missed.
    pub floor: Mark,
    /// Grows when the log or its views went back, so that what was read before is told from what was read after.
    pub history: u64,
    pub making: Making,
    /// When `feed` was last confirmed.
    heard: Option<Instant>,
    /// The same by the wall clock.
    pub time: UnixMillis,
}

/// What is known of a cached row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Provenance {
    /// The snapshot it was read from.
    pub as_of: Mark,
    /// Of that snapshot.
    pub making: Making,
    /// [`Horizon::history`] when the reading began.
    pub history: u64,
    /// When the reading began.
    pub began: Instant,
}

impl Mark {
    /// Where a token for `self` stands, when the views are known to be at `known` and the log to have gone through
    /// `epochs`, each with its first position, oldest first; perhaps more than the views have seen of it.
    ///
    /// Epochs grow with positions and are never used twice. So a token of an earlier epoch at a position that is of a later
    /// one was written in a history that is no more, wherever the views are meanwhile (Kafka's KIP-101). A restore that the
    /// log has outgrown since, with more epochs in between than are known here, is not noticed: such a token counts as
    /// reached.
    pub fn against(self, known: Self, epochs: &[Self]) -> Standing {
        let reached = match epochs.iter().find(|start| start.epoch > self.epoch) {
            Some(next) if self.position >= next.position => return Standing::Lost,
            Some(_) => self.position <= known.position && !known.lost_before(self.position, epochs),
            None if self.epoch < known.epoch && self.position >= known.position => return Standing::Lost,
            None => self <= known,
        };
        if reached { Standing::Reached } else { Standing::Ahead }
    }

    /// Whether views at `self` end in a history that is no more, beyond `position`: the log wrote that in an epoch they have not seen.
    fn lost_before(self, position: Position, epochs: &[Self]) -> bool {
        epochs.iter().rev().find(|start| start.position <= position).is_some_and(|written| self.epoch < written.epoch)
    }
}

impl Horizon {
    /// Of a log nothing was heard of yet.
    pub fn new(proof_age: Duration) -> Self {
        Self {
            proof_age,
            feed: Mark::default(),
            floor: Mark::default(),
            history: 0,
            making: Making::default(),
            heard: None,
            time: UnixMillis(0),
        }
    }

    /// Takes in a message heard at `now`. The caller names the rows of a [`Step::Continued`] in [`Changed`], and
    /// replaces them in the cache, before it shows the new horizon to any reader.
    pub fn hear(&mut self, message: Advance, now: Instant, time: UnixMillis) -> Step {
        let to = Mark { epoch: message.epoch, position: message.to };
        self.heard = Some(now);
        self.time = time;
        if message.making == self.making {
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
        self.making = message.making;
        self.feed = to;
        self.floor = to;
        Step::Jumped
    }

    /// Whether the feed has been heard of late, so that silence about a row means that it did not change.
    pub fn proven(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| self.proves(heard, now))
    }

    /// Whether what was true at `then` is recent enough.
    fn proves(&self, then: Instant, now: Instant) -> bool {
        now.saturating_duration_since(then) < self.proof_age
    }

    /// When the last message ceases to be proof; `None` when nothing was heard yet.
    pub fn proof_ends(&self) -> Option<Instant> {
        self.heard.map(|heard| heard + self.proof_age)
    }

    /// Time since the last message.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.heard.map(|heard| now.saturating_duration_since(heard))
    }

    /// Whether a row may be kept: read within this history, as of the floor or later, and not before the last change
    /// that was named for its bucket.
    pub fn admits(&self, row: Provenance, changed: Position) -> bool {
        self.comparable(row) && row.as_of >= self.named(changed)
    }

    /// Whether a kept row answers a reader with this token now. The reader looks at the horizon first and takes the row
    /// out of the cache afterwards: the other way round, a change between the two would go unnoticed.
    pub fn serves(&self, row: Provenance, token: Option<Mark>, now: Instant) -> bool {
        let confirmed = row.as_of <= self.feed || self.proves(row.began, now);
        self.proven(now) && confirmed && self.comparable(row) && token.is_none_or(|token| self.feed.max(row.as_of) >= token)
    }

    /// The least that a row must be as of to hold every change heard of so far, `changed` being the last one named for
    /// its bucket.
    pub fn least(&self, changed: Position) -> Mark {
        self.floor.max(self.named(changed))
    }

    /// Whether it is known of late that the views are being made anew.
    pub fn rebuilding(&self, now: Instant) -> bool {
        self.making.rebuilding && self.proven(now)
    }

    /// Whether positions of the row and of the horizon mean the same, no change after the row may have been missed, and it is of
    /// views that are whole.
    fn comparable(&self, row: Provenance) -> bool {
        !row.making.rebuilding && row.history == self.history && row.making == self.making && row.as_of >= self.floor
    }

    /// Changes are named since the last jump only, and a new epoch is a jump.
    fn named(&self, changed: Position) -> Mark {
        Mark { epoch: self.feed.epoch, position: changed }
    }
}

/// Per bucket of keys, the last position the feed named a change at since the horizon last jumped; what came before is
/// below the floor. There should be thousands of buckets: with few of them, one change makes many other rows look changed
/// while they are being loaded.
pub(crate) struct Changed(Box<[AtomicU64]>);

impl Changed {
    pub fn new(buckets: usize) -> Self {
        Self((0..buckets.max(1)).map(|_| AtomicU64::new(0)).collect())
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
        &self.0[hash as usize % self.0.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAKING: Making = Making { revision: 7, repaired: UnixMillis(0), rebuilding: false };
    const PROOF_AGE: Duration = Duration::from_secs(3);

    fn mark(epoch: u64, position: u64) -> Mark {
        Mark { epoch: Epoch(epoch), position: Position(position) }
    }

    fn advance(epoch: u64, from: u64, to: u64) -> Advance {
        Advance { epoch: Epoch(epoch), from: Position(from), to: Position(to), making: MAKING }
    }

    fn row(as_of: Mark, history: u64, began: Instant) -> Provenance {
        Provenance { as_of, making: MAKING, history, began }
    }

    /// A horizon that heard of `epoch`, `position` at `now`.
    fn at(epoch: u64, position: u64, now: Instant) -> Horizon {
        let mut horizon = Horizon::new(PROOF_AGE);
        assert_eq!(horizon.hear(advance(epoch, position, position), now, UnixMillis(0)), Step::Jumped);
        horizon
    }

    #[test]
    fn a_hole_in_the_feed_raises_the_floor() {
        let now = Instant::now();
        let mut horizon = at(2, 100, now);
        assert_eq!(horizon.hear(advance(2, 100, 101), now, UnixMillis(0)), Step::Continued);
        assert!(horizon.serves(row(mark(2, 100), 0, now), None, now));
        assert_eq!(horizon.hear(advance(2, 103, 104), now, UnixMillis(0)), Step::Jumped);
        assert!(!horizon.serves(row(mark(2, 103), 0, now), None, now));
        assert!(horizon.serves(row(mark(2, 104), 0, now), None, now));
        assert!(!horizon.admits(row(mark(2, 103), 0, now), Position(0)));
    }

    #[test]
    fn the_loss_of_the_last_message_is_seen_at_the_next_announcement() {
        let now = Instant::now();
        let mut horizon = at(2, 100, now);
        assert_eq!(horizon.hear(advance(2, 100, 100), now, UnixMillis(0)), Step::Repeated);
        assert_eq!(horizon.hear(advance(2, 101, 101), now, UnixMillis(0)), Step::Jumped);
        assert_eq!(horizon.floor, mark(2, 101));
    }

    #[test]
    fn a_cold_row_stays_served_after_the_floor_has_passed_its_own_position() {
        let now = Instant::now();
        let mut horizon = at(2, 100, now);
        horizon.hear(advance(2, 150, 151), now, UnixMillis(0));
        // Changed last at position 3, read as of 151.
        assert!(horizon.admits(row(mark(2, 151), 0, now), Position(0)));
        assert!(horizon.serves(row(mark(2, 151), 0, now), None, now));
    }

    #[test]
    fn a_load_from_before_a_named_change_is_not_kept() {
        let now = Instant::now();
        let mut horizon = at(2, 100, now);
        horizon.hear(advance(2, 100, 101), now, UnixMillis(0));
        assert!(!horizon.admits(row(mark(2, 100), 0, now), Position(101)));
        assert!(horizon.admits(row(mark(2, 101), 0, now), Position(101)));
        assert!(horizon.admits(row(mark(2, 100), 0, now), Position(0)), "another bucket changed");
    }

    #[test]
    fn silence_is_no_proof() {
        let now = Instant::now();
        let horizon = at(2, 100, now);
        assert!(!Horizon::new(PROOF_AGE).proven(now));
        assert!(horizon.serves(row(mark(2, 100), 0, now), None, now + PROOF_AGE - Duration::from_millis(1)));
        assert!(!horizon.serves(row(mark(2, 100), 0, now), None, now + PROOF_AGE));
    }

    #[test]
    fn a_token_is_met_by_the_feed_or_by_the_row() {
        let now = Instant::now();
        let horizon = at(2, 100, now);
        assert!(horizon.serves(row(mark(2, 100), 0, now), Some(mark(2, 100)), now));
        assert!(!horizon.serves(row(mark(2, 100), 0, now), Some(mark(2, 101)), now));
        assert!(horizon.serves(row(mark(2, 101), 0, now), Some(mark(2, 101)), now));
    }

    #[test]
    fn a_row_ahead_of_the_feed_is_trusted_no_longer_than_a_message() {
        let began = Instant::now();
        let mut horizon = at(2, 100, began);
        let ahead = row(mark(2, 101), 0, began);
        let later = began + PROOF_AGE;
        assert_eq!(horizon.hear(advance(2, 100, 100), later, UnixMillis(0)), Step::Repeated);
        assert!(horizon.serves(ahead, None, later - Duration::from_millis(1)));
        assert!(!horizon.serves(ahead, None, later));
        assert_eq!(horizon.hear(advance(2, 100, 101), later, UnixMillis(0)), Step::Continued);
        assert!(horizon.serves(ahead, None, later), "the feed has reached it");
    }

    #[test]
    fn a_log_that_went_back_takes_its_rows_along() {
        let now = Instant::now();
        let mut horizon = at(2, 105, now);
        let lost = row(mark(2, 105), horizon.history, now);
        // The views are rewound before anything new is in the log.
        assert_eq!(horizon.hear(advance(2, 100, 100), now, UnixMillis(0)), Step::Jumped);
        assert!(!horizon.serves(lost, None, now) && !horizon.admits(lost, Position(0)));
        assert!(horizon.admits(row(mark(2, 100), horizon.history, now), Position(0)));
        assert_eq!(horizon.hear(advance(3, 100, 101), now, UnixMillis(0)), Step::Jumped);
        assert!(!horizon.serves(row(mark(2, 103), horizon.history, now), None, now), "as of a position that is taken anew");
    }

    #[test]
    fn rows_of_another_making_are_not_served() {
        for newer in [Making { revision: 8, ..MAKING }, Making { repaired: UnixMillis(5), ..MAKING }] {
            let now = Instant::now();
            let mut horizon = at(2, 100, now);
            let step = horizon.hear(Advance { making: newer, ..advance(2, 100, 100) }, now, UnixMillis(0));
            assert_eq!(step, Step::Jumped);
            assert!(!horizon.serves(row(mark(2, 100), 0, now), None, now));
            let new = Provenance { making: newer, ..row(mark(2, 100), 0, now) };
            assert!(horizon.admits(new, Position(0)) && horizon.serves(new, None, now));
        }
    }

    #[test]
    fn tokens_of_a_lost_part_are_told_from_those_of_the_log_wherever_the_views_are() {
        // Epoch 2 was cut off behind 100 and went on to 105 in the lost part; the log went on under epoch 4.
        let (epochs, lost) = ([mark(1, 1), mark(2, 50), mark(4, 101)], mark(2, 105));
        for known in [lost, mark(0, 0), mark(1, 30), mark(2, 100), mark(4, 101), mark(4, 300)] {
            for position in 101..=105 {
                assert_eq!(mark(2, position).against(known, &epochs), Standing::Lost, "{position} at {known:?}");
            }
            // Epoch 3 was used in the lost part alone.
            assert_eq!(mark(3, 104).against(known, &epochs), Standing::Lost, "at {known:?}");
        }
        let standing = |token: Mark, known| token.against(known, &epochs);
        assert_eq!(standing(mark(2, 90), mark(1, 30)), Standing::Ahead, "the views are folded anew");
        assert_eq!(standing(mark(2, 90), mark(1, 105)), Standing::Ahead, "the views are still of a history that was lost");
        assert_eq!(standing(mark(1, 49), mark(1, 105)), Standing::Reached, "which both have in common");
        assert_eq!(standing(mark(2, 90), mark(2, 95)), Standing::Reached);
        assert_eq!(standing(mark(2, 100), mark(4, 101)), Standing::Reached);
        assert_eq!(standing(mark(4, 102), mark(4, 101)), Standing::Ahead);
        assert_eq!(standing(mark(5, 103), mark(4, 101)), Standing::Ahead, "an epoch not heard of yet");
    }

    #[test]
    fn without_its_epochs_a_log_shows_a_lost_part_until_it_has_outgrown_it() {
        for (known, standing) in [(mark(3, 103), Standing::Lost), (mark(3, 105), Standing::Lost), (mark(3, 106), Standing::Reached)] {
            assert_eq!(mark(2, 105).against(known, &[]), standing, "at {known:?}");
        }
        assert_eq!(mark(2, 106).against(mark(2, 105), &[]), Standing::Ahead);
        assert_eq!(mark(4, 103).against(mark(3, 103), &[]), Standing::Ahead);
    }

    #[test]
    fn buckets_remember_the_last_change_until_they_are_told_to_forget() {
        let changed = Changed::new(16);
        changed.name(5, Position(9));
        changed.name(5 + 16, Position(8));
        assert_eq!((changed.last(5), changed.last(6)), (Position(9), Position(0)));
        changed.forget();
        assert_eq!(changed.last(5), Position(0));
    }
}
