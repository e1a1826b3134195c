use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use souk_client::{Door, Session};
use souk_devstack::Service;
use souk_proto::catalog::v1::{
    BatchGetProductsRequest, CreateProductRequest, GetProductRequest, ProductDetails, query_service_client::QueryServiceClient,
};
use souk_tests::{
    Outcome, Shop, System, open_loop,
    raw_http2::{self, END_HEADERS, END_STREAM, PREFACE, RawHttp2, Said, frame, kind},
    until,
};
use tokio::{
    io::AsyncWriteExt,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const MIB: u64 = 1 << 20;
const GOOD_CALLS_PER_SECOND: f64 = 100.0;
/// Callers, servers, the attacker and whoever else works here share the cores.
const LONGEST: Duration = Duration::from_millis(250);
const FIRST_REQUEST: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(2);
/// A peer that says nothing for so long, the last of it without answering a ping, is hung up on.
const SILENCE: Duration = Duration::from_secs(6);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
const GET_PRODUCT: &str = "/souk.catalog.v1.QueryService/GetProduct";
const BATCH_GET: &str = "/souk.catalog.v1.QueryService/BatchGetProducts";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// The query service under attack, and somebody who goes on shopping.
struct Fort {
    system: System,
    address: String,
    session: Session,
}

impl Fort {
    async fn build() -> Result<Self> {
        let system = System::start(|options| {
            options.set("grpc.first_request_timeout", format!("{} s", FIRST_REQUEST.as_secs()));
            options.set("grpc.reply_patience", format!("{} s", PATIENCE.as_secs()));
            options.set("grpc.default_deadline", "4s");
            options.set("grpc.keepalive_interval", format!("{} s", (SILENCE - KEEPALIVE_TIMEOUT).as_secs()));
            options.set("grpc.keepalive_timeout", format!("{} s", KEEPALIVE_TIMEOUT.as_secs()));
        })
        .await?;
        let address = system.stack.endpoint("query").trim_start_matches("http://").to_owned();
        let session = system.session()?;
        Shop(session.clone()).sell("p-1", 100, 1).await?;
        session.query(GetProductRequest { product_id: "p-1".into(), ..Default::default() }).await?;
        Ok(Self { system, address, session })
    }

    /// Attacks while a good caller goes on; bounds what that costs.
    async fn bears<T: Send + 'static>(
        &self,
        what: &str,
        most_growth: u64,
        attack: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let channel = self.system.client()?.channel(Door::Query).context("a query endpoint")?;
        let client = QueryServiceClient::new(channel);
        let call = move |_| {
            let mut client = client.clone();
            async move { client.get_product(GetProductRequest { product_id: "p-1".into(), ..Default::default() }).await.map(drop) }
        };
        let before = self.system.memory(Service::Query)?;
        let (mut peak, mut all) = (before, Vec::<Outcome>::new());
        let attack = tokio::spawn(attack);
        while !attack.is_finished() {
            all.push(open_loop(GOOD_CALLS_PER_SECOND, Duration::from_millis(500), call.clone()).await);
            peak = peak.max(self.system.memory(Service::Query)?);
        }
        let seen = attack.await??;
        let mut took: Vec<_> = all.iter().flat_map(|outcome| outcome.accepted.iter().copied()).collect();
        took.sort_unstable();
        let failed = all.iter().flat_map(|outcome| &outcome.failed).next();
        let late = took[took.len() * 99 / 100];
        let growth = peak.saturating_sub(before);
        println!(
            "{what}: {} good calls, p50 {:.1} ms, p99 {:.1} ms; memory {:.1} MiB, grown by {:.1} MiB",
            took.len(),
            took[took.len() / 2].as_secs_f64() * 1e3,
            late.as_secs_f64() * 1e3,
            before as f64 / MIB as f64,
            growth as f64 / MIB as f64,
        );
        ensure!(failed.is_none(), "{what}: a good caller met {failed:?}");
        ensure!(late <= LONGEST, "{what}: p99 of good calls {late:?}");
        ensure!(growth <= most_growth, "{what}: grown by {growth} bytes");
        Ok(seen)
    }
}

/// Opens connections one after the other, for as long as the attack lasts.
async fn storm<F: Future<Output = Result<()>>>(lasting: Duration, wave: impl Fn() -> F) -> Result<usize> {
    let (until, mut waves) = (Instant::now() + lasting, 0);
    while Instant::now() < until {
        // The server hangs up in the middle of it.
        let _ = timeout(lasting, wave()).await?;
        waves += 1;
    }
    Ok(waves)
}

/// Streams opened and reset at once, as fast as the server lets them.
async fn rapid_resets(address: String, count: Arc<AtomicUsize>) -> Result<()> {
    const AT_ONCE: u32 = 64;
    let mut raw = RawHttp2::open(&address, 65_535).await?;
    let head = raw_http2::call(GET_PRODUCT);
    let mut stream = 1;
    while stream < 200_000 {
        let mut burst = Vec::new();
        for _ in 0..AT_ONCE {
            burst.extend(frame(kind::HEADERS, END_HEADERS, stream, &head));
            burst.extend(frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            stream += 2;
        }
        raw.write.write_all(&burst).await?;
        count.fetch_add(AT_ONCE as usize, Ordering::Relaxed);
    }
    Ok(())
}

/// A head that never ends: CONTINUATION after CONTINUATION.
async fn endless_head(address: String, count: Arc<AtomicUsize>) -> Result<()> {
    let mut raw = RawHttp2::open(&address, 65_535).await?;
    raw.write.write_all(&frame(kind::HEADERS, 0, 1, &raw_http2::call(GET_PRODUCT))).await?;
    let value = "x".repeat(120);
    let more = frame(kind::CONTINUATION, 0, 1, &raw_http2::fields((0..60).map(|_| ("x-filler", value.as_str()))));
    for _ in 0..100_000 {
        raw.write.write_all(&more).await?;
        count.fetch_add(more.len(), Ordering::Relaxed);
    }
    Ok(())
}

/// Whole requests whose heads are twenty times too large.
async fn huge_heads(address: String, count: Arc<AtomicUsize>) -> Result<()> {
    let mut raw = RawHttp2::open(&address, 65_535).await?;
    let value = "x".repeat(120);
    let filler = raw_http2::fields((0..120).map(|_| ("x-filler", value.as_str())));
    for stream in (1..20_000).step_by(2) {
        let mut head = frame(kind::HEADERS, END_STREAM, stream, &raw_http2::call(GET_PRODUCT));
        for _ in 0..20 {
            head.extend(frame(kind::CONTINUATION, 0, stream, &filler));
        }
        head.extend(frame(kind::CONTINUATION, END_HEADERS, stream, &[]));
        raw.write.write_all(&head).await?;
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_streams_heads_and_bytes_leave_others_served() -> Result<()> {
    const LASTING: Duration = Duration::from_secs(4);
    let fort = Fort::build().await?;
    for (what, flood) in [("rapid resets", 0), ("endless heads", 1), ("huge heads", 2)] {
        let (address, count) = (fort.address.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        let attack = async move {
            storm(LASTING, || {
                let (address, count) = (address.clone(), counted.clone());
                async move {
                    match flood {
                        0 => rapid_resets(address, count).await,
                        1 => endless_head(address, count).await,
                        _ => huge_heads(address, count).await,
                    }
                }
            })
            .await
        };
        let connections = fort.bears(what, 32 * MIB, attack).await?;
        let sent = count.load(Ordering::Relaxed);
        println!("{what}: {sent} sent over {connections} connections");
        ensure!(connections > 1, "{what}: the server never hung up");
    }
    too_large(&fort).await
}

/// Messages beyond the limit, both ways.
async fn too_large(fort: &Fort) -> Result<()> {
    let ask = GetProductRequest { product_id: "x".repeat(2 << 20), ..Default::default() };
    let error = fort.session.query(ask).await.err().context("a request of 2 MiB was taken")?;
    ensure!(error.reason() == "REQUEST_TOO_LARGE", "{error}");
    large_products(fort).await?;
    let error = fort.session.query(batch(40)).await.err().context("a reply of 1.6 MiB was sent")?;
    ensure!(error.reason() == "REPLY_TOO_LARGE", "{error}");
    let reply = fort.session.query(batch(20)).await?;
    ensure!(reply.products.len() == 20 && reply.encoded_len() > 700_000);
    Ok(())
}

/// Products of 40 kB each.
async fn large_products(fort: &Fort) -> Result<()> {
    let session = &fort.session;
    let create = |product: u32| async move {
        let details = ProductDetails { title: "large".into(), description: "𝄞".repeat(10_000), ..Default::default() };
        session.command(CreateProductRequest { product_id: format!("large-{product}"), details: Some(details), ..Default::default() }).await
    };
    stream::iter(0..40).map(create).buffer_unordered(8).try_collect::<Vec<_>>().await?;
    Ok(())
}

fn batch(products: u32) -> BatchGetProductsRequest {
    BatchGetProductsRequest { product_ids: (0..products).map(|product| format!("large-{product}")).collect(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slow_and_the_idle_cost_little_and_are_cut_off() -> Result<()> {
    let fort = Fort::build().await?;
    let took = fort.bears("slow writers", 32 * MIB, slow_writers(fort.address.clone())).await?;
    println!("slow writers: the last was cut off after {took:.1?}");

    large_products(&fort).await?;
    let asked = batch(20);
    fort.session.query(asked.clone()).await?;
    let said = fort.bears("slow readers", 16 * MIB, slow_readers(fort.address.clone(), asked.encode_to_vec())).await?;
    println!("slow readers: {said:?}");

    let idle = fort.bears("idle connections", 48 * MIB, idle(fort.address.clone(), 2_000)).await?;
    until("silent connections are dropped", Duration::from_secs(12), || async { Ok(idle.iter().all(RawHttp2::is_closed).then_some(())) })
        .await
}

/// Peers that stop in the middle: of the preface, of a frame, of a message; each sends a byte now and then.
async fn slow_writers(address: String) -> Result<Duration> {
    let head = frame(kind::HEADERS, END_HEADERS, 1, &raw_http2::call(GET_PRODUCT));
    let body = frame(kind::DATA, END_STREAM, 1, &raw_http2::message(&[0; 4_000]));
    let started = Instant::now();
    let mut dripping = JoinSet::new();
    for number in 0..300 {
        let (mut raw, rest) = match number % 3 {
            0 => (RawHttp2::silent(&address).await?, PREFACE.to_vec()),
            1 => (RawHttp2::open(&address, 65_535).await?, head.clone()),
            _ => {
                let mut raw = RawHttp2::open(&address, 65_535).await?;
                raw.write.write_all(&head).await?;
                (raw, body.clone())
            }
        };
        dripping.spawn(async move {
            for byte in rest {
                if raw.is_closed() || raw.write.write_all(&[byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(500)).await;
            }
            raw.closed().await
        });
    }
    // The first request in time, the deadline of a request, the keepalive of what is left.
    let all = async {
        while dripping.join_next().await.transpose()?.transpose()?.is_some() {}
        anyhow::Ok(())
    };
    timeout(Duration::from_secs(15), all).await.context("a slow writer is still connected")??;
    Ok(started.elapsed())
}

/// 64 calls whose replies have 800 kB each, over connections that grant one byte a stream.
async fn slow_readers(address: String, request: Vec<u8>) -> Result<Vec<Said>> {
    const STREAMS: usize = 16;
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut raw = RawHttp2::open(&address, 1).await?;
        for stream in 0..STREAMS {
            raw.call(2 * stream as u32 + 1, BATCH_GET, &request).await?;
        }
        connections.push(raw);
    }
    let mut all = Vec::new();
    for raw in connections {
        let said = timeout(Duration::from_secs(15), raw.closed()).await.context("a slow reader is still connected")??;
        ensure!(said.resets + said.ended >= STREAMS && said.resets > 0, "{said:?}");
        ensure!(said.data_bytes <= STREAMS, "{said:?}");
        all.push(said);
    }
    Ok(all)
}

/// Connections that have made one call and then fall silent. None is dropped before its time, and most are there at once, however
/// long it takes to open them.
async fn idle(address: String, count: usize) -> Result<Vec<RawHttp2>> {
    let open = |_| {
        let address = address.clone();
        async move {
            let mut raw = RawHttp2::open(&address, 65_535).await?;
            let last_heard = Instant::now();
            raw.call(1, HEALTH, &[]).await?;
            anyhow::Ok((raw, last_heard))
        }
    };
    let idle = stream::iter(0..count).map(open).buffer_unordered(64).try_collect::<Vec<_>>().await?;
    let (dropped, open): (Vec<_>, Vec<_>) = idle.iter().partition(|(raw, _)| raw.is_closed());
    println!("{} of {count} idle connections open at once", open.len());
    ensure!(dropped.iter().all(|(_, last_heard)| last_heard.elapsed() >= SILENCE), "a silent connection was dropped before its time");
    ensure!(idle.len() == count && open.len() > count / 2, "{} of {count} idle connections are there at once", open.len());
    sleep(Duration::from_secs(1)).await;
    Ok(idle.into_iter().map(|(raw, _)| raw).collect())
}
