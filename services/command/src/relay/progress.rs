use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use metrics::{Gauge, gauge};
use souk_event_sourcing::{LogId, Position, UnixMillis};

/// How far a relay is: head of the log against what JetStream has acknowledged.
pub struct Progress {
    head: AtomicU64,
    acknowledged: AtomicU64,
    /// Unix milliseconds since which the two differ; 0 while they are equal.
    behind_since: AtomicI64,
    lag_events: Gauge,
    lag_seconds: Gauge,
}

impl Progress {
    pub fn new(log: LogId, head: Position) -> Self {
        let partition = log.partition.to_string();
        Self {
            head: AtomicU64::new(head.0),
            acknowledged: AtomicU64::new(0),
            behind_since: AtomicI64::new(UnixMillis::now().0),
            lag_events: gauge!("souk_relay_lag_events", "partition" => partition.clone()),
            lag_seconds: gauge!("souk_relay_lag_seconds", "partition" => partition),
        }
    }

    pub fn head(&self) -> Position {
        Position(self.head.load(Ordering::Relaxed))
    }

    pub fn acknowledged(&self) -> Position {
        Position(self.acknowledged.load(Ordering::Relaxed))
    }

    /// Seconds since head and acknowledged position differ.
    pub fn lag_seconds(&self) -> f64 {
        match self.behind_since.load(Ordering::Relaxed) {
            0 => 0.0,
            since => (UnixMillis::now().0 - since).max(0) as f64 / 1000.0,
        }
    }

    pub(super) fn set(&self, head: Position, acknowledged: Position) {
        self.head.store(head.0, Ordering::Relaxed);
        let before = self.acknowledged.swap(acknowledged.0, Ordering::Relaxed);
        if acknowledged >= head {
            self.behind_since.store(0, Ordering::Relaxed);
        } else if before != acknowledged.0 || self.behind_since.load(Ordering::Relaxed) == 0 {
            self.behind_since.store(UnixMillis::now().0, Ordering::Relaxed);
        }
    }

    /// Brings the gauges up to date.
    pub(super) fn report(&self) {
        self.lag_events.set(self.head().0.saturating_sub(self.acknowledged().0) as f64);
        self.lag_seconds.set(self.lag_seconds());
    }
}
