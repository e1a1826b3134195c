//! Publishes an owned log to JetStream: stream sequence = position, the stream itself is the checkpoint, the table its
//! recovery (law 1, law 4).
//!
//! # Layout
//! - `ring`: just-committed events in memory, bounded ([`Ring`])
//! - `check`: is the stream a copy of the log, and how far; a stream that is not is made anew
//! - `pump`: publishing with a bounded window, and announcing the head
//! - `progress`: how far a relay is ([`Progress`])
//! - `owned`: what a relay needs of the store ([`OwnedLog`])
//! - `connect`: relays as the settings say ([`connect`])

mod check;
mod connect;
#[cfg(test)]
mod model;
mod owned;
mod progress;
mod pump;
mod ring;

use std::{sync::Arc, time::Duration};

use souk_bus::Feed;
use souk_bus_publisher::LogPublisher;
use souk_event_sourcing::{Epoch, LogId};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use connect::connect;
pub use owned::OwnedLog;
pub use progress::Progress;
pub use ring::{Head, Ring};

/// What all relays of a process share.
pub struct Relays<S, P, F> {
    pub store: Arc<S>,
    pub publisher: Arc<P>,
    pub feed: Arc<F>,
    /// Unacknowledged publishes of the connection.
    pub window: Arc<Semaphore>,
    pub tuning: Tuning,
}

#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Events kept in memory per log.
    pub ring_capacity: usize,
    pub check_every: Duration,
    pub announce_every: Duration,
    /// Events a stream is filled with at most when it was lost or fell behind; readers further behind use the event log.
    pub refill: u64,
}

/// A running relay.
pub struct RelayHandle {
    pub ring: Arc<Ring>,
    pub progress: Arc<Progress>,
    task: JoinHandle<()>,
}

impl RelayHandle {
    /// Waits until the relay has stopped, after its token was cancelled.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "relay ended by a panic");
        }
    }
}

impl<S: OwnedLog + 'static, P: LogPublisher + 'static, F: Feed + 'static> Relays<S, P, F> {
    /// Starts the relay of a log that was taken over at `head` under `epoch`.
    pub fn spawn(self: &Arc<Self>, log: LogId, epoch: Epoch, head: Head, stop: CancellationToken) -> RelayHandle {
        let ring = Arc::new(Ring::new(self.tuning.ring_capacity, head));
        let progress = Arc::new(Progress::new(log, ring.clone()));
        let pump = pump::Pump { relays: self.clone(), log, epoch, ring: ring.clone(), progress: progress.clone() };
        let task = tokio::spawn(pump.run(stop));
        RelayHandle { ring, progress, task }
    }
}
