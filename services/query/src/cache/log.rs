use souk_event_sourcing::{LogId, Position};
use tokio::sync::{Mutex, watch};

use super::{
    freshness::{Changed, Horizon},
    rows::CacheLimits,
};

/// What the cache knows of one log.
pub(crate) struct Log {
    pub id: LogId,
    horizon: watch::Sender<Horizon>,
    pub changed: Changed,
    /// Held while a message of the feed is taken in and while a loaded row is checked and inserted: between the check and
    /// the insertion no message can slip in, so none has to be looked for afterwards. Readers never take it.
    pub gate: Mutex<()>,
}

impl Log {
    pub fn new(id: LogId, limits: &CacheLimits) -> Self {
        let horizon = watch::Sender::new(Horizon::new(limits.proof_age));
        Self { id, horizon, changed: Changed::new(limits.buckets), gate: Mutex::new(()) }
    }

    pub fn horizon(&self) -> Horizon {
        *self.horizon.borrow()
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
}
