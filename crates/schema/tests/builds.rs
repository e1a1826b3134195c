//! Two builds on one real database.

use sea_orm::{ConnectionTrait, Database, DbErr, DynIden, sea_query::IntoIden};
use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTrait, SchemaManager};
use souk_devstack::{Postgres, PostgresOptions, TemporaryFolder};
use souk_schema::{Known, missing};

struct Sql(&'static str, &'static str);

impl MigrationName for Sql {
    fn name(&self) -> &str {
        self.0
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Sql {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(self.1).await.map(drop)
    }
}

struct Older;
struct Newer;

impl MigratorTrait for Older {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Sql("m0001_thing", "create table thing (id int)"))]
    }

    fn migration_table_name() -> DynIden {
        "thing_migration".into_iden()
    }
}

impl MigratorTrait for Newer {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        let mut migrations = Older::migrations();
        migrations.push(Box::new(Sql("m0002_colour", "alter table thing add colour text")));
        migrations
    }

    fn migration_table_name() -> DynIden {
        Older::migration_table_name()
    }
}

#[tokio::test]
async fn a_build_works_on_a_newer_schema_and_names_what_an_older_one_lacks() {
    let folder = TemporaryFolder::create().unwrap();
    let options = PostgresOptions { databases: vec!["shared".into()], ..PostgresOptions::new(folder.path()) };
    let postgres = Postgres::start(options).await.unwrap();
    let database = Database::connect(postgres.url("shared")).await.unwrap();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();

    assert_eq!(missing::<Newer>(&database).await.unwrap(), names(&["m0001_thing", "m0002_colour"]));
    Known::<Older>::up(&database, None).await.unwrap();
    assert_eq!(missing::<Older>(&database).await.unwrap(), names(&[]));
    assert_eq!(missing::<Newer>(&database).await.unwrap(), names(&["m0002_colour"]));

    Known::<Newer>::up(&database, None).await.unwrap();
    assert_eq!(missing::<Newer>(&database).await.unwrap(), names(&[]));

    // Rolled back: what the newer build left is none of the older one's business.
    assert!(Older::up(&database, None).await.is_err(), "SeaORM has learnt it: `Known` is no longer needed");
    Known::<Older>::up(&database, None).await.unwrap();
    assert_eq!(missing::<Older>(&database).await.unwrap(), names(&[]));
    database.close().await.unwrap();
}
