use sea_orm_migration::prelude::*;

/// Migrations of the process manager's tables, which stand in every write database beside the logs.
pub(super) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Saga), Box::new(Replica)]
    }

    fn migration_table_name() -> DynIden {
        "souk_saga_migration".into_iden()
    }
}

struct Saga;

impl MigrationName for Saga {
    fn name(&self) -> &str {
        "m0001_saga"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Saga {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("m0001_saga.sql")).await.map(drop)
    }
}

struct Replica;

impl MigrationName for Replica {
    fn name(&self) -> &str {
        "m0002_replica"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Replica {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(include_str!("m0002_replica.sql")).await.map(drop)
    }
}
