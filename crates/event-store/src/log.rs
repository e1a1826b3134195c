use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent};

use crate::StoreError;

/// Where a log ends, and the epochs it went through, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub epoch: Epoch,
    pub position: Position,
    pub hash: LogHash,
    pub epochs: Vec<EpochStart>,
}

impl Head {
    /// Of a log that nobody has written yet.
    pub const EMPTY: Self = Self { epoch: Epoch(0), position: Position(0), hash: LogHash::EMPTY, epochs: Vec::new() };
}

/// An epoch and the first position that may be written under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EpochStart {
    pub epoch: Epoch,
    pub first: Position,
}

/// Reading logs in order. Each call sees one snapshot, and none is held between calls: long snapshots slow every append.
#[async_trait::async_trait]
pub trait EventLog: Send + Sync {
    /// Up to `limit` events from position `from` on, without holes.
    async fn read(&self, log: LogId, from: Position, limit: usize) -> Result<Vec<RecordedEvent>, StoreError>;

    /// Where the log ends.
    async fn head(&self, log: LogId) -> Result<Head, StoreError>;
}
