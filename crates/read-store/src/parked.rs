use bytes::Bytes;
use souk_event_sourcing::{LogId, Position, StreamId, UnixMillis};

/// Mark on what is known of an entity some events of which are set aside (law 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parked {
    /// The first event set aside: tokens at or past it cannot be served.
    pub at: Position,
    pub since: UnixMillis,
}

/// An event set aside: it could not be applied, or stands behind one of its entity that could not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedEvent {
    pub log: LogId,
    pub position: Position,
    pub stream: StreamId,
    /// The whole event as whoever parked it encodes events; opaque here.
    pub envelope: Bytes,
    pub reason: String,
    pub since: UnixMillis,
}

/// An entity with events set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedEntity {
    pub log: LogId,
    pub stream: StreamId,
    /// How many.
    pub events: u64,
    pub parked: Parked,
    /// What stands in the way of the first of them.
    pub reason: String,
}

/// Which parked entities are asked for.
#[derive(Debug, Clone, Copy)]
pub struct ParkedQuery<'a> {
    pub logs: &'a [LogId],
    /// Only this one.
    pub stream: Option<&'a StreamId>,
    /// Only those behind this one, in the order of log and stream.
    pub after: Option<(LogId, &'a StreamId)>,
    pub limit: usize,
}

impl<'a> ParkedQuery<'a> {
    /// The first `limit` of these logs.
    pub fn all(logs: &'a [LogId], limit: usize) -> Self {
        Self { logs, stream: None, after: None, limit }
    }
}
