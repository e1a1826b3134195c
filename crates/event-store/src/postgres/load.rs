use std::collections::HashMap;

use souk_event_sourcing::{LogId, Position, Region, StreamId, Version};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{PostgresStore, row};
use crate::{StoreError, StoredSnapshot, StoredStream};

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

/// Loads snapshot and tail of each stream, two statements for all of them. The position kept with a snapshot lets the
/// tail skip the children before it.
pub(super) async fn streams(
    connection: &mut PgConnection,
    region: Region,
    wanted: &[(LogId, StreamId)],
    fold_version: u32,
) -> Result<Vec<StoredStream>, StoreError> {
    let partitions: Vec<i32> = wanted.iter().map(|(log, _)| i32::from(log.partition.0)).collect();
    let names: Vec<&str> = wanted.iter().map(|(_, stream)| stream.as_str()).collect();
    let index: HashMap<(i32, &str), usize> =
        wanted.iter().enumerate().map(|(at, (log, stream))| ((i32::from(log.partition.0), stream.as_str()), at)).collect();
    let mut found = vec![StoredStream::default(); wanted.len()];

    let snapshots = sqlx::query(
        "select s.partition, s.stream, s.version, s.position, s.fold_version, s.state from unnest($2::int[], $3::text[]) i(partition, stream) \
         join snapshot s on s.region = $1 and s.partition = i.partition and s.stream = i.stream and s.fold_version = $4",
    )
    .bind(region.0 as i16)
    .bind(&partitions)
    .bind(&names)
    .bind(fold_version as i32)
    .fetch_all(&mut *connection)
    .await?;
    let mut versions = vec![0i64; wanted.len()];
    let mut positions = vec![0i64; wanted.len()];
    for snapshot in &snapshots {
        let at = index[&(snapshot.try_get::<i32, _>("partition")?, snapshot.try_get::<&str, _>("stream")?)];
        versions[at] = snapshot.try_get("version")?;
        positions[at] = snapshot.try_get("position")?;
        found[at].snapshot = Some(StoredSnapshot {
            version: Version(versions[at] as u64),
            position: Position(positions[at] as u64),
            fold_version: snapshot.try_get::<i32, _>("fold_version")? as u32,
            state: snapshot.try_get::<Vec<u8>, _>("state")?.into(),
        });
    }

    let sql = format!(
        "select {} from unnest($2::int[], $3::text[], $4::bigint[], $5::bigint[]) i(partition, stream, version, position) \
         cross join lateral (select * from event e where e.region = $1 and e.partition = i.partition and e.stream = i.stream \
           and e.version > i.version and e.position > i.position order by e.version) e",
        row::COLUMNS
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(region.0 as i16)
        .bind(&partitions)
        .bind(&names)
        .bind(&versions)
        .bind(&positions)
        .fetch_all(connection)
        .await?;
    for found_row in &rows {
        let event = row::event(found_row)?;
        let at = index[&(i32::from(event.log.partition.0), event.stream.as_str())];
        found[at].events.push(event);
    }
    Ok(found)
}
