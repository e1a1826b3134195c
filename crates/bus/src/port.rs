use futures::stream::BoxStream;
use souk_event_sourcing::{LogId, Position, RecordedEvent, Region};
use souk_proto::log::v1::{ChangeFeed, HeadAnnouncement};

use crate::BusError;

/// Events of one log, in order.
pub type Events = BoxStream<'static, Result<RecordedEvent, BusError>>;

/// Reading logs from the transport.
///
/// Its law: events of a log arrive in order of position, none below the one asked for. They may begin later (what lies
/// before is not kept any more) and leave holes; each lies at the JetStream sequence that is its position. Nothing is
/// healed inside: a stream that is not there or is made anew, a restarted server, a lost message or heartbeat end it
/// with an error. Any error or end means: ask again, from the position wanted next, after a pause. No
/// acknowledgements; the reader's checkpoint is its own.
#[async_trait::async_trait]
pub trait EventSource: Send + Sync {
    /// Events from `from` on, and each later one as it arrives.
    ///
    /// # Errors
    /// `Unavailable` when the transport or the log's stream is not there.
    async fn consume(&self, log: LogId, from: Position) -> Result<Events, BusError>;
}

/// Announcements within a region. Delivered at most once: losing one makes answers slower, never wrong.
#[async_trait::async_trait]
pub trait Feed: Send + Sync {
    /// Tells where a log ends.
    async fn publish_head(&self, head: HeadAnnouncement) -> Result<(), BusError>;

    /// Heads of all logs written in `region`.
    async fn subscribe_heads(&self, region: Region) -> Result<BoxStream<'static, HeadAnnouncement>, BusError>;

    /// Tells how far the views of a log are and what changed.
    async fn publish_changes(&self, changes: ChangeFeed) -> Result<(), BusError>;

    /// Changes of the views of all logs written in `region`. After a reconnect it goes on; what was missed shows as a gap
    /// between two messages.
    async fn subscribe_changes(&self, region: Region) -> Result<BoxStream<'static, ChangeFeed>, BusError>;
}
