use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use souk_devstack::Postgres;
use souk_event_sourcing::{
    Epoch, EventId, Hlc, LogHash, LogId, Partition, Position, RecordedEvent, Region, RequestId, StreamId, UnixMillis, Version,
};
use souk_event_store::{
    BatchOutcome, Belief, DatabaseConfig, EventLog, Fingerprint, Lane, LedgerEntry, LogBatch, PostgresLane, PostgresStore, Retention,
    StreamAdvance,
};
use sqlx::{Connection, PgConnection};
use tokio::{sync::Mutex, time::Instant};
use uuid::Uuid;

use super::Bench;
use crate::{
    loader::on_own_thread,
    machine::cpu_of,
    pairs::Side,
    record::{Entry, Goal, progress},
    rows::Rows,
    stage::Part,
};

pub(super) const REGION: Region = Region(1);
pub(super) const PARTITIONS: u16 = 64;
/// Events of a batch, spread over all partitions, as a lane's are.
pub(super) const BATCH: u16 = 256;
const PAYLOAD: usize = 1024;
const RETENTION: Retention = Retention { days: 7 };
/// Events read at once to look at them.
const PAGE: usize = 1_000;
/// Batches made before the clock runs.
const MADE_AHEAD: usize = 32;

impl Bench {
    /// The append with all its checks against the bare table.
    pub(super) async fn append(&mut self) -> Result<()> {
        if !self.wants("B5") {
            return Ok(());
        }
        progress("B5: batches of 256 events, appended and copied");
        let server = self.stage.pid(Part::Postgres)?;
        let postgres = &self.stage.system.stack.postgres;
        let (appended, copied) = (database(postgres, "bench_append").await?, database(postgres, "bench_copy").await?);
        let (effort, time) = (self.effort, self.effort.time);
        let pairs = on_own_thread(move || async move {
            let (append, copy) = (Mutex::new(Append::open(&appended).await?), Mutex::new(Copy::open(&copied).await?));
            let turns =
                (|| async { append.lock().await.turn(time, server).await }, || async { copy.lock().await.turn(time, server).await });
            let pairs = effort.pairs(turns.0, turns.1, Side::ratio).await?;
            append.into_inner().audit().await?;
            Ok(pairs)
        })
        .await?;
        let ratios = pairs.iter().map(|(appended, copied)| appended.ratio(copied)).collect();
        let entry = Entry::new("B5", ratios, Goal::AtLeast(0.6), "events/s of the append, 256 a batch ÷ rows/s of COPY, 256 a commit")
            .sides(["appended", "copied"], &pairs)
            .figure("payload_bytes", PAYLOAD as f64);
        self.record(entry);
        Ok(())
    }
}

/// A database with the tables of a write store, ready for all logs.
pub(super) async fn database(postgres: &Postgres, name: &str) -> Result<String> {
    postgres.create_database(name).await?;
    let url = postgres.url(name);
    PostgresStore::migrate(&configs(&url)).await?;
    let store = PostgresStore::connect(&configs(&url), REGION, PARTITIONS).await?;
    let logs: Vec<_> = partitions().map(|partition| (LogId { region: REGION, partition }, Position(0))).collect();
    store.prepare("w1", &logs, RETENTION, UnixMillis::now()).await?;
    store.close().await;
    Ok(url)
}

pub(super) fn configs(url: &str) -> [DatabaseConfig; 1] {
    [DatabaseConfig::new("w1", url, 2)]
}

fn partitions() -> impl Iterator<Item = Partition> {
    (0..PARTITIONS).map(Partition)
}

/// Batches are appended through the door of a committer.
pub(super) struct Append {
    store: PostgresStore,
    lane: PostgresLane,
    maker: Maker,
}

impl Append {
    pub(super) async fn open(url: &str) -> Result<Self> {
        let store = PostgresStore::connect(&configs(url), REGION, PARTITIONS).await?;
        let partitions: Vec<_> = partitions().collect();
        let taken = store.ownership("bench").take("w1", &partitions, Duration::ZERO).await?;
        let maker = Maker::new(taken.into_iter().map(|taken| (taken.log, taken.belief)).collect());
        ensure!(maker.beliefs.len() == partitions.len(), "not all logs are there");
        Ok(Self { lane: store.lane("w1").expect("configured above"), store, maker })
    }

    /// Where each log ends, and under which epoch.
    pub(super) fn beliefs(&self) -> &[(LogId, Belief)] {
        &self.maker.beliefs
    }

    /// Makes so many batches and appends them.
    pub(super) async fn commit(&mut self, count: usize) -> Result<Vec<Vec<LogBatch>>> {
        let batches: Vec<_> = (0..count).map(|_| self.maker.batch()).collect();
        self.append(&batches).await?;
        Ok(batches)
    }

    async fn append(&mut self, batches: &[Vec<LogBatch>]) -> Result<()> {
        for batch in batches {
            let outcomes = self.lane.append(batch).await?;
            ensure!(outcomes.iter().all(|outcome| *outcome == BatchOutcome::Done), "a part was refused");
        }
        Ok(())
    }

    /// Events appended, and CPU of the server whose process this is.
    async fn turn(&mut self, time: Duration, server: u32) -> Result<Side> {
        let (mut events, mut spent, cpu) = (0, Duration::ZERO, cpu_of(server));
        while spent < time {
            let batches: Vec<_> = (0..MADE_AHEAD).map(|_| self.maker.batch()).collect();
            let began = Instant::now();
            self.append(&batches).await?;
            events += (batches.len() * usize::from(BATCH)) as u64;
            spent += began.elapsed();
        }
        Ok(Side::of(events, spent, cpu_of(server).saturating_sub(cpu)))
    }

    /// What is stored is what was appended, one hash after the other.
    ///
    /// # Errors
    /// With the first log of which that is not so.
    pub(super) async fn audit(&self) -> Result<()> {
        for (log, belief) in &self.maker.beliefs {
            let (mut position, mut hash) = (Position(0), LogHash::EMPTY);
            while position < belief.position {
                let events = self.store.read(*log, position.next(), PAGE).await?;
                ensure!(!events.is_empty(), "{log} ends at {position} instead of {}", belief.position);
                for event in events {
                    hash = hash.after(&event);
                    ensure!(event.position == position.next() && event.hash == hash, "{log} differs at {}", event.position);
                    position = event.position;
                }
            }
            ensure!(position == belief.position && hash == belief.hash, "{log} goes on behind {}", belief.position);
        }
        Ok(())
    }
}

/// The same rows are copied into the event table alone, past heads, streams and ledger.
struct Copy {
    connection: PgConnection,
    maker: Maker,
}

impl Copy {
    async fn open(url: &str) -> Result<Self> {
        Ok(Self { connection: PgConnection::connect(url).await?, maker: Maker::of_nothing() })
    }

    /// Rows copied, and CPU of the server whose process this is.
    async fn turn(&mut self, time: Duration, server: u32) -> Result<Side> {
        let (mut rows, mut spent, cpu) = (0, Duration::ZERO, cpu_of(server));
        while spent < time {
            let batches: Vec<_> = (0..MADE_AHEAD).map(|_| encoded(&self.maker.batch())).collect();
            let began = Instant::now();
            for batch in batches {
                let mut copy = self.connection.copy_in_raw("copy event from stdin (format binary)").await?;
                copy.send(batch).await?;
                rows += copy.finish().await?;
            }
            spent += began.elapsed();
        }
        Ok(Side::of(rows, spent, cpu_of(server).saturating_sub(cpu)))
    }
}

fn encoded(batch: &[LogBatch]) -> Vec<u8> {
    let mut rows = Rows::first();
    for event in batch.iter().flat_map(|part| &part.events) {
        rows.event(event);
    }
    rows.last()
}

/// Makes batches of commands that each lead to the first event of a new stream.
struct Maker {
    beliefs: Vec<(LogId, Belief)>,
    /// Payloads are cut out of this, each elsewhere.
    noise: Bytes,
    made: usize,
}

impl Maker {
    fn new(beliefs: Vec<(LogId, Belief)>) -> Self {
        let noise: Vec<u8> = (0..1 << 20).map(|_| rand::random::<u8>()).collect();
        Self { beliefs, noise: noise.into(), made: 0 }
    }

    /// For logs that are stored nowhere.
    fn of_nothing() -> Self {
        let belief = Belief { epoch: Epoch(1), batch: 0, position: Position(0), hash: LogHash::EMPTY };
        Self::new(partitions().map(|partition| (LogId { region: REGION, partition }, belief)).collect())
    }

    fn batch(&mut self) -> Vec<LogBatch> {
        let now = UnixMillis::now();
        let mut beliefs = std::mem::take(&mut self.beliefs);
        let parts = beliefs.iter_mut().map(|(log, belief)| {
            let mut part = LogBatch { log: *log, belief: *belief, ledger: Vec::new(), streams: Vec::new(), events: Vec::new() };
            for _ in 0..BATCH / PARTITIONS {
                self.command(&mut part, now);
            }
            *belief = part.after();
            part
        });
        let parts = parts.collect();
        self.beliefs = beliefs;
        parts
    }

    fn command(&mut self, part: &mut LogBatch, now: UnixMillis) {
        let (stream, request_id) = (StreamId::new("product", &Uuid::now_v7().to_string()), RequestId(Uuid::now_v7()));
        let from = self.made * 4099 % (self.noise.len() - PAYLOAD);
        let payload = self.noise.slice(from..from + PAYLOAD);
        self.made += 1;
        let Belief { epoch, position, hash, .. } = part.after();
        let mut event = RecordedEvent {
            log: part.log,
            position: position.next(),
            epoch,
            hash,
            stream: stream.clone(),
            version: Version(1),
            kind: "ProductCreated".to_owned(),
            schema_version: 1,
            payload: payload.clone(),
            event_id: EventId(Uuid::now_v7()),
            request_id: Some(request_id),
            causation_id: None,
            correlation_id: None,
            actor: "bench".to_owned(),
            hlc: Hlc::new(now, self.made as u16),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = hash.after(&event);
        part.ledger.push(LedgerEntry {
            stream: stream.clone(),
            request_id,
            method: "souk.catalog.v1.CommandService/CreateProduct",
            command: payload,
            fingerprint: Fingerprint::new(*request_id.0.as_bytes()),
            reply: Some(Bytes::from_static(&[7; 80])),
            actor: "bench".to_owned(),
            recorded: now,
        });
        part.streams.push(StreamAdvance { stream, expected: Version(0), new: Version(1) });
        part.events.push(event.into());
    }
}
