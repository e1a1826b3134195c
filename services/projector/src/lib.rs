//! The projector: folds the events of every log placed in the region's read databases into rows, and tells caches.
//!
//! One reader per log delivers its events in order, without holes, doubles or foreign ones, from the bus and, where the
//! bus fails, from the event log (law 5). One shard per read database writes whatever has arrived on all its logs in one
//! fenced transaction, rows and checkpoints together, and publishes what changed.
//!
//! # Layout
//! - `sequence`: what an event is to a reader: the next one, known, behind a hole, of another history
//! - `reader`: one log from a checkpoint on; `log_reader`: the event log behind it; `heads`: where logs end
//! - `shard`, `batch`, `ahead`, `recovery`: the loop over one database; fold and write; what is folded meanwhile; lost
//!   checkpoints, rewinds, announcements
//! - `watchdog`: starting anew what hangs
//! - `membership`: sharing the logs of a database with other projectors
//! - `parking`: replaying and dropping what was set aside (law 11); `parked_api`: the same on the internal port
//! - `changes`: the change feed
//! - `board`, `meters`, `admin`: what status and metrics say
//! - `service`: connecting, starting and stopping all of it in order

mod admin;
mod ahead;
mod backoff;
mod batch;
mod board;
mod changes;
mod heads;
mod log_reader;
mod membership;
mod meters;
#[cfg(test)]
mod model;
mod parked_api;
mod parking;
mod reader;
mod recovery;
mod sequence;
mod service;
mod shard;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod watchdog;

pub use service::{migrate, run};

use std::time::Duration;

use souk_runtime::settings::ProjectorSettings;

/// How the parts of a projector are set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub writers: usize,
    pub batch_events: usize,
    pub batch_bytes: usize,
    pub batch_interval: Duration,
    pub row_cache_entries: usize,
    pub parked_events_max: u32,
    pub feed_interval: Duration,
    pub lease_ttl: Duration,
    pub heartbeat_interval: Duration,
    pub watchdog_after: Duration,
    pub backfill_after: Duration,
    pub retry_backoff: Duration,
    pub retry_backoff_max: Duration,
}

impl Config {
    /// Events that are many enough not to be waited with, and for the next to be folded while they are written.
    pub fn many_events(&self) -> usize {
        const MANY: usize = 512;
        MANY.min(self.batch_events / 2)
    }
}

impl From<&ProjectorSettings> for Config {
    fn from(settings: &ProjectorSettings) -> Self {
        Self {
            writers: settings.writers.max(1),
            batch_events: settings.batch_events.max(1),
            batch_bytes: settings.batch_bytes.max(1),
            batch_interval: settings.batch_interval,
            row_cache_entries: settings.row_cache_entries as usize,
            parked_events_max: settings.parked_events_max,
            feed_interval: settings.feed_interval,
            lease_ttl: settings.lease_ttl,
            heartbeat_interval: settings.heartbeat_interval,
            watchdog_after: settings.watchdog_after,
            backfill_after: settings.backfill_after,
            retry_backoff: settings.retry_backoff,
            retry_backoff_max: settings.retry_backoff_max,
        }
    }
}
