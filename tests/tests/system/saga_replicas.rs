use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use souk_devstack::Service;
use souk_tests::{System, until};
use sqlx::PgPool;

use super::{
    command_replicas::{owned, shared_by},
    faults::{Load, loaded_system},
};

const PATIENCE: Duration = Duration::from_secs(60);
const FIRST: (Service, u16) = (Service::Saga, 1);
const SECOND: (Service, u16) = (Service::Saga, 2);

/// Waits until all that had to be done when this began is done, and the load has gone on.
async fn heals(system: &System, load: &Load, fault: &str) -> Result<()> {
    let started = Instant::now();
    for pool in system.write_pools().await? {
        let heads: Vec<(i32, i64)> = sqlx::query_as("select partition, position from partition_head").fetch_all(&pool).await?;
        until(&format!("orders proceed after {fault}"), PATIENCE, || async { Ok((undone(&pool, &heads).await? == 0).then_some(())) })
            .await?;
    }
    println!("{fault}: all that was due is done after {:.1} s", started.elapsed().as_secs_f64());
    load.progress(fault).await
}

/// Logs whose events up to a head are not applied, or lead to steps that are not answered. Kinds above 3 come from timers,
/// of which there are always some.
async fn undone(pool: &PgPool, heads: &[(i32, i64)]) -> Result<i64> {
    let (partitions, positions): (Vec<_>, Vec<_>) = heads.iter().copied().unzip();
    let undone = sqlx::query_scalar(
        "select count(*) from unnest($1::int[], $2::bigint[]) i(partition, position) join saga_checkpoint c using (partition) \
         where c.position < i.position or exists (select from saga_step s \
           where s.region = c.region and s.partition = c.partition and s.position <= i.position and s.kind <= 3)",
    );
    Ok(undone.bind(partitions).bind(positions).fetch_one(pool).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn process_managers_come_go_die_and_pause_and_every_order_goes_on() -> Result<()> {
    let (mut system, load) = loaded_system(|options| {
        options.replicas(Service::Saga, 2);
    })
    .await?;
    shared_by(&system, Service::Saga, 2).await?;
    heals(&system, &load, "shared by two").await?;
    for replica in [FIRST, SECOND] {
        system.stop(replica).await?;
        heals(&system, &load, &format!("{} stopped", replica.1)).await?;
        system.start_again(replica).await?;
        shared_by(&system, Service::Saga, 2).await?;
    }
    let third = system.add_replica(Service::Saga).await?;
    shared_by(&system, Service::Saga, 3).await?;
    heals(&system, &load, "scaled out to three").await?;
    system.remove_replica(third).await?;
    shared_by(&system, Service::Saga, 2).await?;
    heals(&system, &load, "scaled in to two").await?;
    for replica in [FIRST, SECOND] {
        system.kill(replica).await?;
        heals(&system, &load, &format!("{} killed", replica.1)).await?;
        system.start_again(replica).await?;
        shared_by(&system, Service::Saga, 2).await?;

        // Past its lease: the other takes over, and what the paused one still writes is fenced when it wakes.
        system.pause(replica)?;
        heals(&system, &load, &format!("{} paused", replica.1)).await?;
        until("the other owns all", PATIENCE, || async {
            Ok(owned(&system, Service::Saga).await?.iter().any(|(_, count)| *count == 64).then_some(()))
        })
        .await?;
        system.resume(replica)?;
        shared_by(&system, Service::Saga, 2).await?;
        heals(&system, &load, &format!("{} resumed", replica.1)).await?;
    }
    let errors = load.never_answered();
    load.settle(&system).await?;
    ensure!(errors == 0, "{errors} callers were not answered in a minute");
    Ok(())
}
