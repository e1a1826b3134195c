use souk_event_sourcing::{Epoch, LogId, Partition, Position, UnixMillis};
use sqlx::{Row, postgres::PgRow};

use super::{PostgresStore, row};
use crate::{Lost, Restored, StoreError};

impl PostgresStore {
    /// Writes down that a log was once known to reach to `known`, which is no more. Returns the epoch under which the log
    /// went on, and the last position that stayed; `None` when that place is not beyond what stayed, or nobody has taken
    /// the log over yet since it went back.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn record_restored(&self, log: LogId, known: Lost, found_by: &str) -> Result<Option<(Epoch, Position)>, StoreError> {
        // Epochs are never used twice: what was written under a later one than `known`'s was written in its stead.
        let recorded = sqlx::query(
            "with next as (
               select epoch, first_position - 1 as fork from epoch_start
               where region = $1 and partition = $2 and epoch > $3 order by epoch limit 1)
             insert into log_restored as r (region, partition, epoch, fork, lost_epoch, lost_position, found_ms, found_by)
             select $1, $2, epoch, fork, $3, $4, $5, $6 from next where fork < $4
             on conflict (region, partition, epoch) do update set lost_epoch = greatest(r.lost_epoch, excluded.lost_epoch),
               lost_position = greatest(r.lost_position, excluded.lost_position)
             returning epoch, fork",
        )
        .bind(log.region.0 as i16)
        .bind(i32::from(log.partition.0))
        .bind(known.epoch.0 as i64)
        .bind(known.position.0 as i64)
        .bind(UnixMillis::now().0)
        .bind(found_by)
        .fetch_optional(self.pool(log)?)
        .await?;
        recorded.map(|row| Ok((Epoch(row::number(&row, "epoch")?), Position(row::number(&row, "fork")?)))).transpose()
    }

    /// Keeps lost events, encoded as they travel, under the epoch that [`Self::record_restored`] returned. Those that are
    /// kept already stay as they are.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn keep_lost(&self, log: LogId, epoch: Epoch, events: &[(Position, Vec<u8>)]) -> Result<(), StoreError> {
        sqlx::query(
            "insert into lost_event (region, partition, epoch, position, envelope) select $1, $2, $3, i.* \
             from unnest($4::bigint[], $5::bytea[]) i(position, envelope) on conflict do nothing",
        )
        .bind(log.region.0 as i16)
        .bind(i32::from(log.partition.0))
        .bind(epoch.0 as i64)
        .bind(events.iter().map(|(position, _)| position.0 as i64).collect::<Vec<_>>())
        .bind(events.iter().map(|(_, envelope)| envelope.as_slice()).collect::<Vec<_>>())
        .execute(self.pool(log)?)
        .await?;
        Ok(())
    }

    /// The logs of all databases that ever went back, the latest first.
    ///
    /// # Errors
    /// When a database cannot be reached.
    pub async fn restored(&self) -> Result<Vec<Restored>, StoreError> {
        let mut all = Vec::new();
        for (_, pool) in self.pools() {
            let rows = sqlx::query(
                "select r.*, (select count(*) from lost_event e where e.region = r.region and e.partition = r.partition and e.epoch = r.epoch) \
                 as kept from log_restored r where r.region = $1",
            )
            .bind(self.region().0 as i16)
            .fetch_all(pool)
            .await?;
            for found in &rows {
                all.push(self.decode(found)?);
            }
        }
        all.sort_by_key(|restored| (std::cmp::Reverse(restored.epoch), restored.log));
        Ok(all)
    }

    /// Lost events of one log that went back, as they travel, in order, from a position on.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn lost_events(&self, of: &Restored, from: Position, limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let found = sqlx::query_scalar(
            "select envelope from lost_event where region = $1 and partition = $2 and epoch = $3 and position >= $4 \
             order by position limit $5",
        )
        .bind(of.log.region.0 as i16)
        .bind(i32::from(of.log.partition.0))
        .bind(of.epoch.0 as i64)
        .bind(from.0 as i64)
        .bind(limit as i64);
        Ok(found.fetch_all(self.pool(of.log)?).await?)
    }

    fn decode(&self, found: &PgRow) -> Result<Restored, StoreError> {
        let partition = Partition(found.try_get::<i32, _>("partition")? as u16);
        Ok(Restored {
            log: LogId { region: self.region(), partition },
            epoch: Epoch(row::number(found, "epoch")?),
            fork: Position(row::number(found, "fork")?),
            lost: Lost { epoch: Epoch(row::number(found, "lost_epoch")?), position: Position(row::number(found, "lost_position")?) },
            found: UnixMillis(found.try_get("found_ms")?),
            found_by: found.try_get("found_by")?,
            kept: row::number(found, "kept")?,
        })
    }
}
