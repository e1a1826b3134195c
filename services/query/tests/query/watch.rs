use std::time::Duration;

use souk_event_sourcing::Token;
use souk_proto::orders::v1::{
    CancelCause, OrderCancelled, OrderPlaced, OrderReserved, OrderState, WatchOrderRequest, WatchOrderResponse,
    query_service_client::QueryServiceClient,
};
use tonic::{Code, Streaming};

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
