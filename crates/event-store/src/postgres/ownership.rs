use std::time::Duration;

use souk_event_sourcing::{Epoch, LogId, Partition, UnixMillis};
use sqlx::{PgPool, Row};

use super::{PostgresStore, lane, row};
use crate::{Belief, StoreError};

/// Who owns what, as one replica of the command service sees it. Leases and heartbeats spare needless takeovers; safety
/// is the head's epoch alone (law 6).
pub struct Ownership<'a> {
    store: &'a PostgresStore,
    replica: &'a str,
}

/// A log this replica has just taken over. Entities are loaded after this, never before.
#[derive(Debug, Clone)]
pub struct Taken {
    pub log: LogId,
    pub belief: Belief,
    /// Epoch of the event at the head; 0 in an empty log.
    pub written: Epoch,
}

impl PostgresStore {
    /// Ownership as `replica`, a name that is this replica's alone while it runs.
    pub const fn ownership<'a>(&'a self, replica: &'a str) -> Ownership<'a> {
        Ownership { store: self, replica }
    }

    /// Whether `epoch` is still the head's epoch.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn still_owner(&self, log: LogId, epoch: Epoch) -> Result<bool, StoreError> {
        let stored: i64 = sqlx::query_scalar("select epoch from partition_head where region = $1 and partition = $2")
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .fetch_one(self.pool(log)?)
            .await?;
        Ok(stored as u64 == epoch.0)
    }
}

impl Ownership<'_> {
    /// Tells all databases that this replica lives and under which address it takes forwarded calls.
    ///
    /// # Errors
    /// When a database cannot be reached.
    pub async fn heartbeat(&self, address: &str) -> Result<(), StoreError> {
        for database in &self.store.databases {
            sqlx::query(
                "insert into replica (id, address, heartbeat_at) values ($1, $2, clock_timestamp()) \
                 on conflict (id) do update set address = excluded.address, heartbeat_at = excluded.heartbeat_at",
            )
            .bind(self.replica)
            .bind(address)
            .execute(&database.pool)
            .await?;
        }
        Ok(())
    }

    /// Takes those of `partitions`, all of one database, that no other live replica leases: raises the epoch, records it in the log's
    /// history and writes the lease, in one transaction.
    ///
    /// # Errors
    /// When the database cannot be reached; then nothing was taken.
    pub async fn take(&self, database: &str, partitions: &[Partition], lease_ttl: Duration) -> Result<Vec<Taken>, StoreError> {
        let pool = self.pool(database)?;
        let region = self.store.region;
        let partitions: Vec<i32> = partitions.iter().map(|partition| i32::from(partition.0)).collect();
        let rows = sqlx::query(
            "with free as (
               select h.partition from partition_head h
               left join lease l on l.region = h.region and l.partition = h.partition
               left join replica r on r.id = l.owner
               where h.region = $1 and h.partition = any($2) and (l.owner is null or l.owner = $3 or r.id is null
                 or r.heartbeat_at < clock_timestamp() - make_interval(secs => $4))
               order by h.partition for update of h),
             taken as (
               update partition_head h set epoch = greatest(h.epoch + 1, $5) from free f
               where h.region = $1 and h.partition = f.partition returning h.partition, h.epoch, h.batch, h.position, h.hash),
             history as (
               insert into epoch_start (region, partition, epoch, first_position, owner, started_ms)
               select $1, t.partition, t.epoch, t.position + 1, $3, $5 from taken t),
             leased as (
               insert into lease (region, partition, owner, epoch) select $1, t.partition, $3, t.epoch from taken t
               on conflict (region, partition) do update set owner = excluded.owner, epoch = excluded.epoch)
             select t.partition, t.epoch, t.batch, t.position, t.hash, coalesce((select max(s.epoch) from epoch_start s
               where s.region = $1 and s.partition = t.partition and s.first_position <= t.position), 0) as written from taken t",
        )
        .bind(region.0 as i16)
        .bind(&partitions)
        .bind(self.replica)
        .bind(lease_ttl.as_secs_f64())
        .bind(UnixMillis::now().0)
        .fetch_all(pool)
        .await?;
        rows.iter()
            .map(|taken| {
                let partition = Partition(taken.try_get::<i32, _>("partition")? as u16);
                Ok(Taken { log: LogId { region, partition }, belief: lane::belief(taken)?, written: Epoch(row::number(taken, "written")?) })
            })
            .collect()
    }

    /// Gives up the leases and the heartbeat, so that a successor need not wait.
    ///
    /// # Errors
    /// When a database cannot be reached.
    pub async fn release(&self) -> Result<(), StoreError> {
        for database in &self.store.databases {
            sqlx::query("with gone as (delete from lease where owner = $1) delete from replica where id = $1")
                .bind(self.replica)
                .execute(&database.pool)
                .await?;
        }
        Ok(())
    }

    /// The epochs under which this replica holds the logs of a database.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn leases(&self, database: &str) -> Result<Vec<(Partition, Epoch)>, StoreError> {
        let rows = sqlx::query("select partition, epoch from lease where region = $1 and owner = $2")
            .bind(self.store.region.0 as i16)
            .bind(self.replica)
            .fetch_all(self.pool(database)?)
            .await?;
        rows.iter()
            .map(|lease| Ok((Partition(lease.try_get::<i32, _>("partition")? as u16), Epoch(row::number(lease, "epoch")?))))
            .collect()
    }

    fn pool(&self, database: &str) -> Result<&PgPool, StoreError> {
        let found = self.store.databases.iter().find(|candidate| candidate.name == database);
        found.map(|found| &found.pool).ok_or_else(|| StoreError::Setup(format!("no write database is named '{database}'")))
    }
}
