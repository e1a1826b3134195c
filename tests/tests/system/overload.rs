use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use souk_client::Door;
use souk_devstack::StackOptions;
use souk_proto::{
    catalog::v1::{ListProductsRequest, query_service_client::QueryServiceClient},
    stock::v1::{ReceiveStockRequest, command_service_client::CommandServiceClient},
};
use souk_tests::{Outcome, Shop, System, closed_loop, open_loop, until};
use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};
use uuid::Uuid;

const QUEUE_WAIT: Duration = Duration::from_millis(200);
const WARM_UP: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(4);
/// Share of the capacity that must be left to those who are let in.
const LEAST_GOODPUT: f64 = 0.8;
/// Beyond the queue's limit: the batch under way, the reply, and a machine that has other work.
const LONGEST: Duration = Duration::from_millis(500);

fn little_patience(options: &mut StackOptions) {
    options.set("command.queue_wait", format!("{} ms", QUEUE_WAIT.as_millis()));
    options.set("query.queue_wait", format!("{} ms", QUEUE_WAIT.as_millis()));
}

/// Connections enough for all calls under way: one carries 256.
fn channels(system: &System, door: Door) -> Result<Arc<Vec<Channel>>> {
    let channels = (0..8).map(|_| Ok(system.client()?.channel(door))).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(channels.into_iter().flatten().collect()))
}

/// Measures the capacity, then offers half of it and twice of it.
async fn press<F, C>(callers: usize, call: C) -> Result<()>
where
    F: Future<Output = Result<(), Status>> + Send,
    C: Fn(u64) -> F + Clone + Send + Sync + 'static,
{
    closed_loop(callers, WARM_UP, call.clone()).await;
    let full = closed_loop(callers, MEASURED, call.clone()).await;
    let capacity = full.goodput();
    told("closed loop", &full, capacity);
    ensure!(full.failed.is_empty(), "{:?}", full.failed.first());
    let half = open_loop(capacity / 2.0, MEASURED, call.clone()).await;
    told("0.5 ×", &half, capacity);
    let double = open_loop(capacity * 2.0, MEASURED, call).await;
    told("2.0 ×", &double, capacity);

    ensure!(half.failed.is_empty() && double.failed.is_empty(), "{:?}", half.failed.iter().chain(&double.failed).next());
    ensure!(half.shed * 100 <= half.accepted.len(), "{} refused at half the load", half.shed);
    ensure!(double.shed > 0, "nothing was refused at twice the load");
    let ratio = double.goodput() / capacity;
    ensure!(ratio >= LEAST_GOODPUT, "only {ratio:.2} of the capacity was left");
    let late = double.percentile(0.99);
    ensure!(late <= LONGEST, "p99 of those let in: {late:?}");
    Ok(())
}

fn told(load: &str, outcome: &Outcome, capacity: f64) {
    println!(
        "{load}: {} accepted ({:.0}/s, {:.2} of the capacity), {} shed; p50 {:.1} ms, p99 {:.1} ms",
        outcome.accepted.len(),
        outcome.goodput(),
        outcome.goodput() / capacity,
        outcome.shed,
        outcome.percentile(0.5).as_secs_f64() * 1e3,
        outcome.percentile(0.99).as_secs_f64() * 1e3,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_the_commands_leave_the_capacity_to_those_let_in() -> Result<()> {
    const PRODUCTS: u64 = 16;
    let (system, network) = System::start_over_network(|options| {
        little_patience(options);
        options.set("command.batch_commands", 8);
    })
    .await?;
    let shop = Shop(system.session()?);
    for product in 0..PRODUCTS {
        shop.sell(&format!("p-{product}"), 100, 1).await?;
    }
    // A lane that waits for its database is what saturates, not the two cores that the callers share with the servers.
    network.postgres.set_latency(Duration::from_millis(2));
    let channels = channels(&system, Door::Command)?;
    let receive = move |number: u64| {
        let channel = channels[number as usize % channels.len()].clone();
        async move {
            let product_id = format!("p-{}", number % PRODUCTS);
            let request = ReceiveStockRequest { request_id: Uuid::now_v7().to_string(), product_id, quantity: 1 };
            CommandServiceClient::new(channel).receive_stock(request).await.map(drop)
        }
    };
    press(32, receive).await?;
    system.audit_clean().await.map(drop)
}

/// What is wrong with a command shows whether it was read.
#[tokio::test(flavor = "multi_thread")]
async fn while_no_lane_has_room_commands_are_refused_unread() -> Result<()> {
    let (system, network) = System::start_over_network(little_patience).await?;
    Shop(system.session()?).sell("p-1", 100, 1).await?;
    let channel = channels(&system, Door::Command)?[0].clone();
    let receive = |product_id: &'static str| {
        let request = ReceiveStockRequest { request_id: Uuid::now_v7().to_string(), product_id: product_id.into(), quantity: 1 };
        let mut client = CommandServiceClient::new(channel.clone());
        async move { client.receive_stock(request).await.map(drop) }
    };
    let told = || async { receive("no product").await.expect_err("it names none").code() };
    assert_eq!(told().await, Code::InvalidArgument);
    network.postgres.set_latency(Duration::from_secs(1));
    // The first waits for its statement; whoever comes when it has stood still for longer than the limit finds no room.
    let mut waiting = JoinSet::new();
    until("a command that is refused unread", PATIENCE, || {
        waiting.spawn(receive("p-1"));
        async { Ok((told().await == Code::ResourceExhausted).then_some(())) }
    })
    .await?;
    network.postgres.set_latency(Duration::ZERO);
    waiting.join_all().await;
    until("room", PATIENCE, || async { Ok((told().await == Code::InvalidArgument).then_some(())) }).await?;
    system.audit_clean().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_the_queries_leave_the_capacity_to_those_let_in() -> Result<()> {
    const PRODUCTS: i32 = 200;
    let system = System::start(little_patience).await?;
    let shop = Shop(system.session()?);
    let shop = &shop;
    let selling = stream::iter(0..PRODUCTS).map(|product| async move { shop.sell(&format!("p-{product}"), 100, 0).await });
    selling.buffer_unordered(32).try_collect::<Vec<_>>().await?;
    let channels = channels(&system, Door::Query)?;
    // Lists are never cached: each costs the store a sort of all products.
    let list = move |number: u64| {
        let channel = channels[number as usize % channels.len()].clone();
        async move {
            let request = ListProductsRequest { page_size: PRODUCTS, ..Default::default() };
            QueryServiceClient::new(channel).list_products(request).await.map(drop)
        }
    };
    press(16, list).await
}
