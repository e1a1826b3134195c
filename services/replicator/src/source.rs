use std::time::Duration;

use souk_bus::from_wire;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent, Region, RequestId, UnixMillis};
use souk_event_store::{Bucket, EpochStart, Head, LedgerRow};
use souk_proto::log::v1::{
    GetHeadsRequest, Head as WireHead, LedgerRow as WireRow, ReadRangeRequest, TailRequest, TailResponse,
    event_log_service_client::EventLogServiceClient,
};
use souk_runtime::Peer;
use tonic::{Code, Request, Status, Streaming};
use uuid::Uuid;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever is tailed tells its head every second: one that says nothing for so long is not there.
const SILENCE: Duration = Duration::from_secs(5);
/// What a broken sender could make us hold.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// Why a region did not tell.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("region {0} does not tell: {1}")]
    Away(Region, Status),
    #[error("region {0} sent what cannot be read: {1}")]
    Damaged(Region, String),
}

/// The event log of another region, for one log: its own, or one it has a copy of.
#[derive(Clone)]
pub struct Source {
    /// Who is asked.
    pub region: Region,
    log: LogId,
    client: EventLogServiceClient<Peer>,
}

/// A log from some position on.
pub struct Tail {
    region: Region,
    pages: Streaming<TailResponse>,
}

/// What an origin sends at a time.
#[derive(Debug, Default)]
pub struct Page {
    pub events: Vec<RecordedEvent>,
    /// Of commands whose events are in this page or a later one.
    pub ledger: Vec<LedgerRow>,
    pub head: Option<Head>,
}

impl Source {
    pub fn new(region: Region, log: LogId, peer: Peer) -> Self {
        Self { region, log, client: EventLogServiceClient::new(peer).max_decoding_message_size(MAX_PAGE_BYTES) }
    }

    /// The log from a position on, with what is remembered of its commands.
    ///
    /// # Errors
    /// When the region cannot be reached.
    pub async fn tail(&self, from: Position) -> Result<Tail, SourceError> {
        let (region, partition) = (self.log.region.0.into(), self.log.partition.0.into());
        let request = TailRequest { region, partition, from_position: from.0, with_ledger: true };
        let mut client = self.client.clone();
        let pages = timely(CALL_TIMEOUT, client.tail(request)).await.map_err(|status| self.away(status))?;
        Ok(Tail { region: self.region, pages: pages.into_inner() })
    }

    /// Some events from a position on; none beyond the end.
    ///
    /// # Errors
    /// When the region cannot be reached.
    pub async fn read(&self, from: Position, limit: u32) -> Result<Vec<RecordedEvent>, SourceError> {
        let (region, partition) = (self.log.region.0.into(), self.log.partition.0.into());
        let request = Request::new(ReadRangeRequest { region, partition, from_position: from.0, limit });
        let mut client = self.client.clone();
        match timely(CALL_TIMEOUT, client.read_range(request)).await {
            Ok(page) => {
                page.into_inner().events.into_iter().map(from_wire).collect::<Result<_, _>>().map_err(|error| damaged(self.region, error))
            }
            Err(status) if status.code() == Code::OutOfRange => Ok(Vec::new()),
            Err(status) => Err(self.away(status)),
        }
    }

    /// Running hash of the log at a position; `None` beyond its end.
    ///
    /// # Errors
    /// When the region cannot be reached.
    pub async fn hash(&self, at: Position) -> Result<Option<LogHash>, SourceError> {
        let events = self.read(at, 1).await?;
        Ok(events.first().filter(|event| event.position == at).map(|event| event.hash))
    }

    /// Where the log ends there.
    ///
    /// # Errors
    /// When the region cannot be reached.
    pub async fn head(&self) -> Result<Head, SourceError> {
        let request = GetHeadsRequest { region: self.log.region.0.into(), partitions: vec![self.log.partition.0.into()] };
        let mut client = self.client.clone();
        let heads = timely(CALL_TIMEOUT, client.get_heads(request)).await.map_err(|status| self.away(status))?.into_inner().heads;
        head(self.region, heads.into_iter().next().ok_or_else(|| damaged(self.region, "no head"))?)
    }

    const fn away(&self, status: Status) -> SourceError {
        SourceError::Away(self.region, status)
    }
}

impl Tail {
    /// The next page, which is never long in coming.
    ///
    /// # Errors
    /// When the region is gone or silent.
    pub async fn next(&mut self) -> Result<Page, SourceError> {
        let region = self.region;
        let page = timely(SILENCE, self.pages.message()).await.map_err(|status| SourceError::Away(region, status))?;
        let page = page.ok_or_else(|| SourceError::Away(region, Status::unavailable("the tail was ended")))?;
        Ok(Page {
            events: page.events.into_iter().map(from_wire).collect::<Result<_, _>>().map_err(|error| damaged(region, error))?,
            ledger: page.ledger.into_iter().map(|sent| row(region, sent)).collect::<Result<_, _>>()?,
            head: page.head.map(|sent| head(region, sent)).transpose()?,
        })
    }
}

async fn timely<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

fn damaged(region: Region, error: impl std::fmt::Display) -> SourceError {
    SourceError::Damaged(region, error.to_string())
}

fn head(region: Region, sent: WireHead) -> Result<Head, SourceError> {
    let hash = LogHash::from_slice(&sent.hash).ok_or_else(|| damaged(region, "a head without a hash"))?;
    let epochs = sent.epochs.into_iter().map(|start| EpochStart { epoch: Epoch(start.epoch), first: Position(start.first_position) });
    Ok(Head { epoch: Epoch(sent.epoch), position: Position(sent.position), hash, epochs: epochs.collect() })
}

fn row(region: Region, sent: WireRow) -> Result<LedgerRow, SourceError> {
    Ok(LedgerRow {
        stream: sent.stream.parse().map_err(|error| damaged(region, error))?,
        request_id: RequestId(Uuid::from_slice(&sent.request_id).map_err(|error| damaged(region, error))?),
        bucket: Bucket(sent.bucket),
        method: sent.method,
        command: sent.command,
        fingerprint: sent.fingerprint,
        reply: sent.reply,
        actor: sent.actor,
        recorded: UnixMillis(sent.recorded_ms),
    })
}
