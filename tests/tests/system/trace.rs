use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use souk_client::Session;
use souk_proto::{orders::v1::OrderState, stock::v1::ReceiveStockRequest};
use souk_tests::{Recorded, Shop, System, TraceReceiver, until};

/// Spans are exported every five seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// The way of an event, with the service of each part.
const WAY: [(&str, &str); 5] = [
    ("souk-command", "append"),
    ("souk-command", "publish"),
    ("souk-projector", "project"),
    ("souk-projector", "publish changes"),
    ("souk-query", "change feed"),
];
const PLACE: &str = "souk.orders.v1.CommandService/PlaceOrder";
const RESERVE: &str = "souk.stock.v1.CommandService/ReserveStock";
const RECORD: &str = "souk.orders.v1.ProcessService/RecordReservation";
const RECEIVE: &str = "souk.stock.v1.CommandService/ReceiveStock";
const READ: &str = "souk.orders.v1.QueryService/GetOrder";

/// A caller's span: what its traceparent says.
#[derive(Debug, Clone, Copy)]
struct Caller {
    trace: u128,
    span: u64,
    sampled: bool,
}

impl Caller {
    fn new(sampled: bool) -> Self {
        Self { trace: rand::random_range(1..=u128::MAX), span: rand::random_range(1..=u64::MAX), sampled }
    }

    fn shop(self, session: Session) -> Shop {
        let Self { trace, span, sampled } = self;
        Shop(session.traceparent(&format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled))))
    }
}

async fn traced_system() -> Result<(System, TraceReceiver)> {
    let receiver = TraceReceiver::start().await?;
    let endpoint = receiver.endpoint().to_owned();
    let system = System::start(|options| {
        options.set("telemetry.otlp_endpoint", endpoint);
    })
    .await?;
    Ok((system, receiver))
}

/// The span of that name that follows from another.
fn after(spans: &[Recorded], follows: &[u8], service: &str, name: &str) -> Result<Vec<u8>> {
    let found = spans.iter().find(|found| found.service == service && found.span.name == name && found.follows(follows));
    let all: Vec<_> = spans.iter().map(|found| format!("{}: {}", found.service, found.span.name)).collect();
    Ok(found.with_context(|| format!("no {name:?} of {service} among {all:?}"))?.span.span_id.clone())
}

/// The server's span of a command, once it and the way of its events are among the spans.
fn whole_way(spans: &[Recorded], follows: &[u8], command: &str) -> Result<Vec<u8>> {
    let rpc = after(spans, follows, "souk-command", command)?;
    for (service, name) in WAY {
        after(spans, &rpc, service, name).with_context(|| format!("after {command}"))?;
    }
    Ok(rpc)
}

/// Looks again until nothing is missing.
async fn find<T>(patience: Duration, look: impl Fn() -> Result<T>) -> Result<T> {
    let found = until("all spans", patience, || async { Ok(look().ok()) }).await;
    // What is missing says more than that the time is over.
    found.or_else(|_| look())
}

#[tokio::test]
async fn an_order_is_one_trace_from_its_caller_over_all_services_to_the_change_feed() -> Result<()> {
    let (system, receiver) = traced_system().await?;
    let session = system.session()?;
    let shop = Shop(session.clone());
    shop.sell("p-1", 100, 5).await?;
    // Once it is shown, nothing of it is in a batch with what follows.
    shop.stock("p-1").await?;
    let caller = Caller::new(true);
    let shop = caller.shop(session);
    let order = shop.order("c-1", "p-1", 2, false).await?.order_id;
    shop.see_in(&order, OrderState::AwaitingPayment, PATIENCE).await?;

    let caller_span = caller.span.to_be_bytes();
    find(PATIENCE, || {
        let spans = receiver.of_trace(caller.trace);
        let placed = whole_way(&spans, &caller_span, PLACE)?;
        after(&spans, &caller_span, "souk-query", READ)?;
        // The process manager goes on in the trace of the order.
        let step = after(&spans, &placed, "souk-saga", "saga step")?;
        whole_way(&spans, &step, RESERVE)?;
        whole_way(&spans, &step, RECORD)?;
        // Nothing is joined with another trace here: all are children, and the one parent from outside is the caller's.
        for Recorded { service, span } in &spans {
            let known = span.parent_span_id == caller_span || spans.iter().any(|other| other.span.span_id == span.parent_span_id);
            ensure!(span.trace_id == caller.trace.to_be_bytes() && known, "{service}: {} is no part of the tree", span.name);
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_that_share_batches_are_linked_and_unsampled_ones_neither_recorded_nor_in_the_way() -> Result<()> {
    const ROUNDS: usize = 5;
    const CALLERS: usize = 24;
    let (system, receiver) = traced_system().await?;
    let session = system.session()?;
    let shop = Shop(session.clone());
    shop.sell("p-1", 100, 0).await?;
    let mut callers = Vec::new();
    for _ in 0..ROUNDS {
        let round: Vec<_> = (0..CALLERS).map(|number| Caller::new(number % 2 == 1)).collect();
        // All at once on one log: the first is appended alone, the others while it was under way together.
        try_join_all(round.iter().map(|caller| {
            let shop = caller.shop(session.clone());
            async move { shop.0.command(ReceiveStockRequest { product_id: "p-1".into(), quantity: 1, ..Default::default() }).await }
        }))
        .await?;
        // A change feed message names 16 traces: what is projected must not pile up over rounds.
        shop.stock("p-1").await?;
        callers.extend(round);
    }

    let (sampled, unsampled): (Vec<_>, Vec<_>) = callers.into_iter().partition(|caller| caller.sampled);
    let mut joined = 0;
    for caller in &sampled {
        find(PATIENCE, || whole_way(&receiver.of_trace(caller.trace), &caller.span.to_be_bytes(), RECEIVE)).await?;
        joined += receiver.of_trace(caller.trace).iter().filter(|found| !found.span.links.is_empty()).count();
    }
    ensure!(joined > 0, "no two of {} commands shared a batch", sampled.len());
    for caller in &unsampled {
        ensure!(receiver.of_trace(caller.trace).is_empty(), "recorded although its caller said no: {:?}", receiver.of_trace(caller.trace));
    }
    Ok(())
}
