use anyhow::Result;
use prost_types::Timestamp;
use souk_proto::{
    common::v1::Money,
    orders::v1::{query_service_client::QueryServiceClient, *},
};
use souk_tests::eur;
use tonic::Code::{Aborted, FailedPrecondition as Refused, InvalidArgument as Bad, NotFound};

use super::{NO_ORDER, Scene, Table};

fn place(customer: &str, lines: Vec<PlaceOrderLine>) -> PlaceOrderRequest {
    PlaceOrderRequest { customer_id: customer.into(), lines, ..Default::default() }
}

fn line(product: &str, quantity: i64) -> PlaceOrderLine {
    PlaceOrderLine { product_id: product.into(), quantity }
}

fn pay(order: &str, reference: &str, amount: Option<Money>) -> RecordPaymentRequest {
    RecordPaymentRequest { order_id: order.into(), payment_reference: reference.into(), amount, ..Default::default() }
}

fn cancel(order: &str) -> CancelOrderRequest {
    CancelOrderRequest { order_id: order.into(), ..Default::default() }
}

fn ship(order: &str) -> RecordShipmentRequest {
    RecordShipmentRequest { order_id: order.into(), ..Default::default() }
}

fn deliver(order: &str) -> RecordDeliveryRequest {
    RecordDeliveryRequest { order_id: order.into(), ..Default::default() }
}

pub async fn commands(table: &mut Table, scene: &Scene) -> Result<()> {
    placing(table).await?;
    let order = scene.order.as_str();
    for id in ["", "x", &"l".repeat(32), &order.to_uppercase(), &order[1..], &format!("{order}0")] {
        table.command(&format!("order {id:?}"), pay(id, "r", Some(eur(100)))).await?.names(&["order_id"])?;
    }
    table.command("unknown order", pay(NO_ORDER, "r", Some(eur(1)))).await?.says(NotFound, "ORDER_NOT_FOUND")?;
    table.command("no reference", pay(order, "", Some(eur(100)))).await?.names(&["payment_reference"])?;
    table.command("long reference", pay(order, &"x".repeat(129), Some(eur(100)))).await?.names(&["payment_reference"])?;
    table.command("no amount", pay(order, "r", None)).await?.names(&["amount"])?;
    for amount in [eur(99), eur(101), eur(-100), eur(i64::MIN), Money { currency: "USD".into(), minor_units: 100 }] {
        table.command(&format!("{amount:?}"), pay(order, "r", Some(amount))).await?.says(Refused, "PAYMENT_MISMATCH")?;
    }

    table.command("bad order", cancel("o-1")).await?.names(&["order_id"])?;
    table.command("unknown order", cancel(NO_ORDER)).await?.says(NotFound, "ORDER_NOT_FOUND")?;
    table.command("long reason", CancelOrderRequest { reason: "x".repeat(201), ..cancel(order) }).await?.names(&["reason"])?;
    table.command("stale etag", CancelOrderRequest { etag: "1-1".into(), ..cancel(order) }).await?.says(Aborted, "STALE_ETAG")?;

    table.command("bad order", ship("\u{202e}")).await?.names(&["order_id"])?;
    table.command("unknown order", ship(NO_ORDER)).await?.says(NotFound, "ORDER_NOT_FOUND")?;
    table.command("not paid", ship(order)).await?.says(Refused, "NOT_PAID")?;
    let long = RecordShipmentRequest { carrier: "x".repeat(65), tracking_number: "x".repeat(129), ..ship(order) };
    table.command("long texts", long).await?.names(&["carrier", "tracking_number"])?;

    table.command("bad order", deliver("")).await?.names(&["order_id"])?;
    table.command("unknown order", deliver(NO_ORDER)).await?.says(NotFound, "ORDER_NOT_FOUND")?;
    table.command("not shipped", deliver(order)).await?.says(Refused, "NOT_SHIPPED")
}

async fn placing(table: &mut Table) -> Result<()> {
    let one = || vec![line("p-1", 1)];
    table.command("bad customer", place("c.1", one())).await?.names(&["customer_id"])?;
    table.command("nothing", place("c-1", vec![])).await?.names(&["lines"])?;
    table.command("twice the same", place("c-1", vec![line("p-1", 1), line("p-1", 2)])).await?.names(&["lines"])?;
    table.command("ten thousand lines", place("c-1", vec![line("p-1", 1); 10_000])).await?.names(&["lines"])?;
    table.command("less than nothing", place("c-1", vec![line("p-1", -5)])).await?.names(&["lines[0].quantity"])?;
    let bad = vec![line("p-1", 0), line("p 1", 1_000)];
    table.command("bad lines", place("c-1", bad)).await?.names(&["lines[0].quantity", "lines[1].product_id", "lines[1].quantity"])?;
    // Each id as long as it may be: the refusal must still fit into headers.
    let unknown = (0..100).map(|index| line(&format!("{index:064}"), 1)).collect();
    table.command("a hundred unknown products", place("c-1", unknown)).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    table.command("unknown product", place("c-1", vec![line("none", 1)])).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    let mixed = vec![line("p-1", 1), line("p-draft", 1)];
    table.command("a draft", place("c-1", mixed)).await?.says(Refused, "PRODUCT_NOT_FOR_SALE")?;
    let expected = |total| PlaceOrderRequest { expected_total: Some(total), ..place("c-1", one()) };
    table.command("another total", expected(eur(1))).await?.says(Refused, "TOTAL_CHANGED")?;
    let none = Money { currency: "euro".into(), minor_units: 100 };
    table.command("no currency", expected(none)).await?.names(&["expected_total.currency"])
}

pub async fn queries(table: &mut Table, scene: &Scene) -> Result<()> {
    let get = |id: &str, token: &str| GetOrderRequest { order_id: id.into(), token: token.into() };
    table.query("unknown order", get(NO_ORDER, "")).await?.says(NotFound, "ORDER_NOT_FOUND")?;
    table.query("bad order", get("x", "")).await?.names(&["order_id"])?;
    table.query("forged token", get(&scene.order, "AAAA")).await?.tells(Bad, "INVALID_TOKEN", &["token"])?;
    let timeline = |id: &str| GetOrderTimelineRequest { order_id: id.into(), ..Default::default() };
    table.query("unknown order", timeline(NO_ORDER)).await?.says(NotFound, "ORDER_NOT_FOUND")?;
    table.query("bad order", timeline("o-1")).await?.names(&["order_id"])?;
    listing(table).await?;

    let mut client = QueryServiceClient::connect(scene.system.stack.endpoint("query")).await?;
    let watch = |id: &str, token: &str| WatchOrderRequest { order_id: id.into(), token: token.into() };
    let path = "souk.orders.v1.QueryService/WatchOrder";
    let unknown = table.call(path, "unknown order", client.watch_order(watch(NO_ORDER, ""))).await?;
    unknown.says(NotFound, "ORDER_NOT_FOUND")?;
    table.call(path, "bad order", client.watch_order(watch("", ""))).await?.names(&["order_id"])?;
    let forged = table.call(path, "forged token", client.watch_order(watch(&scene.order, "AAAA"))).await?;
    forged.tells(Bad, "INVALID_TOKEN", &["token"])
}

async fn listing(table: &mut Table) -> Result<()> {
    let list = ListOrdersRequest::default;
    table.query("bad customer", ListOrdersRequest { customer_id: "c 1".into(), ..list() }).await?.names(&["customer_id"])?;
    table.query("no such state", ListOrdersRequest { state: -1, ..list() }).await?.names(&["state"])?;
    let never = Some(Timestamp { seconds: i64::MAX, nanos: -1 });
    let times = ListOrdersRequest { from_time: never, to_time: never, ..list() };
    table.query("times that never are", times).await?.names(&["from_time", "to_time"])?;
    table.query("page of less than nothing", ListOrdersRequest { page_size: i32::MIN, ..list() }).await?.names(&["page_size"])?;
    let forged = table.query("forged page token", ListOrdersRequest { page_token: "x".repeat(5_000), ..list() }).await?;
    forged.tells(Bad, "INVALID_PAGE_TOKEN", &["page_token"])?;

    let sales = |from: &str, to: &str| GetSalesSummaryRequest { from_day: from.into(), to_day: to.into(), ..Default::default() };
    table.query("no such day", sales("2026-02-30", "2026-03-01")).await?.names(&["from_day"])?;
    table.query("a day in other words", sales("", "today")).await?.names(&["to_day"])?;
    table.query("the last before the first", sales("2026-02-02", "2026-02-01")).await?.names(&["from_day"])?;
    table.query("over a year", sales("2024-01-01", "2026-01-01")).await?.names(&["from_day"])?;
    let bad = GetSalesSummaryRequest { product_id: "p 1".into(), page_size: 1_001, ..Default::default() };
    table.query("bad product and page", bad).await?.names(&["product_id", "page_size"])
}
