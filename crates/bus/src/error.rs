use souk_event_sourcing::{LogId, Position};

/// What can go wrong on the way between log and readers.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// NATS does not answer, or the JetStream stream is not there (yet).
    #[error("bus unavailable: {0}")]
    Unavailable(String),
    /// A message is not the event its place in the JetStream stream says: the stream is not ours or was tampered with.
    #[error("log {log}: message at sequence {sequence} holds position {position}")]
    Misplaced { log: LogId, sequence: u64, position: Position },
    #[error(transparent)]
    Malformed(#[from] MalformedEvent),
}

impl BusError {
    /// Whether waiting may help; the others need the event log.
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Bytes that are no event envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed event: {0}")]
pub struct MalformedEvent(pub String);
