//! What several regions do together, and bear when they are out of each other's reach.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use serde_json::Value;
use souk_client::{Door, Session};
use souk_devstack::Service;
use souk_proto::{
    orders::v1::{Order, OrderState},
    stock::v1::{
        GetAvailabilityRequest, ReceiveStockRequest, command_service_client::CommandServiceClient, query_service_client::QueryServiceClient,
    },
};
use souk_tests::{Shop, World, until};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

const NAMES: [&str; 3] = ["eu", "us", "ap"];
const PATIENCE: Duration = Duration::from_secs(60);
/// No query waits longer for what its token names.
const WAIT: Duration = Duration::from_secs(5);

fn shop(world: &World, region: &str) -> Result<Shop> {
    world.session(region).map(Shop)
}

/// Reads in a region what another one has answered with this session's tokens.
fn reader(world: &World, region: &str, writer: &Session) -> Result<Shop> {
    let session = world.session(region)?;
    session.merge_token(&writer.token());
    Ok(Shop(session))
}

fn receive(product: &str) -> ReceiveStockRequest {
    let request_id = Uuid::now_v7().to_string();
    ReceiveStockRequest { request_id, product_id: product.into(), quantity: 1 }
}

/// Units shown by one call, which is not repeated.
async fn read_once(world: &World, region: &str, product: &str, token: &str) -> Result<(i64, Duration)> {
    let channel = world.client(region)?.channel(Door::Query).context("a public door")?;
    let mut request = Request::new(GetAvailabilityRequest { product_id: product.into(), token: token.into() });
    request.set_timeout(2 * WAIT);
    let asked = Instant::now();
    let reply = QueryServiceClient::new(channel).get_availability(request).await?.into_inner();
    Ok((reply.availability.unwrap_or_default().on_hand, asked.elapsed()))
}

/// Sends a command once.
async fn send_once(world: &World, region: &str, command: &ReceiveStockRequest) -> Result<Result<(), Status>> {
    let channel = world.client(region)?.channel(Door::Command).context("a public door")?;
    let mut request = Request::new(command.clone());
    request.set_timeout(WAIT);
    Ok(CommandServiceClient::new(channel).receive_stock(request).await.map(drop))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_regions_read_everything_write_at_home_and_bear_being_cut_off() -> Result<()> {
    let world = World::start(&NAMES, &[], |_, options| options.partitions = Some(8)).await?;
    what_is_written_in_one_is_read_in_another(&world).await?;
    orders_are_followed_everywhere(&world).await?;
    operators_see_and_change_links(&world).await?;
    world.audit_clean().await?;

    world.regions.links().cut_off("eu").await;
    let refused = commands_for_a_home_out_of_reach_are_refused(&world).await?;
    all_else_goes_on(&world).await?;
    let apart = world.audit("1s").await?;
    ensure!(apart["wrong"]["copy"].as_u64() > Some(0), "copies lag behind: {apart:#}");
    world.regions.links().heal_all().await?;
    let healed = Instant::now();
    let us = shop(&world, "us")?;
    for command in refused {
        us.0.command(command).await?;
    }
    println!("the home was reached {:.1?} after the links had healed", healed.elapsed());
    let findings = world.audit_clean().await?;
    println!("all copies were equal {:.1?} after: {}", healed.elapsed(), findings["checked"]);
    ensure!(findings["checked"]["copies equal to their origin"].as_u64() == Some(2 * 3 * 8), "{findings:#}");
    Ok(())
}

async fn what_is_written_in_one_is_read_in_another(world: &World) -> Result<()> {
    let eu = shop(world, "eu")?;
    eu.sell("eu.p-1", 100, 0).await?;
    let mut longest = Duration::ZERO;
    for units in 1..=20 {
        eu.0.command(receive("eu.p-1")).await?;
        let (shown, took) = read_once(world, "ap", "eu.p-1", &eu.0.token()).await?;
        ensure!(shown == units, "{shown} units shown in ap, {units} received in eu");
        longest = longest.max(took);
    }
    println!("read in ap at most {longest:.1?} after eu had answered");
    ensure!(longest < WAIT, "{longest:?}");
    Ok(())
}

/// Placed from us for a customer of eu, of a product of us; paid from ap; watched in all of them.
async fn orders_are_followed_everywhere(world: &World) -> Result<()> {
    let us = shop(world, "us")?;
    us.sell("us.p-1", 100, 50).await?;
    let placed = us.order("eu.c-1", "us.p-1", 2, true).await?;
    ensure!(placed.state() == OrderState::AwaitingPayment, "{placed:?}");
    let watches = NAMES.map(|region| {
        let session = reader(world, region, &us.0).map(|shop| shop.0);
        let order_id = placed.order_id.clone();
        tokio::spawn(async move { followed_to(session?, &order_id, OrderState::Paid).await })
    });
    let ap = reader(world, "ap", &us.0)?;
    ap.see(&placed.order_id).await?;
    ap.pay(&placed.order_id, 200).await?;
    for (region, watch) in NAMES.iter().zip(watches) {
        let shown = tokio::time::timeout(PATIENCE, watch).await.with_context(|| format!("the watch in {region}"))???;
        ensure!(shown.total.as_ref().is_some_and(|total| total.minor_units == 200), "{region}: {shown:?}");
    }
    let stock = reader(world, "eu", &ap.0)?.stock("us.p-1").await?;
    ensure!((stock.on_hand, stock.reserved) == (50, 2), "{stock:?}");
    Ok(())
}

async fn followed_to(session: Session, order_id: &str, state: OrderState) -> Result<Order> {
    let mut watch = std::pin::pin!(session.watch_order(order_id));
    while let Some(order) = watch.next().await {
        let order = order?;
        if order.state() == state {
            return Ok(order);
        }
    }
    bail!("the watch ended before the order was {state:?}")
}

async fn operators_see_and_change_links(world: &World) -> Result<()> {
    let listed = world.said(&["region", "list"]).await?;
    ensure!(NAMES.iter().all(|name| listed.contains(name)), "{listed}");
    world.said(&["region", "link", "ap", "eu", "--latency", "30ms", "--one-way"]).await?;
    let status: Value = serde_json::from_str(&world.said(&["status", "--json"]).await?)?;
    let pairs = status["pairs"].as_array().context("pairs")?;
    ensure!(pairs.len() == 6, "{status:#}");
    for pair in pairs {
        let slow = (pair["region"] == "ap" && pair["of"] == "eu") as u64;
        ensure!(pair["link"]["latency_ms"] == slow * 30 && pair["link"]["down"] == false, "{pair:#}");
        let ahead = pair["clock"]["ahead_ms"].as_f64().context("a clock")?;
        ensure!(ahead.abs() <= pair["clock"]["within_ms"].as_f64().unwrap_or_default(), "the same machine, the same clock: {pair:#}");
    }
    let story = world.said(&["demo", "--write", "eu", "--read", "ap"]).await?;
    ensure!(story.contains("ms later on average"), "{story}");
    world.said(&["region", "link", "ap", "eu", "--up"]).await?;
    let refused = world.souk(&["region", "link", "eu", "mars", "--down"]).await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("no region \"mars\" runs here; there is eu, us, ap"), "{said}");
    let document = world.said(&["region", "show", "us"]).await?;
    let file = world.regions.data().join("topology.json");
    std::fs::write(&file, document.replace("\"version\": 1", "\"version\": 2"))?;
    world.said(&["region", "apply", &file.to_string_lossy()]).await?;
    let document: Value = serde_json::from_str(&world.said(&["region", "show", "ap"]).await?)?;
    ensure!(document["version"] == 2, "{document}");
    Ok(())
}

/// The commands that were refused, each of which has left nothing behind.
async fn commands_for_a_home_out_of_reach_are_refused(world: &World) -> Result<Vec<ReceiveStockRequest>> {
    let (mut refused, ledger) = (Vec::new(), "select count(*) from ledger where request_id = $1");
    for region in ["us", "ap"] {
        let command = receive("eu.p-1");
        let status = until("the home is known to be away", PATIENCE, || async {
            match send_once(world, region, &command).await? {
                Ok(()) => bail!("a command passed a link that is cut"),
                Err(status) if status.get_error_details().error_info().is_some_and(|info| info.reason == "HOME_REGION_AWAY") => {
                    Ok(Some(status))
                }
                Err(_) => Ok(None),
            }
        })
        .await?;
        let told = status.get_error_details();
        ensure!(status.code() == Code::Unavailable && told.retry_info().is_some_and(|info| info.retry_delay.is_some()), "{status:?}");
        for name in NAMES {
            let request_id: Uuid = command.request_id.parse()?;
            let written: i64 = sqlx::query_scalar(ledger).bind(request_id).fetch_one(&world.write_pool(name).await?).await?;
            ensure!(written == 0, "{name} has written a command that {region} refused");
        }
        refused.push(command);
    }
    Ok(refused)
}

async fn all_else_goes_on(world: &World) -> Result<()> {
    for region in NAMES {
        let own = format!("{region}.p-9");
        let shop = shop(world, region)?;
        shop.sell(&own, 100, 5).await?;
        ensure!(shop.stock(&own).await?.on_hand == 5, "what is at home is written and read");
        ensure!(shop.stock("eu.p-1").await?.on_hand == 20, "what was copied is read still");
    }
    let us = shop(world, "us")?;
    us.0.command(receive("ap.p-9")).await?;
    ensure!(us.stock("ap.p-9").await?.on_hand == 6, "the others reach each other");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_added_to_running_ones_catches_up_from_the_first_event() -> Result<()> {
    let mut world = World::start(&["eu", "us"], &["ap"], |_, options| options.partitions = Some(8)).await?;
    for (region, other) in [("eu", "us"), ("us", "eu")] {
        let shop = shop(&world, region)?;
        for number in 0..10 {
            let product = format!("{region}.p-{number}");
            shop.sell(&product, 100, 10).await?;
            let order = shop.order(&format!("{other}.c-{number}"), &product, 1, true).await?;
            shop.pay(&order.order_id, 100).await?;
        }
    }
    // Others go on meanwhile.
    let eu = shop(&world, "eu")?;
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let writer = eu.clone();
    let writing = tokio::spawn(async move {
        let mut units = 0_i64;
        while matches!(stopped.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)) {
            writer.0.command(receive("eu.p-0")).await?;
            units += 1;
        }
        anyhow::Ok(units)
    });
    let begun = Instant::now();
    world.add("ap").await?;
    println!("ap works with the logs of all regions {:.1?} after it was added", begun.elapsed());
    stop.send(()).ok();
    let units = writing.await??;
    ensure!(units > 0, "nothing was written meanwhile");
    let ap = reader(&world, "ap", &eu.0)?;
    ensure!(ap.stock("eu.p-0").await?.on_hand == 10 + units, "all of it");
    println!("it had {units} commands of meanwhile {:.1?} after", begun.elapsed());

    eu.sell("ap.p-1", 100, 3).await?;
    ensure!(reader(&world, "us", &eu.0)?.stock("ap.p-1").await?.on_hand == 3, "what is at home there is written there, and comes back");
    world.audit_clean().await?;
    let logs = "select partition, min(position), max(position), count(*), max(encode(hash, 'hex')) filter (where position = 1) \
                from event where region = $1 group by partition order by partition";
    for region in [1_i16, 2] {
        let mut counted = Vec::new();
        for name in ["ap", if region == 1 { "eu" } else { "us" }] {
            let rows: Vec<(i32, i64, i64, i64, String)> =
                sqlx::query_as(logs).bind(region).fetch_all(&world.write_pool(name).await?).await?;
            ensure!(rows.iter().all(|(_, first, last, count, _)| (*first, count) == (1, last)), "{name}: {rows:?}");
            counted.push(rows);
        }
        ensure!(!counted[0].is_empty() && counted[0] == counted[1], "region {region}: {counted:?}");
    }
    damage_in_one_region_is_found(&mut world).await
}

/// Damage done in us to the copies and views of logs of eu, and the kind of difference that names it.
const DAMAGES: [(&str, &str, bool); 3] = [
    ("copy", "update partition_head set hash = decode(repeat('ab', 16), 'hex') where region = 1", true),
    ("views", "update availability_view set version = version + 1 where region = 1 and key = 'eu.p-3'", false),
    ("views", "delete from product_view where region = 1 and key = 'eu.p-4'", false),
];

async fn damage_in_one_region_is_found(world: &mut World) -> Result<()> {
    for service in [Service::Saga, Service::Replicator, Service::Projector, Service::Command] {
        world.regions.stack_mut("us")?.kill_service(service).await?;
    }
    for (kind, damage, written) in DAMAGES {
        let pool = if written { world.write_pool("us").await? } else { world.read_pool("us").await? };
        let changed = sqlx::query(damage).execute(&pool).await?;
        ensure!(changed.rows_affected() > 0, "nothing changed by {damage}");
        let found = world.audit("2s").await?;
        ensure!(found["wrong"][kind].as_u64() > Some(0), "{damage}: {found:#}");
    }
    Ok(())
}
