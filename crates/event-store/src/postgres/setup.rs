use std::{collections::HashMap, str::FromStr, time::Duration};

use souk_event_sourcing::{LogId, Partition, Region};
use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

use super::{
    PostgresLane, lane,
    migration::{Migrator, migrate_guarded, missing_migrations},
};
use crate::StoreError;

/// One write database: its name in the placement table and where to reach it.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    pub name: String,
    pub url: String,
    /// The same database through a pooler in transaction mode, for all but migrations and the append.
    pub pooled_url: Option<String>,
    /// Pool for everything but the append, which has a connection of its own.
    pub max_connections: u32,
}

impl DatabaseConfig {
    /// A database without a pooler before it.
    pub fn new(name: impl Into<String>, url: impl Into<String>, max_connections: u32) -> Self {
        Self { name: name.into(), url: url.into(), pooled_url: None, max_connections }
    }
}

pub(super) struct Database {
    pub(super) name: String,
    pub(super) pool: PgPool,
    /// Of the append's own connection.
    options: PgConnectOptions,
}

/// The write databases of one region.
pub struct PostgresStore {
    pub(super) region: Region,
    pub(super) databases: Vec<Database>,
    pub(super) placement: HashMap<Partition, usize>,
    installation: Uuid,
}

impl PostgresStore {
    /// Brings the schema of every database up to date; harmless when two processes do it at once.
    ///
    /// # Errors
    /// When a database cannot be reached or a migration fails.
    pub async fn migrate(configs: &[DatabaseConfig]) -> Result<(), StoreError> {
        for config in configs {
            migrate_guarded::<Migrator>(&config.url).await?;
        }
        Ok(())
    }

    /// What keeps this build from working on the databases: each migration that is missing, with its database. Empty when all
    /// are there, whatever a newer build may have added.
    ///
    /// # Errors
    /// When a database cannot be reached.
    pub async fn missing_migrations(configs: &[DatabaseConfig]) -> Result<Vec<String>, StoreError> {
        let mut missing = Vec::new();
        for config in configs {
            let names = missing_migrations::<Migrator>(config.pooled_url.as_ref().unwrap_or(&config.url)).await?;
            missing.extend(names.into_iter().map(|name| format!("{name} in {}", config.name)));
        }
        Ok(missing)
    }

    /// Connects to migrated databases. The first start of an installation fixes its partition count and places the
    /// partitions round robin over the databases given; later starts read both and place nothing anew.
    ///
    /// # Errors
    /// `Setup` when the databases belong to different installations, the partition count differs, or the placement
    /// names a database that the configuration does not.
    pub async fn connect(configs: &[DatabaseConfig], region: Region, partitions: u16) -> Result<Self, StoreError> {
        let mut databases = Vec::with_capacity(configs.len());
        for config in configs {
            let options = |url: &str| {
                let options = PgConnectOptions::from_str(url)?.application_name("souk-write").statement_cache_capacity(lane::STATEMENTS);
                Ok::<_, sqlx::Error>(options.disable_statement_logging())
            };
            let pooled = options(config.pooled_url.as_ref().unwrap_or(&config.url))?;
            let pool = PgPoolOptions::new()
                .max_connections(config.max_connections)
                .acquire_timeout(Duration::from_secs(5))
                .test_before_acquire(false)
                .connect_lazy_with(pooled);
            databases.push(Database { name: config.name.clone(), pool, options: options(&config.url)? });
        }
        let first = databases.first().ok_or_else(|| StoreError::Setup("no write database is configured".into()))?;
        let installation = installation(&first.pool, partitions).await?;
        for other in &databases[1..] {
            adopt(other, installation, partitions).await?;
        }
        let placement = placement(&databases, region, partitions).await?;
        let store = Self { region, databases, placement, installation };
        store.seed_heads().await?;
        Ok(store)
    }

    /// Identity of this installation; streams and stores that carry another one are foreign.
    pub const fn installation(&self) -> Uuid {
        self.installation
    }

    pub const fn region(&self) -> Region {
        self.region
    }

    /// Waits for what is under way and closes all connections of the pools.
    pub async fn close(&self) {
        for database in &self.databases {
            database.pool.close().await;
        }
    }

    /// Names of the databases in the order configured.
    pub fn databases(&self) -> impl Iterator<Item = &str> {
        self.databases.iter().map(|database| database.name.as_str())
    }

    /// Name of the database that holds a partition.
    pub fn database_of(&self, partition: Partition) -> Option<&str> {
        self.placement.get(&partition).map(|index| self.databases[*index].name.as_str())
    }

    /// The pool of the database that holds a partition, for tables beside the log such as a process manager's.
    pub fn pool_of(&self, partition: Partition) -> Option<&PgPool> {
        self.placement.get(&partition).map(|index| &self.databases[*index].pool)
    }

    /// Pools of all databases, by name.
    pub fn pools(&self) -> impl Iterator<Item = (&str, &PgPool)> {
        self.databases.iter().map(|database| (database.name.as_str(), &database.pool))
    }

    pub(super) fn pool_named(&self, database: &str) -> Result<&PgPool, StoreError> {
        let found = self.databases.iter().find(|candidate| candidate.name == database);
        found.map(|found| &found.pool).ok_or_else(|| StoreError::Setup(format!("no write database is named '{database}'")))
    }

    /// The partitions a database holds, in order.
    pub fn partitions_of(&self, database: &str) -> Vec<Partition> {
        let mut partitions: Vec<_> =
            self.placement.iter().filter(|(_, index)| self.databases[**index].name == database).map(|(partition, _)| *partition).collect();
        partitions.sort();
        partitions
    }

    /// A committer's door to the logs of one database.
    pub fn lane(&self, database: &str) -> Option<PostgresLane> {
        let database = self.databases.iter().find(|candidate| candidate.name == database)?;
        Some(PostgresLane::new(self.region, database.options.clone()))
    }

    /// Of the database that holds what is told once per region.
    pub(super) fn first(&self) -> &PgPool {
        &self.databases[0].pool
    }

    /// Copies of other regions' logs lie beside this region's own log of the partition.
    pub(super) fn pool(&self, log: LogId) -> Result<&PgPool, StoreError> {
        let index = self.placement.get(&log.partition);
        index.map(|index| &self.databases[*index].pool).ok_or_else(|| StoreError::Setup(format!("log {log} is not placed here")))
    }

    async fn seed_heads(&self) -> Result<(), StoreError> {
        for database in &self.databases {
            let partitions: Vec<i32> = self.partitions_of(&database.name).iter().map(|partition| i32::from(partition.0)).collect();
            sqlx::query(
                "insert into partition_head (region, partition, hash) select $1, p, $3 from unnest($2::int[]) p \
                 where not exists (select from partition_head h where h.region = $1 and h.partition = p) on conflict do nothing",
            )
            .bind(self.region.0 as i16)
            .bind(partitions)
            .bind([0u8; 16].as_slice())
            .execute(&database.pool)
            .await?;
        }
        Ok(())
    }
}

/// Reads the installation row of the first database, or makes it.
async fn installation(pool: &PgPool, partitions: u16) -> Result<Uuid, StoreError> {
    sqlx::query("insert into installation (id, partitions) values ($1, $2) on conflict do nothing")
        .bind(Uuid::new_v4())
        .bind(i32::from(partitions))
        .execute(pool)
        .await?;
    let (id, stored): (Uuid, i32) = sqlx::query_as("select id, partitions from installation").fetch_one(pool).await?;
    check_partitions(stored, partitions)?;
    Ok(id)
}

/// Marks another database as part of the installation, or finds that it is part of a different one.
async fn adopt(database: &Database, installation: Uuid, partitions: u16) -> Result<(), StoreError> {
    sqlx::query("insert into installation (id, partitions) values ($1, $2) on conflict do nothing")
        .bind(installation)
        .bind(i32::from(partitions))
        .execute(&database.pool)
        .await?;
    let (id, stored): (Uuid, i32) = sqlx::query_as("select id, partitions from installation").fetch_one(&database.pool).await?;
    if id != installation {
        return Err(StoreError::Setup(format!(
            "write database '{}' belongs to another installation ({id}, not {installation})",
            database.name
        )));
    }
    check_partitions(stored, partitions)
}

fn check_partitions(stored: i32, configured: u16) -> Result<(), StoreError> {
    if stored == i32::from(configured) {
        return Ok(());
    }
    Err(StoreError::Setup(format!("this installation has {stored} partitions for ever; the configuration says {configured}")))
}

/// Reads the placement of the first database, or makes it round robin.
async fn placement(databases: &[Database], region: Region, partitions: u16) -> Result<HashMap<Partition, usize>, StoreError> {
    let first = &databases[0].pool;
    let numbers: Vec<i32> = (0..i32::from(partitions)).collect();
    let names: Vec<&str> = numbers.iter().map(|number| databases[*number as usize % databases.len()].name.as_str()).collect();
    sqlx::query(
        "insert into placement (region, partition, database) select $1, i.partition, i.database from unnest($2::int[], $3::text[]) i(partition, database) \
         where not exists (select from placement p where p.region = $1) on conflict do nothing",
    )
    .bind(region.0 as i16)
    .bind(&numbers)
    .bind(&names)
    .execute(first)
    .await?;
    let rows: Vec<(i32, String)> =
        sqlx::query_as("select partition, database from placement where region = $1").bind(region.0 as i16).fetch_all(first).await?;
    rows.into_iter()
        .map(|(partition, name)| {
            let index = databases.iter().position(|database| database.name == name);
            let index =
                index.ok_or_else(|| StoreError::Setup(format!("partition {partition} is placed in '{name}', which is not configured")))?;
            Ok((Partition(partition as u16), index))
        })
        .collect()
}
