use std::{collections::HashMap, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        self, ErrorCode,
        context::{GetStreamErrorKind, PublishErrorKind},
        stream::{Config, DiscardPolicy, StorageType},
    },
};
use futures::FutureExt;
use prost::Message;
use souk_bus::{Subjects, from_wire, to_wire};
use souk_event_sourcing::{LogId, Position, RecordedEvent};
use uuid::Uuid;

use crate::{Ack, LogPublisher, PublishError, StreamState};

const INSTALLATION: &str = "souk-installation";
/// An acknowledgement that takes longer counts as lost.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of each log's stream. What is older is read from the event log.
#[derive(Debug, Clone)]
pub struct StreamLimits {
    pub max_age: Duration,
    pub max_bytes: u64,
    pub replicas: usize,
}

/// [`LogPublisher`] on NATS JetStream: one file stream with one subject per log.
#[derive(Debug, Clone)]
pub struct JetStreamPublisher {
    jetstream: jetstream::Context,
    subjects: Subjects,
    limits: StreamLimits,
    installation: Uuid,
}

impl JetStreamPublisher {
    pub fn new(client: async_nats::Client, subjects: Subjects, limits: StreamLimits, installation: Uuid) -> Self {
        let mut jetstream = jetstream::new(client);
        jetstream.set_timeout(ACK_TIMEOUT);
        Self { jetstream, subjects, limits, installation }
    }

    fn config(&self, log: LogId, first: Option<Position>) -> Config {
        Config {
            name: self.subjects.stream(log),
            subjects: vec![self.subjects.log(log)],
            storage: StorageType::File,
            discard: DiscardPolicy::Old,
            max_age: self.limits.max_age,
            max_bytes: self.limits.max_bytes as i64,
            num_replicas: self.limits.replicas,
            deny_delete: true,
            deny_purge: true,
            // Sequences are positions and publishes are conditional: there is nothing to deduplicate.
            duplicate_window: Duration::from_secs(1),
            metadata: HashMap::from([(INSTALLATION.to_owned(), self.installation.to_string())]),
            first_sequence: first.map(|first| first.0),
            ..Config::default()
        }
    }

    fn is_ours(&self, log: LogId, found: &Config) -> bool {
        let wanted = self.config(log, None);
        found.metadata.get(INSTALLATION) == wanted.metadata.get(INSTALLATION)
            && found.subjects == wanted.subjects
            && found.discard == wanted.discard
            && found.max_age == wanted.max_age
            && found.max_bytes == wanted.max_bytes
            && found.num_replicas == wanted.num_replicas
            && found.deny_delete
            && found.deny_purge
    }
}

#[async_trait::async_trait]
impl LogPublisher for JetStreamPublisher {
    async fn state(&self, log: LogId) -> Result<Option<StreamState>, PublishError> {
        let stream = match self.jetstream.get_stream(self.subjects.stream(log)).await {
            Ok(stream) => stream,
            Err(error) => {
                return match error.kind() {
                    GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                    _ => Err(PublishError::Unavailable(error.to_string())),
                };
            }
        };
        let info = stream.cached_info();
        let (first, last) = (info.state.first_sequence, info.state.last_sequence);
        let first = if info.state.messages == 0 { last + 1 } else { first };
        let whole = info.state.messages == last + 1 - first && info.state.deleted_count.unwrap_or(0) == 0;
        Ok(Some(StreamState { first: Position(first), last: Position(last), whole, ours: self.is_ours(log, &info.config) }))
    }

    async fn create(&self, log: LogId, first: Position) -> Result<(), PublishError> {
        let created = self.jetstream.create_stream(self.config(log, Some(first))).await;
        created.map(drop).map_err(|error| PublishError::Unavailable(error.to_string()))
    }

    async fn delete(&self, log: LogId) -> Result<(), PublishError> {
        let deleted = self.jetstream.delete_stream(self.subjects.stream(log)).await;
        deleted.map(drop).map_err(|error| PublishError::Unavailable(error.to_string()))
    }

    async fn event(&self, log: LogId, position: Position) -> Result<Option<RecordedEvent>, PublishError> {
        let unavailable = |error: &dyn std::fmt::Display| PublishError::Unavailable(error.to_string());
        let stream = self.jetstream.get_stream_no_info(self.subjects.stream(log)).await.map_err(|error| unavailable(&error))?;
        let message = match stream.get_raw_message(position.0).await {
            Ok(message) => message,
            Err(error) => {
                return match error.kind() {
                    jetstream::stream::RawMessageErrorKind::NoMessageFound => Ok(None),
                    _ => Err(unavailable(&error)),
                };
            }
        };
        let event = souk_proto::log::v1::Event::decode(message.payload).ok();
        Ok(event.and_then(|event| from_wire(event).ok()))
    }

    async fn publish(&self, event: &RecordedEvent) -> Result<Ack, PublishError> {
        let (name, position) = (self.subjects.stream(event.log), event.position.0);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", name.as_str());
        headers.insert("Nats-Expected-Last-Sequence", (position - 1).to_string().as_str());
        if !event.traceparent.is_empty() {
            headers.insert("traceparent", event.traceparent.as_str());
        }
        let body = to_wire(event).encode_to_vec().into();
        let sent = self.jetstream.publish_with_headers(self.subjects.log(event.log), headers, body).await.map_err(|error| refusal(&error))?;
        Ok(async move {
            let ack = sent.await.map_err(|error| refusal(&error))?;
            // Only an acknowledgement at the very position counts; a duplicate stored nothing.
            if ack.stream == name && ack.sequence == position && !ack.duplicate {
                return Ok(());
            }
            Err(PublishError::Misplaced { stream: ack.stream, sequence: ack.sequence, duplicate: ack.duplicate })
        }
        .boxed())
    }
}

/// Code of "maximum bytes / messages exceeded".
const STREAM_STORE_FAILED: u64 = 10077;
/// Code of "expected stream does not match".
const STREAM_NOT_MATCH: u64 = 10060;

fn refusal(error: &async_nats::jetstream::context::PublishError) -> PublishError {
    use std::error::Error;
    match error.kind() {
        PublishErrorKind::StreamNotFound => PublishError::NoStream,
        PublishErrorKind::WrongLastSequence => PublishError::WrongSequence,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => PublishError::Unavailable(error.to_string()),
        PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::WrongLastMessageId => PublishError::Refused(error.to_string()),
        PublishErrorKind::Other => match error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()) {
            Some(source) if source.error_code().0 == STREAM_STORE_FAILED => PublishError::Full,
            Some(source) if source.error_code().0 == STREAM_NOT_MATCH => PublishError::ForeignStream,
            Some(source) if source.code() == 503 => PublishError::Unavailable(source.to_string()),
            Some(source) => PublishError::Refused(source.to_string()),
            None => PublishError::Unavailable(error.to_string()),
        },
    }
}
