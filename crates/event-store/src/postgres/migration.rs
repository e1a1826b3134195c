use sea_orm_migration::{
    prelude::*,
    sea_orm::{Database, DatabaseConnection},
};
use souk_schema::Known;
use sqlx::{Connection, PgConnection};

use crate::StoreError;

/// Any number: the same for all who migrate one database, so that two starting at once wait for each other.
const MIGRATION_LOCK: i64 = 0x736f_756b_6d69_6772;

pub(super) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Log), Box::new(Restored), Box::new(Children), Box::new(Regions), Box::new(Unproven), Box::new(Checks)]
    }

    fn migration_table_name() -> DynIden {
        "souk_write_migration".into_iden()
    }
}

struct Log;

impl MigrationName for Log {
    fn name(&self) -> &str {
        "m0001_log"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Log {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("migration/m0001_log.sql")).await.map(drop)
    }
}

struct Restored;

impl MigrationName for Restored {
    fn name(&self) -> &str {
        "m0002_restored"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Restored {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("migration/m0002_restored.sql")).await.map(drop)
    }
}

struct Children;

impl MigrationName for Children {
    fn name(&self) -> &str {
        "m0003_children"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Children {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("migration/m0003_children.sql")).await.map(drop)
    }
}

struct Regions;

impl MigrationName for Regions {
    fn name(&self) -> &str {
        "m0004_regions"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Regions {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("migration/m0004_regions.sql")).await.map(drop)
    }
}

struct Unproven;

impl MigrationName for Unproven {
    fn name(&self) -> &str {
        "m0005_unproven"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Unproven {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("migration/m0005_unproven.sql")).await.map(drop)
    }
}

struct Checks;

impl MigrationName for Checks {
    fn name(&self) -> &str {
        "m0006_checks"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Checks {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("migration/m0006_checks.sql")).await.map(drop)
    }
}

/// Runs the pending migrations of `M` on the database at `url`, one process at a time; those of a newer build may stand
/// there already. The session lock needs a connection of its own that bypasses poolers in transaction mode.
///
/// # Errors
/// When the database cannot be reached or a migration fails.
pub async fn migrate_guarded<M: MigratorTrait>(url: &str) -> Result<(), StoreError> {
    let mut guard = PgConnection::connect(url).await?;
    sqlx::query("select pg_advisory_lock($1)").bind(MIGRATION_LOCK).execute(&mut guard).await?;
    let database = connect(url).await?;
    let outcome = Known::<M>::up(&database, None).await;
    database.close().await?;
    guard.close().await?;
    Ok(outcome?)
}

/// Names of the migrations of `M` that the database at `url` lacks; writes nothing.
///
/// # Errors
/// When the database cannot be reached.
pub async fn missing_migrations<M: MigratorTrait>(url: &str) -> Result<Vec<String>, StoreError> {
    let database = connect(url).await?;
    let missing = souk_schema::missing::<M>(&database).await;
    database.close().await?;
    Ok(missing?)
}

async fn connect(url: &str) -> Result<DatabaseConnection, StoreError> {
    let mut options = sea_orm_migration::sea_orm::ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Ok(Database::connect(options).await?)
}
