//! Another region, as its event log tells of it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use souk_bus::to_wire;
use souk_event_sourcing::{LogHash, LogId, Partition, Position, RecordedEvent, Region as Number};
use souk_event_store::{EpochStart, LedgerRow, ReplicaBatch};
use souk_proto::log::v1::{
    EpochStart as WireStart, GetHeadsRequest, GetHeadsResponse, Head, LedgerRow as WireRow, ReadRangeRequest, ReadRangeResponse,
    TailRequest, TailResponse,
    event_log_service_server::{EventLogService, EventLogServiceServer},
};
use souk_runtime::{GrpcServer, Health, Process, ServiceKind, Settings};
use tokio::{net::TcpListener, sync::mpsc, time::sleep};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const POLL: Duration = Duration::from_millis(20);
/// Events of a page.
const PAGE: usize = 7;

/// A region that says what a test has it say.
#[derive(Clone)]
pub struct Region {
    said: Arc<Mutex<Said>>,
    pub url: String,
}

#[derive(Default)]
pub struct Said {
    logs: HashMap<LogId, ReplicaBatch>,
    /// Answers nobody.
    pub away: bool,
    /// Tells of no event behind this position, though of the head.
    pub withholds: Option<Position>,
    /// Positions that are gone.
    pub lacks: Vec<u64>,
    /// What becomes of each event on its way.
    pub lie: Option<fn(&mut RecordedEvent)>,
    /// How often it was asked where each log ends.
    asked: HashMap<LogId, usize>,
    /// Events that whoever tails it has made room for.
    pub tailed: usize,
}

impl Said {
    fn events(&self, log: LogId, from: u64, limit: usize) -> Vec<RecordedEvent> {
        let told = |event: &&RecordedEvent| {
            event.position.0 >= from && self.withholds.is_none_or(|end| event.position <= end) && !self.lacks.contains(&event.position.0)
        };
        let mut events: Vec<_> = self.logs.get(&log).iter().flat_map(|log| &log.events).filter(told).take(limit).cloned().collect();
        if let Some(lie) = self.lie {
            events.iter_mut().for_each(lie);
        }
        events
    }

    fn ledger(&self, log: LogId, events: &[RecordedEvent]) -> Vec<WireRow> {
        let of = |row: &&LedgerRow| events.iter().any(|event| event.request_id == Some(row.request_id));
        self.logs.get(&log).iter().flat_map(|log| &log.ledger).filter(of).map(wire_row).collect()
    }

    fn head(&self, log: LogId) -> Head {
        let held = self.logs.get(&log);
        let last = held.and_then(|held| held.events.last());
        let epochs = held.map(|held| held.epochs.as_slice()).unwrap_or_default();
        Head {
            region: log.region.0.into(),
            partition: log.partition.0.into(),
            epoch: epochs.last().map_or(0, |start: &EpochStart| start.epoch.0),
            position: last.map_or(0, |last| last.position.0),
            hash: last.map_or(LogHash::EMPTY, |last| last.hash).0.to_vec().into(),
            epochs: epochs.iter().map(|start| WireStart { epoch: start.epoch.0, first_position: start.first.0 }).collect(),
        }
    }

    /// How often it was asked where a log ends.
    pub fn asked(&self, log: LogId) -> usize {
        self.asked.get(&log).copied().unwrap_or_default()
    }

    fn present(&self) -> Result<(), Status> {
        if self.away { Err(Status::unavailable("away")) } else { Ok(()) }
    }
}

impl Region {
    /// Serves on a free port until the test ends.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let region = Self { said: Arc::default(), url: format!("http://{}", listener.local_addr().unwrap()) };
        let settings = Settings::from_toml(&format!("[installation]\ntoken_key = \"{}\"\n", "01".repeat(32))).unwrap();
        let process = Process::new(Arc::new(settings), ServiceKind::Command, &Health::new(), CancellationToken::new());
        tokio::spawn(GrpcServer::new("internal", &process).add(EventLogServiceServer::new(region.clone())).serve(listener));
        region
    }

    pub fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap()
    }

    /// The log is this from now on.
    pub fn holds(&self, held: ReplicaBatch) {
        self.said().logs.insert(held.log, held);
    }
}

fn asked(region: u32, partition: u32) -> LogId {
    LogId { region: Number(region as u16), partition: Partition(partition as u16) }
}

#[tonic::async_trait]
impl EventLogService for Region {
    async fn read_range(&self, request: Request<ReadRangeRequest>) -> Result<Response<ReadRangeResponse>, Status> {
        let request = request.into_inner();
        let (said, log) = (self.said(), asked(request.region, request.partition));
        said.present()?;
        if request.from_position > said.head(log).position + 1 {
            return Err(Status::out_of_range("beyond the end"));
        }
        let events = said.events(log, request.from_position, request.limit as usize);
        Ok(Response::new(ReadRangeResponse { events: events.iter().map(to_wire).collect(), head: Some(said.head(log)) }))
    }

    type TailStream = Pin<Box<dyn Stream<Item = Result<TailResponse, Status>> + Send>>;

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        self.said().present()?;
        let request = request.into_inner();
        let (log, mut from, region) = (asked(request.region, request.partition), request.from_position, self.clone());
        let (pages, received) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let messages: Vec<_> = {
                    let said = region.said();
                    if said.away {
                        return;
                    }
                    let events = said.events(log, from, PAGE);
                    from = events.last().map_or(from, |last| last.position.0 + 1);
                    let ledger = TailResponse { ledger: said.ledger(log, &events), ..TailResponse::default() };
                    let events = events.iter().map(to_wire).collect();
                    vec![ledger, TailResponse { events, head: Some(said.head(log)), ledger: Vec::new() }]
                };
                let told = messages.iter().map(|message| message.events.len()).sum::<usize>();
                for message in messages {
                    if pages.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
                region.said().tailed += told;
                if told == 0 {
                    sleep(POLL).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(received))))
    }

    async fn get_heads(&self, request: Request<GetHeadsRequest>) -> Result<Response<GetHeadsResponse>, Status> {
        let request = request.into_inner();
        let mut said = self.said();
        said.present()?;
        let logs: Vec<_> = request.partitions.iter().map(|partition| asked(request.region, *partition)).collect();
        logs.iter().for_each(|log| *said.asked.entry(*log).or_default() += 1);
        Ok(Response::new(GetHeadsResponse { heads: logs.into_iter().map(|log| said.head(log)).collect() }))
    }
}

fn wire_row(row: &LedgerRow) -> WireRow {
    WireRow {
        stream: row.stream.to_string(),
        request_id: row.request_id.0.into_bytes().to_vec().into(),
        bucket: row.bucket.0,
        method: row.method.clone(),
        command: row.command.clone(),
        fingerprint: row.fingerprint.clone(),
        reply: row.reply.clone(),
        actor: row.actor.clone(),
        recorded_ms: row.recorded.0,
    }
}
