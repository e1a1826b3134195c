//! Views that were emptied and are folded anew: nobody is told that what they lack does not exist, or that what they hold is new.

use std::time::Duration;

use souk_event_sourcing::{LogId, Token};
use souk_proto::{
    catalog::v1::{
        BatchGetProductsRequest, GetProductRequest, ListProductsRequest, PriceSet, ProductCreated, ProductDetails,
        query_service_client::QueryServiceClient as CatalogClient,
    },
    orders::v1::{
        GetOrderTimelineRequest, GetSalesSummaryRequest, ListOrdersRequest, OrderPlaced, OrderReserved, WatchOrderRequest,
        WatchOrderResponse, query_service_client::QueryServiceClient as OrdersClient,
    },
};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

use crate::world::*;

fn created() -> ProductCreated {
    ProductCreated { details: Some(ProductDetails { title: "Ball".into(), ..Default::default() }), price: None }
}

async fn price(channel: &Channel, id: &str, token: &Token) -> Result<i64, Status> {
    let request = within(Duration::from_millis(400), GetProductRequest { product_id: id.into(), token: text(token) });
    let product = CatalogClient::new(channel.clone()).get_product(request).await?.into_inner().product.unwrap();
    Ok(product.price.map_or(0, |price| price.minor_units))
}

fn is_rebuilding<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.expect_err("no answer");
    assert_eq!(reason(&status), (Code::Unavailable, "VIEW_REBUILDING".into()));
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
}

/// Ids other than `p-1` of some logs.
fn ids_of(log: impl Fn(LogId) -> bool) -> impl Iterator<Item = String> {
    (2..).map(|number| format!("p-{number}")).filter(move |id| log(log_of(id)))
}

/// Everything that may be asked of views of which one log is rebuilt, answers of it alone aside.
async fn lists_and_sums_do_not_answer(channel: &Channel) {
    let (mut catalog, mut orders) = (CatalogClient::new(channel.clone()), OrdersClient::new(channel.clone()));
    is_rebuilding(catalog.list_products(ListProductsRequest::default()).await);
    is_rebuilding(orders.list_orders(ListOrdersRequest::default()).await);
    is_rebuilding(orders.get_sales_summary(GetSalesSummaryRequest::default()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_are_folded_anew_answer_nobody_until_they_are_whole() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let log = log_of("p-1");
    let mut ids = ids_of(|of| of == log);
    let (late, unknown, other) = (ids.next().unwrap(), ids.next().unwrap(), ids_of(|of| of != log).next().unwrap());
    shop.record("p-1", "product-p-1", "ProductCreated", created());
    let early = shop.record("p-1", "product-p-1", "PriceSet", PriceSet { price: Some(eur(1)) });
    shop.record("p-1", "product-p-1", "PriceSet", PriceSet { price: Some(eur(2)) });
    let token = shop.record(&late, &format!("product-{late}"), "ProductCreated", created());
    shop.record(&other, &format!("product-{other}"), "ProductCreated", created());
    shop.project().await;
    shop.heard_by(&service).await;
    let (channel, none) = (&service.channel, Token::default());
    assert_eq!(price(channel, "p-1", &none).await.unwrap(), 2);

    // Before the service has heard of it: what it has cached is as good as it was, for as long as the last message is proof.
    let announcing = shop.keep_announcing();
    shop.empty(log).await;
    assert_eq!(price(channel, "p-1", &none).await.unwrap(), 2);
    is_rebuilding(price(channel, &unknown, &none).await);
    lists_and_sums_do_not_answer(channel).await;
    announcing.abort();

    // Afterwards the database is not even asked.
    shop.heard_by(&service).await;
    let loads = service.figure("cache_loads").await;
    for folded in 0..3 {
        let announcing = shop.keep_announcing();
        is_rebuilding(price(channel, "p-1", &none).await);
        is_rebuilding(price(channel, &late, &none).await);
        let both = BatchGetProductsRequest { product_ids: vec![other.clone(), late.clone()], token: String::new() };
        is_rebuilding(CatalogClient::new(channel.clone()).batch_get_products(both).await);
        lists_and_sums_do_not_answer(channel).await;
        if folded >= 2 {
            // The views have what the token names, and not what the caller could know all the same.
            is_rebuilding(price(channel, "p-1", &early).await);
        }
        announcing.abort();
        shop.fold_anew(log, 1).await;
        shop.heard_by(&service).await;
    }
    assert_eq!(service.figure("cache_loads").await, loads);
    assert_eq!(price(channel, &other, &none).await.unwrap(), 0, "other logs answer");
    let asked = ListOrdersRequest { customer_id: other.clone(), ..Default::default() };
    OrdersClient::new(channel.clone()).list_orders(asked).await.unwrap();

    // The feed is silent: the database tells.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    is_rebuilding(price(channel, &late, &none).await);
    lists_and_sums_do_not_answer(channel).await;

    // Whoever has a token is answered as soon as the views are whole.
    shop.announce().await;
    let waiting = tokio::spawn({
        let (mut catalog, request) =
            (CatalogClient::new(channel.clone()), GetProductRequest { product_id: late.clone(), token: text(&token) });
        async move { catalog.get_product(request).await }
    });
    shop.fold_anew(log, 9).await;
    shop.heard_by(&service).await;
    waiting.await.unwrap().unwrap();
    assert_eq!(price(channel, "p-1", &none).await.unwrap(), 2);
    let listed = CatalogClient::new(channel.clone()).list_products(ListProductsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.products.len(), 3);
    service.stop().await;
}

/// The next reply with an order, heartbeats passed over: its version.
async fn next_version(stream: &mut Streaming<WatchOrderResponse>) -> Result<u64, Status> {
    loop {
        let reply = tokio::time::timeout(Duration::from_secs(30), stream.message()).await.expect("a reply or a heartbeat")?;
        if let Some(order) = reply.expect("an order that has not ended").order {
            return Ok(order.version);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_stands_still_while_views_are_folded_anew_and_ends_when_the_log_went_back() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let (log, id) = (log_of("c-1"), order_id("c-1", 1));
    let stream = format!("order-{id}");
    let placed = OrderPlaced { customer_id: "c-1".into(), total: Some(eur(1)), ..Default::default() };
    shop.record("c-1", &stream, "OrderPlaced", placed);
    shop.record("c-1", &stream, "OrderReserved", OrderReserved {});
    shop.project().await;
    shop.heard_by(&service).await;
    let mut orders = OrdersClient::new(service.channel.clone());
    let request = WatchOrderRequest { order_id: id.clone(), token: String::new() };
    let mut watch = orders.watch_order(request.clone()).await.unwrap().into_inner();
    assert_eq!(next_version(&mut watch).await.unwrap(), 2);

    // Folded anew: the first state is not shown again.
    shop.empty(log).await;
    shop.heard_by(&service).await;
    is_rebuilding(orders.watch_order(request.clone()).await);
    is_rebuilding(orders.get_order_timeline(GetOrderTimelineRequest { order_id: id.clone(), token: String::new() }).await);
    shop.fold_anew(log, 1).await;
    shop.heard_by(&service).await;
    for _ in 0..3 {
        let heartbeat = watch.message().await.unwrap().unwrap();
        assert!(heartbeat.order.is_none() && heartbeat.as_of.unwrap().positions[0].position == 2, "it claims no more than was seen");
    }
    shop.fold_anew(log, 1).await;
    shop.record("c-1", &stream, "PaymentRecorded", souk_proto::orders::v1::PaymentRecorded { amount: Some(eur(1)), ..Default::default() });
    shop.project().await;
    shop.heard_by(&service).await;
    assert_eq!(next_version(&mut watch).await.unwrap(), 3);

    // The log goes back to before what was shown, and on.
    shop.restore(log, 1);
    shop.empty(log).await;
    shop.fold_anew(log, 9).await;
    shop.record("c-1", &stream, "OrderReserved", OrderReserved {});
    shop.project().await;
    shop.heard_by(&service).await;
    let ended = next_version(&mut watch).await.unwrap_err();
    assert_eq!(reason(&ended), (Code::FailedPrecondition, "LOG_RESTORED".into()));
    let mut again = orders.watch_order(request).await.unwrap().into_inner();
    assert_eq!(next_version(&mut again).await.unwrap(), 2);
    service.stop().await;
}
