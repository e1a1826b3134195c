use bytes::Bytes;
use futures::future::try_join_all;
use sea_orm::{
    AccessMode, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, FromQueryResult, IsolationLevel, QueryFilter,
    TransactionTrait, sea_query::SelectStatement,
};
use souk_event_sourcing::{Epoch, LogId, LogPosition, Partition, Position, Region, UnixMillis};
use souk_read_store::{AsOf, Demand, ReadStore, ReadStoreError, Server, entity::checkpoint};

/// Which logs a list is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every log of the store.
    All,
    /// One partition, of whichever regions.
    Partition(Partition),
    /// One log.
    Log(LogId),
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// In the order of the list.
    pub rows: Vec<T>,
    /// Whether there are more behind them.
    pub more: bool,
    /// What the snapshots contained, one for each log of the scope.
    pub as_of: Vec<AsOf>,
}

/// A row of one entity in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRow<C> {
    /// Continues the list behind this row.
    pub cursor: C,
    /// The encoded view message.
    pub body: Bytes,
    /// Since when an event of this entity could not be applied.
    pub stale_since: Option<UnixMillis>,
}

impl Scope {
    /// Whether `log` is in it.
    pub fn contains(self, log: LogId) -> bool {
        match self {
            Self::All => true,
            Self::Partition(partition) => log.partition == partition,
            Self::Log(only) => log == only,
        }
    }
}

impl<T> Page<T> {
    /// Merges what every database has of a list: rows sorted by `key`, and no more than `limit`. Each database was asked
    /// for one row more, so that the end of the list is known.
    pub(super) fn merge<K: Ord>(parts: Vec<(Vec<T>, Vec<AsOf>)>, limit: usize, key: impl Fn(&T) -> K) -> Self {
        let (mut rows, mut as_of) = (Vec::new(), Vec::new());
        for (part, checkpoints) in parts {
            rows.extend(part);
            as_of.extend(checkpoints);
        }
        rows.sort_by_key(key);
        let more = rows.len() > limit;
        rows.truncate(limit);
        as_of.sort_by_key(|as_of: &AsOf| as_of.position.log);
        Self { rows, more, as_of }
    }
}

/// Runs `query` on every database that holds a log of the scope, each time in one snapshot with the checkpoints of those
/// logs; on a replica where that meets `demand`.
pub(super) async fn in_snapshots<M>(
    store: &ReadStore,
    demand: &Demand,
    scope: Scope,
    query: &SelectStatement,
) -> Result<Vec<(Vec<M>, Vec<AsOf>)>, ReadStoreError>
where
    M: FromQueryResult + Send + Sync,
{
    let holding = store.databases().iter().filter_map(|database| {
        let mut logs = store.logs_of(database.name());
        logs.retain(|log| scope.contains(*log));
        (!logs.is_empty()).then_some((database, logs))
    });
    try_join_all(holding.map(|(database, logs)| async move {
        let read = |server| async {
            let snapshot = in_snapshot(server, &logs, query).await;
            let snapshot = snapshot.map_err(|source| ReadStoreError::Orm { database: database.name().to_owned(), source })?;
            // Nothing can be said of the rows of a log without a checkpoint; a standby that replays its past may lack them all.
            let missing = logs.iter().find(|log| !snapshot.1.iter().any(|as_of| as_of.position.log == **log));
            missing.map_or(Ok(snapshot), |log| Err(ReadStoreError::NotPlaced(*log)))
        };
        database.read(demand, read).await
    }))
    .await
}

async fn in_snapshot<M>(server: Server, logs: &[LogId], query: &SelectStatement) -> Result<(Vec<M>, Vec<AsOf>), DbErr>
where
    M: FromQueryResult + Send + Sync,
{
    let transaction = server.orm().begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await?;
    let as_of = checkpoints(&transaction, logs).await?;
    let statement = transaction.get_database_backend().build(query);
    let rows = M::find_by_statement(statement).all(&transaction).await?;
    transaction.commit().await?;
    Ok((rows, as_of))
}

async fn checkpoints(transaction: &DatabaseTransaction, logs: &[LogId]) -> Result<Vec<AsOf>, DbErr> {
    let mut query = checkpoint::Entity::find();
    if let [log] = logs {
        query = query
            .filter(checkpoint::Column::Region.eq(log.region.0 as i16))
            .filter(checkpoint::Column::Partition.eq(i32::from(log.partition.0)));
    }
    let rows = query.all(transaction).await?;
    let as_of = rows.into_iter().map(|row| AsOf {
        position: LogPosition {
            log: LogId { region: Region(row.region as u16), partition: Partition(row.partition as u16) },
            epoch: Epoch(row.epoch as u64),
            position: Position(row.position as u64),
        },
        written: UnixMillis(row.updated_ms),
        revision: row.revision as u32,
        repaired: UnixMillis(row.repaired_ms),
        rebuilding: row.rebuilding,
    });
    // A database may still hold the checkpoint of a log that has moved.
    Ok(as_of.filter(|as_of| logs.contains(&as_of.position.log)).collect())
}
