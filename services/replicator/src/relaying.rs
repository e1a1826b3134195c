use std::sync::Arc;

use souk_bus::JetStreamBus;
use souk_bus_publisher::JetStreamPublisher;
use souk_event_sourcing::{Epoch, LogId, Position, RecordedEvent};
use souk_event_store::{End, EventLog, Head, PostgresStore, StoreError};
use souk_relay::{Head as RingHead, OwnedLog, RelayHandle, Relays};
use tokio_util::sync::CancellationToken;

/// Copies as a relay sees them: a copy's epoch is that of its origin.
pub struct CopiedLogs(pub Arc<PostgresStore>);

/// All relays of copies of a process.
pub type CopyRelays = Relays<CopiedLogs, JetStreamPublisher, JetStreamBus>;

#[async_trait::async_trait]
impl EventLog for CopiedLogs {
    async fn read(&self, log: LogId, from: Position, limit: usize) -> Result<Vec<RecordedEvent>, StoreError> {
        self.0.read(log, from, limit).await
    }

    async fn head(&self, log: LogId) -> Result<Head, StoreError> {
        self.0.head(log).await
    }
}

#[async_trait::async_trait]
impl OwnedLog for CopiedLogs {
    async fn still_owner(&self, log: LogId, epoch: Epoch) -> Result<bool, StoreError> {
        Ok(self.0.head(log).await?.epoch == epoch)
    }

    /// Nobody does: whoever takes a copy back goes by its origin's epochs.
    fn is_taken_anew(&self) -> bool {
        false
    }

    /// Written down when the copy went back, by whoever took it back.
    async fn keep_lost(&self, _: LogId, _: &[RecordedEvent]) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The relay of one copy, which runs under one epoch: another one is another relay.
pub struct Relaying {
    relays: Arc<CopyRelays>,
    log: LogId,
    running: Option<Running>,
}

struct Running {
    epoch: Epoch,
    handle: RelayHandle,
    stop: CancellationToken,
}

impl Relaying {
    pub fn new(relays: Arc<CopyRelays>, log: LogId) -> Self {
        Self { relays, log, running: None }
    }

    /// The copy ends here; `added` are its latest events, as far as they are at hand.
    pub async fn ends_at(&mut self, end: End, added: Vec<RecordedEvent>) {
        if self.running.as_ref().is_some_and(|running| running.epoch != end.epoch) {
            self.stop().await;
        }
        let head = RingHead { position: end.position, hash: end.hash };
        let Some(running) = &self.running else {
            let stop = CancellationToken::new();
            let handle = self.relays.spawn(self.log, end.epoch, head, stop.clone());
            self.running = Some(Running { epoch: end.epoch, handle, stop });
            return;
        };
        let ring = &running.handle.ring;
        added.into_iter().filter(|event| event.position > ring.head().position).for_each(|event| ring.push(Arc::new(event)));
        // Another replicator has written part of it.
        if ring.head() != head {
            ring.ends_at(head);
        }
    }

    /// Publishes what it can for a moment, and ends.
    pub async fn stop(&mut self) {
        if let Some(Running { handle, stop, .. }) = self.running.take() {
            stop.cancel();
            handle.stopped().await;
        }
    }
}
