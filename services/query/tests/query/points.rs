use std::time::Duration;

use souk_event_sourcing::{Epoch, LogPosition, Position, Token};
use souk_proto::{
    cart::v1::{GetCartRequest, ItemAdded, query_service_client::QueryServiceClient as CartClient},
    catalog::v1::{
        BatchGetProductsRequest, GetProductRequest, PriceSet, ProductCreated, ProductDetails, ProductPublished, ProductState,
        query_service_client::QueryServiceClient as CatalogClient,
    },
    orders::v1::{
        GetOrderRequest, GetOrderTimelineRequest, GetSalesSummaryRequest, ListOrdersRequest, OrderLine, OrderPlaced, OrderReserved,
        OrderState, query_service_client::QueryServiceClient as OrdersClient,
    },
    stock::v1::{
        BatchGetAvailabilityRequest, GetAvailabilityRequest, StockOpened, StockReceived,
        query_service_client::QueryServiceClient as StockClient,
    },
};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::world::*;

fn get_product(id: &str, token: &Token) -> GetProductRequest {
    GetProductRequest { product_id: id.into(), token: text(token) }
}

fn created(title: &str) -> ProductCreated {
    let details = ProductDetails { title: title.into(), category: "toys".into(), tags: vec!["red".into()], ..Default::default() };
    ProductCreated { details: Some(details), price: Some(eur(1_250)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_entity_is_read_back_with_the_token_of_its_command() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let order = order_id("c-1", 1);
    let product = shop.record("p-1", "product-p-1", "ProductCreated", created("Ball"));
    shop.record("p-1", "stock-p-1", "StockOpened", StockOpened {});
    let stock = shop.record("p-1", "stock-p-1", "StockReceived", StockReceived { quantity: 7 });
    let cart = shop.record("c-1", "cart-c-1", "ItemAdded", ItemAdded { product_id: "p-1".into(), quantity: 2 });
    let line = OrderLine { product_id: "p-1".into(), quantity: 2, unit_price: Some(eur(1_250)), product_version: 1 };
    let placed = OrderPlaced { customer_id: "c-1".into(), lines: vec![line], total: Some(eur(2_500)), payment_deadline_ms: 5 };
    let placed = shop.record("c-1", &format!("order-{order}"), "OrderPlaced", placed);
    shop.project().await;
    shop.heard_by(&service).await;
    let announcing = shop.keep_announcing();

    // The second round is answered from the cache.
    for round in 0..2 {
        let reply = CatalogClient::new(service.channel.clone()).get_product(get_product("p-1", &product)).await.unwrap().into_inner();
        let shown = reply.product.unwrap();
        assert_eq!(
            (shown.product_id.as_str(), shown.state(), shown.price),
            ("p-1", ProductState::Draft, Some(eur(1_250))),
            "round {round}"
        );
        let as_of = reply.as_of.unwrap();
        assert!(as_of.positions[0].position >= product.parts()[0].position.0 && as_of.stale_since.is_none() && as_of.time.is_some());
        let again = Token::decode(&as_of.token, &KEY).unwrap();
        assert_eq!(again.of(log_of("p-1")).unwrap().position.0, as_of.positions[0].position);

        let request = GetAvailabilityRequest { product_id: "p-1".into(), token: text(&stock) };
        let reply = StockClient::new(service.channel.clone()).get_availability(request).await.unwrap().into_inner();
        assert_eq!(reply.availability.unwrap().available, 7);
        let request = GetCartRequest { customer_id: "c-1".into(), token: text(&cart) };
        let reply = CartClient::new(service.channel.clone()).get_cart(request).await.unwrap().into_inner();
        assert_eq!(reply.cart.unwrap().lines[0].quantity, 2);
        let mut orders = OrdersClient::new(service.channel.clone());
        let reply = orders.get_order(GetOrderRequest { order_id: order.clone(), token: text(&placed) }).await.unwrap().into_inner();
        assert_eq!((reply.order.as_ref().unwrap().state(), reply.order.unwrap().total), (OrderState::Reserving, Some(eur(2_500))));
        let request = GetOrderTimelineRequest { order_id: order.clone(), token: text(&placed) };
        let reply = orders.get_order_timeline(request).await.unwrap().into_inner();
        assert_eq!((reply.entries.len(), reply.entries[0].r#type.as_str()), (1, "OrderPlaced"));
        assert!(reply.entries[0].projected_time.is_some() && reply.as_of.unwrap().positions.len() == 1);
    }
    assert!(service.figure("cache_hits").await >= 4.0);

    announcing.abort();

    // Only the projection of a reservation makes it visible; the token is honoured across it.
    let reserved = shop.record("c-1", &format!("order-{order}"), "OrderReserved", OrderReserved {});
    let waiting = tokio::spawn({
        let (mut orders, order) = (OrdersClient::new(service.channel.clone()), order.clone());
        async move { orders.get_order(GetOrderRequest { order_id: order, token: text(&reserved) }).await }
    });
    shop.project().await;
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().order.unwrap().state(), OrderState::AwaitingPayment);
    service.stop().await;
}

/// Law 11: the parked entity is told apart at once, with and without a row, and everybody else is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_past_a_parked_event_is_refused_at_once_and_others_go_on() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let (order, lost) = (order_id("c-1", 1), order_id("c-1", 2));
    let placed = || OrderPlaced { customer_id: "c-1".into(), total: Some(eur(1)), payment_deadline_ms: 5, ..Default::default() };
    let before = shop.record("c-1", &format!("order-{order}"), "OrderPlaced", placed());
    shop.record("c-1", &format!("order-{order}"), "OrderTeleported", OrderReserved {});
    shop.record("c-1", &format!("order-{lost}"), "OrderDreamt", OrderReserved {});
    let after = shop.record("c-1", "cart-c-1", "ItemAdded", ItemAdded { product_id: "p-1".into(), quantity: 2 });
    shop.project().await;
    shop.heard_by(&service).await;
    let announcing = shop.keep_announcing();
    let mut orders = OrdersClient::new(service.channel.clone());
    let get = |id: &String, token: &Token| GetOrderRequest { order_id: id.clone(), token: text(token) };
    let timeline = |token: &Token| GetOrderTimelineRequest { order_id: order.clone(), token: text(token) };
    // The second round is answered from the cache.
    for _ in 0..2 {
        for id in [&order, &lost] {
            let refused = orders.get_order(get(id, &after)).await.unwrap_err();
            assert_eq!(reason(&refused), (Code::FailedPrecondition, "ENTITY_PARKED".into()));
        }
        let refused = orders.get_order_timeline(timeline(&after)).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::FailedPrecondition, "ENTITY_PARKED".into()));
        let stale = orders.get_order(get(&order, &before)).await.unwrap().into_inner();
        assert_eq!(stale.order.unwrap().state(), OrderState::Reserving);
        assert!(stale.as_of.unwrap().stale_since.is_some());
        let stale = orders.get_order_timeline(timeline(&before)).await.unwrap().into_inner();
        assert_eq!((stale.entries.len(), stale.as_of.unwrap().stale_since.is_some()), (1, true));
        let missing = orders.get_order(get(&lost, &Token::default())).await.unwrap_err();
        assert_eq!(reason(&missing), (Code::NotFound, "ORDER_NOT_FOUND".into()));
        let request = GetCartRequest { customer_id: "c-1".into(), token: text(&after) };
        let cart = CartClient::new(service.channel.clone()).get_cart(request).await.unwrap().into_inner();
        assert!(cart.as_of.unwrap().stale_since.is_none());
    }
    let list = orders.list_orders(ListOrdersRequest { customer_id: "c-1".into(), ..Default::default() }).await.unwrap().into_inner();
    let listed: Vec<_> = list.orders.iter().map(|order| &order.order_id).collect();
    assert_eq!((listed, list.as_of.unwrap().stale_since.is_some()), (vec![&order], true));
    let everything = orders.list_orders(ListOrdersRequest::default()).await.unwrap().into_inner();
    assert_eq!(everything.orders.len(), 1, "a marker is no order");
    let summary = orders.get_sales_summary(GetSalesSummaryRequest::default()).await.unwrap().into_inner();
    assert!(summary.as_of.unwrap().stale_since.is_some());
    announcing.abort();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_waited_for_and_refused_when_waiting_is_in_vain() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let mut catalog = CatalogClient::new(service.channel.clone());
    shop.record("p-1", "product-p-1", "ProductCreated", created("Ball"));
    shop.project().await;
    shop.heard_by(&service).await;
    let announcing = shop.keep_announcing();

    // Not projected in time: told with the lag, before the deadline.
    shop.record("p-1", "product-p-1", "PriceSet", PriceSet { price: Some(eur(1)) });
    let token = shop.record("p-1", "product-p-1", "ProductPublished", ProductPublished {});
    let late = catalog.get_product(within(Duration::from_millis(400), get_product("p-1", &token))).await.unwrap_err();
    assert_eq!(reason(&late), (Code::Unavailable, "NOT_YET_VISIBLE".into()));
    let details = late.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert_eq!(details.error_info().unwrap().metadata["lag_events"], "2");
    // Another log is not waited for.
    catalog.get_product(within(Duration::from_millis(400), get_product("p-1", &Token::default()))).await.unwrap();
    let other = (2..).map(|number| format!("p-{number}")).find(|id| log_of(id) != log_of("p-1")).unwrap();
    let missing = catalog.get_product(within(Duration::from_millis(400), get_product(&other, &token))).await.unwrap_err();
    assert_eq!(reason(&missing), (Code::NotFound, "PRODUCT_NOT_FOUND".into()));

    // Projected while the caller waits, and the announcement lost: the store is asked when the feed has been silent.
    announcing.abort();
    let waiting = tokio::spawn({
        let (mut catalog, request) = (catalog.clone(), get_product("p-1", &token));
        async move { catalog.get_product(request).await }
    });
    shop.project_silently().await;
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().product.unwrap().state(), ProductState::Published);

    // The token may come in metadata, and then counts as well.
    let beyond: Token = LogPosition { position: Position(9), ..token.parts()[0] }.into();
    let mut request = within(Duration::from_millis(300), get_product("p-1", &token));
    request.metadata_mut().insert("souk-token", text(&beyond).parse().unwrap());
    assert_eq!(reason(&catalog.get_product(request).await.unwrap_err()), (Code::Unavailable, "NOT_YET_VISIBLE".into()));

    // Of a part that a restore took back: refused at once.
    let lost: Token = LogPosition { epoch: Epoch(999), position: Position(9), ..token.parts()[0] }.into();
    let refused = catalog.get_product(get_product("p-1", &lost)).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "LOG_RESTORED".into()));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_keep_the_order_and_bad_requests_change_nothing() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let (mut catalog, mut stock) = (CatalogClient::new(service.channel.clone()), StockClient::new(service.channel.clone()));
    let mut token = Token::default();
    for number in 1..=20 {
        let id = format!("p-{number}");
        token.extend(shop.record(&id, &format!("product-{id}"), "ProductCreated", created(&id)).parts().iter().copied());
        shop.record(&id, &format!("stock-{id}"), "StockOpened", StockOpened {});
    }
    shop.project().await;

    let details = ProductDetails { description: "𝄞".repeat(10_000), ..Default::default() };
    let large = ProductCreated { details: Some(details.clone()), price: None };
    token.extend(shop.record("p-large", "product-p-large", "ProductCreated", large).parts().iter().copied());
    shop.project().await;
    let mixed = ["p-1", "p-large", "p-2", "p-3", "p-large"].map(String::from).to_vec();
    let reply = catalog.batch_get_products(BatchGetProductsRequest { product_ids: mixed.clone(), token: text(&token) }).await.unwrap();
    let products = reply.into_inner().products;
    assert_eq!(products.iter().map(|product| &product.product_id).collect::<Vec<_>>(), mixed.iter().collect::<Vec<_>>());
    assert!([1, 4].iter().all(|at| products[*at].details.as_ref() == Some(&details)), "large ones among small ones");

    let ids: Vec<String> = ["p-20", "p-404", "p-3", "p-1", "p-3"].map(String::from).into();
    let request = BatchGetProductsRequest { product_ids: ids.clone(), token: text(&token) };
    let reply = catalog.batch_get_products(request).await.unwrap().into_inner();
    assert_eq!(reply.products.iter().map(|product| product.product_id.as_str()).collect::<Vec<_>>(), ["p-20", "p-3", "p-1", "p-3"]);
    assert_eq!(reply.missing, ["p-404"]);
    let named = Token::decode(&reply.as_of.unwrap().token, &KEY).unwrap();
    assert!(ids.iter().all(|id| named.of(log_of(id)).is_some()), "one position for each log");
    let reply =
        stock.batch_get_availability(BatchGetAvailabilityRequest { product_ids: ids, token: text(&token) }).await.unwrap().into_inner();
    assert_eq!((reply.availabilities.len(), reply.missing.len()), (4, 1));

    let long = "x".repeat(65);
    let batch = |product_ids: Vec<String>, token: &str| BatchGetProductsRequest { product_ids, token: token.into() };
    let hostile: Vec<(BatchGetProductsRequest, &str, Vec<&str>)> = vec![
        (batch(vec![], ""), "INVALID_FIELDS", vec!["product_ids"]),
        (batch(vec!["p-1".into(); 101], ""), "INVALID_FIELDS", vec!["product_ids"]),
        (
            batch(vec!["p-1".into(), "a/b".into(), String::new(), "p-2".into(), "a\0".into()], ""),
            "INVALID_FIELDS",
            vec!["product_ids[1]", "product_ids[2]", "product_ids[4]"],
        ),
        (batch(vec![long.clone()], "forged"), "INVALID_FIELDS", vec!["product_ids[0]", "token"]),
        (batch(vec!["p-1".into()], "forged"), "INVALID_TOKEN", vec!["token"]),
    ];
    for (request, expected, fields) in hostile {
        let refused = catalog.batch_get_products(request).await.unwrap_err();
        assert_eq!(
            (reason(&refused), bad_fields(&refused)),
            ((Code::InvalidArgument, expected.to_owned()), fields.into_iter().map(str::to_owned).collect())
        );
    }
    for id in ["", "-a", "a.b", "ä", " p-1", "p-1\n", &long] {
        let refused = catalog.get_product(get_product(id, &Token::default())).await.unwrap_err();
        assert_eq!(
            (reason(&refused), bad_fields(&refused)),
            ((Code::InvalidArgument, "INVALID_FIELDS".into()), vec!["product_id".into()]),
            "{id:?}"
        );
    }
    let mut orders = OrdersClient::new(service.channel.clone());
    for id in ["", "p-1", &"u".repeat(32), &order_id("c-1", 1).to_uppercase()] {
        let refused = orders.get_order(GetOrderRequest { order_id: id.into(), token: String::new() }).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["order_id"], "{id:?}");
    }
    // Well formed, of a region that is not kept here.
    for id in [order_id("c-1", 1), "z".repeat(32)] {
        let missing = orders.get_order(GetOrderRequest { order_id: id.clone(), token: String::new() }).await.unwrap_err();
        assert_eq!(reason(&missing), (Code::NotFound, "ORDER_NOT_FOUND".into()));
        let missing = orders.get_order_timeline(GetOrderTimelineRequest { order_id: id, token: String::new() }).await.unwrap_err();
        assert_eq!(reason(&missing), (Code::NotFound, "ORDER_NOT_FOUND".into()));
    }
    let mut request = Request::new(get_product("p-1", &Token::default()));
    request.metadata_mut().insert("souk-token", "forged".parse().unwrap());
    let refused = catalog.get_product(request).await.unwrap_err();
    assert_eq!((reason(&refused), bad_fields(&refused)), ((Code::InvalidArgument, "INVALID_TOKEN".into()), vec!["souk-token".into()]));
    // A foreign key signs in vain.
    let foreign = token.encode(&souk_event_sourcing::TokenKey::new([2; 32]));
    let refused = catalog.get_product(GetProductRequest { product_id: "p-1".into(), token: foreign }).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_TOKEN".into()));
    assert!(catalog.get_product(get_product("p-1", &token)).await.is_ok());
    service.stop().await;
}
