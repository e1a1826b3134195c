use bytes::Bytes;
use uuid::Uuid;

use crate::{Epoch, Hlc, LogHash, LogId, Position, RequestId, StreamId, Version};

/// Largest payload of one event. Envelope and headers come on top and must stay below the bus's message limit.
pub const MAX_PAYLOAD_BYTES: usize = 512 * 1024;

/// Identity of one event, for causation and for consumers outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub Uuid);

/// An event as it was decided, before it has a place in a log.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub stream: StreamId,
    /// Stable name, such as `OrderPlaced`.
    pub kind: &'static str,
    pub schema_version: u32,
    /// Encoded by the codec; opaque to stores and bus.
    pub payload: Bytes,
}

/// An event in its log, complete: what is stored, published and read back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordedEvent {
    pub log: LogId,
    pub position: Position,
    pub epoch: Epoch,
    /// Running hash of the log including this event.
    pub hash: LogHash,
    pub stream: StreamId,
    pub version: Version,
    pub kind: String,
    pub schema_version: u32,
    pub payload: Bytes,
    pub event_id: EventId,
    pub request_id: Option<RequestId>,
    /// The event that led to the command.
    pub causation_id: Option<EventId>,
    /// One id over a whole process, such as everything about one order.
    pub correlation_id: Option<Uuid>,
    /// Who sent the command.
    pub actor: String,
    pub hlc: Hlc,
    /// W3C traceparent of the command, empty when there was none.
    pub traceparent: String,
    /// Term of the home region under which the event is valid.
    pub home_epoch: Epoch,
    /// Key the payload is encrypted with; reserved.
    pub key_id: Option<Uuid>,
}

impl RecordedEvent {
    /// Whether `self` directly follows a log that ends at `position` with `hash`, and is whole itself.
    pub fn continues(&self, position: Position, hash: LogHash) -> bool {
        self.position == position.next() && self.hash == hash.after(self)
    }
}
