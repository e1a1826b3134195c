//! Who shares the logs of this database. Judged by its clock, and a hint that spares needless takeovers: safety is the epoch
//! of the checkpoint alone.

use std::{collections::BTreeMap, time::Duration};

use souk_event_sourcing::{Epoch, LogHash, LogId, Partition, Position, UnixMillis};
use souk_event_store::StoreError;
use sqlx::{Row, postgres::PgRow};

use super::{SagaStore, numbers};
use crate::changes::Tail;

/// A log this process applies from now on: no older owner can write any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub log: LogId,
    pub epoch: Epoch,
    pub tail: Tail,
}

/// Replicas and owners, read at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Members {
    /// Those that told of late that they live, in order.
    pub live: Vec<String>,
    pub owners: BTreeMap<LogId, Owner>,
}

/// Who claimed a log last and did not release it, living or dead; nobody when empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub id: String,
    pub epoch: Epoch,
}

impl SagaStore {
    /// Tells the others that `replica` lives. Those that have not for a day are forgotten.
    pub async fn heartbeat(&self, replica: &str) -> Result<(), StoreError> {
        sqlx::query(
            "with gone as (delete from saga_replica where region = $1 and id <> $2 and heartbeat_at < clock_timestamp() - interval '1 day') \
             insert into saga_replica (region, id, heartbeat_at) values ($1, $2, clock_timestamp()) \
             on conflict (region, id) do update set heartbeat_at = excluded.heartbeat_at",
        )
        .bind(self.region.0 as i16)
        .bind(replica)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Who told within `lease_ttl` that it lives, and who owns what. One kind of row has no log, the other an epoch.
    pub async fn members(&self, lease_ttl: Duration) -> Result<Members, StoreError> {
        let rows = sqlx::query(
            "select id, null::int as partition, null::bigint as epoch from saga_replica \
             where region = $1 and heartbeat_at > clock_timestamp() - make_interval(secs => $2) \
             union all select owner, partition, epoch from saga_checkpoint where region = $1 order by 1",
        )
        .bind(self.region.0 as i16)
        .bind(lease_ttl.as_secs_f64())
        .fetch_all(&self.pool)
        .await?;
        let mut members = Members::default();
        for row in &rows {
            let id = row.try_get("id")?;
            match row.try_get::<Option<i32>, _>("partition")? {
                None => members.live.push(id),
                Some(partition) => {
                    let epoch = Epoch(row.try_get::<i64, _>("epoch")? as u64);
                    members.owners.insert(self.log(partition), Owner { id, epoch });
                }
            }
        }
        Ok(members)
    }

    /// Takes over those of `partitions` that nobody owns, or `replica` itself, or one that was silent for `patience`.
    pub async fn claim(&self, partitions: &[Partition], replica: &str, patience: Duration) -> Result<Vec<Taken>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        // An epoch must not be handed out twice, whatever crashes: this one does wait for the disk.
        sqlx::query("set local synchronous_commit = on").execute(&mut *transaction).await?;
        let rows = sqlx::query(include_str!("claim.sql"))
            .bind(self.region.0 as i16)
            .bind(numbers(partitions))
            .bind(replica)
            .bind(patience.as_secs_f64())
            .bind(UnixMillis::now().0)
            .fetch_all(&mut *transaction)
            .await?;
        transaction.commit().await?;
        rows.iter().map(|row| self.taken(row)).collect()
    }

    fn taken(&self, row: &PgRow) -> Result<Taken, StoreError> {
        let hash: &[u8] = row.try_get("hash")?;
        let hash = LogHash::from_slice(hash).ok_or_else(|| StoreError::Corrupt("a running hash of a saga checkpoint".into()))?;
        Ok(Taken {
            log: self.log(row.try_get("partition")?),
            epoch: Epoch(row.try_get::<i64, _>("epoch")? as u64),
            tail: Tail {
                epoch: Epoch(row.try_get::<i64, _>("log_epoch")? as u64),
                position: Position(row.try_get::<i64, _>("position")? as u64),
                hash,
            },
        })
    }

    /// Gives up those of `partitions` that `replica` owns, so that another need not wait until it counts as dead.
    pub async fn release(&self, partitions: &[Partition], replica: &str) -> Result<(), StoreError> {
        sqlx::query(
            "with locked as (select c.partition from saga_checkpoint c \
               where c.region = $1 and c.partition = any($2) and c.owner = $3 order by c.partition for update of c) \
             update saga_checkpoint c set owner = '', lease_until = '-infinity' from locked l \
             where c.region = $1 and c.partition = l.partition",
        )
        .bind(self.region.0 as i16)
        .bind(numbers(partitions))
        .bind(replica)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// `replica` lives no longer: what it owns may be claimed at once.
    pub async fn leave(&self, replica: &str) -> Result<(), StoreError> {
        sqlx::query("delete from saga_replica where region = $1 and id = $2")
            .bind(self.region.0 as i16)
            .bind(replica)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
