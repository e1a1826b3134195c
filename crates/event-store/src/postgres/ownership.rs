use std::{collections::HashMap, time::Duration};

use souk_event_sourcing::{Epoch, LogId, Partition, UnixMillis};
use sqlx::{PgPool, Row, postgres::PgRow};

use super::{PostgresStore, lane, row};
use crate::{Belief, StoreError};

/// Who owns what, as one replica of the command service sees it. Leases and heartbeats spare needless takeovers; safety
/// is the head's epoch alone (law 6).
pub struct Ownership<'a> {
    store: &'a PostgresStore,
    replica: &'a str,
    suspects: &'a [String],
    suspect_ttl: Duration,
    above: Epoch,
}

/// A replica as its database row tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub id: String,
    pub addresses: Addresses,
    /// It hands its logs over and wants no others.
    pub leaving: bool,
    /// Time since its last heartbeat by the database's clock.
    pub silence: Duration,
}

/// Where a replica is reached, as `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// Forwarded calls and look-ups.
    pub internal: String,
    /// Callers.
    pub public: String,
}

/// Who holds a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub log: LogId,
    pub owner: String,
    pub epoch: Epoch,
}

/// Replicas, leases and heads of logs of one database, read at one moment.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    pub replicas: Vec<Replica>,
    pub leases: Vec<Lease>,
    pub heads: HashMap<LogId, Belief>,
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
        Ownership { store: self, replica, suspects: &[], suspect_ttl: Duration::ZERO, above: Epoch(0) }
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

impl<'a> Ownership<'a> {
    /// Replicas that refused a connection count as dead already when they were silent for `ttl`.
    #[must_use]
    pub const fn suspecting(self, suspects: &'a [String], ttl: Duration) -> Self {
        Self { suspects, suspect_ttl: ttl, ..self }
    }

    /// Takes logs under epochs above this one only: the highest that this replica knows to have been used. After a restore
    /// the database may not know it, and clocks differ.
    #[must_use]
    pub const fn above(self, epoch: Epoch) -> Self {
        Self { above: epoch, ..self }
    }

    /// Tells a database that this replica lives, where it is reached, and whether it wants logs.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn heartbeat(&self, database: &str, addresses: &Addresses, leaving: bool) -> Result<(), StoreError> {
        sqlx::query(
            "insert into replica (id, internal_address, public_address, leaving, heartbeat_at) values ($1, $2, $3, $4, clock_timestamp()) \
             on conflict (id) do update set internal_address = excluded.internal_address, public_address = excluded.public_address, \
               leaving = excluded.leaving, heartbeat_at = excluded.heartbeat_at",
        )
        .bind(self.replica)
        .bind(&addresses.internal)
        .bind(&addresses.public)
        .bind(leaving)
        .execute(self.store.pool_named(database)?)
        .await?;
        Ok(())
    }

    /// Who lives and who holds what.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn survey(&self, database: &str) -> Result<Survey, StoreError> {
        let region = self.store.region;
        let pool = self.store.pool_named(database)?;
        let replicas = sqlx::query(
            "select id, internal_address, public_address, leaving, \
               extract(epoch from clock_timestamp() - heartbeat_at)::float8 as silence from replica",
        )
        .fetch_all(pool)
        .await?;
        let leases =
            sqlx::query("select partition, owner, epoch from lease where region = $1").bind(region.0 as i16).fetch_all(pool).await?;
        let heads = sqlx::query("select partition, epoch, batch, position, hash from partition_head where region = $1")
            .bind(region.0 as i16)
            .fetch_all(pool)
            .await?;
        let head = |row: &PgRow| {
            let partition = Partition(row.try_get::<i32, _>("partition")? as u16);
            Ok((LogId { region, partition }, lane::belief(row)?))
        };
        let replica = |row: &PgRow| {
            let addresses = Addresses { internal: row.try_get("internal_address")?, public: row.try_get("public_address")? };
            let silence = Duration::from_secs_f64(row.try_get::<f64, _>("silence")?.max(0.0));
            Ok(Replica { id: row.try_get("id")?, addresses, leaving: row.try_get("leaving")?, silence })
        };
        let lease = |row: &PgRow| {
            let partition = Partition(row.try_get::<i32, _>("partition")? as u16);
            Ok(Lease { log: LogId { region, partition }, owner: row.try_get("owner")?, epoch: Epoch(row::number(row, "epoch")?) })
        };
        Ok(Survey {
            replicas: replicas.iter().map(replica).collect::<Result<_, StoreError>>()?,
            leases: leases.iter().map(lease).collect::<Result<_, StoreError>>()?,
            heads: heads.iter().map(head).collect::<Result<_, StoreError>>()?,
        })
    }

    /// Leaves logs of one database to another replica, which takes them when it likes. Their work must have ended here.
    ///
    /// # Errors
    /// When the database cannot be reached; then they are this replica's still.
    pub async fn offer(&self, database: &str, partitions: &[Partition], to: &str) -> Result<(), StoreError> {
        let partitions: Vec<i32> = partitions.iter().map(|partition| i32::from(partition.0)).collect();
        sqlx::query("update lease set owner = $4 where region = $1 and partition = any($2) and owner = $3")
            .bind(self.store.region.0 as i16)
            .bind(partitions)
            .bind(self.replica)
            .bind(to)
            .execute(self.store.pool_named(database)?)
            .await?;
        Ok(())
    }

    /// Takes those of `partitions`, all of one database, that no other live replica leases: raises the epoch, records it in the log's
    /// history and writes the lease, in one transaction.
    ///
    /// # Errors
    /// When the database cannot be reached; then this replica may have become owner without knowing, and takes again.
    pub async fn take(&self, database: &str, partitions: &[Partition], lease_ttl: Duration) -> Result<Vec<Taken>, StoreError> {
        let pool = self.store.pool_named(database)?;
        let region = self.store.region;
        let partitions: Vec<i32> = partitions.iter().map(|partition| i32::from(partition.0)).collect();
        let rows = sqlx::query(
            "with free as (
               select h.partition from partition_head h
               left join lease l on l.region = h.region and l.partition = h.partition
               left join replica r on r.id = l.owner
               where h.region = $1 and h.partition = any($2) and (l.owner is null or l.owner = $3 or r.id is null
                 or r.heartbeat_at < clock_timestamp() - make_interval(secs => case when r.id = any($6) then least($4, $7) else $4 end))
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
             select partition, epoch, batch, position, hash from taken",
        )
        .bind(region.0 as i16)
        .bind(&partitions)
        .bind(self.replica)
        .bind(lease_ttl.as_secs_f64())
        .bind(UnixMillis::now().0.max(self.above.0 as i64 + 1))
        .bind(self.suspects)
        .bind(self.suspect_ttl.as_secs_f64())
        .fetch_all(pool)
        .await?;
        let mut taken = Vec::with_capacity(rows.len());
        for found in &rows {
            let partition = Partition(found.try_get::<i32, _>("partition")? as u16);
            taken.push(Taken { log: LogId { region, partition }, belief: lane::belief(found)?, written: Epoch(0) });
        }
        self.find_written(pool, &mut taken).await?;
        Ok(taken)
    }

    /// Looks up the epochs of the events at the heads. A statement of its own: if the takeover waited for the head, its
    /// snapshot is older than the head, and the history it saw may lack the last owner.
    async fn find_written(&self, pool: &PgPool, taken: &mut [Taken]) -> Result<(), StoreError> {
        let rows = sqlx::query(
            "select i.partition, max(s.epoch) as written from unnest($2::int[], $3::bigint[]) i(partition, position)
             join epoch_start s on s.region = $1 and s.partition = i.partition and s.first_position <= i.position group by i.partition",
        )
        .bind(self.store.region.0 as i16)
        .bind(taken.iter().map(|taken| i32::from(taken.log.partition.0)).collect::<Vec<_>>())
        .bind(taken.iter().map(|taken| taken.belief.position.0 as i64).collect::<Vec<_>>())
        .fetch_all(pool)
        .await?;
        for found in &rows {
            let partition = Partition(found.try_get::<i32, _>("partition")? as u16);
            if let Some(taken) = taken.iter_mut().find(|taken| taken.log.partition == partition) {
                taken.written = Epoch(row::number(found, "written")?);
            }
        }
        Ok(())
    }

    /// Gives up what leases are left, and the heartbeat, so that a successor need not wait.
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

    /// Drops the rows of replicas that were silent for so long; their leases, if any, are free then.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forget_silent(&self, database: &str, silence: Duration) -> Result<(), StoreError> {
        sqlx::query("delete from replica where heartbeat_at < clock_timestamp() - make_interval(secs => $1)")
            .bind(silence.as_secs_f64())
            .execute(self.store.pool_named(database)?)
            .await?;
        Ok(())
    }
}
