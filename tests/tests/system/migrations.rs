use std::{process::Stdio, time::Duration};

use anyhow::{Result, ensure};
use souk_client::{Endpoints, Souk};
use souk_devstack::{Replica, Service, Stack, readiness, souk_program};
use souk_tests::{Shop, System, until};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);

/// `souk migrate`, as a job of a deployment runs it.
async fn migrate(stack: &Stack) -> Result<()> {
    let mut migrate = Command::new(souk_program()?);
    migrate.args(["migrate", "--patience", "60s", "--config"]).arg(stack.settings_file());
    let output = migrate.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Waits until every one of these services runs and says `reason`; `None` is ready.
async fn all_say(stack: &Stack, services: &[Service], reason: Option<&str>) -> Result<()> {
    for service in services {
        let port = stack.ports_of(Replica::from(*service))?.ops;
        until(&format!("{} says {reason:?}", service.name()), PATIENCE, || async {
            // Before its ops port is open there is nothing to hear.
            let said = readiness(port).await.unwrap_or_else(|error| Some(error.to_string()));
            let as_wanted = match (&said, reason) {
                (None, None) => true,
                (Some(said), Some(reason)) => said.contains(reason),
                _ => false,
            };
            Ok(as_wanted.then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn change(stack: &Stack, database: usize, read: bool, sql: &str) -> Result<()> {
    let databases = if read { stack.read_databases() } else { stack.write_databases() };
    let mut connection = PgConnection::connect(&databases[database].url).await?;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn services_wait_for_a_schema_they_do_not_make_and_bear_one_that_is_ahead_of_them() -> Result<()> {
    let _turn = System::turn().await;
    let mut stack = Stack::temporary(|options| {
        options.write_shards = Some(2);
        options.set("process.migrate", false);
    })
    .await?;
    for service in Service::ALONE {
        stack.start_replica(service)?;
    }
    let write_side = [Service::Command, Service::Saga];
    let read_side = [Service::Projector, Service::Query];
    all_say(&stack, &write_side, Some("the schema is too old, these migrations are missing: m0001_log in write-1")).await?;
    all_say(&stack, &read_side, Some("has no tables yet")).await?;

    // Two jobs at once, as when an upgrade is started twice.
    let (first, second) = tokio::join!(migrate(&stack), migrate(&stack));
    first.and(second)?;
    all_say(&stack, &Service::ALONE, None).await?;
    let shop = Shop(Souk::connect(&Endpoints::new(stack.urls("command"), stack.urls("query")))?.session().caller("test"));
    shop.sell("p-1", 100, 5).await?;
    shop.order("c-1", "p-1", 2, true).await?;

    // A newer release has migrated, and this one is rolled back to: it starts, and a job of its own finds nothing to do.
    let newer = |table: &str| format!("insert into {table} (version, applied_at) values ('m9999_of_a_newer_release', 0)");
    for table in ["souk_write_migration", "souk_saga_migration"] {
        change(&stack, 1, false, &newer(table)).await?;
    }
    for table in ["read_store_migration", "views_migration"] {
        change(&stack, 0, true, &newer(table)).await?;
    }
    migrate(&stack).await?;
    for service in Service::ALONE {
        stack.stop_replica(service).await?;
        stack.start_replica(service)?;
    }
    all_say(&stack, &Service::ALONE, None).await?;
    shop.order("c-2", "p-1", 2, true).await?;
    Ok(())
}
