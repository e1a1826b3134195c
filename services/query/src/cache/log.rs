use std::{
    sync::{Arc, Mutex as StdMutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use souk_event_sourcing::{Epoch, LogId, LogPosition, Position, UnixMillis};
use souk_proto::log::v1::EpochStart;
use souk_read_store::Least;
use tokio::sync::{Mutex, watch};

use super::{
    freshness::{Changed, Horizon, Mark, Standing},
    rows::CacheLimits,
    sightings::Sightings,
};

/// What the cache knows of one log.
pub(crate) struct Log {
    pub id: LogId,
    horizon: watch::Sender<Horizon>,
    /// The latest epochs of the log with their first positions, as far as they were heard of.
    epochs: RwLock<Arc<[Mark]>>,
    pub changed: Changed,
    /// Held while a message of the feed is taken in and while a loaded row is checked and inserted: between the check and
    /// the insertion no message can slip in, so none has to be looked for afterwards. Readers never take it.
    pub gate: Mutex<()>,
    sightings: StdMutex<Sightings>,
    /// How fresh the last answer was, as replies say it.
    stamp: StdMutex<Option<Stamp>>,
    /// How old an answer may be at most.
    bound: Duration,
}

/// What an answer contains and when the log was last heard of, with what replies say of it.
struct Stamp {
    contained: Mark,
    heard: UnixMillis,
    said: Bytes,
}

impl Log {
    pub fn new(id: LogId, limits: &CacheLimits) -> Self {
        let horizon = watch::Sender::new(Horizon::new(limits.proof_age));
        let (epochs, changed) = (RwLock::default(), Changed::new(limits.buckets));
        let (sightings, stamp) = (StdMutex::default(), StdMutex::default());
        Self { id, horizon, epochs, changed, gate: Mutex::new(()), sightings, stamp, bound: limits.proof_age }
    }

    pub fn horizon(&self) -> Horizon {
        *self.horizon.borrow()
    }

    /// Where a token stands when the views are known to be at `known`.
    pub fn standing(&self, token: Mark, known: Mark) -> Standing {
        token.against(known, &self.epochs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in which epochs the log went through; before the horizon, so that none goes ahead of them.
    pub fn learn(&self, epochs: &[EpochStart]) {
        let known = |start: &EpochStart| Mark { epoch: Epoch(start.epoch), position: Position(start.first_position) };
        let mut kept = self.epochs.write().unwrap_or_else(PoisonError::into_inner);
        if !epochs.is_empty() && !epochs.iter().map(known).eq(kept.iter().copied()) {
            *kept = epochs.iter().map(known).collect();
        }
    }

    /// Lets readers see a new horizon and wakes those who wait for it.
    pub fn show(&self, horizon: Horizon) {
        self.horizon.send_replace(horizon);
    }

    /// To wait for later horizons.
    pub fn watch(&self) -> watch::Receiver<Horizon> {
        self.horizon.subscribe()
    }

    /// The last change named for a bucket, and then the horizon: in this order no change named before goes unnoticed,
    /// even when the names are forgotten in between.
    pub fn observe(&self, bucket_hash: u64) -> (Position, Horizon) {
        let changed = self.changed.last(bucket_hash);
        (changed, self.horizon())
    }

    /// The views were at `mark` at `at`.
    pub fn seen(&self, mark: Mark, at: Instant) {
        self.sightings.lock().unwrap_or_else(PoisonError::into_inner).see(mark, at, self.bound);
    }

    /// What a snapshot must contain, beside `least`, to be no older than an answer may be; `None` when nobody can tell.
    pub fn recent(&self, least: Mark, now: Instant) -> Option<Least> {
        let seen = self.sightings.lock().unwrap_or_else(PoisonError::into_inner).within(self.bound, now)?;
        Some(self.at_least(least.max(seen)))
    }

    /// What a snapshot must contain, beside `least`, to answer while nobody can tell what is newest: where the views were last
    /// seen, less what an answer may be old.
    pub fn last_seen(&self, least: Mark) -> Least {
        let seen = self.sightings.lock().unwrap_or_else(PoisonError::into_inner).last(self.bound);
        self.at_least(least.max(seen.unwrap_or_default()))
    }

    /// Until when a snapshot that contains the log up to `contained` is known to be what the views are.
    pub fn current_until(&self, contained: Mark) -> UnixMillis {
        let horizon = self.horizon();
        if contained >= horizon.feed && !horizon.making.rebuilding {
            return horizon.time;
        }
        let held = self.sightings.lock().unwrap_or_else(PoisonError::into_inner).held(contained);
        held.map(|at| UnixMillis::now().plus_ms(-(at.elapsed().as_millis() as i64))).unwrap_or_default()
    }

    /// What replies say of an answer's freshness. Until the log is heard of again all answers from the cache say the same, so
    /// that it is made, and signed, once.
    pub fn stamped(&self, contained: Mark, heard: UnixMillis, make: impl FnOnce() -> Bytes) -> Bytes {
        let mut last = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stamp) = last.as_ref().filter(|stamp| (stamp.contained, stamp.heard) == (contained, heard)) {
            return stamp.said.clone();
        }
        let said = make();
        *last = Some(Stamp { contained, heard, said: said.clone() });
        said
    }

    /// What a snapshot must contain to reach `mark`, with rows no older than those known of.
    pub fn at_least(&self, mark: Mark) -> Least {
        let position = LogPosition { log: self.id, epoch: mark.epoch, position: mark.position };
        Least { position, repaired: self.horizon().making.repaired }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use souk_event_sourcing::{Partition, Region};

    use super::*;

    #[test]
    fn what_replies_say_is_made_once_until_the_log_is_heard_of_again() {
        let limits = CacheLimits { bytes: 0, buckets: 1, proof_age: Duration::ZERO };
        let log = Log::new(LogId { region: Region(1), partition: Partition(0) }, &limits);
        let made = Cell::new(0_u8);
        let say = |position, heard| {
            log.stamped(Mark { epoch: Epoch(1), position: Position(position) }, UnixMillis(heard), || {
                made.set(made.get() + 1);
                Bytes::from(vec![made.get()])
            })
        };
        assert_eq!([say(5, 10), say(5, 10)].concat(), [1, 1]);
        assert_eq!([say(5, 11), say(6, 11), say(6, 11)].concat(), [2, 3, 3], "another time, another position");
        assert_eq!(say(5, 10), [4][..], "only the last is kept, and never given for another");
    }
}
