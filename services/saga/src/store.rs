//! The process manager's tables: fold, timers and outbox beside the logs they come from, written together with the
//! fenced checkpoint.
//!
//! Commits here do not wait for the disk: after a crash the checkpoint went back together with everything that follows
//! from it, the same steps become due again and go out under the same request ids.

mod migration;
mod rows;
mod sharing;

pub(crate) use sharing::{Members, Taken};

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use souk_domain::order::Placed;
use souk_event_sourcing::{LogHash, LogId, Partition, Region, UnixMillis};
use souk_event_store::{StoreError, migrate_guarded, missing_migrations};
use sqlx::{
    ConnectOptions, PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};

use crate::{
    changes::{Changes, OrderKey},
    step::{Step, Timer},
};

/// The tables in one write database.
#[derive(Debug, Clone)]
pub(crate) struct SagaStore {
    pool: PgPool,
    region: Region,
}

/// One is used at a time; the others stand in for those that hang until TCP gives them up.
const CONNECTIONS: u32 = 4;

impl SagaStore {
    /// Brings the tables up to date; harmless when two processes do it at once.
    pub async fn migrate(url: &str) -> Result<(), StoreError> {
        migrate_guarded::<migration::Migrator>(url).await
    }

    /// Names of the migrations the tables lack.
    pub async fn missing_migrations(url: &str) -> Result<Vec<String>, StoreError> {
        missing_migrations::<migration::Migrator>(url).await
    }

    /// Connects when first used.
    pub fn connect(url: &str, region: Region) -> Result<Self, StoreError> {
        // Plans are made once, while the tables are empty: probes by index are right at every size.
        let settings =
            [("synchronous_commit", "off"), ("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off"), ("jit", "off")];
        let options = PgConnectOptions::from_str(url)?.application_name("souk-saga").disable_statement_logging().options(settings);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(5))
            .test_before_acquire(false)
            .connect_lazy_with(options);
        Ok(Self { pool, region })
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Makes checkpoints before the first event of logs that have none.
    pub async fn seed(&self, partitions: &[Partition]) -> Result<(), StoreError> {
        sqlx::query(
            "insert into saga_checkpoint (region, partition, hash) select $1, p, $3 from unnest($2::int[]) p on conflict do nothing",
        )
        .bind(self.region.0 as i16)
        .bind(numbers(partitions))
        .bind(LogHash::EMPTY.0.as_slice())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The outbox of logs, oldest steps first.
    pub async fn steps(&self, partitions: &[Partition]) -> Result<Vec<Step>, StoreError> {
        let rows = sqlx::query("select * from saga_step where region = $1 and partition = any($2) order by partition, position, kind")
            .bind(self.region.0 as i16)
            .bind(numbers(partitions))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| rows::step(row, self.region)).collect()
    }

    /// The timers of logs that are due, at most `limit`, the longest due first.
    pub async fn due(&self, partitions: &[Partition], now: UnixMillis, limit: u32) -> Result<Vec<Timer>, StoreError> {
        let rows =
            sqlx::query("select * from saga_timer where region = $1 and due_ms <= $3 and partition = any($2) order by due_ms limit $4")
                .bind(self.region.0 as i16)
                .bind(numbers(partitions))
                .bind(now.0)
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
                .await?;
        rows.iter().map(|row| rows::timer(row, self.region)).collect()
    }

    /// Those of `orders` that are remembered.
    pub async fn placed(&self, orders: &[OrderKey]) -> Result<BTreeMap<OrderKey, Placed>, StoreError> {
        if orders.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows = sqlx::query(
            "select o.partition, o.order_id, o.schema_version, o.placed from unnest($2::int[], $3::text[]) i(partition, order_id) \
             join saga_order o on o.region = $1 and o.partition = i.partition and o.order_id = i.order_id",
        )
        .bind(self.region.0 as i16)
        .bind(orders.iter().map(|(log, _)| i32::from(log.partition.0)).collect::<Vec<_>>())
        .bind(orders.iter().map(|(_, order)| order.to_string()).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        let placed = |row: &PgRow| {
            let order: &str = row.try_get("order_id")?;
            let order = order.parse().map_err(|_| StoreError::Corrupt(format!("order id '{order}'")))?;
            let placed = rows::placed(&order, row.try_get("schema_version")?, row.try_get("placed")?)?;
            Ok(((self.log(row.try_get("partition")?), order), placed))
        };
        rows.iter().map(placed).collect()
    }

    /// Carries changes out in one statement. Returns the logs whose part was written; of the others nothing was: another
    /// process has taken them over, or the log does not hold the event their checkpoint would have moved to.
    pub async fn apply(&self, changes: &Changes) -> Result<Vec<LogId>, StoreError> {
        let rows = rows::bind(self.region, changes).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok(self.log(row.try_get("partition")?))).collect()
    }

    fn log(&self, partition: i32) -> LogId {
        LogId { region: self.region, partition: Partition(partition as u16) }
    }
}

fn numbers(partitions: &[Partition]) -> Vec<i32> {
    partitions.iter().map(|partition| i32::from(partition.0)).collect()
}
