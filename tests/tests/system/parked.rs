use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use prost::Message;
use souk_devstack::Service;
use souk_event_sourcing::{
    Epoch, EventId, Hlc, LogHash, LogId, Position, RecordedEvent, Region, StreamId, UnixMillis, Version, partition_of, routing_hash,
};
use souk_event_store::{BatchOutcome, DatabaseConfig, Lane, LogBatch, PostgresStore, StreamAdvance};
use souk_proto::{
    catalog::v1::{GetProductRequest, PriceSet},
    stock::v1::ReceiveStockRequest,
};
use souk_tests::{Shop, System, eur, until};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// An event that only a newer command service knows, and one that everybody knows behind it.
#[tokio::test]
async fn an_event_of_a_newer_command_service_parks_its_product_and_nothing_else() -> Result<()> {
    let mut system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?);
    for product in ["p-1", "p-2"] {
        shop.sell(product, 100, 10).await?;
    }
    system.stack.kill_service(Service::Command).await?;
    let stream: StreamId = "product-p-1".parse()?;
    append(&system, "p-1", &stream, &["ProductHologrammed", "PriceSet"]).await?;
    system.stack.start_service(Service::Command)?;
    system.stack.wait_until_ready(PATIENCE).await?;

    let parked = until("the product is parked", PATIENCE, || async {
        let listed = listed(&system).await?;
        Ok((!listed.is_empty()).then_some(listed))
    })
    .await?;
    ensure!(parked.len() == 1 && parked[0]["id"] == "product-p-1" && parked[0]["events"] == 2, "{parked:?}");
    // Everybody else goes on, in the same partition too.
    let reply = shop.0.command(ReceiveStockRequest { product_id: "p-1".into(), quantity: 1, ..Default::default() }).await?;
    ensure!(shop.stock("p-1").await?.version >= reply.version);
    ensure!(shop.stock("p-2").await?.on_hand == 10);
    // The session carries the token of what was received, which lies past the parked event.
    let refused = shop.0.query(get("p-1")).await.expect_err("parked").to_string();
    ensure!(refused.contains("could not be applied"), "{refused}");
    let stale = system.session()?.query(get("p-1")).await?;
    ensure!(stale.as_of.context("as of")?.stale_since.is_some() && stale.product.context("product")?.version == 2);
    let status: serde_json::Value = serde_json::from_slice(&system.souk(&["status", "--json"]).await?.stdout)?;
    ensure!(status["totals"]["parked"] == 2, "{status:#}");
    let audit = system.audit_clean().await?;
    ensure!(audit["checked"]["parked entities"] == 1, "{audit:#}");

    // Nothing learned, nothing replayed.
    for arguments in
        [&["parked", "replay", "--dry-run", "product-p-1"][..], &["parked", "replay", "--all"], &["parked", "drop", "product-p-1"]]
    {
        let output = system.souk(arguments).await?;
        ensure!(!output.status.success(), "{arguments:?}: {output:?}");
    }
    ensure!(listed(&system).await?.len() == 1);
    let dropped = system.souk(&["parked", "drop", "product-p-1", "--yes"]).await?;
    ensure!(dropped.status.success(), "{dropped:?}");
    ensure!(listed(&system).await?.is_empty());
    let seen = shop.0.query(get("p-1")).await?;
    ensure!(seen.as_of.context("as of")?.stale_since.is_none() && seen.product.context("product")?.version == 4);
    // The price that was set is known to the log alone.
    let audit = system.audit().await?;
    ensure!(audit["wrong"]["view fold"].as_u64().is_some_and(|found| found > 0), "{audit:#}");
    Ok(())
}

fn get(product: &str) -> GetProductRequest {
    GetProductRequest { product_id: product.into(), token: String::new() }
}

async fn listed(system: &System) -> Result<Vec<serde_json::Value>> {
    let output = system.souk(&["parked", "list", "--json"]).await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// Appends events of these types, all with a price as payload, as an owner of the log does.
async fn append(system: &System, routing_key: &str, stream: &StreamId, kinds: &[&str]) -> Result<()> {
    let run = system.stack.run_file()?;
    let region = Region(run.region_number);
    let log = LogId { region, partition: partition_of(routing_hash(routing_key), run.partitions) };
    let config = |database: souk_devstack::DatabaseUrl| DatabaseConfig::new(database.name, database.url, 2);
    let configs: Vec<_> = system.stack.write_databases().into_iter().map(config).collect();
    let store = PostgresStore::connect(&configs, region, run.partitions).await?;
    let database = store.database_of(log.partition).context("the log is placed")?.to_owned();
    let ownership = store.ownership("newer-command");
    let taken = ownership.take(&database, &[log.partition], Duration::ZERO).await?;
    let belief = taken.first().context("the log is free")?.belief;
    let expected: i64 = sqlx::query_scalar("select version from stream_head where stream = $1")
        .bind(stream.as_str())
        .fetch_one(store.pool_of(log.partition).context("the log is placed")?)
        .await?;
    let mut events: Vec<Arc<RecordedEvent>> = Vec::new();
    for (kind, number) in kinds.iter().zip(1..) {
        let before = events.last().map_or(belief.hash, |event| event.hash);
        let mut event = RecordedEvent {
            log,
            position: Position(belief.position.0 + number),
            epoch: belief.epoch,
            hash: LogHash::EMPTY,
            stream: stream.clone(),
            version: Version(expected as u64 + number),
            kind: (*kind).to_owned(),
            schema_version: 1,
            payload: PriceSet { price: Some(eur(7)) }.encode_to_vec().into(),
            event_id: EventId(Uuid::new_v4()),
            request_id: None,
            causation_id: None,
            correlation_id: None,
            actor: "newer-command".to_owned(),
            hlc: Hlc::new(UnixMillis::now(), 0),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = before.after(&event);
        events.push(Arc::new(event));
    }
    let expected = Version(expected as u64);
    let new = Version(expected.0 + events.len() as u64);
    let streams = vec![StreamAdvance { stream: stream.clone(), expected, new }];
    let batch = LogBatch { log, belief, ledger: Vec::new(), streams, events };
    let outcomes = store.lane(&database).context("the database is known")?.append(&[batch]).await?;
    ensure!(matches!(outcomes[..], [BatchOutcome::Done]), "{outcomes:?}");
    ownership.release().await?;
    Ok(())
}
