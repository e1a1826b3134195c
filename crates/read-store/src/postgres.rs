use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use souk_event_sourcing::{Epoch, InvalidStreamId, LogHash, LogId, Position, StreamId, UnixMillis};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::time::timeout;

use crate::{
    Batch, Checkpoint, Database, Fence, Members, Page, Parked, ParkedEntity, ParkedEvent, ParkedQuery, ReadStoreError, Replica, Row,
    RowKey, Table, ViewStore, Written,
    checkpoint::log_id,
    sql::{self, BLAME, CLAIM, HEARTBEAT, LEAVE, MEMBERS, PARKED_ENTITIES, PARKED_EVENTS, RELEASE},
    store::{ACQUIRE_LIMIT, UNTESTED_PAUSE},
};

/// [`ViewStore`] over one read database. Clones share the connection of the batches.
#[derive(Debug, Clone)]
pub struct PostgresViews {
    database: Database,
    tables: &'static [&'static Table],
    rewind: Arc<str>,
    /// Batches follow each other on one connection, beside the pool: a pool hands its connections out in turn, and each would
    /// have to make plans of its own and keep what they touch at hand.
    writer: Arc<Mutex<Option<Writer>>>,
}

#[derive(Debug)]
struct Writer {
    connection: PgConnection,
    used: Instant,
}

impl PostgresViews {
    /// Writes `tables`, and no others, in `database`.
    pub fn new(database: Database, tables: &'static [&'static Table]) -> Self {
        Self { database, tables, rewind: sql::rewind(tables).into(), writer: Arc::default() }
    }

    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Rows that begin with region and partition.
    fn decode_checkpoints(&self, rows: &[PgRow]) -> Result<Vec<Checkpoint>, ReadStoreError> {
        let decode = |row: &PgRow| decode_checkpoint(row, log_id(row.try_get(0)?, row.try_get(1)?), 2);
        rows.iter().map(decode).collect::<Result<_, _>>().map_err(|error| self.failed(error))
    }

    /// The tables that a batch has rows for, if they are few; else all, so that there are not too many statements to be kept prepared.
    fn written_by(&self, batch: &Batch) -> Vec<&'static Table> {
        const FEW: usize = 2;
        let with_rows: Vec<_> = self.tables.iter().copied().filter(|table| !rows_of(batch, table).is_empty()).collect();
        if with_rows.len() <= FEW { with_rows } else { self.tables.to_vec() }
    }

    /// Runs a statement on the connection of the batches. After an error, or when the caller gives up meanwhile, another one is
    /// opened next time.
    async fn on_writer(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, sqlx::Error> {
        let writer = || self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = writer().take();
        let ready = async {
            // As in the pool: a server that was restarted meanwhile is found out before a batch fails.
            if let Some(Writer { mut connection, used }) = kept
                && (used.elapsed() < UNTESTED_PAUSE || connection.ping().await.is_ok())
            {
                return Ok(connection);
            }
            PgConnection::connect_with(&self.database.pool().connect_options()).await
        };
        let mut connection = timeout(ACQUIRE_LIMIT, ready).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        let rows = query.fetch_all(&mut connection).await?;
        *writer() = Some(Writer { connection, used: Instant::now() });
        Ok(rows)
    }

    fn failed(&self, error: sqlx::Error) -> ReadStoreError {
        ReadStoreError::database(self.database.name())(error)
    }
}

fn rows_of<'a>(batch: &'a Batch, table: &Table) -> &'a [Row] {
    batch.rows.get(table.name).map_or(&[], Vec::as_slice)
}

fn regions(logs: impl Iterator<Item = LogId>) -> Vec<i16> {
    logs.map(|log| log.region.0 as i16).collect()
}

fn partitions(logs: impl Iterator<Item = LogId>) -> Vec<i32> {
    logs.map(|log| i32::from(log.partition.0)).collect()
}

#[async_trait]
impl ViewStore for PostgresViews {
    async fn heartbeat(&self, replica: &Replica) -> Result<(), ReadStoreError> {
        let query = sqlx::query(HEARTBEAT).bind(&replica.id).bind(&replica.address);
        query.execute(self.database.pool()).await.map(drop).map_err(|error| self.failed(error))
    }

    async fn members(&self, ttl: Duration) -> Result<Members, ReadStoreError> {
        let rows = sqlx::query(MEMBERS).bind(ttl.as_secs_f64()).fetch_all(self.database.pool()).await;
        let mut members = Members::default();
        for row in rows.map_err(|error| self.failed(error))? {
            member(&mut members, &row).map_err(|error| self.failed(error))?;
        }
        Ok(members)
    }

    async fn claim(&self, logs: &[LogId], replica: &str, ttl: Duration, now: UnixMillis) -> Result<Vec<Checkpoint>, ReadStoreError> {
        let query = sqlx::query(CLAIM).bind(regions(logs.iter().copied())).bind(partitions(logs.iter().copied())).bind(now.0);
        let query = query.bind(replica).bind(ttl.as_secs_f64());
        let rows = query.fetch_all(self.database.pool()).await.map_err(|error| self.failed(error))?;
        self.decode_checkpoints(&rows)
    }

    async fn release(&self, logs: &[LogId], replica: &str) -> Result<(), ReadStoreError> {
        let query = sqlx::query(RELEASE).bind(regions(logs.iter().copied())).bind(partitions(logs.iter().copied())).bind(replica);
        query.execute(self.database.pool()).await.map(drop).map_err(|error| self.failed(error))
    }

    async fn leave(&self, replica: &str) -> Result<(), ReadStoreError> {
        sqlx::query(LEAVE).bind(replica).execute(self.database.pool()).await.map(drop).map_err(|error| self.failed(error))
    }

    async fn checkpoints(&self, logs: &[LogId]) -> Result<Vec<Checkpoint>, ReadStoreError> {
        let query = sqlx::query(
            "select c.region, c.partition, c.fence, c.epoch, c.position, c.hash, c.revision, c.parked, c.repaired_ms, c.updated_ms, c.rebuilding \
             from unnest($1::smallint[], $2::int[]) i(region, partition) \
             join read_checkpoint c on c.region = i.region and c.partition = i.partition",
        );
        let query = query.bind(regions(logs.iter().copied())).bind(partitions(logs.iter().copied()));
        let rows = query.fetch_all(self.database.pool()).await.map_err(|error| self.failed(error))?;
        self.decode_checkpoints(&rows)
    }

    async fn load(&self, table: &'static Table, keys: &[RowKey]) -> Result<Vec<Row>, ReadStoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let query = sqlx::query(AssertSqlSafe(sql::load(table)));
        let query = sql::bind_keys(query, table, &keys.iter().collect::<Vec<_>>());
        let rows = query.fetch_all(self.database.pool()).await.map_err(|error| self.failed(error))?;
        rows.iter().map(|row| sql::decode_row(table, row, 0)).collect()
    }

    async fn write(&self, batch: &Batch) -> Result<Written, ReadStoreError> {
        if batch.advances.is_empty() {
            return Ok(Written::default());
        }
        let (advances, tables) = (&batch.advances, self.written_by(batch));
        let parks = !batch.parked.is_empty() || !batch.released.is_empty();
        let mut query = sqlx::query_with(AssertSqlSafe(sql::write(&tables, parks)), sql::arguments_for(batch))
            .bind(regions(advances.iter().map(|advance| advance.log)))
            .bind(partitions(advances.iter().map(|advance| advance.log)))
            .bind(advances.iter().map(|advance| advance.fence.0 as i64).collect::<Vec<_>>())
            .bind(advances.iter().map(|advance| advance.from_epoch.0 as i64).collect::<Vec<_>>())
            .bind(advances.iter().map(|advance| advance.from_position.0 as i64).collect::<Vec<_>>())
            .bind(advances.iter().map(|advance| advance.epoch.0 as i64).collect::<Vec<_>>())
            .bind(advances.iter().map(|advance| advance.position.0 as i64).collect::<Vec<_>>())
            .bind(advances.iter().map(|advance| advance.hash.0.to_vec()).collect::<Vec<_>>())
            .bind(advances.iter().map(|advance| advance.whole).collect::<Vec<_>>())
            .bind(batch.revision as i32)
            .bind(batch.now.0);
        if parks {
            query = query
                .bind(regions(batch.released.iter().map(|(log, _)| *log)))
                .bind(partitions(batch.released.iter().map(|(log, _)| *log)))
                .bind(batch.released.iter().map(|(_, stream)| stream.as_str()).collect::<Vec<_>>())
                .bind(regions(batch.parked.iter().map(|event| event.log)))
                .bind(partitions(batch.parked.iter().map(|event| event.log)))
                .bind(batch.parked.iter().map(|event| event.position.0 as i64).collect::<Vec<_>>())
                .bind(batch.parked.iter().map(|event| event.stream.as_str()).collect::<Vec<_>>())
                .bind(batch.parked.iter().map(|event| event.envelope.to_vec()).collect::<Vec<_>>())
                .bind(batch.parked.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>());
        }
        for table in tables {
            query = sql::bind_rows(query, table, rows_of(batch, table));
        }
        let rows = self.on_writer(query).await.map_err(|error| self.failed(error))?;
        let moved = self.decode_checkpoints(&rows)?;
        let lost = |log: &LogId| moved.iter().all(|checkpoint| checkpoint.log != *log);
        Ok(Written { lost: advances.iter().map(|advance| advance.log).filter(lost).collect(), moved })
    }

    async fn rewind(&self, log: LogId, fence: Fence, now: UnixMillis) -> Result<bool, ReadStoreError> {
        let done = sqlx::query(AssertSqlSafe(self.rewind.clone()))
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .bind(fence.0 as i64)
            .bind(LogHash::EMPTY.0.to_vec())
            .bind(now.0)
            .fetch_optional(self.database.pool())
            .await
            .map_err(|error| self.failed(error))?;
        Ok(done.is_some())
    }

    async fn parked_entities(&self, query: ParkedQuery<'_>) -> Result<Vec<ParkedEntity>, ReadStoreError> {
        let rows = sqlx::query(PARKED_ENTITIES)
            .bind(regions(query.logs.iter().copied()))
            .bind(partitions(query.logs.iter().copied()))
            .bind(query.stream.map(StreamId::as_str))
            .bind(query.after.map(|(log, _)| log.region.0 as i16))
            .bind(query.after.map(|(log, _)| i32::from(log.partition.0)))
            .bind(query.after.map(|(_, stream)| stream.as_str()))
            .bind(query.limit as i64)
            .fetch_all(self.database.pool())
            .await
            .map_err(|error| self.failed(error))?;
        rows.iter().map(decode_entity).collect::<Result<_, _>>().map_err(|error| self.failed(error))
    }

    async fn parked_events(
        &self,
        log: LogId,
        stream: &StreamId,
        after: Position,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadStoreError> {
        let rows = sqlx::query(PARKED_EVENTS)
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .bind(stream.as_str())
            .bind(after.0 as i64)
            .bind(limit as i64)
            .fetch_all(self.database.pool())
            .await
            .map_err(|error| self.failed(error))?;
        let event = |row: &PgRow| {
            Ok(ParkedEvent {
                log,
                position: Position(row.try_get::<i64, _>(0)? as u64),
                stream: stream.clone(),
                envelope: row.try_get::<Vec<u8>, _>(1)?.into(),
                reason: row.try_get(2)?,
                since: UnixMillis(row.try_get(3)?),
            })
        };
        rows.iter().map(event).collect::<Result<_, _>>().map_err(|error| self.failed(error))
    }

    async fn blame(&self, log: LogId, fence: Fence, stream: &StreamId, reason: &str) -> Result<bool, ReadStoreError> {
        let done = sqlx::query(BLAME)
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .bind(stream.as_str())
            .bind(fence.0 as i64)
            .bind(reason)
            .fetch_optional(self.database.pool())
            .await
            .map_err(|error| self.failed(error))?;
        Ok(done.is_some())
    }

    async fn scan(&self, table: &'static Table, log: LogId, after: Option<&RowKey>, limit: usize) -> Result<Page, ReadStoreError> {
        let query = sqlx::query(AssertSqlSafe(sql::scan(table, after.is_some())))
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .bind(limit as i64);
        let query = after.into_iter().fold(query, sql::bind_key);
        let rows = query.fetch_all(self.database.pool()).await.map_err(|error| self.failed(error))?;
        let first = rows.first().ok_or(ReadStoreError::NotPlaced(log))?;
        let checkpoint = decode_checkpoint(first, log, 0).map_err(|error| self.failed(error))?;
        let empty = first.try_get::<Option<i16>, _>(9).map_err(|error| self.failed(error))?.is_none();
        let rows = if empty { Vec::new() } else { rows.iter().map(|row| sql::decode_row(table, row, 9)).collect::<Result<_, _>>()? };
        Ok(Page { checkpoint, rows })
    }
}

/// Reads fence, epoch, position, hash, revision, parked, repaired, time and whether it is rebuilt from column `first` on.
fn decode_checkpoint(row: &PgRow, log: LogId, first: usize) -> Result<Checkpoint, sqlx::Error> {
    let number = |index: usize| row.try_get::<i64, _>(first + index);
    let hash: Vec<u8> = row.try_get(first + 3)?;
    Ok(Checkpoint {
        log,
        fence: Fence(number(0)? as u64),
        epoch: Epoch(number(1)? as u64),
        position: Position(number(2)? as u64),
        hash: LogHash::from_slice(&hash).ok_or_else(|| sqlx::Error::Decode("hash of another length than 16".into()))?,
        revision: row.try_get::<i32, _>(first + 4)? as u32,
        parked: row.try_get::<i32, _>(first + 5)? as u32,
        repaired: UnixMillis(number(6)?),
        written: UnixMillis(number(7)?),
        rebuilding: row.try_get(first + 8)?,
    })
}

/// Takes in a row of [`MEMBERS`].
fn member(members: &mut Members, row: &PgRow) -> Result<(), sqlx::Error> {
    let id = row.try_get(0)?;
    match row.try_get::<Option<i16>, _>(2)? {
        Some(region) => drop(members.holders.insert(log_id(region, row.try_get(3)?), id)),
        None => members.live.push(Replica { id, address: row.try_get(1)? }),
    }
    Ok(())
}

fn decode_entity(row: &PgRow) -> Result<ParkedEntity, sqlx::Error> {
    let stream: String = row.try_get(2)?;
    Ok(ParkedEntity {
        log: log_id(row.try_get(0)?, row.try_get(1)?),
        stream: stream.parse().map_err(|error: InvalidStreamId| sqlx::Error::Decode(error.into()))?,
        events: row.try_get::<i64, _>(3)? as u64,
        parked: Parked { at: Position(row.try_get::<i64, _>(4)? as u64), since: UnixMillis(row.try_get(6)?) },
        reason: row.try_get(5)?,
    })
}
