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
use souk_event_sourcing::{LogId, Position, RecordedEvent};
use souk_event_store::{Belief, PostgresStore};
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
    machine::{cpu_of, cpu_of_thread},
    pairs::{Side, by_turns, median_of},
    record::{Entry, Goal, progress},
    stage::{Part, settle},
};

/// As the command service has them unless it is told otherwise.
const WINDOW: usize = 512;
const TUNING: Tuning =
    Tuning { ring_capacity: 4096, check_every: Duration::from_secs(5), announce_every: Duration::from_secs(1), refill: 10_000 };
/// Of the streams of both sides.
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
        let (effort, server) = (self.effort, self.stage.pid(Part::Nats)?);
        let batches = effort.of(MOST, MOST / 2, 2_048) / usize::from(BATCH);
        let (pairs, checked) = on_own_thread(move || async move {
            let (relay, first) = Relay::start(&url, &nats, server, batches).await?;
            let raw = Mutex::new(Raw::start(&nats, server, first).await?);
            let relay = Mutex::new(relay);
            let turns = (|| async { relay.lock().await.turn().await }, || async { raw.lock().await.turn(false).await });
            let pairs = effort.pairs(turns.0, turns.1, Side::ratio).await?;
            relay.into_inner().stop().await?;
            let turns = (|| async { raw.lock().await.turn(true).await }, || async { raw.lock().await.turn(false).await });
            let checked = by_turns(effort.pairs, turns.0, turns.1).await?;
            raw.into_inner().stop().await?;
            Ok((pairs, median_of(checked.iter().map(|(checked, unchecked)| checked.ratio(unchecked)))))
        })
        .await?;
        let ratios = pairs.iter().map(|(relayed, published)| relayed.ratio(published)).collect();
        let entry = Entry::new("B8", ratios, Goal::AtLeast(0.9), "events/s relayed, committed to acknowledged ÷ messages/s published raw")
            .sides(["relayed", "published"], &pairs)
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
    /// The process of the NATS server.
    server: u32,
}

impl Relay {
    /// With the events of a first turn, behind which the streams are there and both sides of the first pair find them warm.
    async fn start(url: &str, nats: &str, server: u32, batches: usize) -> Result<(Self, Vec<Arc<RecordedEvent>>)> {
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
        let mut relay = Self { append, publisher, relays, stop, batches, database, server };
        let committed = relay.commit().await?;
        relay.hand_over(committed.clone()).await?;
        Ok((relay, committed.into_iter().flatten().collect()))
    }

    /// Events by batch.
    async fn commit(&mut self) -> Result<Vec<Vec<Arc<RecordedEvent>>>> {
        let committed = self.append.commit(self.batches).await?;
        Ok(committed.into_iter().map(|batch| batch.into_iter().flat_map(|part| part.events).collect()).collect())
    }

    /// Events from the first that is handed over to the last acknowledgement; CPU of this thread and the NATS server.
    async fn turn(&mut self) -> Result<Side> {
        let committed = self.commit().await?;
        // What the commits left to be written would be in the way of this side alone, for it comes right behind them.
        settle(&mut self.database).await?;
        self.hand_over(committed).await
    }

    async fn hand_over(&mut self, committed: Vec<Vec<Arc<RecordedEvent>>>) -> Result<Side> {
        let (began, cpu, mut events) = (Instant::now(), used(self.server)?, 0);
        for batch in committed {
            events += batch.len() as u64;
            for event in batch {
                self.relays.get(&event.log).context("a log without a relay")?.ring.push(event);
            }
            // As behind a statement of the committer.
            tokio::task::yield_now().await;
        }
        while self.relays.values().any(|relay| relay.progress.acknowledged() < relay.progress.head()) {
            ensure!(began.elapsed() < Duration::from_secs(120), "the relays do not come on");
            sleep(Duration::from_millis(1)).await;
        }
        Ok(Side::of(events, began.elapsed(), used(self.server)?.saturating_sub(cpu)))
    }

    /// Behind a look at what was written: the logs are whole, and each stream ends where its log does.
    async fn stop(self) -> Result<()> {
        self.append.audit().await?;
        for (log, belief) in self.append.beliefs() {
            let stream = self.publisher.state(*log).await?.context("a log without a stream")?;
            ensure!(stream.whole && stream.last == belief.position, "{log} ends at {}, its stream is {stream:?}", belief.position);
        }
        self.stop.cancel();
        for relay in self.relays.into_values() {
            relay.stopped().await;
        }
        delete(&self.publisher).await
    }
}

/// CPU that this thread, which publishes, and the server have used so far.
fn used(server: u32) -> Result<Duration> {
    Ok(cpu_of_thread()? + cpu_of(server))
}

/// Messages as a relay has published them, encoded beforehand and sent without conditions to streams that are set up alike.
struct Raw {
    publisher: JetStreamPublisher,
    context: jetstream::Context,
    streams: Vec<RawStream>,
    /// Each with its place in `streams`.
    messages: Vec<(usize, Bytes)>,
    server: u32,
}

struct RawStream {
    log: LogId,
    subject: Subject,
    name: String,
    /// Messages it has been sent.
    sent: u64,
}

impl RawStream {
    /// The conditions under which a relay publishes what comes next: the stream, and what stands last in it.
    fn conditions(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_STREAM, self.name.as_str());
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, self.sent.to_string().as_str());
        headers
    }
}

impl Raw {
    async fn start(nats: &str, server: u32, events: Vec<Arc<RecordedEvent>>) -> Result<Self> {
        let (client, subjects) = (async_nats::connect(nats).await?, Subjects::new(RAW));
        let publisher = JetStreamPublisher::new(client.clone(), subjects.clone(), LIMITS, Uuid::from_u128(1));
        let mut streams = Vec::new();
        for log in logs() {
            publisher.create(log, Position(1)).await?;
            streams.push(RawStream { log, subject: subjects.log(log).into(), name: subjects.stream(log), sent: 0 });
        }
        let encoded = |event: &Arc<RecordedEvent>| {
            let stream = streams.iter().position(|stream| stream.log == event.log).context("an event of no log")?;
            anyhow::Ok((stream, Bytes::from(to_wire(event).encode_to_vec())))
        };
        let messages = events.iter().map(encoded).collect::<Result<_>>()?;
        let mut raw = Self { publisher, context: jetstream::new(client), streams, messages, server };
        raw.turn(false).await?;
        Ok(raw)
    }

    /// Messages sent under the conditions of a relay or under none; CPU as on the other side.
    async fn turn(&mut self, conditions: bool) -> Result<Side> {
        let (began, cpu, mut flights) = (Instant::now(), used(self.server)?, FuturesUnordered::new());
        for (stream, body) in &self.messages {
            if flights.len() >= WINDOW {
                flights.next().await.transpose()?;
            }
            let stream = &mut self.streams[*stream];
            let (subject, body) = (stream.subject.clone(), body.clone());
            let sent = match conditions {
                true => self.context.publish_with_headers(subject, stream.conditions(), body).await?,
                false => self.context.publish(subject, body).await?,
            };
            stream.sent += 1;
            flights.push(sent.into_future());
        }
        while flights.next().await.transpose()?.is_some() {}
        Ok(Side::of(self.messages.len() as u64, began.elapsed(), used(self.server)?.saturating_sub(cpu)))
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
