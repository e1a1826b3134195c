use anyhow::Result;
use prost_types::Timestamp;
use souk_event_sourcing::UnixMillis;
use souk_proto::stock::v1::*;
use tonic::Code::{Aborted, FailedPrecondition as Refused, InvalidArgument as Bad, NotFound};

use super::{Scene, Table};

/// So many days from now.
fn in_days(days: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: UnixMillis::now().0 / 1000 + days * 86_400, nanos: 0 })
}

fn receive(id: &str, quantity: i64) -> ReceiveStockRequest {
    ReceiveStockRequest { product_id: id.into(), quantity, ..Default::default() }
}

fn adjust(id: &str, delta: i64) -> AdjustStockRequest {
    AdjustStockRequest { product_id: id.into(), delta, ..Default::default() }
}

fn reserve(id: &str, order: &str, quantity: i64) -> ReserveStockRequest {
    ReserveStockRequest { product_id: id.into(), order_id: order.into(), quantity, ..Default::default() }
}

fn release(id: &str, order: &str) -> ReleaseReservationRequest {
    ReleaseReservationRequest { product_id: id.into(), order_id: order.into(), ..Default::default() }
}

fn commit(id: &str, order: &str) -> CommitReservationRequest {
    CommitReservationRequest { product_id: id.into(), order_id: order.into(), ..Default::default() }
}

pub async fn commands(table: &mut Table, scene: &Scene) -> Result<()> {
    for quantity in [0, -1, 1_000_000_001, i64::MAX, i64::MIN] {
        table.command(&format!("{quantity} units"), receive("p-1", quantity)).await?.names(&["quantity"])?;
    }
    table.command("bad id", receive("p 1", 1)).await?.names(&["product_id"])?;
    table.command("unknown product", receive("none", 1)).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    let reused = ReceiveStockRequest { request_id: scene.used.clone(), ..receive("p-1", 2) };
    table.command("request id of another body", reused).await?.tells(Bad, "REQUEST_ID_REUSED", &["request_id"])?;

    for delta in [0, 1_000_000_001, i64::MIN] {
        table.command(&format!("by {delta}"), adjust("p-1", delta)).await?.names(&["delta"])?;
    }
    table.command("long note", AdjustStockRequest { note: "x".repeat(201), ..adjust("p-1", 1) }).await?.names(&["note"])?;
    table.command("NUL in note", AdjustStockRequest { note: "\0".into(), ..adjust("p-1", 1) }).await?.names(&["note"])?;
    table.command("below what is there", adjust("p-1", -11)).await?.says(Refused, "BELOW_RESERVED")?;
    table.command("below what is reserved", adjust("p-1", -9)).await?.says(Refused, "BELOW_RESERVED")?;
    table.command("stale etag", AdjustStockRequest { etag: "1-1".into(), ..adjust("p-1", 1) }).await?.says(Aborted, "STALE_ETAG")?;
    reserving(table).await?;

    table.command("no order", release("p-1", "")).await?.names(&["order_id"])?;
    table.command("unknown product", release("none", "o-1")).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    let far = ReleaseReservationRequest { valid_until: in_days(31), ..release("p-1", "o-1") };
    table.command("valid for a month and a day", far).await?.names(&["valid_until"])?;
    table.command("bad ids", commit("p 1", "o 1")).await?.names(&["product_id", "order_id"])?;
    table.command("unknown product", commit("none", "o-1")).await?.says(NotFound, "PRODUCT_NOT_FOUND")?;
    table.command("what is not held", commit("p-1", "o-1")).await?.says(Refused, "RESERVATION_NOT_FOUND")
}

async fn reserving(table: &mut Table) -> Result<()> {
    for quantity in [0, -1, 1_000] {
        table.command(&format!("{quantity} units"), reserve("p-1", "o-1", quantity)).await?.names(&["quantity"])?;
    }
    table.command("bad order", reserve("p-1", "o 1", 1)).await?.names(&["order_id"])?;
    table.command("more than is available", reserve("p-1", "o-1", 9)).await?.says(Refused, "INSUFFICIENT_STOCK")?;
    table.command("not for sale", reserve("p-draft", "o-1", 1)).await?.says(Refused, "NOT_FOR_SALE")?;
    table.command("another quantity than held", reserve("p-1", "o-held", 2)).await?.says(Refused, "RESERVATION_DIFFERS")?;
    let one = || reserve("p-1", "o-1", 1);
    let never = [(i64::MAX, 0), (i64::MIN, 0), (253_402_300_800, 0), (1, -1), (1, 1_000_000_000)];
    for (seconds, nanos) in never {
        let until = ReserveStockRequest { valid_until: Some(Timestamp { seconds, nanos }), ..one() };
        table.command(&format!("valid until {seconds}.{nanos}"), until).await?.names(&["valid_until"])?;
    }
    let far = ReserveStockRequest { valid_until: in_days(31), ..one() };
    table.command("valid for a month and a day", far).await?.names(&["valid_until"])?;
    let past = ReserveStockRequest { valid_until: in_days(-1), ..one() };
    table.command("valid until yesterday", past).await?.says(Refused, "RESERVATION_EXPIRED")?;
    let short = ReserveStockRequest { valid_until: in_days(2), expire_time: in_days(1), ..one() };
    table.command("given back before it ends", short).await?.names(&["expire_time"])?;
    let long = ReserveStockRequest { expire_time: in_days(400), ..one() };
    table.command("held for over a year", long).await?.names(&["expire_time"])
}

pub async fn queries(table: &mut Table) -> Result<()> {
    let get = |id: &str, token: &str| GetAvailabilityRequest { product_id: id.into(), token: token.into() };
    table.query("unknown product", get("none", "")).await?.says(NotFound, "STOCK_NOT_FOUND")?;
    table.query("bad id", get("\n", "")).await?.names(&["product_id"])?;
    table.query("forged token", get("p-1", "AAAA")).await?.tells(Bad, "INVALID_TOKEN", &["token"])?;
    let batch = |product_ids| BatchGetAvailabilityRequest { product_ids, ..Default::default() };
    table.query("nothing", batch(vec![])).await?.names(&["product_ids"])?;
    table.query("a hundred and one", batch(vec!["p-1".into(); 101])).await?.names(&["product_ids"])?;
    table.query("an empty id", batch(vec!["p-1".into(), String::new()])).await?.names(&["product_ids[1]"])
}
