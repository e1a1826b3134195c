use std::sync::Arc;

use bytes::Bytes;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent, RequestId, StreamId, UnixMillis, Version};

use crate::StoreError;

/// What the owner of a log believes of it. The append compares this with the stored head and does nothing unless they
/// are equal (law 6). `batch` counts every append, also one without events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Belief {
    pub epoch: Epoch,
    pub batch: u64,
    pub position: Position,
    /// Running hash at `position`.
    pub hash: LogHash,
}

impl Belief {
    /// The fence of the append: whether a stored head is the one believed in. `append.sql` compares the same fields.
    pub fn meets(&self, head: &Self) -> bool {
        (self.epoch, self.batch, self.position) == (head.epoch, head.batch, head.position)
    }

    /// Whether a log that was known to end at `known`, and now ends here, went back in between (law 13). It can be told
    /// for certain only as long as nobody has written anew beyond `known`.
    pub fn went_back_from(&self, known: &Self) -> bool {
        self.epoch < known.epoch
            || self.position < known.position
            || (self.position == known.position && self.hash != known.hash)
            || (self.epoch == known.epoch && self.batch < known.batch)
    }
}

/// One log's part of an append: all of it is written or nothing.
#[derive(Debug, Clone)]
pub struct LogBatch {
    pub log: LogId,
    pub belief: Belief,
    /// Every command of the part; those with a reply are remembered.
    pub ledger: Vec<LedgerEntry>,
    /// Every stream a decision rests on, once each, also those without new events.
    pub streams: Vec<StreamAdvance>,
    /// Placed at `belief.position + 1…`, hashed onward from `belief.hash`.
    pub events: Vec<Arc<RecordedEvent>>,
}

impl LogBatch {
    /// The head once this part is done.
    pub fn after(&self) -> Belief {
        let hash = self.events.last().map_or(self.belief.hash, |event| event.hash);
        let position = Position(self.belief.position.0 + self.events.len() as u64);
        Belief { epoch: self.belief.epoch, batch: self.belief.batch + 1, position, hash }
    }
}

/// A stream as the owner believes it to be and as it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamAdvance {
    pub stream: StreamId,
    pub expected: Version,
    pub new: Version,
}

/// A command and its reply, found again by (log, stream, request id).
#[derive(Debug, Clone)]
pub struct LedgerEntry {
    pub stream: StreamId,
    pub request_id: RequestId,
    /// `souk.orders.v1.CommandService/PlaceOrder`
    pub method: &'static str,
    /// The caller's request in canonical encoding.
    pub command: Bytes,
    pub fingerprint: Fingerprint,
    /// An encoded `souk.log.v1.StoredReply`; opaque here. `None` for an answer that must not be remembered: an earlier
    /// reply is still looked for.
    pub reply: Option<Bytes>,
    pub actor: String,
    pub recorded: UnixMillis,
}

/// Digest of a caller's request: tells a repeat from another body under the same id. The first byte is a format version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 17]);

impl Fingerprint {
    const FORMAT: u8 = 1;

    /// Of a digest of the canonical request.
    pub fn new(digest: [u8; 16]) -> Self {
        let mut bytes = [Self::FORMAT; 17];
        bytes[1..].copy_from_slice(&digest);
        Self(bytes)
    }
}

/// What was remembered of an earlier command with the same id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredReply {
    pub fingerprint: Vec<u8>,
    pub reply: Bytes,
}

/// What became of one log's part, in the order the parts were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchOutcome {
    /// Everything is durable; the head is now `belief.position + events.len()`, its batch number one more.
    Done,
    /// Nothing was written: request ids seen before (index into `ledger`) or streams at another version.
    Refused { repeats: Vec<(usize, StoredReply)>, stale: Vec<(StreamId, Version)> },
    /// Nothing was written: the head is not what the owner believes.
    Fenced,
}

/// An entity's stored history, as far as it is not in a cache.
#[derive(Debug, Clone, Default)]
pub struct StoredStream {
    pub snapshot: Option<StoredSnapshot>,
    /// Events behind the snapshot, in order of version.
    pub events: Vec<RecordedEvent>,
}

/// A fold kept to load a long stream fast; disposable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSnapshot {
    pub version: Version,
    /// Position of the event with that version.
    pub position: Position,
    pub fold_version: u32,
    pub state: Bytes,
}

/// The door to the logs of one database, for one committer: one statement in flight at a time.
///
/// Its law: `append` writes a log's part only if the head equals the belief, no ledger entry was remembered before and
/// every stream is at its expected version; then heads, streams, events and ledger change together. Other logs of the
/// same call are untouched by a part that was refused.
#[async_trait::async_trait]
pub trait Lane: Send {
    /// Appends parts of distinct logs.
    ///
    /// # Errors
    /// `Data`: nothing at all was written. `Unknown`: each part may or may not have been written; call [`Lane::heads`].
    async fn append(&mut self, batches: &[LogBatch]) -> Result<Vec<BatchOutcome>, StoreError>;

    /// The heads as stored, after every statement that was under way has ended.
    async fn heads(&mut self, logs: &[LogId]) -> Result<Vec<(LogId, Belief)>, StoreError>;

    /// Histories of streams, in the order asked for; snapshots of another fold are passed over.
    async fn load(&mut self, streams: &[(LogId, StreamId)], fold_version: u32) -> Result<Vec<StoredStream>, StoreError>;
}
