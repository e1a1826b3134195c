use bytes::Bytes;
use souk_event_sourcing::{Epoch, LogId, Partition, Position, Region, StreamId, Version};
use sqlx::{
    Arguments, Connection, PgConnection, Row,
    postgres::{PgArguments, PgConnectOptions, PgRow},
};
use uuid::Uuid;

use super::{load, row, warnings::Warnings};
use crate::{BatchOutcome, Belief, Lane, LogBatch, Retention, StoreError, StoredReply, StoredStream};

const APPEND: &str = include_str!("append.sql");
/// Statements that a connection keeps prepared: loading has one for each partition, as reading the log has.
pub(super) const STATEMENTS: usize = 512;

/// The dedicated connection of one committer. It is opened when first needed and again after it was lost.
///
/// A cancelled wait for a synchronous standby reports success with a warning. Nothing here ever cancels a statement, and
/// if somebody else does, the warning counts as an unknown outcome. No transaction spans two round trips: a stopped
/// process holds no lock.
pub struct PostgresLane {
    region: Region,
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    statement: &'static str,
    retention: Retention,
    warnings: Warnings,
}

impl PostgresLane {
    pub(super) fn new(region: Region, options: PgConnectOptions) -> Self {
        // The plan is made once, before the tables have statistics; probes by index are right at every size.
        let options = options.options([("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off"), ("jit", "off")]);
        Self { region, options, connection: None, statement: APPEND, retention: Retention { days: 7 }, warnings: Warnings::default() }
    }

    /// How long request ids are remembered.
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// With another append, so that tests can show that they would notice a wrong one.
    #[cfg(feature = "conformance")]
    pub fn with_append(mut self, change: impl FnOnce(&str) -> String) -> Self {
        self.statement = change(APPEND).leak();
        self
    }

    async fn connection(&mut self) -> Result<&mut PgConnection, StoreError> {
        if self.connection.is_none() {
            self.connection = Some(PgConnection::connect_with(&self.options).await?);
        }
        Ok(self.connection.as_mut().expect("opened above"))
    }

    /// Forgets the connection after an error that may have left it unusable.
    fn settle<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(result, Err(StoreError::Unavailable(_) | StoreError::Unknown(_))) {
            self.connection = None;
        }
        result
    }
}

#[async_trait::async_trait]
impl Lane for PostgresLane {
    async fn append(&mut self, batches: &[LogBatch]) -> Result<Vec<BatchOutcome>, StoreError> {
        let (region, retention, warnings, statement) = (self.region, self.retention, self.warnings.clone(), self.statement);
        let connection = self.connection().await?;
        let repeats = Repeats::of(batches, retention);
        let rows = warnings.refused(send(connection, statement, region, batches, &repeats, retention)).await;
        // Once sent, a lost connection leaves the outcome open.
        let rows = rows.map_err(|error| match error {
            StoreError::Unavailable(reason) => StoreError::Unknown(reason),
            other => other,
        });
        let rows = self.settle(rows)?;
        outcomes(batches, &repeats, &rows)
    }

    async fn heads(&mut self, logs: &[LogId]) -> Result<Vec<(LogId, Belief)>, StoreError> {
        let partitions: Vec<i32> = logs.iter().map(|log| i32::from(log.partition.0)).collect();
        let (region, warnings) = (self.region, self.warnings.clone());
        let connection = self.connection().await?;
        // `for update` waits for a statement of a lost connection that is still under way in its backend, and its commit
        // for the standby, behind everything that was committed before.
        let rows = sqlx::query(
            "select partition, epoch, batch, position, hash from partition_head where region = $1 and partition = any($2) order by partition for update",
        )
        .bind(region.0 as i16)
        .bind(&partitions)
        .fetch_all(connection);
        let rows = warnings.refused(async { Ok(rows.await?) }).await;
        let rows = self.settle(rows)?;
        rows.iter()
            .map(|found| {
                let partition = Partition(found.try_get::<i32, _>("partition")? as u16);
                Ok((LogId { region, partition }, belief(found)?))
            })
            .collect()
    }

    async fn load(&mut self, streams: &[(LogId, StreamId)], fold_version: u32) -> Result<Vec<StoredStream>, StoreError> {
        let region = self.region;
        let connection = self.connection().await?;
        let loaded = load::streams(connection, region, streams, fold_version).await;
        self.settle(loaded)
    }
}

pub(super) fn belief(found: &PgRow) -> Result<Belief, StoreError> {
    Ok(Belief {
        epoch: Epoch(row::number(found, "epoch")?),
        batch: row::number(found, "batch")?,
        position: Position(row::number(found, "position")?),
        hash: row::hash(found.try_get("hash")?)?,
    })
}

/// Where earlier replies may stand: one row per (ledger entry, bucket), and which entry each row belongs to.
#[derive(Default)]
struct Repeats<'a> {
    partition: Vec<i32>,
    stream: Vec<&'a str>,
    request_id: Vec<Uuid>,
    bucket: Vec<i32>,
    entry: Vec<(usize, usize)>,
}

impl<'a> Repeats<'a> {
    fn of(batches: &'a [LogBatch], retention: Retention) -> Self {
        let mut repeats = Self::default();
        for (part, batch) in batches.iter().enumerate() {
            for (index, entry) in batch.ledger.iter().enumerate() {
                for bucket in retention.candidates(entry.request_id, entry.recorded) {
                    repeats.partition.push(i32::from(batch.log.partition.0));
                    repeats.stream.push(entry.stream.as_str());
                    repeats.request_id.push(entry.request_id.0);
                    repeats.bucket.push(bucket.0);
                    repeats.entry.push((part, index));
                }
            }
        }
        repeats
    }
}

/// Binds the columns named in `append.sql` and runs it.
async fn send(
    connection: &mut PgConnection,
    statement: &'static str,
    region: Region,
    batches: &[LogBatch],
    repeats: &Repeats<'_>,
    retention: Retention,
) -> Result<Vec<PgRow>, StoreError> {
    let of = |batch: &LogBatch| i32::from(batch.log.partition.0);
    let entries = || batches.iter().flat_map(|batch| batch.ledger.iter().map(move |entry| (of(batch), entry)));
    let ledger = || entries().filter_map(|(partition, entry)| Some((partition, (entry, entry.reply.as_deref()?))));
    let streams = || batches.iter().flat_map(|batch| batch.streams.iter().map(move |stream| (of(batch), stream)));
    let events = || batches.iter().flat_map(|batch| batch.events.iter().map(move |event| (of(batch), event)));
    macro_rules! column {
        ($rows:expr, $row:pat => $value:expr) => {
            $rows().map(|(_, $row)| $value).collect::<Vec<_>>()
        };
    }
    macro_rules! partitions {
        ($rows:expr) => {
            $rows().map(|(partition, _)| partition).collect::<Vec<_>>()
        };
    }
    let query = sqlx::query_with(statement, arguments_for(batches, repeats))
        .bind(region.0 as i16)
        .bind(batches.iter().map(of).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| batch.belief.epoch.0 as i64).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| batch.belief.batch as i64).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| batch.belief.position.0 as i64).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| batch.events.len() as i32).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| batch.events.last().map_or(batch.belief.hash, |event| event.hash).0.to_vec()).collect::<Vec<_>>())
        .bind(&repeats.partition)
        .bind(&repeats.stream)
        .bind(&repeats.request_id)
        .bind(&repeats.bucket);
    let query = query
        .bind(partitions!(ledger))
        .bind(column!(ledger, (entry, _) => retention.bucket(entry.request_id, entry.recorded).0))
        .bind(column!(ledger, (entry, _) => entry.stream.as_str()))
        .bind(column!(ledger, (entry, _) => entry.request_id.0))
        .bind(column!(ledger, (entry, _) => entry.method))
        .bind(column!(ledger, (entry, _) => entry.command.as_ref()))
        .bind(column!(ledger, (entry, _) => entry.fingerprint.0.as_slice()))
        .bind(column!(ledger, (_, reply) => reply))
        .bind(column!(ledger, (entry, _) => entry.actor.as_str()))
        .bind(column!(ledger, (entry, _) => entry.recorded.0))
        .bind(partitions!(streams))
        .bind(column!(streams, stream => stream.stream.as_str()))
        .bind(column!(streams, stream => stream.expected.0 as i64))
        .bind(column!(streams, stream => stream.new.0 as i64));
    let query = query.bind(partitions!(events));
    let query = row::bind_events(query, events().map(|(_, event)| &**event))
        .bind(repeats.bucket.iter().min().copied().unwrap_or_default())
        .bind(repeats.bucket.iter().max().copied().unwrap_or_default());
    Ok(query.fetch_all(connection).await?)
}

/// Room for all values at once: to grow a megabyte by doubling costs more than to fill it.
fn arguments_for(batches: &[LogBatch], repeats: &Repeats<'_>) -> PgArguments {
    /// Of `append.sql`.
    const VALUES: usize = 45;
    /// What a row has beside its payloads, in all columns.
    const ROW: usize = 512;
    /// A row of where an earlier reply may stand.
    const REPEAT: usize = 96;
    let bytes = batches.iter().map(|batch| {
        let commands = batch.ledger.iter().map(|entry| entry.command.len() + entry.reply.as_ref().map_or(0, Bytes::len) + ROW);
        let events = batch.events.iter().map(|event| event.payload.len() + ROW);
        commands.chain(events).sum::<usize>()
    });
    let mut arguments = PgArguments::default();
    arguments.reserve(VALUES, bytes.sum::<usize>() + repeats.bucket.len() * REPEAT);
    arguments
}

/// Sorts the rows of the statement to the parts they belong to.
fn outcomes(batches: &[LogBatch], repeats: &Repeats<'_>, rows: &[PgRow]) -> Result<Vec<BatchOutcome>, StoreError> {
    let streams: Vec<_> =
        batches.iter().enumerate().flat_map(|(part, batch)| batch.streams.iter().map(move |stream| (part, stream))).collect();
    let mut outcomes = vec![BatchOutcome::Fenced; batches.len()];
    let refuse = |outcome: &mut BatchOutcome, repeat: Option<(usize, StoredReply)>, behind: Option<(StreamId, Version)>| {
        if !matches!(outcome, BatchOutcome::Refused { .. }) {
            *outcome = BatchOutcome::Refused { repeats: Vec::new(), stale: Vec::new() };
        }
        if let BatchOutcome::Refused { repeats, stale } = outcome {
            repeats.extend(repeat);
            stale.extend(behind);
        }
    };
    for found in rows {
        let (what, partition): (&str, i32) = (found.try_get("what")?, found.try_get("partition")?);
        let (ord, position): (i64, i64) = (found.try_get("ord")?, found.try_get("position")?);
        match what {
            "done" => {
                let part = batches.iter().position(|batch| i32::from(batch.log.partition.0) == partition);
                let part = part.ok_or_else(|| StoreError::Corrupt(format!("append answered for partition {partition}")))?;
                outcomes[part] = BatchOutcome::Done;
            }
            "dup" => {
                let (part, index) = repeats.entry[ord as usize - 1];
                let reply = StoredReply { fingerprint: found.try_get("fingerprint")?, reply: found.try_get::<Vec<u8>, _>("reply")?.into() };
                refuse(&mut outcomes[part], Some((index, reply)), None);
            }
            _ => {
                let (part, stream) = streams[ord as usize - 1];
                refuse(&mut outcomes[part], None, Some((stream.stream.clone(), Version(position as u64))));
            }
        }
    }
    Ok(outcomes)
}
