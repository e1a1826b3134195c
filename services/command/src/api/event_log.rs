use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use souk_bus::to_wire;
use souk_event_sourcing::{LogId, Partition, Position, RecordedEvent, Region};
use souk_event_store::{End, EventLog, Head, LedgerRow, PostgresStore, Retention, StoreError};
use souk_proto::log::v1::{
    EpochStart, GetHeadsRequest, GetHeadsResponse, Head as WireHead, LedgerRow as WireRow, ReadRangeRequest, ReadRangeResponse,
    TailRequest, TailResponse, event_log_service_server::EventLogService,
};
use souk_runtime::Failure;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::ends::{Ends, LogEnd};
use crate::{committer::RETRY_AFTER, topology::InForce};

const DEFAULT_PAGE: u32 = 256;
const MAX_PAGE: u32 = 1000;
/// A page stays below this, so that a message of it fits the limit of 1 MiB with one largest event on top.
const PAGE_BYTES: usize = 384 * 1024;
/// How often a copier is told the head.
const TELL_HEAD: Duration = Duration::from_secs(1);
/// Pages a slow reader of a tail may lag behind before it is waited for.
const TAIL_PAGES: usize = 4;

/// The log for whoever is not its owner: backfill, rebuild, replication, audit. Of other regions, the copies here.
pub struct EventLogs {
    pub store: Arc<PostgresStore>,
    pub topology: InForce,
    pub retention: Retention,
    /// What tails wait for.
    pub ends: Ends,
}

#[tonic::async_trait]
impl EventLogService for EventLogs {
    async fn read_range(&self, request: Request<ReadRangeRequest>) -> Result<Response<ReadRangeResponse>, Status> {
        let asked = request.into_inner();
        let log = self.log(asked.region, asked.partition)?;
        let from = Position(asked.from_position.max(1));
        let limit = if asked.limit == 0 { DEFAULT_PAGE } else { asked.limit.min(MAX_PAGE) };
        let head = self.store.head(log).await.map_err(unavailable)?;
        if from > head.position.next() {
            return Err(Failure::new(tonic::Code::OutOfRange, "BEYOND_HEAD", "the log ends before that position")
                .with("head", head.position)
                .into());
        }
        let events =
            if from <= head.position { page(self.store.read(log, from, limit as usize).await.map_err(unavailable)?) } else { Vec::new() };
        Ok(Response::new(ReadRangeResponse { events: events.iter().map(to_wire).collect(), head: Some(wire_head(log, &head)) }))
    }

    type TailStream = Pin<Box<dyn Stream<Item = Result<TailResponse, Status>> + Send>>;

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let asked = request.into_inner();
        let log = self.log(asked.region, asked.partition)?;
        let (pages, received) = mpsc::channel(TAIL_PAGES);
        let ledger = asked.with_ledger.then_some(self.retention);
        let from = Position(asked.from_position.max(1));
        tokio::spawn(tail(self.store.clone(), self.ends.watch(log), log, from, ledger, pages));
        Ok(Response::new(Box::pin(ReceiverStream::new(received))))
    }

    async fn get_heads(&self, request: Request<GetHeadsRequest>) -> Result<Response<GetHeadsResponse>, Status> {
        let asked = request.into_inner();
        let partitions = match asked.partitions.as_slice() {
            [] => self
                .store
                .databases()
                .flat_map(|database| self.store.partitions_of(database))
                .map(|partition| u32::from(partition.0))
                .collect(),
            some => some.to_vec(),
        };
        let mut heads = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let log = self.log(asked.region, partition)?;
            heads.push(wire_head(log, &self.store.head(log).await.map_err(unavailable)?));
        }
        heads.sort_by_key(|head| head.partition);
        Ok(Response::new(GetHeadsResponse { heads }))
    }
}

impl EventLogs {
    fn log(&self, region: u32, partition: u32) -> Result<LogId, Failure> {
        let log = u16::try_from(region).ok().zip(u16::try_from(partition).ok());
        let log = log.map(|(region, partition)| LogId { region: Region(region), partition: Partition(partition) });
        let known = |log: &LogId| self.topology.get().site(log.region).is_some() && self.store.database_of(log.partition).is_some();
        log.filter(known).ok_or_else(|| Failure::not_found("NO_SUCH_LOG", format!("no log {region}/{partition} is kept here")))
    }
}

/// Sends the log page by page until the reader goes away or the store fails; `ledger` to one that asked for that.
async fn tail(
    store: Arc<PostgresStore>,
    mut end: LogEnd,
    log: LogId,
    mut from: Position,
    ledger: Option<Retention>,
    pages: mpsc::Sender<Result<TailResponse, Status>>,
) {
    loop {
        let Page { messages, head } = match next(&store, log, from, ledger).await {
            Ok(page) => page,
            Err(error) => return drop(pages.send(Err(unavailable(error).into())).await),
        };
        let before = from;
        for message in messages {
            if let Some(last) = message.events.last() {
                from = Position(last.position + 1);
            }
            if pages.send(Ok(message)).await.is_err() {
                return;
            }
        }
        if from == before && !moves(&mut end, log, from, head, &pages).await {
            return;
        }
    }
}

/// Waits until the table has something new to tell, telling the `head` meanwhile as long as it is known to be that; `false` when
/// the reader has gone away.
async fn moves(
    end: &mut LogEnd,
    log: LogId,
    from: Position,
    head: Option<Head>,
    pages: &mpsc::Sender<Result<TailResponse, Status>>,
) -> bool {
    let told = head.as_ref().map(End::from);
    loop {
        tokio::select! {
            () = pages.closed() => return false,
            () = end.wait_until(|now| now.position >= from || told.is_some_and(|told| told != now)) => return true,
            () = tokio::time::sleep(TELL_HEAD) => {}
        }
        let Some(head) = head.as_ref().filter(|_| end.now() == told) else { return true };
        if pages.send(Ok(TailResponse { head: Some(wire_head(log, head)), ..TailResponse::default() })).await.is_err() {
            return false;
        }
    }
}

/// What is sent at a time.
struct Page {
    /// Those with the ledger before those with the events.
    messages: Vec<TailResponse>,
    /// Only for whoever asked for the ledger.
    head: Option<Head>,
}

/// What there is from a position on; nothing, not even a head, for whoever did not ask for the ledger when there is no event.
async fn next(store: &PostgresStore, log: LogId, from: Position, ledger: Option<Retention>) -> Result<Page, StoreError> {
    let events = page(store.read(log, from, MAX_PAGE as usize).await?);
    let mut messages = Vec::new();
    if let Some(retention) = ledger.filter(|_| !events.is_empty()) {
        let mut bytes = usize::MAX;
        for row in store.ledger_of(log, &events, retention).await? {
            // A message of its own for what would not fit beside the events or the rows before.
            let size = row.command.len() + row.reply.len() + 512;
            bytes = bytes.saturating_add(size);
            if bytes > PAGE_BYTES {
                messages.push(TailResponse::default());
                bytes = size;
            }
            messages.last_mut().expect("one was pushed").ledger.push(wire_row(row));
        }
    }
    let head = if ledger.is_some() { Some(store.head(log).await?) } else { None };
    if !events.is_empty() || head.is_some() {
        let told = head.as_ref().map(|head| wire_head(log, head));
        messages.push(TailResponse { events: events.iter().map(to_wire).collect(), head: told, ledger: Vec::new() });
    }
    Ok(Page { messages, head })
}

/// As many events as fit one message, at least one.
fn page(mut events: Vec<RecordedEvent>) -> Vec<RecordedEvent> {
    let mut bytes = 0;
    let fit = events.iter().take_while(|event| {
        let before = bytes;
        bytes += event.payload.len() + 512;
        before == 0 || bytes <= PAGE_BYTES
    });
    let fit = fit.count();
    events.truncate(fit);
    events
}

fn wire_row(row: LedgerRow) -> WireRow {
    WireRow {
        stream: row.stream.to_string(),
        request_id: row.request_id.0.into_bytes().to_vec().into(),
        bucket: row.bucket.0,
        method: row.method,
        command: row.command,
        fingerprint: row.fingerprint,
        reply: row.reply,
        actor: row.actor,
        recorded_ms: row.recorded.0,
    }
}

fn wire_head(log: LogId, head: &Head) -> WireHead {
    WireHead {
        region: log.region.0.into(),
        partition: log.partition.0.into(),
        epoch: head.epoch.0,
        position: head.position.0,
        hash: head.hash.0.to_vec().into(),
        epochs: head.epochs.iter().map(|start| EpochStart { epoch: start.epoch.0, first_position: start.first.0 }).collect(),
    }
}

pub(super) fn unavailable(error: StoreError) -> Failure {
    warn!(%error, "the log cannot be read");
    Failure::unavailable("STORE_UNAVAILABLE", "the write store does not answer", RETRY_AFTER)
}
