use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use souk_event_sourcing::{Epoch, LogId, LogPosition, Position, UnixMillis, Version};
use sqlx::{AssertSqlSafe, Row as _, postgres::PgRow};

use crate::{Database, Demand, Parked, ReadStore, ReadStoreError, Server, Table};

/// A table with one row per entity, read by its key. Its key is one text column `key`, and its columns include
/// `version`, `stale_since`, `parked_at`, `updated_ms` and `body`. A row of version 0 is a marker: it says that the entity
/// is parked, and that no event of it could be applied.
#[derive(Debug)]
pub struct PointView {
    table: &'static Table,
    one: Arc<str>,
    many: Arc<str>,
}

/// The row of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewRow {
    /// Events of the entity's stream that are in the row.
    pub version: Version,
    /// Position of the last of them.
    pub position: Position,
    /// Revision of the projection that wrote it.
    pub revision: u32,
    /// Time of the last event.
    pub updated: UnixMillis,
    /// The encoded view message.
    pub body: Bytes,
}

/// What a snapshot of the store contains of one log: every event up to `position`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsOf {
    pub position: LogPosition,
    /// When the checkpoint was written.
    pub written: UnixMillis,
    /// Revision of the projections that wrote the rows of this log, all as one number.
    pub revision: u32,
    /// When parked events of this log were last replayed or dropped; see [`crate::Checkpoint`].
    pub repaired: UnixMillis,
    /// Whether the rows of this log are being made anew and do not answer anybody; see [`crate::Checkpoint`].
    pub rebuilding: bool,
}

/// A row, or that there is none, together with the checkpoint of the same snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowRead {
    pub row: Option<ViewRow>,
    /// Set when events of this entity could not be applied; then there may be no row because its first one could not.
    pub parked: Option<Parked>,
    pub as_of: AsOf,
}

impl PointView {
    pub fn new(table: &'static Table) -> Self {
        let columns = "c.region, c.partition, c.epoch, c.position, c.updated_ms, c.revision, c.repaired_ms, c.rebuilding, \
                       v.version, v.position, v.revision, v.stale_since, v.parked_at, v.updated_ms, v.body";
        let one = format!(
            "select {columns} from read_checkpoint c \
             left join {} v on v.region = c.region and v.partition = c.partition and v.key = $3 \
             where c.region = $1 and c.partition = $2",
            table.name
        );
        let many = format!(
            "select {columns} from unnest($1::smallint[], $2::int[], $3::text[]) with ordinality i(region, partition, key, ord) \
             join read_checkpoint c on c.region = i.region and c.partition = i.partition \
             left join lateral (select * from {} t where t.region = i.region and t.partition = i.partition and t.key = i.key offset 0) v on true \
             order by i.ord",
            table.name
        );
        Self { table, one: one.into(), many: many.into() }
    }

    /// Name of the view, as it stands in the change feed.
    pub fn name(&self) -> &'static str {
        self.table.name
    }
}

impl ReadStore {
    /// The row of `key` and the checkpoint of its log, in one snapshot; see [`Database::read`] for whose.
    ///
    /// # Errors
    /// [`ReadStoreError::NotPlaced`] for a log this store does not hold.
    pub async fn read_row(&self, view: &PointView, log: LogId, key: &str, demand: &Demand) -> Result<RowRead, ReadStoreError> {
        let database = self.database_of(log)?;
        database.read(demand, |server| read_one(view, database.name(), server, log, key)).await
    }

    /// Several rows in the order asked for; those of one database in one snapshot.
    pub async fn read_rows(&self, view: &PointView, keys: &[(LogId, &str)], demand: &Demand) -> Result<Vec<RowRead>, ReadStoreError> {
        let mut parts: Vec<(&Database, Vec<usize>)> = Vec::new();
        for (index, (log, _)) in keys.iter().enumerate() {
            let database = self.database_of(*log)?;
            match parts.iter_mut().find(|(known, _)| known.name() == database.name()) {
                Some((_, indexes)) => indexes.push(index),
                None => parts.push((database, vec![index])),
            }
        }
        let answers = try_join_all(
            parts
                .iter()
                .map(|(database, indexes)| database.read(demand, move |server| read_part(view, database.name(), server, keys, indexes))),
        );
        let mut reads: Vec<Option<RowRead>> = vec![None; keys.len()];
        for ((_, indexes), answer) in parts.iter().zip(answers.await?) {
            for (index, read) in indexes.iter().zip(answer) {
                reads[*index] = Some(read);
            }
        }
        Ok(reads.into_iter().map(|read| read.expect("read_part answers every key or fails")).collect())
    }
}

async fn read_one(view: &PointView, database: &str, server: Server, log: LogId, key: &str) -> Result<RowRead, ReadStoreError> {
    let row = sqlx::query(AssertSqlSafe(view.one.clone()))
        .bind(log.region.0 as i16)
        .bind(i32::from(log.partition.0))
        .bind(key)
        .fetch_optional(server.pool())
        .await
        .map_err(ReadStoreError::database(database))?
        .ok_or(ReadStoreError::NotPlaced(log))?;
    decode(&row).map_err(ReadStoreError::database(database))
}

async fn read_part(
    view: &PointView,
    database: &str,
    server: Server,
    keys: &[(LogId, &str)],
    indexes: &[usize],
) -> Result<Vec<RowRead>, ReadStoreError> {
    let asked = || indexes.iter().map(|index| keys[*index]);
    let rows = sqlx::query(AssertSqlSafe(view.many.clone()))
        .bind(asked().map(|(log, _)| log.region.0 as i16).collect::<Vec<_>>())
        .bind(asked().map(|(log, _)| i32::from(log.partition.0)).collect::<Vec<_>>())
        .bind(asked().map(|(_, key)| key).collect::<Vec<_>>())
        .fetch_all(server.pool())
        .await
        .map_err(ReadStoreError::database(database))?;
    let reads = rows.iter().map(decode).collect::<Result<Vec<_>, _>>().map_err(ReadStoreError::database(database))?;
    // A log without a checkpoint falls out of the join; name it.
    let missing = asked().map(|(log, _)| log).find(|log| !reads.iter().any(|read| read.as_of.position.log == *log));
    missing.map_or(Ok(reads), |log| Err(ReadStoreError::NotPlaced(log)))
}

fn decode(row: &PgRow) -> Result<RowRead, sqlx::Error> {
    let position = LogPosition {
        log: crate::checkpoint::log_id(row.try_get(0)?, row.try_get(1)?),
        epoch: Epoch(row.try_get::<i64, _>(2)? as u64),
        position: Position(row.try_get::<i64, _>(3)? as u64),
    };
    let as_of = AsOf {
        position,
        written: UnixMillis(row.try_get(4)?),
        revision: row.try_get::<i32, _>(5)? as u32,
        repaired: UnixMillis(row.try_get(6)?),
        rebuilding: row.try_get(7)?,
    };
    let Some(version) = row.try_get::<Option<i64>, _>(8)? else {
        return Ok(RowRead { row: None, parked: None, as_of });
    };
    let (since, at) = (row.try_get::<Option<i64>, _>(11)?, row.try_get::<Option<i64>, _>(12)?);
    let parked = at.zip(since).map(|(at, since)| Parked { at: Position(at as u64), since: UnixMillis(since) });
    if version == 0 {
        // A marker: not one event of the entity is in it.
        return Ok(RowRead { row: None, parked, as_of });
    }
    let row = ViewRow {
        version: Version(version as u64),
        position: Position(row.try_get::<i64, _>(9)? as u64),
        revision: row.try_get::<i32, _>(10)? as u32,
        updated: UnixMillis(row.try_get(13)?),
        body: Bytes::from(row.try_get::<Vec<u8>, _>(14)?),
    };
    Ok(RowRead { row: Some(row), parked, as_of })
}
