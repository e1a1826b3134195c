use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use metrics::{Gauge, gauge};
use souk_event_sourcing::{LogId, Position, UnixMillis};

use super::Ring;

/// How far a relay is: head of the log against what JetStream has acknowledged.
pub struct Progress {
    ring: Arc<Ring>,
    acknowledged: AtomicU64,
    /// Unix milliseconds: no event committed before is missing from the stream.
    complete_until: AtomicI64,
    lag_events: Gauge,
    lag_seconds: Gauge,
}

impl Progress {
    pub fn new(log: LogId, ring: Arc<Ring>) -> Self {
        let labels = [("region", log.region.to_string()), ("partition", log.partition.to_string())];
        Self {
            ring,
            acknowledged: AtomicU64::new(0),
            complete_until: AtomicI64::new(UnixMillis::now().0),
            lag_events: gauge!("souk_relay_lag_events", &labels),
            lag_seconds: gauge!("souk_relay_lag_seconds", &labels),
        }
    }

    pub fn head(&self) -> Position {
        self.ring.head().position
    }

    pub fn acknowledged(&self) -> Position {
        Position(self.acknowledged.load(Ordering::Relaxed))
    }

    /// Age of the oldest event the stream does not have, in seconds; 0 when it has all. An event no longer in memory
    /// is taken to be as old as the one before it.
    pub fn lag_seconds(&self) -> f64 {
        let acknowledged = self.acknowledged();
        if acknowledged >= self.head() {
            return 0.0;
        }
        let oldest = self.ring.get(acknowledged.next()).map(|event| event.hlc.time());
        let oldest = oldest.unwrap_or_else(|| UnixMillis(self.complete_until.load(Ordering::Relaxed)));
        (UnixMillis::now().0 - oldest.0).max(0) as f64 / 1000.0
    }

    /// The stream ends at `position` now. `committed` is when that event was; it may go back when a stream was lost.
    pub(super) fn acknowledge(&self, position: Position, committed: UnixMillis) {
        self.acknowledged.store(position.0, Ordering::Relaxed);
        self.complete_until.store(committed.0, Ordering::Relaxed);
    }

    /// Brings the gauges up to date.
    pub(super) fn report(&self) {
        self.lag_events.set(self.head().0.saturating_sub(self.acknowledged().0) as f64);
        self.lag_seconds.set(self.lag_seconds());
    }
}

impl Drop for Progress {
    /// The log has another relay now, in this process or elsewhere, which tells how far it is.
    fn drop(&mut self) {
        self.lag_events.set(0.0);
        self.lag_seconds.set(0.0);
    }
}
