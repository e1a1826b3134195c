use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use souk_devstack::{Replica, Service};
use souk_proto::stock::v1::GetAvailabilityRequest;
use souk_tests::{Shop, System};

const SECOND: (Service, u16) = (Service::Query, 2);

/// Units on hand as one query replica shows them, with the token of what was written before.
async fn units(system: &System, shop: &Shop, replica: u16) -> Result<i64> {
    let session = system.client_of(1, replica)?.session().caller("test").deadline(Duration::from_secs(5));
    session.merge_token(&shop.0.token());
    Ok(session
        .query(GetAvailabilityRequest { product_id: "p-1".into(), ..Default::default() })
        .await?
        .availability
        .unwrap_or_default()
        .on_hand)
}

async fn status(system: &System) -> Result<Value> {
    let output = system.souk(&["status", "--json"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn names(status: &Value, service: &str) -> Vec<String> {
    let processes = status["processes"].as_array().into_iter().flatten().filter(|process| process["service"] == service);
    processes.filter_map(|process| process["replica"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn every_query_replica_answers_for_itself_and_others_go_on_without_it() -> Result<()> {
    let mut system = System::start(|options| {
        options.replicas(Service::Query, 2);
    })
    .await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 7).await?;
    for replica in [1, 2] {
        ensure!(units(&system, &shop, replica).await? == 7, "query-{replica}");
    }
    ensure!(names(&status(&system).await?, "query") == ["query-1", "query-2"]);

    system.kill(SECOND).await?;
    ensure!(units(&system, &shop, 2).await.is_err(), "a killed replica answers");
    ensure!(units(&system, &shop, 1).await? == 7);
    let seen = status(&system).await?;
    ensure!(names(&seen, "query") == ["query-1"] && seen["silent"]["query-2"].is_string(), "{seen:#}");
    system.start_again(SECOND).await?;
    ensure!(units(&system, &shop, 2).await? == 7);

    system.pause(SECOND)?;
    ensure!(units(&system, &shop, 2).await.is_err(), "a paused replica answers");
    system.resume(SECOND)?;
    ensure!(units(&system, &shop, 2).await? == 7);

    let third = system.add_replica(Service::Query).await?;
    ensure!(third == Replica::from((Service::Query, 3)) && units(&system, &shop, 3).await? == 7);
    system.remove_replica(third).await?;
    ensure!(system.client_of(1, 3).is_err() && names(&status(&system).await?, "query").len() == 2);
    ensure!(system.remove_replica(Service::Query).await.is_err(), "the first is always there");
    system.audit_clean().await.map(drop)
}
