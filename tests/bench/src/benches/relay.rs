use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    HeaderMap, Subject,
    header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_STREAM},
    jetstream,
};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use prost::Message;
use souk_bus::{JetStreamBus, Subjects, to_wire};
use souk_bus_publisher::{JetStreamPublisher, LogPublisher, StreamLimits};
use souk_event_sourcing::{LogId, Position};
use souk_event_store::{Belief, LogBatch, PostgresStore};
use souk_relay::{Head, RelayHandle, Relays, Tuning};
use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Bench,
    append::{Append, BATCH, PARTITIONS, REGION, configs, database},
};
use crate::{
    loader::on_own_thread,
    pairs::{by_turns, median_of},
    record::{Entry, Goal, progress},
    stage::settle,
};

/// As the command service has them unless it is told otherwise.
const WINDOW: usize = 512;
const TUNING: Tuning =
    Tuning { ring_capacity: 4096, check_every: Duration::from_secs(5), announce_every: Duration::from_secs(1), refill: 10_000 };
const LIMITS: StreamLimits = StreamLimits { max_age: Duration::from_secs(3600), max_bytes: 2 << 30, replicas: 1 };
/// First parts of the names of the streams.
const RELAYED: &str = "bench-relay";
const RAW: &str = "bench-raw";
/// So many events the rings of all logs hold together.
const MOST: usize = 160_000;

impl Bench {
    /// From the committer's hand to acknowledged, against publishing alone.
    pub(super) async fn relay(&mut self) -> Result<()> {
        if !self.wants("B8") {
            return Ok(());
        }
        progress("B8: events relayed, and messages published");
        let (url, nats) = (database(&self.stage.system.stack.postgres, "bench_relay").await?, self.stage.system.stack.nats.url());
        let (effort, events) = (self.effort, self.effort.of(MOST, MOST / 2, 2_048));
        let (pairs, checked) = on_own_thread(move || async move {
            let relay = Mutex::new(Relay::start(&url, &nats, events / usize::from(BATCH)).await?);
            let raw = Mutex::new(Raw::start(&nats).await?);
            let turns = (|| async { relay.lock().await.turn().await }, || async { raw.lock().await.turn(events, false).await });
            let pairs = effort.pairs(turns.0, turns.1, |relayed, published| relayed / published).await?;
            relay.into_inner().stop().await?;
            let turns = (|| async { raw.lock().await.turn(events, true).await }, || async { raw.lock().await.turn(events, false).await });
            let checked = by_turns(effort.pairs, turns.0, turns.1).await?;
            raw.into_inner().stop().await?;
            Ok((pairs, median_of(checked.iter().map(|(checked, unchecked)| checked / unchecked))))
        })
        .await?;
        let ratios = pairs.iter().map(|(relayed, published)| relayed / published).collect();
        let entry = Entry::new("B8", ratios, Goal::AtLeast(0.9), "events/s relayed, committed to acknowledged ÷ messages/s published raw")
            .figure("relayed_per_second", median_of(pairs.iter().map(|(relayed, _)| *relayed)))
            .figure("published_per_second", median_of(pairs.iter().map(|(_, published)| *published)))
            .figure("raw_with_the_conditions_of_a_relay_ratio", checked)
            .figure("window", WINDOW as f64);
        self.record(entry);
        Ok(())
    }
}

fn logs() -> impl Iterator<Item = LogId> {
    (0..PARTITIONS).map(|partition| LogId { region: REGION, partition: souk_event_sourcing::Partition(partition) })
}

/// The relays of all logs over one connection, as a command service runs them, and what commits.
struct Relay {
    append: Append,
    publisher: Arc<JetStreamPublisher>,
    relays: HashMap<LogId, RelayHandle>,
    stop: CancellationToken,
    batches: usize,
    database: PgConnection,
}

impl Relay {
    async fn start(url: &str, nats: &str, batches: usize) -> Result<Self> {
        let append = Append::open(url).await?;
        let bus = JetStreamBus::connect(nats, RELAYED, "bench").await?;
        let publisher = Arc::new(JetStreamPublisher::new(bus.client().clone(), bus.subjects().clone(), LIMITS, Uuid::from_u128(1)));
        publisher.reachable().await;
        let relays = Arc::new(Relays {
            store: Arc::new(PostgresStore::connect(&configs(url), REGION, PARTITIONS).await?),
            publisher: publisher.clone(),
            feed: Arc::new(bus),
            window: Arc::new(Semaphore::new(WINDOW)),
            tuning: TUNING,
        });
        let stop = CancellationToken::new();
        let spawn = |(log, belief): &(LogId, Belief)| {
            let head = Head { position: belief.position, hash: belief.hash };
            (*log, relays.spawn(*log, belief.epoch, head, stop.clone()))
        };
        let relays = append.beliefs().iter().map(spawn).collect();
        let database = PgConnection::connect(url).await?;
        let mut relay = Self { append, publisher, relays, stop, batches, database };
        // The streams are made, and both sides of the first pair find them warm.
        let first = relay.append.commit(1).await?;
        relay.hand_over(first).await?;
        Ok(relay)
    }

    /// Events per second from the first that is handed over to the last acknowledgement.
    async fn turn(&mut self) -> Result<f64> {
        let committed = self.append.commit(self.batches).await?;
        // What the commits left to be written would be in the way of this side alone, for it comes right behind them.
        settle(&mut self.database).await?;
        self.hand_over(committed).await
    }

    async fn hand_over(&mut self, committed: Vec<Vec<LogBatch>>) -> Result<f64> {
        let (began, mut events) = (Instant::now(), 0_u64);
        for batch in committed {
            for event in batch.into_iter().flat_map(|part| part.events) {
                self.relays.get(&event.log).context("a log without a relay")?.ring.push(event);
                events += 1;
            }
            // As behind a statement of the committer.
            tokio::task::yield_now().await;
        }
        while self.relays.values().any(|relay| relay.progress.acknowledged() < relay.progress.head()) {
            ensure!(began.elapsed() < Duration::from_secs(120), "the relays do not come on");
            sleep(Duration::from_millis(1)).await;
        }
        Ok(events as f64 / began.elapsed().as_secs_f64())
    }

    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        for relay in self.relays.into_values() {
            relay.stopped().await;
        }
        delete(&self.publisher).await
    }
}

/// The same messages, encoded beforehand and sent without conditions to streams that are set up alike.
struct Raw {
    publisher: JetStreamPublisher,
    context: jetstream::Context,
    messages: Vec<RawMessage>,
}

/// One event of a log, sent again and again.
struct RawMessage {
    subject: Subject,
    stream: String,
    body: Bytes,
    /// How often it was sent.
    sent: u64,
}

impl RawMessage {
    /// The conditions under which a relay publishes what comes next: the stream, and what stands last in it.
    fn conditions(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_STREAM, self.stream.as_str());
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, self.sent.to_string().as_str());
        headers
    }
}

impl Raw {
    async fn start(nats: &str) -> Result<Self> {
        let (client, subjects) = (async_nats::connect(nats).await?, Subjects::new(RAW));
        let publisher = JetStreamPublisher::new(client.clone(), subjects.clone(), LIMITS, Uuid::from_u128(1));
        let mut messages = Vec::new();
        for part in super::append::sample() {
            publisher.create(part.log, Position(1)).await?;
            let event = part.events.first().context("a part without events")?;
            let (subject, body) = (subjects.log(part.log).into(), Bytes::from(to_wire(event).encode_to_vec()));
            messages.push(RawMessage { subject, stream: subjects.stream(part.log), body, sent: 0 });
        }
        let mut raw = Self { publisher, context: jetstream::new(client), messages };
        raw.turn(usize::from(BATCH), false).await?;
        Ok(raw)
    }

    /// Messages per second, sent under the conditions of a relay or under none.
    async fn turn(&mut self, messages: usize, conditions: bool) -> Result<f64> {
        let (began, mut flights, logs) = (Instant::now(), FuturesUnordered::new(), self.messages.len());
        for number in 0..messages {
            if flights.len() >= WINDOW {
                flights.next().await.transpose()?;
            }
            let message = &mut self.messages[number % logs];
            let (subject, body) = (message.subject.clone(), message.body.clone());
            let sent = match conditions {
                true => self.context.publish_with_headers(subject, message.conditions(), body).await?,
                false => self.context.publish(subject, body).await?,
            };
            message.sent += 1;
            flights.push(sent.into_future());
        }
        while flights.next().await.transpose()?.is_some() {}
        Ok(messages as f64 / began.elapsed().as_secs_f64())
    }

    async fn stop(self) -> Result<()> {
        delete(&self.publisher).await
    }
}

async fn delete(publisher: &JetStreamPublisher) -> Result<()> {
    for log in logs() {
        publisher.delete(log).await?;
    }
    Ok(())
}
