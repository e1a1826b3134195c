//! Migrations of a database that an older or a newer build has migrated.
//!
//! A release is rolled out, and perhaps back, while the one before it runs on the same tables. Migrations expand first and
//! contract in a later release, so a build works on what a newer one has added; only what it needs itself must be there.
//!
//! # Layout
//! - [`Known`]: runs migrations past those this build does not know
//! - [`missing`]: what this build needs and the database lacks, without writing anything

use std::marker::PhantomData;

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DbErr, DynIden, Statement};
use sea_orm_migration::{MigrationTrait, MigratorTrait, seaql_migrations::Model};

/// The migrations of `M`, on a database that may have later ones. SeaORM refuses such a database, and with it every
/// rollback.
#[derive(Debug)]
pub struct Known<M>(PhantomData<M>);

#[async_trait]
impl<M: MigratorTrait> MigratorTrait for Known<M> {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        M::migrations()
    }

    fn migration_table_name() -> DynIden {
        M::migration_table_name()
    }

    async fn get_migration_models<C: ConnectionTrait>(database: &C) -> Result<Vec<Model>, DbErr> {
        let known = M::migrations();
        let mut applied = M::get_migration_models(database).await?;
        applied.retain(|applied| known.iter().any(|known| known.name() == applied.version));
        Ok(applied)
    }
}

/// Names of the migrations of `M` that the database does not have; all of them when it has none. Needs no right but to read.
///
/// # Errors
/// When the database does not answer.
pub async fn missing<M: MigratorTrait>(database: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
    let backend = database.get_database_backend();
    let table = M::migration_table_name().to_string();
    let exists = Statement::from_sql_and_values(backend, "select to_regclass($1) is not null", [table.as_str().into()]);
    let exists = database.query_one_raw(exists).await?.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or(false);
    let mut applied: Vec<String> = Vec::new();
    if exists {
        for row in database.query_all_raw(Statement::from_string(backend, format!("select version from {table}"))).await? {
            applied.push(row.try_get_by_index(0)?);
        }
    }
    let needed = M::migrations().into_iter().map(|migration| migration.name().to_owned());
    Ok(needed.filter(|name| !applied.contains(name)).collect())
}
