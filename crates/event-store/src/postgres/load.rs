use std::collections::HashMap;

use souk_event_sourcing::{LogId, Position, Region, StreamId, Version};
use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};

use super::{PostgresStore, row, row::COLUMNS};
use crate::{StoreError, StoredSnapshot, StoredStream};

/// SQLSTATE of a table that is not there.
const UNDEFINED_TABLE: &str = "42P01";
/// Streams of so many partitions are asked for partition by partition. A statement for one of them costs a tenth of one for all.
const FEW: usize = 8;

impl PostgresStore {
    /// Histories of streams of one log, whichever region's, in the order asked for; snapshots of another fold are passed over.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(&self, log: LogId, streams: &[StreamId], fold_version: u32) -> Result<Vec<StoredStream>, StoreError> {
        let wanted: Vec<_> = streams.iter().map(|stream| (log, stream.clone())).collect();
        let mut connection = self.pool(log)?.acquire().await?;
        self::streams(&mut connection, log.region, &wanted, fold_version).await
    }
}

/// Loads snapshot and tail of each stream. The position kept with a snapshot lets the tail skip the children before it.
pub(super) async fn streams(
    connection: &mut PgConnection,
    region: Region,
    wanted: &[(LogId, StreamId)],
    fold_version: u32,
) -> Result<Vec<StoredStream>, StoreError> {
    let mut tails: Vec<Tail<'_>> = wanted
        .iter()
        .map(|(log, stream)| Tail { partition: log.partition.0.into(), stream: stream.as_str(), version: 0, position: 0 })
        .collect();
    let index: HashMap<(i32, &str), usize> = tails.iter().enumerate().map(|(at, tail)| ((tail.partition, tail.stream), at)).collect();
    let mut found = vec![StoredStream::default(); wanted.len()];

    let snapshots = sqlx::query(
        "select s.partition, s.stream, s.version, s.position, s.fold_version, s.state from unnest($2::int[], $3::text[]) i(partition, stream) \
         join snapshot s on s.region = $1 and s.partition = i.partition and s.stream = i.stream and s.fold_version = $4",
    )
    .bind(region.0 as i16)
    .bind(column(&tails, |tail| tail.partition))
    .bind(column(&tails, |tail| tail.stream))
    .bind(fold_version as i32)
    .fetch_all(&mut *connection)
    .await?;
    for snapshot in &snapshots {
        let at = index[&(snapshot.try_get::<i32, _>("partition")?, snapshot.try_get::<&str, _>("stream")?)];
        let tail = &mut tails[at];
        (tail.version, tail.position) = (snapshot.try_get("version")?, snapshot.try_get("position")?);
        found[at].snapshot = Some(StoredSnapshot {
            version: Version(tail.version as u64),
            position: Position(tail.position as u64),
            fold_version: snapshot.try_get::<i32, _>("fold_version")? as u32,
            state: snapshot.try_get::<Vec<u8>, _>("state")?.into(),
        });
    }

    tails.sort_by_key(|tail| tail.partition);
    let partitions: Vec<&[Tail<'_>]> = tails.chunk_by(|one, other| one.partition == other.partition).collect();
    let mut rows = Vec::new();
    if partitions.len() > FEW {
        rows = behind(connection, region, &tails).await?;
    } else {
        for tails in partitions {
            rows.extend(behind_in(connection, region, tails[0].partition, tails).await?);
        }
    }
    for found_row in &rows {
        let event = row::event(found_row)?;
        let at = index[&(i32::from(event.log.partition.0), event.stream.as_str())];
        found[at].events.push(event);
    }
    Ok(found)
}

/// What is wanted of a stream: its events behind a version, which lie behind a position.
struct Tail<'a> {
    partition: i32,
    stream: &'a str,
    version: i64,
    position: i64,
}

fn column<'a, T>(tails: &[Tail<'a>], of: impl Fn(&Tail<'a>) -> T) -> Vec<T> {
    tails.iter().map(of).collect()
}

/// Tails in any partitions. The statement's start opens every child of the table, for it learns row by row which partitions it is
/// about.
async fn behind(connection: &mut PgConnection, region: Region, tails: &[Tail<'_>]) -> Result<Vec<PgRow>, sqlx::Error> {
    let sql = format!(
        "select {COLUMNS} from unnest($2::int[], $3::text[], $4::bigint[], $5::bigint[]) i(partition, stream, version, position) \
         cross join lateral (select * from event e where e.region = $1 and e.partition = i.partition and e.stream = i.stream \
           and e.version > i.version and e.position > i.position order by e.version) e"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(region.0 as i16)
        .bind(column(tails, |tail| tail.partition))
        .bind(column(tails, |tail| tail.stream))
        .bind(column(tails, |tail| tail.version))
        .bind(column(tails, |tail| tail.position))
        .fetch_all(connection)
        .await
}

/// Tails in one partition, from the table of that partition alone.
async fn behind_in(connection: &mut PgConnection, region: Region, partition: i32, tails: &[Tail<'_>]) -> Result<Vec<PgRow>, sqlx::Error> {
    let sql = format!(
        "select {COLUMNS} from unnest($1::text[], $2::bigint[], $3::bigint[]) i(stream, version, position) \
         cross join lateral (select * from event_r{region}_p{partition} e where e.stream = i.stream \
           and e.version > i.version and e.position > i.position and e.position > $4 order by e.version) e",
        region = region.0
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(column(tails, |tail| tail.stream))
        .bind(column(tails, |tail| tail.version))
        .bind(column(tails, |tail| tail.position))
        .bind(tails.iter().map(|tail| tail.position).min())
        .fetch_all(connection)
        .await;
    of_partition(rows)
}

/// Rows read from the table of one partition. A log that never had an event here has none.
pub(super) fn of_partition(rows: Result<Vec<PgRow>, sqlx::Error>) -> Result<Vec<PgRow>, sqlx::Error> {
    match rows {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => Ok(Vec::new()),
        rows => rows,
    }
}
