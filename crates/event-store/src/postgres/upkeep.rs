use souk_event_sourcing::{Epoch, LogId, Position, StreamId, UnixMillis};

use super::PostgresStore;
use crate::{Retention, StoreError, StoredSnapshot};

/// Positions one child of the event table holds.
const CHILD_POSITIONS: u64 = 1_000_000;
/// Children that exist beyond the one being written.
const CHILDREN_AHEAD: u64 = 2;

impl PostgresStore {
    /// Sees to it that a database's event table has children for what comes next in each of these logs of it, and its ledger for
    /// the days around `now`. Called at start and again whenever a log passes [`Self::next_upkeep`].
    ///
    /// # Errors
    /// When the database cannot be reached or a lock was not granted within two seconds; call again.
    pub async fn prepare(
        &self,
        database: &str,
        logs: &[(LogId, Position)],
        retention: Retention,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let (mut regions, mut partitions, mut lows) = (Vec::new(), Vec::new(), Vec::new());
        for (log, position) in logs {
            let current = position.0 / CHILD_POSITIONS;
            for child in current..=current + CHILDREN_AHEAD {
                regions.push(i32::from(log.region.0));
                partitions.push(i32::from(log.partition.0));
                lows.push((child * CHILD_POSITIONS) as i64);
            }
        }
        let mut transaction = self.pool_named(database)?.begin().await?;
        sqlx::query("set local lock_timeout = '2s'").execute(&mut *transaction).await?;
        sqlx::query("select souk_add_event_child(r, p, low, low + $1) from unnest($2::int[], $3::int[], $4::bigint[]) i(r, p, low)")
            .bind(CHILD_POSITIONS as i64)
            .bind(&regions)
            .bind(&partitions)
            .bind(&lows)
            .execute(&mut *transaction)
            .await?;
        let buckets: Vec<i32> = retention.wanted(now).map(|bucket| bucket.0).collect();
        sqlx::query("select souk_add_ledger_child(b) from unnest($1::int[]) b").bind(&buckets).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The position of a log at which [`Self::prepare`] is due again.
    pub const fn next_upkeep(position: Position) -> Position {
        Position((position.0 / CHILD_POSITIONS + 1) * CHILD_POSITIONS)
    }

    /// Drops those buckets of a database's ledger whose request ids are refused by their time.
    ///
    /// # Errors
    /// When the database cannot be reached or a lock was not granted within two seconds; call again.
    pub async fn forget(&self, database: &str, retention: Retention, now: UnixMillis) -> Result<(), StoreError> {
        let pool = self.pool_named(database)?;
        let names: Vec<String> = sqlx::query_scalar(
            "select relname::text from pg_inherits join pg_class on pg_class.oid = inhrelid \
             where inhparent = 'ledger'::regclass and substr(relname, 8)::int < $1",
        )
        .bind(retention.oldest(now).0)
        .fetch_all(pool)
        .await?;
        for name in names {
            let mut transaction = pool.begin().await?;
            sqlx::query("set local lock_timeout = '2s'").execute(&mut *transaction).await?;
            sqlx::query(sqlx::AssertSqlSafe(format!("drop table {name}"))).execute(&mut *transaction).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    /// Keeps a snapshot unless a later one is there. `epoch` is the one its maker owns the log under: a snapshot of events
    /// that a restore took back since is not kept, or a later history would be loaded on top of it (law 13).
    ///
    /// # Errors
    /// When the database cannot be reached; snapshots are disposable, so the caller may ignore it.
    pub async fn keep_snapshot(&self, log: LogId, epoch: Epoch, stream: &StreamId, snapshot: &StoredSnapshot) -> Result<(), StoreError> {
        sqlx::query(
            "insert into snapshot as s (region, partition, stream, version, position, fold_version, state) \
             select $1, $2, $3, $4, $5, $6, $7 from partition_head h \
             where h.region = $1 and h.partition = $2 and h.epoch = $8 and h.position >= $5 \
             on conflict (region, partition, stream) do update set version = excluded.version, position = excluded.position, \
             fold_version = excluded.fold_version, state = excluded.state where (excluded.fold_version, excluded.version) > (s.fold_version, s.version)",
        )
        .bind(log.region.0 as i16)
        .bind(i32::from(log.partition.0))
        .bind(stream.as_str())
        .bind(snapshot.version.0 as i64)
        .bind(snapshot.position.0 as i64)
        .bind(snapshot.fold_version as i32)
        .bind(snapshot.state.as_ref())
        .bind(epoch.0 as i64)
        .execute(self.pool(log)?)
        .await?;
        Ok(())
    }
}
