use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{AckPolicy, pull},
        stream::{Config, StorageType},
    },
};
use bytes::Bytes;
use futures::StreamExt;
use souk_proto::catalog::v1::GetProductRequest;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Bench;
use crate::{
    database::BareViews,
    loader::on_own_thread,
    pairs::median_of,
    record::{Entry, Goal, progress},
    sources::{description, product_id, update},
};

/// Between two messages or rows, of either side.
const PAUSE: Duration = Duration::from_millis(10);
/// A message or row that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(10);
const SIZE: usize = 1024;
const STREAM: &str = "bench";
const LOG: &str = "bench.log";
const HOP: &str = "bench.hop";

/// What the way from a reply to a query is made of, each alone: p50s.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// Of the whole way.
    visible: Duration,
    jetstream: Duration,
    upsert: Duration,
    hop: Duration,
}

impl Bench {
    /// From the reply to a command until a query shows what it did, against the parts of the way.
    pub(super) async fn reply_to_visible(&mut self) -> Result<()> {
        if !self.wants("B10") {
            return Ok(());
        }
        progress("B10: from reply to visible, and each part of the way");
        let stack = &self.stage.system.stack;
        let (views, nats, time) = (BareViews::create(&stack.postgres).await?, stack.nats.url(), self.effort.time);
        let whole = || async { Ok(Way { visible: percentile(&self.visible(time, PAUSE).await?, 50), ..Way::default() }) };
        let parts = || {
            let (views, nats) = (views.clone(), nats.clone());
            on_own_thread(move || async move {
                let clients = (async_nats::connect(&nats).await?, async_nats::connect(&nats).await?);
                Ok(Way {
                    jetstream: through_jetstream(&clients, time / 3).await?,
                    upsert: upsert(&views, time / 3).await?,
                    hop: over_nats(&clients, time / 3).await?,
                    ..Way::default()
                })
            })
        };
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let ratio = |whole: &Way, parts: &Way| micros(whole.visible) / micros(parts.jetstream + parts.upsert + parts.hop);
        let pairs = self.effort.pairs(whole, parts, ratio).await?;
        let part = |of: fn(&Way) -> Duration| median_of(pairs.iter().map(|(_, parts)| micros(of(parts))));
        let ratios = pairs.iter().map(|(whole, parts)| ratio(whole, parts)).collect();
        let note = "p50 from reply to visible ÷ (JetStream publish to consume + single-row upsert + NATS hop, p50s)";
        let entry = Entry::new("B10", ratios, Goal::AtMost(1.5), note)
            .figure("visible_p50_us", median_of(pairs.iter().map(|(whole, _)| micros(whole.visible))))
            .figure("jetstream_p50_us", part(|way| way.jetstream))
            .figure("upsert_p50_us", part(|way| way.upsert))
            .figure("nats_hop_p50_us", part(|way| way.hop));
        self.record(entry);
        Ok(())
    }

    /// From the reply to a command until a query shows it, in order of duration; `pause` lies between one and the next.
    pub(super) async fn visible(&self, time: Duration, pause: Duration) -> Result<Vec<Duration>> {
        let (client, began, round) = (self.client()?, Instant::now(), rand::random::<u64>());
        let mut times = Vec::new();
        let mut product = 0;
        while began.elapsed() < time {
            let session = client.session();
            product = product % self.stage.products + 1;
            let text = description(product ^ round);
            session.command(update(product, text.clone())).await?;
            let replied = Instant::now();
            // The session's token makes the query wait for what the command did.
            let query = GetProductRequest { product_id: product_id(product), ..Default::default() };
            let shown = session.query(query).await?.product.and_then(|product| product.details);
            times.push(replied.elapsed());
            // Under load another update may have come behind.
            ensure!(shown.is_some_and(|details| details.description.len() == text.len()), "the query shows another product");
            sleep(pause).await;
        }
        times.sort_unstable();
        Ok(times)
    }
}

/// Of times in order.
///
/// # Panics
/// When there are none.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// The median of what `once` takes, one at every [`PAUSE`].
async fn paced(time: Duration, mut once: impl AsyncFnMut() -> Result<Duration>) -> Result<Duration> {
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (began, mut times) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        ticks.tick().await;
        times.push(timeout(PATIENCE, once()).await.context("no answer")??);
    }
    times.sort_unstable();
    Ok(percentile(&times, 50))
}

/// From publishing an event to its arrival at a consumer of the kind the projector has, over two connections.
async fn through_jetstream((publisher, reader): &(Client, Client), time: Duration) -> Result<Duration> {
    let (publisher, reader) = (jetstream::new(publisher.clone()), jetstream::new(reader.clone()));
    let config = Config { name: STREAM.into(), subjects: vec![LOG.into()], storage: StorageType::File, ..Config::default() };
    publisher.create_stream(config).await?;
    let config = pull::Config { ack_policy: AckPolicy::None, memory_storage: true, ..pull::Config::default() };
    let consumer = reader.create_consumer_on_stream(config, STREAM).await?;
    let mut messages = consumer.stream().max_messages_per_batch(256).messages().await?;
    let payload = noise();
    let p50 = paced(time, async || {
        let sent = Instant::now();
        let acknowledged = publisher.publish(LOG, payload.clone()).await?;
        messages.next().await.context("the consumer ended")??;
        let took = sent.elapsed();
        acknowledged.await?;
        Ok(took)
    })
    .await;
    publisher.delete_stream(STREAM).await?;
    p50
}

/// From publishing a message to its arrival at a subscriber.
async fn over_nats((publisher, reader): &(Client, Client), time: Duration) -> Result<Duration> {
    let mut messages = reader.subscribe(HOP).await?;
    let payload = noise();
    // A server handles what comes over one connection in order: once this one is back, the subscription is known.
    reader.publish(HOP, payload.clone()).await?;
    messages.next().await.context("the subscription ended")?;
    paced(time, async || {
        let sent = Instant::now();
        publisher.publish(HOP, payload.clone()).await?;
        messages.next().await.context("the subscription ended")?;
        Ok(sent.elapsed())
    })
    .await
}

/// One row of products written over, as the projector's connection would.
async fn upsert(views: &BareViews, time: Duration) -> Result<Duration> {
    const ROWS: u64 = 1000;
    let mut connection = views.connect().await?;
    let (body, mut row) = (noise().to_vec(), 0);
    paced(time, async || {
        row = row % ROWS + 1;
        let sent = Instant::now();
        sqlx::query(
            "insert into product_view as t (region, partition, key, version, position, revision, updated_ms, body, state, category, tags) \
             values (1, 0, $1, 1, $2, 1, 0, $3, 1, '', '{}') on conflict (region, partition, key) do update set version = t.version + 1, \
             position = excluded.position, body = excluded.body",
        )
        .bind(format!("bench-{row}"))
        .bind(row as i64)
        .bind(&body)
        .execute(&mut connection)
        .await?;
        Ok(sent.elapsed())
    })
    .await
}

fn noise() -> Bytes {
    (0..SIZE).map(|_| rand::random::<u8>()).collect()
}
