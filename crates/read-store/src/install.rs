use futures::future::try_join_all;
use sea_orm::{ActiveValue::Set, ConnectionTrait, DbErr, EntityTrait, Statement, TransactionTrait, sea_query::OnConflict};
use sea_orm_migration::MigratorTrait;
use souk_event_sourcing::{LogId, Region, Topology, UnixMillis};
use souk_schema::Known;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Access, Database, DatabaseConfig, ReadStore, ReadStoreError,
    entity::{checkpoint, installation, placement},
    migration::StoreMigrator,
    store::connect,
};

/// What all read databases of a region must agree on, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Installation {
    /// The region these databases serve.
    pub region: Region,
    /// Number of partitions of every log.
    pub partitions: u16,
}

/// Key of the lock that serialises migrations of one database; any constant of ours will do.
const MIGRATION_LOCK: i64 = 0x736f_756b_5f72_6431;

impl ReadStore {
    /// Connects for writing and brings the databases up to date: the store's own tables, then those of `M`, the
    /// installation's id, the placement of every log and its checkpoint. Safe to run by several processes at once and
    /// again at every start.
    ///
    /// Logs are placed round robin over the databases known at the first start. A database added later stays empty until
    /// a log is moved there.
    ///
    /// # Errors
    /// As [`ReadStore::open`].
    pub async fn install<M: MigratorTrait>(
        configs: &[DatabaseConfig],
        installation: Installation,
        now: UnixMillis,
    ) -> Result<Self, ReadStoreError> {
        if installation.partitions == 0 {
            return Err(ReadStoreError::BadConfiguration);
        }
        let databases = connect(configs, Access::Write).await?;
        // One after the other, the first one first: it mints the id that the others take.
        let mut id = None;
        for database in &databases {
            id = Some(migrate::<M>(database, installation, id, now).await?);
        }
        seed_placement(&databases, installation.region, installation.partitions).await?;
        let store = Self::with(databases, installation).await?;
        try_join_all(store.databases().iter().map(|database| seed_checkpoints(database, store.logs_of(database.name()), now))).await?;
        Ok(store)
    }
}

impl ReadStore {
    /// Gives the logs of all regions a place and a checkpoint, and then tells readers of the regions. Returns the store with
    /// these logs; the same pools are behind both.
    ///
    /// # Errors
    /// When a database does not answer.
    pub async fn admit(&self, topology: &Topology, now: UnixMillis) -> Result<Self, ReadStoreError> {
        for region in topology.regions() {
            seed_placement(self.databases(), region, self.installation().partitions).await?;
        }
        let store = self.reread().await?;
        try_join_all(store.databases().iter().map(|database| seed_checkpoints(database, store.logs_of(database.name()), now))).await?;
        let first = &self.databases()[0];
        let document = serde_json::to_string(topology)
            .map_err(|error| ReadStoreError::Corrupt { table: "read_topology".to_owned(), reason: error.to_string() })?;
        sqlx::query(
            "insert into read_topology as t (version, document) values ($1, $2) \
             on conflict (singleton) do update set version = excluded.version, document = excluded.document where t.version < excluded.version",
        )
        .bind(topology.version() as i64)
        .bind(document)
        .execute(first.pool())
        .await
        .map_err(ReadStoreError::database(first.name()))?;
        Ok(store)
    }

    /// The topology whose logs have a place here; `None` when it is this region alone.
    ///
    /// # Errors
    /// When the first database does not answer.
    pub async fn topology(&self) -> Result<Option<Topology>, ReadStoreError> {
        let first = &self.databases()[0];
        let stored: Option<String> = sqlx::query_scalar("select document from read_topology")
            .fetch_optional(first.pool())
            .await
            .map_err(ReadStoreError::database(first.name()))?;
        let corrupt = |error: serde_json::Error| ReadStoreError::Corrupt { table: "read_topology".to_owned(), reason: error.to_string() };
        stored.map(|document| serde_json::from_str(&document).map_err(corrupt)).transpose()
    }
}

/// Names of the migrations, the store's own and those of `M`, that a database lacks; writes nothing.
///
/// # Errors
/// When the database does not answer.
pub async fn missing_migrations<M: MigratorTrait>(database: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
    let mut missing = souk_schema::missing::<StoreMigrator>(database).await?;
    missing.extend(souk_schema::missing::<M>(database).await?);
    Ok(missing)
}

/// Migrates one database under a lock and a transaction; returns its installation id, which is `id` if it had none.
async fn migrate<M: MigratorTrait>(
    database: &Database,
    installation: Installation,
    id: Option<Uuid>,
    now: UnixMillis,
) -> Result<Uuid, ReadStoreError> {
    let orm = ReadStoreError::orm;
    let name = database.name();
    let transaction = database.orm().begin().await.map_err(orm(name))?;
    let lock =
        Statement::from_sql_and_values(transaction.get_database_backend(), "select pg_advisory_xact_lock($1)", [MIGRATION_LOCK.into()]);
    transaction.execute_raw(lock).await.map_err(orm(name))?;
    // Unlike rows, tables and ids must not go back after a crash.
    transaction.execute_unprepared("set local synchronous_commit = on").await.map_err(orm(name))?;
    Known::<StoreMigrator>::up(&transaction, None).await.map_err(orm(name))?;
    Known::<M>::up(&transaction, None).await.map_err(orm(name))?;
    let row = installation::ActiveModel {
        singleton: Set(true),
        id: Set(id.unwrap_or_else(Uuid::new_v4)),
        region: Set(installation.region.0 as i16),
        partitions: Set(i32::from(installation.partitions)),
        created_ms: Set(now.0),
    };
    installation::Entity::insert(row)
        .on_conflict(OnConflict::column(installation::Column::Singleton).do_nothing().to_owned())
        .exec_without_returning(&transaction)
        .await
        .map_err(orm(name))?;
    let stored = installation::Entity::find().one(&transaction).await.map_err(orm(name))?;
    transaction.commit().await.map_err(orm(name))?;
    stored.map(|row| row.id).ok_or_else(|| ReadStoreError::NotInstalled(name.to_owned()))
}

/// Places a region's logs in the first database, unless they are placed.
async fn seed_placement(databases: &[Database], region: Region, partitions: u16) -> Result<(), ReadStoreError> {
    let first = &databases[0];
    let rows = (0..partitions).map(|partition| placement::ActiveModel {
        region: Set(region.0 as i16),
        partition: Set(i32::from(partition)),
        database: Set(databases[usize::from(partition) % databases.len()].name().to_owned()),
        version: Set(1),
    });
    // All logs or none: where one is placed, a first start has placed them all.
    let transaction = first.orm().begin().await.map_err(ReadStoreError::orm(first.name()))?;
    transaction.execute_unprepared("set local synchronous_commit = on").await.map_err(ReadStoreError::orm(first.name()))?;
    placement::Entity::insert_many(rows)
        .on_conflict(OnConflict::columns([placement::Column::Region, placement::Column::Partition]).do_nothing().to_owned())
        .exec_without_returning(&transaction)
        .await
        .map_err(ReadStoreError::orm(first.name()))?;
    transaction.commit().await.map_err(ReadStoreError::orm(first.name()))
}

/// Gives every log placed in `database` a checkpoint before its first event.
async fn seed_checkpoints(database: &Database, logs: Vec<LogId>, now: UnixMillis) -> Result<(), ReadStoreError> {
    if logs.is_empty() {
        return Ok(());
    }
    let rows = logs.into_iter().map(|log| checkpoint::ActiveModel {
        region: Set(log.region.0 as i16),
        partition: Set(i32::from(log.partition.0)),
        fence: Set(0),
        holder: Set(String::new()),
        epoch: Set(0),
        position: Set(0),
        hash: Set(vec![0; 16]),
        revision: Set(0),
        parked: Set(0),
        repaired_ms: Set(0),
        updated_ms: Set(now.0),
        rebuilding: Set(false),
    });
    checkpoint::Entity::insert_many(rows)
        .on_conflict(OnConflict::columns([checkpoint::Column::Region, checkpoint::Column::Partition]).do_nothing().to_owned())
        .exec_without_returning(database.orm())
        .await
        .map(|_| ())
        .map_err(ReadStoreError::orm(database.name()))
}

/// Whether every log of the region has its place and its checkpoint. A first start makes them after the tables: whoever
/// opened the store in between would take a log for one that does not exist.
pub(crate) async fn complete(store: &ReadStore, installation: Installation) -> Result<(), ReadStoreError> {
    for database in store.databases() {
        let placed = store.logs_of(database.name()).into_iter().filter(|log| log.region == installation.region).count();
        let begun: i64 = sqlx::query_scalar("select count(*) from read_checkpoint where region = $1")
            .bind(installation.region.0 as i16)
            .fetch_one(database.pool())
            .await
            .map_err(ReadStoreError::database(database.name()))?;
        if begun < placed as i64 {
            return Err(ReadStoreError::NotInstalled(database.name().to_owned()));
        }
    }
    let placed = store.logs().filter(|log| log.region == installation.region).count();
    if placed < usize::from(installation.partitions) {
        return Err(ReadStoreError::NotInstalled(store.databases()[0].name().to_owned()));
    }
    Ok(())
}

/// Compares what the databases say of themselves with each other and with the configuration.
pub(crate) async fn check(databases: &[Database], configured: Installation) -> Result<(), ReadStoreError> {
    let mut first = None;
    for database in databases {
        let stored = read(database.pool()).await.map_err(ReadStoreError::database(database.name()))?;
        let (id, stored) = stored.ok_or_else(|| ReadStoreError::NotInstalled(database.name().to_owned()))?;
        let (first_name, first_id) = *first.get_or_insert((database.name(), id));
        if id != first_id {
            return Err(ReadStoreError::ForeignDatabase { database: database.name().to_owned(), first: first_name.to_owned() });
        }
        if stored.partitions != configured.partitions {
            return Err(ReadStoreError::PartitionCount { stored: stored.partitions, configured: configured.partitions });
        }
        if stored.region != configured.region {
            return Err(ReadStoreError::WrongRegion { stored: stored.region, configured: configured.region });
        }
    }
    Ok(())
}

/// The installation row; `None` when there is no table or no row yet.
async fn read(pool: &PgPool) -> Result<Option<(Uuid, Installation)>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("select to_regclass('read_installation') is not null").fetch_one(pool).await?;
    if !exists {
        return Ok(None);
    }
    let row: Option<(Uuid, i16, i32)> = sqlx::query_as("select id, region, partitions from read_installation").fetch_optional(pool).await?;
    Ok(row.map(|(id, region, partitions)| (id, Installation { region: Region(region as u16), partitions: partitions as u16 })))
}
