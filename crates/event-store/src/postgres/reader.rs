use souk_event_sourcing::{Epoch, LogId, Position, RecordedEvent};
use sqlx::AssertSqlSafe;

use super::{PostgresStore, lane, load, row};
use crate::{EpochStart, EventLog, Head, StoreError};

#[async_trait::async_trait]
impl EventLog for PostgresStore {
    async fn read(&self, log: LogId, from: Position, limit: usize) -> Result<Vec<RecordedEvent>, StoreError> {
        // From the table of the partition alone: through the table of all, each connection would learn of every partition first.
        let sql = format!(
            "select {} from event_r{}_p{} e where e.position >= $1 and e.position < $2 order by e.position",
            row::COLUMNS,
            log.region.0,
            log.partition.0
        );
        // Positions beyond what the table can hold are asked for, too: nothing lies there.
        let stored = |position: u64| i64::try_from(position).unwrap_or(i64::MAX);
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(stored(from.0))
            .bind(stored(from.0.saturating_add(limit as u64)))
            .fetch_all(self.pool(log)?)
            .await;
        load::of_partition(rows)?.iter().map(row::event).collect()
    }

    async fn head(&self, log: LogId) -> Result<Head, StoreError> {
        let pool = self.pool(log)?;
        let head = sqlx::query("select epoch, batch, position, hash from partition_head where region = $1 and partition = $2")
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .fetch_optional(pool)
            .await?;
        // Of another region's log, of which nothing was copied yet.
        let Some(head) = head else { return Ok(Head::EMPTY) };
        let epochs = sqlx::query("select epoch, first_position from epoch_start where region = $1 and partition = $2 order by epoch")
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .fetch_all(pool)
            .await?;
        let belief = lane::belief(&head)?;
        let epochs = epochs.iter().map(|start| {
            Ok::<_, StoreError>(EpochStart {
                epoch: Epoch(row::number(start, "epoch")?),
                first: Position(row::number(start, "first_position")?),
            })
        });
        Ok(Head { epoch: belief.epoch, position: belief.position, hash: belief.hash, epochs: epochs.collect::<Result<_, StoreError>>()? })
    }
}
