use prost::Message;
use souk_event_sourcing::{Epoch, LogId, RecordedEvent};
use souk_event_store::{EventLog, Lost, PostgresStore, StoreError};

/// What a relay needs of the store: the log, and whether it may still touch its stream.
#[async_trait::async_trait]
pub trait OwnedLog: EventLog {
    /// Whether `epoch` is still the log's epoch in the database.
    async fn still_owner(&self, log: LogId, epoch: Epoch) -> Result<bool, StoreError>;

    /// Whether a log that ends before its stream under one epoch is about to be taken anew under a later one, which the stream has
    /// to wait for: what only it still has is written down then.
    fn is_taken_anew(&self) -> bool {
        true
    }

    /// Writes down events the log once had and has no more, in order: the end of a stream that is about to be deleted.
    async fn keep_lost(&self, log: LogId, lost: &[RecordedEvent]) -> Result<(), StoreError>;
}

#[async_trait::async_trait]
impl OwnedLog for PostgresStore {
    async fn still_owner(&self, log: LogId, epoch: Epoch) -> Result<bool, StoreError> {
        Self::still_owner(self, log, epoch).await
    }

    async fn keep_lost(&self, log: LogId, lost: &[RecordedEvent]) -> Result<(), StoreError> {
        let Some(last) = lost.last() else { return Ok(()) };
        let known = Lost { epoch: last.epoch, position: last.position };
        let Some((epoch, fork)) = self.record_restored(log, known, "relay").await? else { return Ok(()) };
        let events: Vec<_> = (lost.iter().filter(|event| event.position > fork))
            .map(|event| (event.position, souk_bus::to_wire(event).encode_to_vec()))
            .collect();
        Self::keep_lost(self, log, epoch, &events).await
    }
}
