use std::time::Duration;

use async_trait::async_trait;
use souk_bus::from_wire;
use souk_event_sourcing::{LogId, Position, RecordedEvent};
use souk_proto::log::v1::{EpochStart, ReadRangeRequest, event_log_service_client::EventLogServiceClient};
use souk_runtime::{Peer, telemetry};
use tonic::{Code, Request};

/// Why the event log did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The log is shorter than the position asked for.
    #[error("the log ends before position {0}")]
    BeyondEnd(Position),
    #[error("event log: {0}")]
    Unavailable(String),
}

/// Some events of a log.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogPage {
    pub events: Vec<RecordedEvent>,
    /// Where the log ended when it was read.
    pub head: Position,
    /// The epochs it had gone through by then, oldest first.
    pub epochs: Vec<EpochStart>,
}

/// Reading the log where it is true (law 1): for holes, for proof, for what the bus does not keep.
#[async_trait]
pub(crate) trait LogReader: Send + Sync {
    /// Events from `from` on, in order, at most `limit`; none when `from` is the position after the last.
    async fn read(&self, log: LogId, from: Position, limit: u32) -> Result<LogPage, LogError>;
}

/// [`LogReader`] on EventLogService of the command service.
#[derive(Debug, Clone)]
pub(crate) struct GrpcLog(EventLogServiceClient<Peer>);

/// A page of events is bounded by the sender; this bounds what a broken one could make us hold.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

impl GrpcLog {
    pub(crate) fn new(command: Peer) -> Self {
        Self(EventLogServiceClient::new(command).max_decoding_message_size(MAX_PAGE_BYTES))
    }
}

#[async_trait]
impl LogReader for GrpcLog {
    async fn read(&self, log: LogId, from: Position, limit: u32) -> Result<LogPage, LogError> {
        let mut request =
            Request::new(ReadRangeRequest { region: log.region.0.into(), partition: log.partition.0.into(), from_position: from.0, limit });
        request.set_timeout(CALL_TIMEOUT);
        telemetry::inject(request.metadata_mut());
        let mut client = self.0.clone();
        // The timeout in the metadata binds the server; a half-open connection needs one of our own.
        let answer = tokio::time::timeout(CALL_TIMEOUT, client.read_range(request)).await;
        let answer = answer.map_err(|_| LogError::Unavailable("no answer in time".to_owned()))?;
        let page = answer.map_err(|status| match status.code() {
            Code::OutOfRange => LogError::BeyondEnd(from),
            code => LogError::Unavailable(format!("{code:?}: {}", status.message())),
        })?;
        let page = page.into_inner();
        let head = page.head.ok_or_else(|| LogError::Unavailable("an answer without the head".to_owned()))?;
        let events = page.events.into_iter().map(from_wire).collect::<Result<_, _>>();
        let events = events.map_err(|error| LogError::Unavailable(error.to_string()))?;
        Ok(LogPage { events, head: Position(head.position), epochs: head.epochs })
    }
}
