use futures::future::BoxFuture;
use souk_event_sourcing::{LogId, Position, RecordedEvent, UnixMillis};

/// What publishing may meet. A relay answers all of them by looking at the stream again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The server does not answer (in time).
    #[error("broker unavailable: {0}")]
    Unavailable(String),
    /// Nobody takes the subject: the stream is gone (503).
    #[error("the stream is gone")]
    NoStream,
    /// The stream does not end where this event begins (10071).
    #[error("the stream ends elsewhere")]
    WrongSequence,
    /// The stream or the server's store takes no more (10077, 10047).
    #[error("the stream is full")]
    Full,
    /// Another stream owns the subject (10060, 10065).
    #[error("another stream owns the subject")]
    ForeignStream,
    /// Acknowledged, but not at its position.
    #[error("acknowledged as {stream}@{sequence}, duplicate: {duplicate}")]
    Misplaced { stream: String, sequence: u64, duplicate: bool },
    #[error("refused: {0}")]
    Refused(String),
}

impl PublishError {
    /// Whether waiting may help without anybody changing the stream or the server's settings.
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full)
    }
}

/// A log's stream as the broker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// Tells a stream from another one that was made in its place.
    pub incarnation: u64,
    /// First position the stream was made for.
    pub begin: Position,
    /// First sequence kept; last + 1 when it is empty.
    pub first: Position,
    pub last: Position,
    /// Every sequence from first to last is there.
    pub whole: bool,
    /// Its limits and protections are as wanted; if not, [`LogPublisher::settle`] makes them so.
    pub settled: bool,
    /// Events committed after this are younger than the stream's limits, so that they must be there. `None` when the
    /// stream is so full that events go for lack of room, whatever their age.
    pub keeps_after: Option<UnixMillis>,
}

/// Completes when the broker has the event at its position.
pub type Ack = BoxFuture<'static, Result<(), PublishError>>;

/// A log's stream at the broker, for the log's owner.
///
/// Its law: an event is stored only if the stream ends right before its position, and then at the sequence that is its
/// position. What lies at the end is not looked at: behind a message of somebody else's the next publish of a window is
/// stored. So an acknowledgement stands for the events before it only if none of them was refused. No call waits for a
/// broker that is away.
#[async_trait::async_trait]
pub trait LogPublisher: Send + Sync {
    /// Waits until there is a connection to the broker.
    async fn reachable(&self);

    /// The stream, `None` when there is none.
    async fn state(&self, log: LogId) -> Result<Option<StreamState>, PublishError>;

    /// Makes an empty stream whose first event will have position `first`.
    async fn create(&self, log: LogId, first: Position) -> Result<(), PublishError>;

    /// Gives a stream the limits and protections it should have; what it holds stays.
    ///
    /// # Errors
    /// `Refused` when they cannot be changed: then the stream is none of ours.
    async fn settle(&self, log: LogId) -> Result<(), PublishError>;

    /// Removes the stream with all it holds; nothing when there is none. Not fenced: the caller makes sure first that
    /// it still owns the log.
    async fn delete(&self, log: LogId) -> Result<(), PublishError>;

    /// The event at a position of the stream; `None` when it holds none or not an event.
    async fn event(&self, log: LogId, position: Position) -> Result<Option<RecordedEvent>, PublishError>;

    /// Sends an event; several may be under way.
    async fn publish(&self, event: &RecordedEvent) -> Result<Ack, PublishError>;
}
