use std::time::Duration;

use souk_event_sourcing::Token;
use souk_proto::{
    cart::v1::{ItemAdded, ItemQuantitySet, WatchCartRequest, WatchCartResponse, query_service_client::QueryServiceClient as CartClient},
    orders::v1::{
        CancelCause, OrderCancelled, OrderPlaced, OrderReserved, OrderState, WatchOrderRequest, WatchOrderResponse,
        query_service_client::QueryServiceClient,
    },
};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::world::*;

struct Order {
    id: String,
    stream: String,
}

fn order(number: u64) -> Order {
    let id = order_id("c-1", number);
    Order { stream: format!("order-{id}"), id }
}

fn placed() -> OrderPlaced {
    OrderPlaced { customer_id: "c-1".into(), total: Some(eur(1)), ..Default::default() }
}

fn cancelled() -> OrderCancelled {
    OrderCancelled { cause: CancelCause::Caller.into(), reason: "changed my mind".into(), refund_due: false }
}

async fn watch(service: &Service, order: &Order, token: String) -> Result<Streaming<WatchOrderResponse>, tonic::Status> {
    let request = WatchOrderRequest { order_id: order.id.clone(), token };
    Ok(QueryServiceClient::new(service.channel.clone()).watch_order(request).await?.into_inner())
}

async fn next(stream: &mut Streaming<WatchOrderResponse>) -> Option<WatchOrderResponse> {
    tokio::time::timeout(Duration::from_secs(30), stream.message()).await.expect("a reply or a heartbeat").unwrap()
}

/// The next reply with an order, heartbeats passed over: its state and token.
async fn next_state(stream: &mut Streaming<WatchOrderResponse>) -> Option<(OrderState, String)> {
    loop {
        let reply = next(stream).await?;
        let token = reply.as_of.expect("a token in each reply").token;
        if let Some(order) = reply.order {
            return Some((order.state(), token));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_shows_each_change_resumes_by_token_and_ends_with_the_order() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let (order, other) = (order(1), order(2));
    let token = shop.record("c-1", &order.stream, "OrderPlaced", placed());
    shop.project().await;
    shop.heard_by(&service).await;

    let missing = watch(&service, &other, String::new()).await.unwrap_err();
    assert_eq!(reason(&missing), (Code::NotFound, "ORDER_NOT_FOUND".into()));
    let forged = watch(&service, &order, "forged".into()).await.unwrap_err();
    assert_eq!(reason(&forged), (Code::InvalidArgument, "INVALID_TOKEN".into()));

    let mut stream = watch(&service, &order, String::new()).await.unwrap();
    let (state, seen) = next_state(&mut stream).await.unwrap();
    assert_eq!(state, OrderState::Reserving);
    // Nothing changed: a heartbeat with a token and no order, also while others of the log change.
    shop.record("c-1", &other.stream, "OrderPlaced", placed());
    shop.project().await;
    let heartbeat = next(&mut stream).await.unwrap();
    assert!(heartbeat.order.is_none() && Token::decode(&heartbeat.as_of.unwrap().token, &KEY).unwrap().parts().len() == 1);

    // Who knows the state begins with the next change.
    let mut resumed = watch(&service, &order, seen).await.unwrap();
    assert!(next(&mut resumed).await.unwrap().order.is_none());
    shop.record("c-1", &order.stream, "OrderReserved", OrderReserved {});
    shop.project().await;
    for stream in [&mut stream, &mut resumed] {
        assert_eq!(next_state(stream).await.unwrap().0, OrderState::AwaitingPayment);
    }
    // Who comes with an older token gets what is new since, conflated.
    let mut behind = watch(&service, &order, text(&token)).await.unwrap();
    assert_eq!(next_state(&mut behind).await.unwrap().0, OrderState::AwaitingPayment);

    // The end of the order ends all of them, though its announcement was lost.
    shop.record("c-1", &order.stream, "OrderCancelled", cancelled());
    shop.project_silently().await;
    let mut last = String::new();
    for stream in [&mut stream, &mut resumed, &mut behind] {
        let (state, token) = next_state(stream).await.unwrap();
        assert_eq!(state, OrderState::Cancelled);
        last = token;
        assert_eq!(next_state(stream).await, None);
    }
    let mut over = watch(&service, &order, last).await.unwrap();
    assert_eq!(next_state(&mut over).await, None, "nothing follows what the caller has");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_service_ends_its_watches_resumably() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let order = order(1);
    shop.record("c-1", &order.stream, "OrderPlaced", placed());
    shop.project().await;
    let mut stream = watch(&service, &order, String::new()).await.unwrap();
    next_state(&mut stream).await.unwrap();
    service.stop().await;
    let ended = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the order has not ended"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
}

async fn watch_cart(channel: &Channel, token: &str) -> Result<Streaming<WatchCartResponse>, Status> {
    let request = WatchCartRequest { customer_id: "c-1".into(), token: token.into() };
    Ok(CartClient::new(channel.clone()).watch_cart(request).await?.into_inner())
}

/// The next reply with a cart: its quantities and token.
async fn next_cart(stream: &mut Streaming<WatchCartResponse>) -> (Vec<i64>, String) {
    loop {
        let reply = tokio::time::timeout(Duration::from_secs(30), stream.message()).await.expect("a reply or a heartbeat");
        let reply = reply.unwrap().expect("carts never end");
        let token = reply.as_of.expect("a token in each reply").token;
        if let Some(cart) = reply.cart {
            return (cart.lines.iter().map(|line| line.quantity).collect(), token);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cart_is_watched_as_an_order_is_and_never_ends() {
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let service = Service::start(servers.settings()).await;
    service.ready().await;
    let missing = watch_cart(&service.channel, "").await.unwrap_err();
    assert_eq!(reason(&missing), (Code::NotFound, "CART_NOT_FOUND".into()));

    shop.record("c-1", "cart-c-1", "ItemAdded", ItemAdded { product_id: "p-1".into(), quantity: 2 });
    shop.project().await;
    shop.heard_by(&service).await;
    let mut stream = watch_cart(&service.channel, "").await.unwrap();
    let (quantities, seen) = next_cart(&mut stream).await;
    assert_eq!(quantities, [2]);
    let mut resumed = watch_cart(&service.channel, &seen).await.unwrap();
    assert!(resumed.message().await.unwrap().unwrap().cart.is_none(), "a heartbeat");
    shop.record("c-1", "cart-c-1", "ItemQuantitySet", ItemQuantitySet { product_id: "p-1".into(), quantity: 5 });
    shop.project().await;
    for stream in [&mut stream, &mut resumed] {
        assert_eq!(next_cart(stream).await.0, [5]);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_not_read_is_cut_off_in_time_and_resumes() {
    const PATIENCE: Duration = Duration::from_millis(700);
    let servers = Servers::start().await;
    let mut shop = Shop::open(&servers).await;
    let mut settings = servers.settings();
    settings.query.watch_patience = PATIENCE;
    // A stream that is not forgotten keeps everybody else out.
    settings.grpc.max_open_streams = 1;
    let service = Service::start(settings).await;
    service.ready().await;
    shop.record("c-1", "cart-c-1", "ItemAdded", ItemAdded { product_id: "p-1".into(), quantity: 2 });
    shop.project().await;
    shop.heard_by(&service).await;

    // Room for one reply: whoever does not read gets no second.
    let narrow = Endpoint::from_shared(service.address.clone()).unwrap().initial_stream_window_size(64).connect().await.unwrap();
    let mut unread = watch_cart(&narrow, "").await.unwrap();
    let (_, seen) = next_cart(&mut unread).await;
    // Whoever reads is not cut off, however long it goes on.
    let reading = std::time::Instant::now();
    while reading.elapsed() < PATIENCE * 3 {
        unread.message().await.unwrap().expect("a heartbeat");
    }
    let stopped = std::time::Instant::now();
    wait("the watch is cut off", || async { watch_cart(&service.channel, &seen).await.is_ok() }).await;
    let took = stopped.elapsed();
    // Two heartbeats go before the window is closed.
    assert!(took >= PATIENCE && took < PATIENCE + Duration::from_secs(3), "{took:?}");
    let reset = loop {
        match unread.message().await {
            Ok(reply) => assert!(reply.is_some(), "ended as if all were well"),
            Err(status) => break status,
        }
    };
    assert_eq!(reset.code(), Code::Cancelled, "{reset:?}");

    shop.record("c-1", "cart-c-1", "ItemQuantitySet", ItemQuantitySet { product_id: "p-1".into(), quantity: 5 });
    shop.project().await;
    let resuming = async {
        loop {
            // The permit of the look above comes back when the server has seen its reset.
            if let Ok(stream) = watch_cart(&narrow, &seen).await {
                return stream;
            }
        }
    };
    let mut resumed = tokio::time::timeout(Duration::from_secs(10), resuming).await.unwrap();
    assert_eq!(next_cart(&mut resumed).await.0, [5]);
    drop(resumed);
    service.stop().await;
}
