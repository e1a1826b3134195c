use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use souk_event_sourcing::{Epoch, LogId, Partition, Position, RecordedEvent, Region, RequestId, StreamId, UnixMillis};
use sqlx::{PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::{PostgresStore, row};
use crate::{
    Bucket, Copies, EpochStart, EventLog, LedgerRow, ReplicaBatch, Replicated, Retention, StoreError,
    replica::{End, Fit},
};

const REPLICATE: &str = include_str!("replicate.sql");

#[async_trait::async_trait]
impl Copies for PostgresStore {
    async fn replicate(&self, batch: &ReplicaBatch) -> Result<Replicated, StoreError> {
        self.add(batch, false).await
    }

    async fn borrow(&self, batch: &ReplicaBatch) -> Result<Replicated, StoreError> {
        self.add(batch, true).await
    }

    async fn rewind(&self, log: LogId, fork: Position, seen: End, epochs: &[EpochStart]) -> Result<bool, StoreError> {
        let mut transaction = self.copies(log)?.begin().await?;
        let (region, partition) = (log.region.0 as i16, i32::from(log.partition.0));
        let held =
            sqlx::query("select from partition_head where region = $1 and partition = $2 and position = $3 and hash = $4 for update")
                .bind(region)
                .bind(partition)
                .bind(seen.position.0 as i64)
                .bind(seen.hash.0.as_slice())
                .fetch_optional(&mut *transaction)
                .await?;
        if held.is_none() {
            return Ok(false);
        }
        for statement in [
            "delete from ledger l using event e where e.region = $1 and e.partition = $2 and e.position > $3 \
             and l.region = $1 and l.partition = $2 and l.request_id = e.request_id",
            "update stream_head h set version = coalesce((select max(e.version) from event e \
               where e.region = $1 and e.partition = $2 and e.stream = h.stream and e.position <= $3), 0) \
             where h.region = $1 and h.partition = $2 \
               and h.stream in (select e.stream from event e where e.region = $1 and e.partition = $2 and e.position > $3)",
            "delete from stream_head where region = $1 and partition = $2 and version = 0 and $3::bigint >= 0",
            "delete from event where region = $1 and partition = $2 and position > $3",
            "delete from epoch_start where region = $1 and partition = $2 and $3::bigint >= 0",
            "delete from copy_unproven where region = $1 and partition = $2 and proven_position >= $3",
            "update partition_head set batch = batch + 1, position = $3, hash = coalesce((select e.hash from event e \
               where e.region = $1 and e.partition = $2 and e.position = $3), decode(repeat('00', 16), 'hex')) \
             where region = $1 and partition = $2",
        ] {
            sqlx::query(statement).bind(region).bind(partition).bind(fork.0 as i64).execute(&mut *transaction).await?;
        }
        let stay: Vec<_> = epochs.iter().filter(|start| start.first <= fork.next()).collect();
        let epoch = stay.iter().map(|start| start.epoch).max().unwrap_or_default();
        sqlx::query(
            "with epochs as (insert into epoch_start (region, partition, epoch, first_position, owner, started_ms) \
             select $1, $2, i.*, 'origin', $5 from unnest($3::bigint[], $4::bigint[]) i(epoch, first_position)) \
             update partition_head set epoch = $6 where region = $1 and partition = $2",
        )
        .bind(region)
        .bind(partition)
        .bind(stay.iter().map(|start| start.epoch.0 as i64).collect::<Vec<_>>())
        .bind(stay.iter().map(|start| start.first.0 as i64).collect::<Vec<_>>())
        .bind(UnixMillis::now().0)
        .bind(epoch.0 as i64)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn prove(&self, log: LogId, seen: End) -> Result<bool, StoreError> {
        let proven = sqlx::query(
            // Whoever lends right now writes the head first: it is waited for, and then the copy does not end there any more.
            "with head as materialized (select from partition_head \
             where region = $1 and partition = $2 and position = $3 and hash = $4 for no key update) \
             delete from copy_unproven using head where region = $1 and partition = $2",
        )
        .bind(log.region.0 as i16)
        .bind(i32::from(log.partition.0))
        .bind(seen.position.0 as i64)
        .bind(seen.hash.0.as_slice())
        .execute(self.copies(log)?)
        .await?;
        Ok(proven.rows_affected() == 1)
    }

    async fn unproven(&self, log: LogId) -> Result<Option<Position>, StoreError> {
        let found: Option<i64> = sqlx::query_scalar("select proven_position from copy_unproven where region = $1 and partition = $2")
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .fetch_optional(self.copies(log)?)
            .await?;
        Ok(found.map(|position| Position(position as u64)))
    }
}

impl PostgresStore {
    /// What the ledger remembers of the commands that led to these events of one log.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ledger_of(&self, log: LogId, events: &[RecordedEvent], retention: Retention) -> Result<Vec<LedgerRow>, StoreError> {
        let (mut ids, mut buckets) = (Vec::<Uuid>::new(), Vec::new());
        // Events of one command lie side by side.
        let mut requests: Vec<_> = events.iter().filter_map(|event| Some((event.request_id?, event.hlc.time()))).collect();
        requests.dedup_by_key(|(id, _)| *id);
        for (id, time) in requests {
            // Ids that do not tell their day are filed under the one they were recorded on, which may have ended since.
            let last = if id.time().is_some() { time } else { UnixMillis::now() };
            for bucket in retention.candidates(id, last) {
                ids.push(id.0);
                buckets.push(bucket.0);
            }
        }
        let rows = sqlx::query(
            "select l.* from unnest($3::uuid[], $4::int[]) i(request_id, bucket) cross join lateral (select * from ledger l \
             where l.region = $1 and l.partition = $2 and l.bucket = i.bucket and l.request_id = i.request_id offset 0) l",
        )
        .bind(log.region.0 as i16)
        .bind(i32::from(log.partition.0))
        .bind(ids)
        .bind(buckets)
        .fetch_all(self.pool(log)?)
        .await?;
        rows.iter().map(ledger_row).collect()
    }

    /// Where all logs end that are kept here, copies included; of a log that nobody has written, there is nothing.
    ///
    /// # Errors
    /// When a database does not answer.
    pub async fn ends(&self) -> Result<HashMap<LogId, End>, StoreError> {
        let mut ends = HashMap::new();
        for (_, pool) in self.pools() {
            let rows = sqlx::query("select region, partition, epoch, position, hash from partition_head").fetch_all(pool);
            for row in rows.await? {
                let region = Region(row.try_get::<i16, _>("region")? as u16);
                let partition = Partition(row.try_get::<i32, _>("partition")? as u16);
                let (epoch, position) = (Epoch(row::number(&row, "epoch")?), Position(row::number(&row, "position")?));
                let hash = row::hash(row.try_get("hash")?)?;
                ends.insert(LogId { region, partition }, End { epoch, position, hash });
            }
        }
        Ok(ends)
    }

    /// Tells that a replicator lives, and who else was heard of within `patience`.
    ///
    /// # Errors
    /// When the first database does not answer.
    pub async fn replicators(&self, me: &str, patience: Duration) -> Result<Vec<String>, StoreError> {
        sqlx::query(
            "insert into replicator (id, heartbeat_at) values ($1, clock_timestamp()) \
             on conflict (id) do update set heartbeat_at = excluded.heartbeat_at",
        )
        .bind(me)
        .execute(self.first())
        .await?;
        let live =
            sqlx::query_scalar("select id from replicator where clock_timestamp() - heartbeat_at < make_interval(secs => $1) order by id")
                .bind(patience.as_secs_f64())
                .fetch_all(self.first());
        Ok(live.await?)
    }

    /// Takes a replicator off the list, so that the others need not wait until it counts as dead.
    ///
    /// # Errors
    /// When the first database does not answer.
    pub async fn forget_replicator(&self, me: &str) -> Result<(), StoreError> {
        sqlx::query("delete from replicator where id = $1").bind(me).execute(self.first()).await?;
        Ok(())
    }

    async fn add(&self, batch: &ReplicaBatch, lent: bool) -> Result<Replicated, StoreError> {
        let pool = self.copies(batch.log)?;
        let mut end = End::from(&self.head(batch.log).await?);
        loop {
            let from = match batch.fit(end)? {
                Fit::From(from) => from,
                Fit::Hole => return Ok(Replicated::Hole(end)),
                Fit::Forked => return Ok(Replicated::Forked(end)),
            };
            let after = batch.end(from, end);
            if after == end && batch.ledger.is_empty() {
                return Ok(Replicated::Done(end));
            }
            if end.position == Position(0) {
                seed(pool, batch.log).await?;
            }
            if write(pool, batch, from, end, after, lent).await? {
                return Ok(Replicated::Done(after));
            }
            // Somebody else writes this copy, too.
            end = End::from(&self.head(batch.log).await?);
        }
    }

    fn copies(&self, log: LogId) -> Result<&PgPool, StoreError> {
        if log.region == self.region() {
            return Err(StoreError::Setup(format!("log {log} is this region's own: nobody else writes it")));
        }
        self.pool(log)
    }
}

async fn seed(pool: &PgPool, log: LogId) -> Result<(), StoreError> {
    sqlx::query("insert into partition_head (region, partition, hash) values ($1, $2, $3) on conflict do nothing")
        .bind(log.region.0 as i16)
        .bind(i32::from(log.partition.0))
        .bind([0u8; 16].as_slice())
        .execute(pool)
        .await?;
    Ok(())
}

/// Writes the events from `from` on in one statement, unless the copy does not end at `end` any more.
async fn write(pool: &PgPool, batch: &ReplicaBatch, from: usize, end: End, after: End, lent: bool) -> Result<bool, StoreError> {
    let events = &batch.events[from..];
    let epochs: Vec<_> = batch.epochs.iter().filter(|start| start.first <= after.position.next()).collect();
    let streams: BTreeMap<&StreamId, u64> = events.iter().map(|event| (&event.stream, event.version.0)).collect();
    macro_rules! column {
        ($rows:expr, $row:pat => $value:expr) => {
            $rows.iter().map(|$row| $value).collect::<Vec<_>>()
        };
    }
    let query = sqlx::query(REPLICATE)
        .bind(batch.log.region.0 as i16)
        .bind(i32::from(batch.log.partition.0))
        .bind(end.position.0 as i64)
        .bind(end.hash.0.to_vec())
        .bind(after.epoch.0 as i64)
        .bind(after.position.0 as i64)
        .bind(after.hash.0.to_vec())
        .bind(column!(epochs, start => start.epoch.0 as i64))
        .bind(column!(epochs, start => start.first.0 as i64))
        .bind(UnixMillis::now().0)
        .bind(column!(streams, (stream, _) => stream.as_str()))
        .bind(column!(streams, (_, version) => *version as i64));
    let query = row::bind_events(query, events.iter())
        .bind(column!(batch.ledger, row => row.bucket.0))
        .bind(column!(batch.ledger, row => row.stream.as_str()))
        .bind(column!(batch.ledger, row => row.request_id.0))
        .bind(column!(batch.ledger, row => row.method.as_str()))
        .bind(column!(batch.ledger, row => row.command.as_ref()))
        .bind(column!(batch.ledger, row => row.fingerprint.as_ref()))
        .bind(column!(batch.ledger, row => row.reply.as_ref()))
        .bind(column!(batch.ledger, row => row.actor.as_str()))
        .bind(column!(batch.ledger, row => row.recorded.0))
        .bind(lent);
    Ok(query.fetch_one(pool).await?.try_get::<i64, _>(0)? == 1)
}

fn ledger_row(found: &PgRow) -> Result<LedgerRow, StoreError> {
    let bytes = |column| found.try_get::<Vec<u8>, _>(column).map(Into::into);
    Ok(LedgerRow {
        stream: found.try_get::<&str, _>("stream")?.parse::<StreamId>().map_err(|error| StoreError::Corrupt(error.to_string()))?,
        request_id: RequestId(found.try_get("request_id")?),
        bucket: Bucket(found.try_get("bucket")?),
        method: found.try_get("method")?,
        command: bytes("command")?,
        fingerprint: bytes("fingerprint")?,
        reply: bytes("reply")?,
        actor: found.try_get("actor")?,
        recorded: UnixMillis(row::number(found, "recorded_ms")? as i64),
    })
}
