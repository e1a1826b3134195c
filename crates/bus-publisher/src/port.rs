use futures::future::BoxFuture;
use souk_event_sourcing::{LogId, Position, RecordedEvent};

/// What publishing may meet. A relay answers all but `Unavailable` by looking at the stream again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The server does not answer (in time).
    #[error("broker unavailable: {0}")]
    Unavailable(String),
    /// Nobody takes the subject: the stream is gone.
    #[error("the stream is gone")]
    NoStream,
    /// The stream does not end where this event begins (10071).
    #[error("the stream ends elsewhere")]
    WrongSequence,
    /// The stream takes no more (10077).
    #[error("the stream is full")]
    Full,
    /// Another stream owns the subject (10060).
    #[error("another stream owns the subject")]
    ForeignStream,
    /// Acknowledged, but not at its position.
    #[error("acknowledged as {stream}@{sequence}, duplicate: {duplicate}")]
    Misplaced { stream: String, sequence: u64, duplicate: bool },
    #[error("refused: {0}")]
    Refused(String),
}

/// A log's stream as the broker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// First sequence kept; last + 1 when it is empty.
    pub first: Position,
    pub last: Position,
    /// Every sequence from first to last is there.
    pub whole: bool,
    /// It belongs to this installation and is set up as wanted.
    pub ours: bool,
}

/// Completes when the broker has the event at its position.
pub type Ack = BoxFuture<'static, Result<(), PublishError>>;

/// A log's stream at the broker, for the log's owner.
///
/// Its law: an event is stored only if the stream ends right before its position, and then at the sequence that is its
/// position; an acknowledgement of one event stands for all before it.
#[async_trait::async_trait]
pub trait LogPublisher: Send + Sync {
    /// The stream, `None` when there is none.
    async fn state(&self, log: LogId) -> Result<Option<StreamState>, PublishError>;

    /// Makes an empty stream whose first event will have position `first`.
    async fn create(&self, log: LogId, first: Position) -> Result<(), PublishError>;

    /// Removes the stream with all it holds. Not fenced: the caller makes sure first that it still owns the log.
    async fn delete(&self, log: LogId) -> Result<(), PublishError>;

    /// The event at a position of the stream; `None` when it holds none or not an event.
    async fn event(&self, log: LogId, position: Position) -> Result<Option<RecordedEvent>, PublishError>;

    /// Sends an event; several may be under way.
    async fn publish(&self, event: &RecordedEvent) -> Result<Ack, PublishError>;
}
