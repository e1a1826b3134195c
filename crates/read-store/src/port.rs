use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, StreamId, UnixMillis};

use crate::{Checkpoint, Fence, Members, ParkedEntity, ParkedEvent, ParkedQuery, ReadStoreError, Replica, Row, RowKey, Table};

/// What a projector needs of one read database.
///
/// Laws, kept by every adapter and tested by one suite:
/// 1. [`write`](Self::write) of one log is all or nothing: its rows, its parked and released events and its checkpoint, or
///    none of them. It happens exactly when the stored checkpoint has the fence, epoch and position the advance starts from.
/// 2. One log that lost does not hinder the others of the same batch.
/// 3. [`claim`](Self::claim) makes every earlier fence of those logs lose, for ever. Who lives and who holds what only
///    decides which logs it takes; a write asks for the fence alone.
/// 4. Within a log a row never goes back: it is replaced only by one of a later position, or of the same with another mark
///    (`parked_at`). Sums add up whatever the positions: the checkpoint alone keeps them from being written twice.
/// 5. A log is rebuilding from a [`rewind`](Self::rewind) until an [`Advance`] that says its rows are whole, whoever holds
///    it meanwhile.
#[async_trait]
pub trait ViewStore: Send + Sync {
    /// Tells the others that `replica` lives and where it is reached.
    async fn heartbeat(&self, replica: &Replica) -> Result<(), ReadStoreError>;

    /// Who told within `ttl`, by the clock of the database, that it lives, and who holds which log.
    async fn members(&self, ttl: Duration) -> Result<Members, ReadStoreError>;

    /// Takes over those of `logs` that nobody holds, or `replica` itself, or one that did not tell within `ttl` that it
    /// lives: raises their fences and returns their checkpoints.
    async fn claim(&self, logs: &[LogId], replica: &str, ttl: Duration, now: UnixMillis) -> Result<Vec<Checkpoint>, ReadStoreError>;

    /// Gives up those of `logs` that `replica` holds, so that another need not wait until it counts as dead.
    async fn release(&self, logs: &[LogId], replica: &str) -> Result<(), ReadStoreError>;

    /// `replica` lives no longer; what it holds may be claimed at once.
    async fn leave(&self, replica: &str) -> Result<(), ReadStoreError>;

    /// The checkpoints of logs, whoever holds them.
    async fn checkpoints(&self, logs: &[LogId]) -> Result<Vec<Checkpoint>, ReadStoreError>;

    /// The rows of `keys` that exist, in any order.
    async fn load(&self, table: &'static Table, keys: &[RowKey]) -> Result<Vec<Row>, ReadStoreError>;

    /// Writes rows and checkpoints of many logs in one transaction.
    async fn write(&self, batch: &Batch) -> Result<Written, ReadStoreError>;

    /// Deletes every row and every parked event of a log and sets its checkpoint before the first event, rebuilding until an
    /// advance says that the rows are whole; `false` when `fence` does not hold it any more.
    async fn rewind(&self, log: LogId, fence: Fence, now: UnixMillis) -> Result<bool, ReadStoreError>;

    /// Entities with events set aside, in order of log and stream.
    async fn parked_entities(&self, query: ParkedQuery<'_>) -> Result<Vec<ParkedEntity>, ReadStoreError>;

    /// The events of one entity that are set aside behind position `after`, in order.
    async fn parked_events(&self, log: LogId, stream: &StreamId, after: Position, limit: usize)
    -> Result<Vec<ParkedEvent>, ReadStoreError>;

    /// Says anew what stands in the way of the first event set aside of an entity; `false` when `fence` does not hold the
    /// log any more or nothing of that entity is set aside.
    async fn blame(&self, log: LogId, fence: Fence, stream: &StreamId, reason: &str) -> Result<bool, ReadStoreError>;

    /// A page of a log's rows in order of key, with the checkpoint of the same snapshot: for comparison with a fold.
    async fn scan(&self, table: &'static Table, log: LogId, after: Option<&RowKey>, limit: usize) -> Result<Page, ReadStoreError>;
}

/// One transaction of a projector.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// At most one per log.
    pub advances: Vec<Advance>,
    /// Rows by the name of their table, each key at most once. Only rows of logs that advance are written.
    pub rows: BTreeMap<&'static str, Vec<Row>>,
    /// Events set aside, each once; only those of logs that advance.
    pub parked: Vec<ParkedEvent>,
    /// Entities whose events set aside are in `rows` now, or given up; only those of logs that advance, if only by no step.
    pub released: Vec<(LogId, StreamId)>,
    /// Revision of all projections as one number.
    pub revision: u32,
    /// The wall clock: what checkpoints and [`crate::Kind::WrittenMs`] columns say.
    pub now: UnixMillis,
}

/// A step of one log's checkpoint: what the projector believes is stored, and what shall be. It may lead nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    pub log: LogId,
    pub fence: Fence,
    pub from_epoch: Epoch,
    pub from_position: Position,
    pub epoch: Epoch,
    pub position: Position,
    pub hash: LogHash,
    /// The rows are no longer being rebuilt with this step: it brings them to where the log ended when that began, or beyond.
    pub whole: bool,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// The checkpoints as they are now.
    pub moved: Vec<Checkpoint>,
    /// Logs whose stored checkpoint was another one: somebody else writes them, or a crash took the checkpoint back.
    /// Nothing of theirs was written. Drop their rows from memory and read the checkpoint again.
    pub lost: Vec<LogId>,
}

/// Some rows of one log and table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Of the snapshot the rows were read in.
    pub checkpoint: Checkpoint,
    /// In order of key; fewer than asked for on the last page.
    pub rows: Vec<Row>,
}
