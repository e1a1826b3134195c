use std::time::Duration;

use async_trait::async_trait;
use souk_bus::from_wire;
use souk_event_sourcing::{LogId, Position, RecordedEvent};
use souk_proto::log::v1::{ReadRangeRequest, event_log_service_client::EventLogServiceClient};
use souk_runtime::{Peer, telemetry};
use tonic::{Code, Request};

/// Why the event log did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TruthError {
    #[error("the log ends before position {0}")]
    BeyondEnd(Position),
    #[error("event log unavailable: {0}")]
    Unavailable(String),
}

/// Reading the log where it is true: for holes and for what the bus does not keep.
#[async_trait]
pub(crate) trait Truth: Send + Sync {
    /// Events from `from` on, in order, at most one page; none when `from` is the position after the last.
    async fn read(&self, log: LogId, from: Position) -> Result<Vec<RecordedEvent>, TruthError>;
}

/// [`Truth`] on EventLogService of the command service.
#[derive(Debug, Clone)]
pub(crate) struct GrpcTruth(EventLogServiceClient<Peer>);

/// Events of the log asked for at a time.
const PAGE: u32 = 256;
/// A page is bounded by its sender; this bounds what a broken one could make us hold.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);

impl GrpcTruth {
    pub fn new(internal: Peer) -> Self {
        Self(EventLogServiceClient::new(internal).max_decoding_message_size(MAX_PAGE_BYTES))
    }
}

#[async_trait]
impl Truth for GrpcTruth {
    async fn read(&self, log: LogId, from: Position) -> Result<Vec<RecordedEvent>, TruthError> {
        let (region, partition) = (log.region.0.into(), log.partition.0.into());
        let mut request = Request::new(ReadRangeRequest { region, partition, from_position: from.0, limit: PAGE });
        request.set_timeout(DEADLINE);
        telemetry::inject(request.metadata_mut());
        let mut client = self.0.clone();
        // The timeout in the metadata binds the server; a half-open connection needs one of our own.
        let page = match tokio::time::timeout(DEADLINE, client.read_range(request)).await {
            Ok(Ok(page)) => page.into_inner(),
            Ok(Err(status)) if status.code() == Code::OutOfRange => return Err(TruthError::BeyondEnd(from)),
            Ok(Err(status)) => return Err(TruthError::Unavailable(format!("{:?}: {}", status.code(), status.message()))),
            Err(_) => return Err(TruthError::Unavailable("no answer within the deadline".into())),
        };
        let events = page.events.into_iter().map(from_wire).collect::<Result<_, _>>();
        events.map_err(|error| TruthError::Unavailable(error.to_string()))
    }
}
