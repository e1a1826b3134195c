//! The log goes back (law 13): what holds when a write database is restored from a backup, or a standby that lagged is
//! promoted, under services that never stop.

mod onlookers;

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use souk_client::{Command, Session};
use souk_devstack::{Service, StackOptions};
use souk_event_sourcing::{partition_of, routing_hash};
use souk_proto::{
    cart::v1::{AddItemRequest, RemoveItemRequest},
    catalog::v1::{CreateProductRequest, DiscontinueProductRequest, ProductDetails, SetPriceRequest},
    orders::v1::{CancelOrderRequest, GetOrderRequest, OrderState, PlaceOrderLine, PlaceOrderRequest},
    stock::v1::{GetAvailabilityRequest, ReceiveStockRequest},
};
use souk_tests::{Acknowledged, Shop, System, eur, until};
use uuid::Uuid;

use self::onlookers::Onlookers;

const PRODUCTS: u32 = 40;
/// Acknowledged before the log is saved, and between that and its loss.
const KEPT: usize = 1_000;
const LOST: usize = 5_000;
const CALLERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);
/// No query may wait for what will never come; that wait would be 5 s.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A command that was acknowledged, and the token it was answered with.
#[derive(Clone)]
struct Receipt {
    command: ReceiveStockRequest,
    token: String,
}

/// What the shop was before its log went back: the part that stays and the part that is lost.
struct Past {
    kept: Vec<Receipt>,
    lost: Vec<Receipt>,
    /// Units received per product in the part that stays.
    received: BTreeMap<String, i64>,
    /// Paid in the lost part, placed in the other.
    order_to_pay: String,
    /// Placed in the lost part.
    lost_order: (PlaceOrderRequest, String),
}

fn product(number: u32) -> String {
    format!("p-{number}")
}

async fn start(change: impl FnOnce(&mut StackOptions)) -> Result<System> {
    let system = System::start(|options| {
        options.set("command.payment_window", "5m");
        options.replicas(Service::Command, 2).replicas(Service::Query, 2);
        change(options);
    })
    .await?;
    let shop = Shop(system.session()?);
    for number in 0..PRODUCTS {
        shop.sell(&product(number), 100, 50).await?;
    }
    Ok(system)
}

/// Sends many commands at once; each is acknowledged when this returns.
async fn receive(system: &System, products: &[String], count: usize) -> Result<Vec<Receipt>> {
    let session = system.session()?;
    let commands = (0..count).map(|number| ReceiveStockRequest {
        request_id: Uuid::now_v7().to_string(),
        product_id: products[number % products.len()].clone(),
        quantity: 1,
    });
    stream::iter(commands).map(|command| send(&session, command)).buffer_unordered(CALLERS).try_collect().await
}

async fn send(session: &Session, command: ReceiveStockRequest) -> Result<Receipt> {
    let reply = session.command(command.clone()).await?;
    Ok(Receipt { command, token: ReceiveStockRequest::token(&reply).to_owned() })
}

fn count(received: &mut BTreeMap<String, i64>, receipts: &[Receipt]) {
    for Receipt { command, .. } in receipts {
        *received.entry(command.product_id.clone()).or_default() += command.quantity;
    }
}

/// A session without tokens, on one replica of the query service.
fn reader(system: &System, query: u16) -> Result<Session> {
    Ok(system.client_of(1, query)?.session().deadline(PATIENCE))
}

async fn received(system: &System, query: u16, product: &str, token: &str) -> Result<i64> {
    let asked = GetAvailabilityRequest { product_id: product.to_owned(), token: token.to_owned() };
    Ok(reader(system, query)?.query(asked).await?.availability.unwrap_or_default().received)
}

/// Trades until the log is saved by `save`, then trades on: all of that will be lost. `lost_products` are those that
/// trade then.
async fn trade(system: &mut System, lost_products: Vec<String>, save: impl AsyncFnOnce(&mut System) -> Result<()>) -> Result<Past> {
    let shop = Shop(system.session()?);
    let products: Vec<_> = (0..PRODUCTS).map(product).collect();
    let mut totals: BTreeMap<_, _> = products.iter().map(|product| (product.clone(), 50)).collect();
    let kept = receive(system, &products, KEPT).await?;
    count(&mut totals, &kept);
    let order_to_pay = shop.order("c-pays", "p-1", 1, true).await?.order_id;
    let item =
        |customer_id: &str| AddItemRequest { customer_id: customer_id.into(), product_id: "p-2".into(), quantity: 1, ..Default::default() };
    shop.0.command(item("c-cart")).await?;
    shop.see_in(&order_to_pay, OrderState::AwaitingPayment, PATIENCE).await?;
    system.audit_clean().await.context("before the log is saved")?;
    save(system).await?;

    let lost = receive(system, &lost_products, LOST).await?;
    shop.pay(&order_to_pay, 100).await?;
    shop.0.command(RemoveItemRequest { customer_id: "c-cart".into(), product_id: "p-2".into(), ..Default::default() }).await?;
    shop.0.command(SetPriceRequest { product_id: "p-3".into(), price: Some(eur(999)), ..Default::default() }).await?;
    shop.0.command(DiscontinueProductRequest { product_id: "p-4".into(), ..Default::default() }).await?;
    shop.sell("ghost", 100, 5).await?;
    let lines = vec![PlaceOrderLine { product_id: "p-5".into(), quantity: 1 }];
    let order = PlaceOrderRequest {
        request_id: Uuid::now_v7().to_string(),
        customer_id: "c-lost".into(),
        lines,
        wait_for_outcome: true,
        ..Default::default()
    };
    let placed = shop.0.command(order.clone()).await?.order_id;
    shop.see_in(&order_to_pay, OrderState::Paid, PATIENCE).await?;
    shop.see_in(&placed, OrderState::AwaitingPayment, PATIENCE).await?;
    // Every cache holds rows of the part that will be lost.
    for query in [1, 2] {
        for product in &products {
            received(system, query, product, &shop.0.token()).await?;
        }
    }
    Ok(Past { kept, lost, received: totals, order_to_pay, lost_order: (order, placed) })
}

/// Event ids by (database, partition, epoch, position).
type Places = BTreeMap<(usize, i32, i64, i64), Uuid>;

async fn places(system: &System) -> Result<Places> {
    let mut places = Places::new();
    for (database, pool) in system.write_pools().await?.iter().enumerate() {
        let rows: Vec<(i32, i64, i64, Uuid)> =
            sqlx::query_as("select partition, epoch, position, event_id from event").fetch_all(pool).await?;
        places.extend(rows.into_iter().map(|(partition, epoch, position, id)| ((database, partition, epoch, position), id)));
    }
    Ok(places)
}

/// What the services believe of the lost part rules no answer, whether it leads to an event or not. The first commands
/// after the log went back.
async fn nothing_is_answered_from_the_lost_part(system: &System, back: Instant) -> Result<()> {
    let shop = Shop(system.session()?);
    // Answers without an event come first: no append would show that the belief is wrong.
    let ghost = souk_proto::catalog::v1::PublishProductRequest { product_id: "ghost".into(), ..Default::default() };
    let error = shop.0.command(ghost).await.err().context("a product of the lost part was published")?;
    println!("first answer {:.2} s after the database was back", back.elapsed().as_secs_f64());
    ensure!(error.reason() == "PRODUCT_NOT_FOUND", "publishing a product of the lost part: {error}");
    let removed = RemoveItemRequest { customer_id: "c-cart".into(), product_id: "p-2".into(), ..Default::default() };
    let removed = shop.0.command(removed).await?;
    ensure!(removed.version == 2, "the item was removed in the lost part only: {removed:?}");
    // The price comes from the product's owner, which nothing has told yet.
    let order = shop.order("c-price", "p-3", 1, false).await?;
    ensure!(order.total == Some(eur(100)), "the price of the lost part: {order:?}");
    shop.0.command(CancelOrderRequest { order_id: order.order_id, ..Default::default() }).await?;
    shop.0
        .command(ReceiveStockRequest { product_id: "p-4".into(), quantity: 1, ..Default::default() })
        .await
        .context("discontinued in the lost part")?;
    let details = ProductDetails { title: "Not a ghost".into(), ..Default::default() };
    shop.0
        .command(CreateProductRequest { product_id: "ghost".into(), details: Some(details), ..Default::default() })
        .await
        .context("created in the lost part")?;
    println!("first commands {:.2} s after the database was back", back.elapsed().as_secs_f64());
    Ok(())
}

/// Commands go on, and a reader with the token of one sees exactly what is true, on every replica.
async fn reads_with_new_tokens_are_exact(system: &System, past: &mut Past) -> Result<Vec<Receipt>> {
    let products: Vec<_> = past.received.keys().cloned().collect();
    let new = receive(system, &products, products.len()).await?;
    count(&mut past.received, &new);
    // Of p-4, another unit came in above.
    *past.received.get_mut("p-4").context("p-4")? += 1;
    for receipt in &new {
        for query in [1, 2] {
            let product = &receipt.command.product_id;
            let (seen, want) = (received(system, query, product, &receipt.token).await?, past.received[product]);
            ensure!(seen == want, "replica {query} shows {seen} units of {product} received, not {want}");
        }
    }
    Ok(new)
}

/// Tokens of the lost part are refused at once, by every replica; those of the rest are good.
async fn old_tokens_are_told_apart(system: &System, past: &Past) -> Result<()> {
    for query in [1, 2] {
        let souk = system.client_of(1, query)?;
        let ask = |receipt: &Receipt| {
            let asked = GetAvailabilityRequest { product_id: receipt.command.product_id.clone(), token: receipt.token.clone() };
            let session = souk.session().deadline(PATIENCE);
            async move {
                let started = Instant::now();
                let answer = session.query(asked).await.map(drop).map_err(|error| error.reason().to_owned());
                (answer, started.elapsed())
            }
        };
        let answers: Vec<_> = stream::iter(&past.lost).map(ask).buffer_unordered(CALLERS).collect().await;
        let wrong = answers.iter().filter(|(answer, _)| answer.as_ref().err().is_none_or(|reason| reason != "LOG_RESTORED")).count();
        let slowest = answers.iter().map(|(_, took)| *took).max().unwrap_or_default();
        ensure!(wrong == 0, "replica {query}: {wrong} of {} lost tokens are not LOG_RESTORED", answers.len());
        ensure!(slowest < AT_ONCE, "replica {query}: a lost token was answered after {slowest:?}");
        let answers: Vec<_> = stream::iter(&past.kept).map(ask).buffer_unordered(CALLERS).collect().await;
        if let Some((Err(reason), _)) = answers.iter().find(|(answer, _)| answer.is_err()) {
            bail!("replica {query}: a token of the part that stayed is refused with {reason}");
        }
        println!("replica {query}: {} lost tokens refused, slowest {slowest:?}", past.lost.len());
    }
    Ok(())
}

/// What was acknowledged in the lost part is done anew, once, under its old request id.
async fn repeated_commands_are_done_once_more(system: &System, past: &mut Past, new: &[Receipt]) -> Result<()> {
    let repeated: Vec<_> = past.lost.iter().step_by(10).cloned().collect();
    let session = system.session()?;
    for _ in 0..2 {
        let repeats = stream::iter(&repeated).map(|receipt| send(&session, receipt.command.clone()));
        repeats.buffer_unordered(CALLERS).try_collect::<Vec<_>>().await?;
    }
    count(&mut past.received, &repeated);
    let acknowledged = Acknowledged::default();
    for receipt in past.kept.iter().chain(new).chain(&repeated) {
        acknowledged.add(receipt.command.request_id.parse()?);
    }
    acknowledged.stand_once(&system.write_pools().await?).await
}

/// Orders go on: the one placed in the lost part is unknown until it is placed again, the one paid then is paid again.
async fn orders_go_on(system: &System, past: &Past) -> Result<()> {
    let shop = Shop(system.session()?);
    let (order, placed) = &past.lost_order;
    for query in [1, 2] {
        until("the lost order is gone from the views", PATIENCE, || async {
            let seen = reader(system, query)?.query(GetOrderRequest { order_id: placed.clone(), ..Default::default() }).await;
            Ok(seen.is_err_and(|error| error.reason() == "ORDER_NOT_FOUND").then_some(()))
        })
        .await?;
        // Or the token of what is shown would name what is lost.
        until("the lost payment is gone from the views", PATIENCE, || async {
            let seen = reader(system, query)?.query(GetOrderRequest { order_id: past.order_to_pay.clone(), ..Default::default() }).await?;
            Ok((seen.order.unwrap_or_default().state() == OrderState::AwaitingPayment).then_some(()))
        })
        .await?;
    }
    let again = shop.0.command(order.clone()).await?;
    ensure!(again.order_id == *placed, "the repeated order has another id");
    for order in [placed, &past.order_to_pay] {
        shop.see_in(order, OrderState::AwaitingPayment, PATIENCE).await?;
        shop.pay(order, 100).await?;
        shop.see_in(order, OrderState::Paid, PATIENCE).await?;
    }
    for state in [OrderState::Reserving, OrderState::AwaitingPayment] {
        shop.see_none_in(state, PATIENCE).await?;
    }
    Ok(())
}

/// Whoever asks without a token sees what is true as well, soon: no cache keeps a row of the lost part.
async fn caches_follow(system: &System, past: &Past, back: Instant) -> Result<()> {
    for query in [1, 2] {
        until("views and caches are true", PATIENCE, || async {
            for (product, units) in &past.received {
                if received(system, query, product, "").await? != *units {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
    }
    println!("views and caches are true {:.2} s after the database was back", back.elapsed().as_secs_f64());
    Ok(())
}

fn processes(system: &System) -> Result<Vec<String>> {
    let replicas = Service::ALONE.into_iter().flat_map(|service| system.stack.replicas_of(service).collect::<Vec<_>>());
    replicas.map(|replica| Ok(format!("{replica} {:?}", system.stack.service(replica)?.identity()))).collect()
}

/// Everything that must hold after the log went back, `before` being what it held then.
async fn the_system_heals(system: &System, mut past: Past, before: Places, back: Instant) -> Result<()> {
    nothing_is_answered_from_the_lost_part(system, back).await?;
    let new = reads_with_new_tokens_are_exact(system, &mut past).await?;
    println!("reads with new tokens are exact {:.2} s after the database was back", back.elapsed().as_secs_f64());
    caches_follow(system, &past, back).await?;
    old_tokens_are_told_apart(system, &past).await?;
    repeated_commands_are_done_once_more(system, &mut past, &new).await?;
    orders_go_on(system, &past).await?;
    caches_follow(system, &past, back).await?;
    let started = Instant::now();
    system.audit_clean().await?;
    let (since, took) = (back.elapsed().as_secs_f64(), started.elapsed().as_secs_f64());
    println!("audit clean {since:.2} s after the database was back, it took {took:.2} s");
    let after = places(system).await?;
    let reused: Vec<_> = before.iter().filter(|(place, id)| after.get(place).is_some_and(|other| other != *id)).take(3).collect();
    ensure!(reused.is_empty(), "places of the lost part hold other events now: {reused:?}");
    let lost = before.keys().filter(|place| !after.contains_key(place)).count();
    ensure!(lost >= LOST, "only {lost} events were lost");
    what_was_lost_is_known(system, &past, lost).await
}

/// `souk audit --lost` names everything that was acknowledged and is no more.
async fn what_was_lost_is_known(system: &System, past: &Past, lost: usize) -> Result<()> {
    let told = system.souk(&["audit", "--lost", "--json"]).await?;
    let told: Value = serde_json::from_slice(&told.stdout).with_context(|| format!("{told:?}"))?;
    ensure!(told["events"] == lost, "{lost} events were lost, told of {}", told["events"]);
    let logs = told["logs"].as_array().context("no logs")?;
    let events = logs.iter().filter_map(|log| log["events"].as_array()).flatten();
    let requests: HashSet<_> = events.filter_map(|event| event["request_id"].as_str()).collect();
    let unknown = past.lost.iter().filter(|receipt| !requests.contains(receipt.command.request_id.as_str())).count();
    println!("{lost} events of {} logs lost, {} kept", logs.len(), told["kept"]);
    ensure!(unknown == 0, "{unknown} lost commands are not named");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_restored_from_a_backup_takes_streams_views_caches_and_tokens_along() -> Result<()> {
    let mut system = start(|options| options.first_write_apart = true).await?;
    let (backup, began) = (system.stack.data().join("backup"), processes(&system)?);
    let everything = (0..PRODUCTS).map(product).collect();
    let past = trade(&mut system, everything, async |system| system.stack.postgres.back_up(&backup).await).await?;
    let before = places(&system).await?;
    let onlookers = Onlookers::start(&system, &past.received).await?;
    system.stack.postgres.kill9().await?;
    system.stack.postgres.restore(&backup)?;
    system.stack.postgres.start_again().await?;
    the_system_heals(&system, past, before, Instant::now()).await?;
    onlookers.end().await?;
    ensure!(processes(&system)? == began, "a service was started again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lagged_when_it_was_promoted_is_a_log_that_went_back() -> Result<()> {
    let mut system = start(|options| options.read_replicas = Some(1)).await?;
    let began = processes(&system)?;
    let everything = (0..PRODUCTS).map(product).collect();
    let past = trade(&mut system, everything, async |system| {
        let stack = &mut system.stack;
        stack.standbys[0].catch_up_with(&stack.postgres).await?;
        // Cut off: a paused replay would still receive, and be made up for before the promotion.
        stack.standbys[0].server.kill9().await
    })
    .await?;
    let before = places(&system).await?;
    let onlookers = Onlookers::start(&system, &past.received).await?;
    let lost = Instant::now();
    system.stack.postgres.kill9().await?;
    system.stack.standbys[0].server.start_again().await?;
    println!("the standby is there again {:.2} s after the loss", lost.elapsed().as_secs_f64());
    system.stack.fail_over_to(1).await?;
    println!("failed over {:.2} s after the loss", lost.elapsed().as_secs_f64());
    the_system_heals(&system, past, before, Instant::now()).await?;
    onlookers.end().await?;
    ensure!(processes(&system)? == began, "a service was started again");
    Ok(())
}

/// The names of write databases by partition, as placed.
async fn placement(system: &System) -> Result<BTreeMap<u16, String>> {
    let pool = system.write_pools().await?.remove(0);
    let rows: Vec<(i32, String)> = sqlx::query_as("select partition, database from placement").fetch_all(&pool).await?;
    Ok(rows.into_iter().map(|(partition, database)| (partition as u16, database)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_write_databases_the_one_that_is_not_restored_goes_on_untouched() -> Result<()> {
    let mut system = start(|options| {
        options.first_write_apart = true;
        options.write_shards = Some(2);
    })
    .await?;
    let placement = placement(&system).await?;
    let (back, on): (Vec<_>, Vec<_>) =
        (0..PRODUCTS).map(product).partition(|product| placement[&partition_of(routing_hash(product), 64).0] == "write-1");
    let mut units: BTreeMap<_, _> = (0..PRODUCTS).map(|number| (product(number), 50)).collect();
    let kept = receive(&system, &[back.clone(), on.clone()].concat(), KEPT).await?;
    count(&mut units, &kept);
    let backup = system.stack.data().join("backup");
    system.stack.postgres.back_up(&backup).await?;

    let lost = receive(&system, &back, LOST / 2).await?;
    let more = receive(&system, &on, LOST / 2).await?;
    count(&mut units, &more);
    let before = places(&system).await?;
    system.stack.postgres.kill9().await?;
    // For longer than a lease: what is away must not make a replica look dead where it is not.
    let (left, mut during) = (Instant::now() + Duration::from_secs(20), Vec::new());
    while Instant::now() < left {
        let asked = Instant::now();
        during.extend(receive(&system, &on, 100).await.context("while the other database is away")?);
        let waited = asked.elapsed();
        ensure!(waited < Duration::from_secs(3), "100 commands took {waited:.1?} while the other database was away");
    }
    // And who dies meanwhile is replaced where its logs can be had.
    system.stack.kill_replica((Service::Command, 2)).await?;
    let killed = Instant::now();
    during.extend(receive(&system, &on, 500).await.context("while the other database and a replica are away")?);
    let waited = killed.elapsed();
    println!("500 commands acknowledged {:.2} s after a replica died", waited.as_secs_f64());
    ensure!(waited < Duration::from_secs(20), "500 commands took {waited:.1?} while the other database and a replica were away");
    count(&mut units, &during);
    system.stack.postgres.restore(&backup)?;
    system.stack.postgres.start_again().await?;
    system.start_again((Service::Command, 2)).await?;
    let began = Instant::now();
    let new = receive(&system, &[back, on].concat(), 500).await?;
    println!("500 commands acknowledged {:.2} s after the database was back", began.elapsed().as_secs_f64());
    count(&mut units, &new);
    let stayed = [kept, more, during, new].concat();
    let past = Past { kept: stayed, lost, received: units, order_to_pay: String::new(), lost_order: Default::default() };
    caches_follow(&system, &past, began).await?;
    old_tokens_are_told_apart(&system, &past).await?;
    system.audit_clean().await?;
    println!("audit clean {:.2} s after the database was back", began.elapsed().as_secs_f64());
    let after = places(&system).await?;
    let lost: Vec<_> = before.keys().filter(|place| !after.contains_key(place)).collect();
    ensure!(lost.iter().all(|(database, ..)| *database == 0), "the other database lost events");
    what_was_lost_is_known(&system, &past, lost.len()).await
}

/// How long views take to be folded anew, all logs at once. `SOUK_EVENTS` says of how many events, 200,000 if not.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes minutes"]
async fn views_are_folded_anew() -> Result<()> {
    let events: i64 = std::env::var("SOUK_EVENTS").map_or(Ok(200_000), |text| text.parse())?;
    let mut system = start(|_| {}).await?;
    let (session, products) = (system.session()?, (0..PRODUCTS).map(product).collect::<Vec<_>>());
    receive(&system, &products, events as usize / 2).await?;
    // As many entities as events, which is the most rows there can be.
    let carts = (0..events / 2).map(|number| AddItemRequest {
        customer_id: format!("c-{number}"),
        product_id: "p-1".into(),
        quantity: 1,
        ..Default::default()
    });
    stream::iter(carts).map(|item| session.command(item)).buffer_unordered(CALLERS).try_collect::<Vec<_>>().await?;
    let (write, read) = (system.write_pools().await?.remove(0), system.read_pools().await?.remove(0));
    let total: i64 = sqlx::query_scalar("select sum(position)::bigint from partition_head").fetch_one(&write).await?;
    let folded = async || {
        until("the views are whole", Duration::from_secs(600), || async {
            let at: i64 = sqlx::query_scalar("select sum(position)::bigint from read_checkpoint").fetch_one(&read).await?;
            Ok((at == total).then_some(()))
        })
        .await
    };
    folded().await?;
    system.stop(Service::Projector).await?;
    sqlx::query("update read_checkpoint set revision = revision + 1").execute(&read).await?;
    let began = Instant::now();
    system.stack.start_replica(Service::Projector)?;
    until("the views are emptied", PATIENCE, || async {
        let at: i64 = sqlx::query_scalar("select sum(position)::bigint from read_checkpoint").fetch_one(&read).await?;
        Ok((at < total).then_some(()))
    })
    .await?;
    folded().await?;
    let took = began.elapsed().as_secs_f64();
    println!("{total} events folded anew in {took:.1} s, {:.0} a second", total as f64 / took);
    system.audit_clean().await.map(drop)
}
