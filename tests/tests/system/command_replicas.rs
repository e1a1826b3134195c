use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use souk_devstack::Service;
use souk_proto::{orders::v1::OrderState, stock::v1::ReceiveStockRequest};
use souk_tests::{Shop, System, until};

use super::faults::loaded_system;

const PATIENCE: Duration = Duration::from_secs(60);
const FIRST: (Service, u16) = (Service::Command, 1);
const SECOND: (Service, u16) = (Service::Command, 2);

/// Partitions that each replica of a service says it owns, by its name.
pub(super) async fn owned(system: &System, service: Service) -> Result<Vec<(String, usize)>> {
    let output = system.souk(&["status", "--json"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let processes = status["processes"].as_array().into_iter().flatten().filter(|process| process["service"] == service.name());
    let count = |process: &Value| process["figures"]["partitions_owned"].as_f64().unwrap_or_default() as usize;
    Ok(processes.map(|process| (process["replica"].as_str().unwrap_or_default().to_owned(), count(process))).collect())
}

/// Waits until so many replicas of a service own all partitions between them, each some.
pub(super) async fn shared_by(system: &System, service: Service, replicas: usize) -> Result<()> {
    until(&format!("partitions shared by {replicas}"), PATIENCE, || async {
        let owned = owned(system, service).await?;
        let shared = owned.len() == replicas
            && owned.iter().all(|(_, count)| *count > 0)
            && owned.iter().map(|(_, count)| count).sum::<usize>() == 64;
        Ok(shared.then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn any_replica_takes_any_command() -> Result<()> {
    let system = System::start(|options| {
        options.replicas(Service::Command, 2);
    })
    .await?;
    shared_by(&system, Service::Command, 2).await?;
    for replica in [1, 2] {
        // Look-ups of prices and reservations cross the replicas, too.
        let shop = Shop(system.client_of(replica, 1)?.session().caller("test"));
        for number in 0..20 {
            let product = format!("p-{replica}-{number}");
            shop.sell(&product, 100, 5).await?;
            let order = shop.order(&format!("c-{number}"), &product, 2, true).await?;
            ensure!(order.state() == OrderState::AwaitingPayment, "{order:?}");
            shop.pay(&order.order_id, 200).await?;
            ensure!(shop.see(&order.order_id).await?.state() == OrderState::Paid);
        }
        // An error of the owner comes back unchanged.
        for number in 0..20 {
            let unknown = ReceiveStockRequest { product_id: format!("unknown-{number}"), quantity: 1, ..Default::default() };
            let told = shop.0.command(unknown).await;
            ensure!(told.as_ref().is_err_and(|error| error.reason() == "PRODUCT_NOT_FOUND"), "{told:?}");
        }
    }
    system.audit_clean().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_outcome_is_told_it_wherever_its_log_has_gone_meanwhile() -> Result<()> {
    const ORDERS: usize = 64;
    let process_manager = (Service::Saga, 1);
    let mut system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?.caller("test"));
    shop.sell("lamp", 100, ORDERS as i64).await?;
    // Nobody reserves anything: all wait, at the only owner there is.
    system.kill(process_manager).await?;
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..ORDERS {
        let shop = Shop(system.client()?.session().caller("test").deadline(Duration::from_secs(300)));
        waiting.spawn(async move { shop.order(&format!("c-{number}"), "lamp", 1, true).await });
    }
    let pool = system.write_pools().await?.remove(0);
    until("all orders placed", PATIENCE, || async {
        let placed: i64 = sqlx::query_scalar("select count(*) from event where type = 'OrderPlaced'").fetch_one(&pool).await?;
        Ok((placed == ORDERS as i64).then_some(()))
    })
    .await?;
    let second = system.add_replica(Service::Command).await?;
    shared_by(&system, Service::Command, 2).await?;
    ensure!(waiting.try_join_next().is_none(), "somebody was answered before there was an outcome");
    system.start_again(process_manager).await?;
    let told = tokio::time::timeout(PATIENCE, waiting.join_all()).await.context("not all who waited were answered")?;
    for order in told {
        let order = order?;
        ensure!(order.state() == OrderState::AwaitingPayment, "{order:?}");
    }
    system.remove_replica(second).await?;
    system.audit_clean().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_come_go_die_and_pause_without_an_error_to_a_caller() -> Result<()> {
    let (mut system, load) = loaded_system(|options| {
        options.replicas(Service::Command, 2);
    })
    .await?;
    shared_by(&system, Service::Command, 2).await?;
    load.progress("shared by two").await?;
    for round in 1..=3 {
        for replica in [FIRST, SECOND] {
            system.stop(replica).await?;
            load.progress(&format!("rolling restart {round}: {} stopped", replica.1)).await?;
            system.start_again(replica).await?;
            shared_by(&system, Service::Command, 2).await?;
        }
    }
    let third = system.add_replica(Service::Command).await?;
    shared_by(&system, Service::Command, 3).await?;
    load.progress("scaled out to three").await?;
    system.remove_replica(third).await?;
    shared_by(&system, Service::Command, 2).await?;
    load.progress("scaled in to two").await?;
    for replica in [FIRST, SECOND] {
        system.kill(replica).await?;
        load.progress(&format!("{} killed", replica.1)).await?;
        system.start_again(replica).await?;
        shared_by(&system, Service::Command, 2).await?;

        // Past its lease: the other takes over, and what the paused one believed is fenced when it wakes.
        system.pause(replica)?;
        load.progress(&format!("{} paused", replica.1)).await?;
        until("the other owns all", PATIENCE, || async {
            Ok(owned(&system, Service::Command).await?.iter().any(|(_, count)| *count == 64).then_some(()))
        })
        .await?;
        system.resume(replica)?;
        shared_by(&system, Service::Command, 2).await?;
        load.progress(&format!("{} resumed", replica.1)).await?;
    }
    let errors = load.never_answered();
    load.settle(&system).await?;
    ensure!(errors == 0, "{errors} callers were not answered in a minute");
    Ok(())
}
