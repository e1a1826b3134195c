use bytes::Bytes;
use souk_event_sourcing::{NewEvent, RecordedEvent, StreamId};

/// What the committer must know of the entities it decides on. It folds and caches them without knowing what they are.
pub trait Model: Send + Sync + 'static {
    /// State of one stream of any kind.
    type Entity: Clone + Send + Sync + 'static;
    type Event: Send + 'static;
    /// Raised when `evolve` changes its meaning: older snapshots are then ignored.
    const FOLD_VERSION: u32;

    /// The state of a stream without events; `None` for a category this model does not know.
    fn initial(stream: &StreamId) -> Option<Self::Entity>;

    /// # Errors
    /// When the event does not belong to such an entity.
    fn evolve(entity: &mut Self::Entity, event: &Self::Event) -> Result<(), DamagedHistory>;

    fn encode(stream: &StreamId, event: &Self::Event) -> NewEvent;

    /// # Errors
    /// When the payload is of an unknown type or damaged.
    fn decode(event: &RecordedEvent) -> Result<Self::Event, DamagedHistory>;

    fn encode_snapshot(entity: &Self::Entity) -> Bytes;

    /// `None` when the snapshot is of another fold or damaged; the events tell the same.
    fn decode_snapshot(stream: &StreamId, fold_version: u32, state: &[u8]) -> Option<Self::Entity>;
}

/// A stored history that cannot be folded.
#[derive(Debug, Clone, thiserror::Error)]
#[error("history of {stream} cannot be read: {reason}")]
pub struct DamagedHistory {
    pub stream: StreamId,
    pub reason: String,
}
