use std::{pin::pin, time::Duration};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use souk_proto::{orders::v1::OrderState, stock::v1::ReceiveStockRequest};
use souk_tests::{Shop, System, until};
use sqlx::PgPool;
use tokio::time::timeout;

/// Damage, and the kind of difference the audit must name.
const DAMAGE_OF_THE_LOG: &[(&str, &str, &str)] = &[
    (
        "hash",
        "update event set actor = 'mallory' where stream = 'stock-p-1' and version = 3",
        "update event set actor = 'test' where stream = 'stock-p-1' and version = 3",
    ),
    (
        "stream version",
        "update event set version = 40 where stream = 'stock-p-1' and version = 3",
        "update event set version = 3 where stream = 'stock-p-1' and version = 40",
    ),
    (
        "position",
        "with moved as (delete from event where stream = 'product-p-2' and version = 1 returning *) insert into kept select * from moved",
        "insert into event select * from kept",
    ),
    (
        "stream head",
        "update stream_head set version = version + 1 where stream = 'product-p-1'",
        "update stream_head set version = version - 1 where stream = 'product-p-1'",
    ),
    (
        "ledger",
        "update ledger set request_id = gen_random_uuid() where stream = 'product-p-1' and method like '%CreateProduct'",
        "update ledger l set request_id = e.request_id from event e where l.stream = 'product-p-1' and l.method like '%CreateProduct' \
         and e.stream = 'product-p-1' and e.version = 1",
    ),
    (
        "stock",
        "with moved as (delete from event where stream = 'stock-p-3' and type = 'StockReceived' returning *) insert into kept select * from moved",
        "insert into event select * from kept where stream = 'stock-p-3'",
    ),
];

const DAMAGE_OF_THE_VIEWS: &[(&str, &str)] = &[
    ("a changed row", "update availability_view set version = version + 1 where key = 'p-1'"),
    ("a missing row", "delete from product_view where key = 'p-1'"),
    (
        "a row of nothing",
        "insert into cart_view select region, partition, 'ghost', version, position, revision, null, null, updated_ms, body from cart_view limit 1",
    ),
    ("a wrong sum", "update sales_day set units = units + 1"),
    ("a lost line of a timeline", "delete from order_timeline where version = 2"),
];

#[tokio::test]
async fn the_audit_finds_every_kind_of_damage() -> Result<()> {
    let mut system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?);
    for product in ["p-1", "p-2", "p-3"] {
        shop.sell(product, 100, 10).await?;
    }
    let order = shop.order("c-1", "p-3", 2, true).await?.order_id;
    shop.pay(&order, 200).await?;
    shop.see_in(&order, OrderState::Paid, std::time::Duration::from_secs(10)).await?;
    shop.0
        .command(souk_proto::cart::v1::AddItemRequest {
            customer_id: "c-1".into(),
            product_id: "p-1".into(),
            quantity: 1,
            ..Default::default()
        })
        .await?;
    system.audit_clean().await?;
    // From here on only the audit looks: a running system would mend what it can.
    for service in [souk_devstack::Service::Saga, souk_devstack::Service::Projector, souk_devstack::Service::Command] {
        system.stack.kill_service(service).await?;
    }
    let write = system.write_pools().await?.remove(0);
    sqlx::raw_sql("create table kept (like event)").execute(&write).await?;
    for (kind, damage, repair) in DAMAGE_OF_THE_LOG {
        execute(&write, damage).await.with_context(|| format!("{kind}: damage"))?;
        expect(&system, kind).await?;
        execute(&write, repair).await.with_context(|| format!("{kind}: repair"))?;
    }
    system.audit_clean().await.context("all damage of the log repaired")?;
    message_altered(&system).await?;
    let read = system.read_pools().await?.remove(0);
    for (what, damage) in DAMAGE_OF_THE_VIEWS {
        let mut transaction = read.begin().await?;
        let changed = sqlx::query(*damage).execute(&mut *transaction).await.with_context(|| (*what).to_owned())?;
        ensure!(changed.rows_affected() > 0, "{what}: nothing was damaged");
        transaction.commit().await?;
        expect(&system, "view").await.context(*what)?;
    }
    Ok(())
}

/// Whatever interrupts an audit on its way is no difference.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_goes_on_where_nats_broke_off() -> Result<()> {
    const EVENTS: u64 = 3000;
    const INTERRUPTIONS: u64 = 30;
    let (system, network) = System::start_over_network(|_| {}).await?;
    let shop = &Shop(system.session()?);
    shop.sell("p-1", 100, 1).await?;
    let receive = |_| shop.0.command(ReceiveStockRequest { product_id: "p-1".into(), quantity: 1, ..Default::default() });
    stream::iter(0..EVENTS).map(receive).buffer_unordered(64).try_for_each(|_| async { Ok(()) }).await?;
    system.audit_clean().await?;

    // A request for messages brings 256 of them: reading all takes a dozen, longer than it is left in peace.
    network.nats.set_latency(Duration::from_millis(20));
    let mut audit = pin!(system.audit_clean());
    let mut clean = None;
    for _ in 0..INTERRUPTIONS {
        if let Ok(ended) = timeout(Duration::from_millis(300), &mut audit).await {
            clean = Some(ended);
            break;
        }
        network.nats.reset_all();
    }
    let clean = match clean {
        Some(ended) => ended?,
        None => audit.await?,
    };
    let checked = &clean["checked"];
    ensure!(checked["messages"] == checked["events"] && checked["events"].as_u64() > Some(EVENTS), "{checked:#}");
    Ok(())
}

/// What bounds an audit's memory: only the end of each log is looked at, and of short logs all.
#[tokio::test]
async fn an_audit_of_the_last_events_finds_damage_there_and_only_there() -> Result<()> {
    let mut system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 1).await?;
    for quantity in 1..=10 {
        shop.0.command(ReceiveStockRequest { product_id: "p-1".into(), quantity, ..Default::default() }).await?;
    }
    let logs = system.audit_clean().await?["checked"]["whole logs"].clone();
    for service in [souk_devstack::Service::Saga, souk_devstack::Service::Projector, souk_devstack::Service::Command] {
        system.stack.kill_service(service).await?;
    }
    let last = async |events: &str| {
        let output = system.souk(&["audit", "--json", "--last", events]).await?;
        serde_json::from_slice::<Value>(&output.stdout).with_context(|| format!("{output:?}"))
    };
    let whole = last("1000").await?;
    ensure!(whole["wrong"] == json!({}) && whole["checked"]["whole logs"] == logs, "{whole:#}");
    let part = last("3").await?;
    let checked = &part["checked"];
    ensure!(part["wrong"] == json!({}) && checked["whole logs"].as_u64() < logs.as_u64(), "{part:#}");
    ensure!(checked["events"].as_u64() < whole["checked"]["events"].as_u64() && checked["replies"].as_u64() >= Some(3), "{part:#}");
    ensure!(checked["messages"] == checked["events"], "{part:#}");

    let write = system.write_pools().await?.remove(0);
    let damages = [
        ("hash", "update event set actor = 'mallory' where stream = 'stock-p-1' and version = 13"),
        ("ledger", "delete from ledger where request_id in (select request_id from event where stream = 'stock-p-1' and version = 12)"),
    ];
    execute(&write, "update event set actor = 'mallory' where stream = 'stock-p-1' and version = 2").await?;
    ensure!(last("3").await?["wrong"] == json!({}), "an event long ago is none of its business");
    ensure!(last("1000").await?["wrong"]["hash"].as_u64() > Some(0));
    for (kind, damage) in damages {
        execute(&write, damage).await?;
        let found = last("3").await?;
        ensure!(found["wrong"][kind].as_u64() > Some(0), "{kind}: {found:#}");
    }
    Ok(())
}

async fn execute(pool: &PgPool, sql: &'static str) -> Result<()> {
    let changed = sqlx::query(sql).execute(pool).await?;
    ensure!(changed.rows_affected() > 0, "nothing changed by {sql}");
    Ok(())
}

async fn expect(system: &System, kind: &str) -> Result<()> {
    let findings = system.audit().await?;
    ensure!(findings["wrong"][kind].as_u64() > Some(0), "audit did not find {kind}: {findings:#}");
    Ok(())
}

/// A stream whose last message is another one.
async fn message_altered(system: &System) -> Result<()> {
    let context = jetstream::new(async_nats::connect(system.stack.nats.url()).await?);
    let name = until("a stream with messages", std::time::Duration::from_secs(5), || async {
        use futures::TryStreamExt;
        let infos: Vec<_> = context.streams().try_collect().await?;
        Ok(infos.into_iter().find(|info| info.state.messages > 1).map(|info| info.config.name))
    })
    .await?;
    let stream = context.get_stream(&name).await?;
    let (config, state) = (stream.cached_info().config.clone(), stream.cached_info().state.clone());
    let mut bodies = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        bodies.push(stream.get_raw_message(sequence).await?.payload);
    }
    let (subject, last) = (config.subjects[0].clone(), bodies.len() - 1);
    let mut event = <souk_proto::log::v1::Event as prost::Message>::decode(bodies[last].clone())?;
    event.actor = "mallory".into();
    bodies[last] = prost::Message::encode_to_vec(&event).into();
    context.delete_stream(&name).await?;
    context.create_stream(jetstream::stream::Config { first_sequence: Some(state.first_sequence), ..config }).await?;
    for body in bodies {
        context.publish(subject.clone(), body).await?.await?;
    }
    expect(system, "message").await
}
