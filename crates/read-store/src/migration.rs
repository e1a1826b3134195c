//! Migrations of the read store's own tables. Expand first, contract in a later release.

use sea_orm_migration::{
    MigrationName, MigrationTrait, MigratorTrait, SchemaManager, async_trait,
    sea_orm::{
        ConnectionTrait, DbErr, DynIden,
        sea_query::{Alias, IntoIden},
    },
};

pub(crate) struct StoreMigrator;

impl MigratorTrait for StoreMigrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(M0001Foundation), Box::new(M0002Topology), Box::new(M0003Rebuilding)]
    }

    fn migration_table_name() -> DynIden {
        Alias::new("read_store_migration").into_iden()
    }
}

struct M0001Foundation;

impl MigrationName for M0001Foundation {
    fn name(&self) -> &str {
        "m0001_foundation"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0001Foundation {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(FOUNDATION).await?;
        Ok(())
    }
}

struct M0002Topology;

impl MigrationName for M0002Topology {
    fn name(&self) -> &str {
        "m0002_topology"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0002Topology {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(TOPOLOGY).await?;
        Ok(())
    }
}

struct M0003Rebuilding;

impl MigrationName for M0003Rebuilding {
    fn name(&self) -> &str {
        "m0003_rebuilding"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0003Rebuilding {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(REBUILDING).await?;
        Ok(())
    }
}

/// Whether a log's views were emptied and lack what the log has; in the row that every reader's snapshot brings anyway.
const REBUILDING: &str = "alter table read_checkpoint add column rebuilding boolean not null default false";

/// The regions whose logs have a place here; the row stands in the first read database only.
const TOPOLOGY: &str = r#"
create table read_topology (
    singleton boolean primary key default true check (singleton),
    version bigint not null,
    document text not null
);
"#;

/// The checkpoint is updated in every transaction: room on its pages keeps those updates heap-only.
const FOUNDATION: &str = r#"
create table read_installation (
    singleton boolean primary key default true check (singleton),
    id uuid not null,
    region smallint not null,
    partitions int not null check (partitions > 0),
    created_ms bigint not null
);
create table read_placement (
    region smallint not null,
    partition int not null,
    database text collate "C" not null,
    version bigint not null,
    primary key (region, partition)
);
create table read_checkpoint (
    region smallint not null,
    partition int not null,
    fence bigint not null,
    holder text collate "C" not null default '',
    epoch bigint not null,
    position bigint not null,
    hash bytea not null,
    revision int not null,
    parked int not null default 0,
    repaired_ms bigint not null default 0,
    updated_ms bigint not null,
    primary key (region, partition)
) with (fillfactor = 20);
create table read_replica (
    role text collate "C" not null,
    id text collate "C" not null,
    address text not null,
    heartbeat_at timestamptz not null,
    primary key (role, id)
);
create table parked_event (
    region smallint not null,
    partition int not null,
    position bigint not null,
    stream text collate "C" not null,
    envelope bytea not null,
    reason text not null,
    parked_ms bigint not null,
    primary key (region, partition, position)
);
create index parked_event_by_stream on parked_event (region, partition, stream, position);
"#;
