use sea_orm::{EntityTrait, QueryOrder};
use souk_event_sourcing::{Epoch, LogHash, LogId, Partition, Position, Region, UnixMillis};

use crate::{Database, ReadStore, ReadStoreError, entity::checkpoint};

/// Term of a projector over one log. Only the holder of the latest can write; like a log's epoch it is
/// `max(previous + 1, Unix milliseconds)`, so that no term is used twice even when a crash took the last one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

/// How far a log is projected: everything up to `position` is in the rows, nothing beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    pub log: LogId,
    pub fence: Fence,
    /// Epoch of the event at `position`; 0 before the first.
    pub epoch: Epoch,
    pub position: Position,
    /// Running hash of the log at `position`.
    pub hash: LogHash,
    /// Revision of the projections that wrote the rows, all as one number; 0 before the first.
    pub revision: u32,
    /// Number of events set aside up to `position`.
    pub parked: u32,
    /// When events set aside were last replayed or dropped, which changes rows but moves no position, or all rows deleted, which
    /// brings positions back; 0 before the first time, and never the same twice.
    pub repaired: UnixMillis,
    /// When it was written.
    pub written: UnixMillis,
    /// The rows were deleted to be made anew, and the log has not been read yet to where it ended then: what they say, and
    /// what they lack, is of the past.
    pub rebuilding: bool,
}

impl Checkpoint {
    /// [`Self::repaired`] when rows are mended or deleted at `now`.
    pub fn repaired_at(&self, now: UnixMillis) -> UnixMillis {
        now.max(UnixMillis(self.repaired.0 + 1))
    }
}

impl ReadStore {
    /// The checkpoint of one log.
    ///
    /// # Errors
    /// [`ReadStoreError::NotPlaced`] for a log this store does not hold.
    pub async fn checkpoint(&self, log: LogId) -> Result<Checkpoint, ReadStoreError> {
        let database = self.database_of(log)?;
        let id = (log.region.0 as i16, i32::from(log.partition.0));
        let found = checkpoint::Entity::find_by_id(id).one(database.orm()).await.map_err(ReadStoreError::orm(database.name()))?;
        found.ok_or(ReadStoreError::NotPlaced(log)).and_then(decode)
    }

    /// The checkpoints of all logs placed in `database`, in order of log.
    pub async fn checkpoints(&self, database: &Database) -> Result<Vec<Checkpoint>, ReadStoreError> {
        let found = checkpoint::Entity::find()
            .order_by_asc(checkpoint::Column::Region)
            .order_by_asc(checkpoint::Column::Partition)
            .all(database.orm())
            .await
            .map_err(ReadStoreError::orm(database.name()))?;
        let placed = self.logs_of(database.name());
        found.into_iter().filter(|row| placed.contains(&log_id(row.region, row.partition))).map(decode).collect()
    }
}

pub(crate) fn log_id(region: i16, partition: i32) -> LogId {
    LogId { region: Region(region as u16), partition: Partition(partition as u16) }
}

fn decode(row: checkpoint::Model) -> Result<Checkpoint, ReadStoreError> {
    let hash = LogHash::from_slice(&row.hash).ok_or_else(|| ReadStoreError::Corrupt {
        table: "read_checkpoint".to_owned(),
        reason: "hash of another length than 16".to_owned(),
    })?;
    Ok(Checkpoint {
        log: log_id(row.region, row.partition),
        fence: Fence(row.fence as u64),
        epoch: Epoch(row.epoch as u64),
        position: Position(row.position as u64),
        hash,
        revision: row.revision as u32,
        parked: row.parked as u32,
        repaired: UnixMillis(row.repaired_ms),
        written: UnixMillis(row.updated_ms),
        rebuilding: row.rebuilding,
    })
}
