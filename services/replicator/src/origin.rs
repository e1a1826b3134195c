use std::time::Duration;

use souk_bus::from_wire;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent, RequestId, UnixMillis};
use souk_event_store::{Bucket, EpochStart, Head, LedgerRow};
use souk_proto::log::v1::{
    Head as WireHead, LedgerRow as WireRow, ReadRangeRequest, TailRequest, TailResponse, event_log_service_client::EventLogServiceClient,
};
use souk_runtime::Peer;
use tonic::{Code, Request, Status, Streaming};
use uuid::Uuid;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// An origin tells its head every second: one that says nothing for so long is not there.
const SILENCE: Duration = Duration::from_secs(5);
/// What a broken sender could make us hold.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// Why an origin did not tell.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error("{0}")]
    Away(Status),
    #[error("the origin sent what cannot be read: {0}")]
    Damaged(String),
}

/// The event log of another region, for one log of it.
#[derive(Clone)]
pub struct Origin {
    log: LogId,
    client: EventLogServiceClient<Peer>,
}

/// A log from some position on.
pub struct Tail(Streaming<TailResponse>);

/// What an origin sends at a time.
#[derive(Debug, Default)]
pub struct Page {
    pub events: Vec<RecordedEvent>,
    /// Of commands whose events are in this page or a later one.
    pub ledger: Vec<LedgerRow>,
    pub head: Option<Head>,
}

impl Origin {
    pub fn new(log: LogId, peer: Peer) -> Self {
        Self { log, client: EventLogServiceClient::new(peer).max_decoding_message_size(MAX_PAGE_BYTES) }
    }

    /// The log from a position on.
    ///
    /// # Errors
    /// When the origin cannot be reached.
    pub async fn tail(&self, from: Position) -> Result<Tail, OriginError> {
        let (region, partition) = (self.log.region.0.into(), self.log.partition.0.into());
        let request = TailRequest { region, partition, from_position: from.0, with_ledger: true };
        let mut client = self.client.clone();
        timely(CALL_TIMEOUT, client.tail(request)).await.map(|response| Tail(response.into_inner()))
    }

    /// Running hash of the log at a position; `None` beyond its end.
    ///
    /// # Errors
    /// When the origin cannot be reached.
    pub async fn hash(&self, at: Position) -> Result<Option<LogHash>, OriginError> {
        let (region, partition) = (self.log.region.0.into(), self.log.partition.0.into());
        let request = Request::new(ReadRangeRequest { region, partition, from_position: at.0, limit: 1 });
        let mut client = self.client.clone();
        match timely(CALL_TIMEOUT, client.read_range(request)).await {
            Ok(page) => {
                let event = page.into_inner().events.into_iter().next().map(from_wire).transpose();
                Ok(event.map_err(damaged)?.filter(|event| event.position == at).map(|event| event.hash))
            }
            Err(OriginError::Away(status)) if status.code() == Code::OutOfRange => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Tail {
    /// The next page, which is never long in coming.
    ///
    /// # Errors
    /// When the origin is gone or silent.
    pub async fn next(&mut self) -> Result<Page, OriginError> {
        let page = timely(SILENCE, self.0.message()).await?;
        let page = page.ok_or_else(|| OriginError::Away(Status::unavailable("the origin ended the tail")))?;
        Ok(Page {
            events: page.events.into_iter().map(from_wire).collect::<Result<_, _>>().map_err(damaged)?,
            ledger: page.ledger.into_iter().map(row).collect::<Result<_, _>>()?,
            head: page.head.map(head).transpose()?,
        })
    }
}

async fn timely<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, OriginError> {
    let answer = tokio::time::timeout(limit, call).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))).map_err(OriginError::Away)
}

fn damaged(error: impl std::fmt::Display) -> OriginError {
    OriginError::Damaged(error.to_string())
}

fn head(sent: WireHead) -> Result<Head, OriginError> {
    let hash = LogHash::from_slice(&sent.hash).ok_or_else(|| damaged("a head without a hash"))?;
    let epochs = sent.epochs.into_iter().map(|start| EpochStart { epoch: Epoch(start.epoch), first: Position(start.first_position) });
    Ok(Head { epoch: Epoch(sent.epoch), position: Position(sent.position), hash, epochs: epochs.collect() })
}

fn row(sent: WireRow) -> Result<LedgerRow, OriginError> {
    Ok(LedgerRow {
        stream: sent.stream.parse().map_err(damaged)?,
        request_id: RequestId(Uuid::from_slice(&sent.request_id).map_err(damaged)?),
        bucket: Bucket(sent.bucket),
        method: sent.method,
        command: sent.command,
        fingerprint: sent.fingerprint,
        reply: sent.reply,
        actor: sent.actor,
        recorded: UnixMillis(sent.recorded_ms),
    })
}
