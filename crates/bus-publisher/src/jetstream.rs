use std::{error::Error, fmt::Display, time::Duration};

use async_nats::{
    Client, HeaderMap,
    connection::State,
    header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_STREAM},
    jetstream::{
        self, ErrorCode,
        context::{self, CreateStreamErrorKind, DeleteStreamErrorKind, GetStreamErrorKind, PublishErrorKind},
        stream::{Info, RawMessageErrorKind},
    },
};
use futures::FutureExt;
use prost::Message;
use souk_bus::{Subjects, from_wire, to_wire};
use souk_event_sourcing::{LogId, MAX_PAYLOAD_BYTES, Position, RecordedEvent, UnixMillis};
use souk_proto::log::v1::Event;
use uuid::Uuid;

use crate::{Ack, LogPublisher, PublishError, StreamLimits, StreamState, settings::StreamSettings};

/// An answer or acknowledgement that takes longer counts as lost.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a lost connection is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Envelope and headers come on top of a payload. A server that takes less closes the connection, and with it the
/// relays of all logs, when the first large event comes.
const LEAST_MAX_PAYLOAD: usize = MAX_PAYLOAD_BYTES + 64 * 1024;

/// [`LogPublisher`] on NATS JetStream: one file stream with one subject per log.
#[derive(Debug, Clone)]
pub struct JetStreamPublisher {
    client: Client,
    jetstream: jetstream::Context,
    settings: StreamSettings,
}

impl JetStreamPublisher {
    /// Streams are marked with the id of the installation, for whoever looks at them.
    pub fn new(client: Client, subjects: Subjects, limits: StreamLimits, installation: Uuid) -> Self {
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(TIMEOUT);
        Self { client, jetstream, settings: StreamSettings { subjects, limits, installation } }
    }

    /// Refuses at once while there is no server: async-nats queues what is sent, and waits without limit for a place
    /// in that queue once it is full.
    fn up(&self) -> Result<(), PublishError> {
        if self.client.connection_state() != State::Connected {
            return Err(PublishError::Unavailable("not connected to NATS".into()));
        }
        match self.client.max_payload() {
            enough if enough >= LEAST_MAX_PAYLOAD => Ok(()),
            less => Err(PublishError::Refused(format!("max_payload of the NATS server is {less} bytes, want {LEAST_MAX_PAYLOAD} or more"))),
        }
    }

    async fn info(&self, log: LogId) -> Result<Option<Info>, PublishError> {
        self.up()?;
        match self.jetstream.get_stream(self.settings.subjects.stream(log)).await {
            Ok(stream) => Ok(Some(stream.cached_info().clone())),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                GetStreamErrorKind::JetStream(refusal) => Err(refused(&refusal)),
                _ => Err(unavailable(&error)),
            },
        }
    }
}

#[async_trait::async_trait]
impl LogPublisher for JetStreamPublisher {
    async fn reachable(&self) {
        while self.client.connection_state() != State::Connected {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn state(&self, log: LogId) -> Result<Option<StreamState>, PublishError> {
        let Some(Info { config, state, created, .. }) = self.info(log).await? else { return Ok(None) };
        let last = state.last_sequence;
        let first = if state.messages == 0 { last + 1 } else { state.first_sequence };
        Ok(Some(StreamState {
            incarnation: created.unix_timestamp_nanos() as u64,
            begin: StreamSettings::begin(&config),
            first: Position(first),
            last: Position(last),
            whole: state.messages == last + 1 - first && state.deleted_count.unwrap_or(0) == 0,
            settled: self.settings.met_by(log, &config),
            keeps_after: StreamSettings::keeps_after(&config, &state, UnixMillis::now()),
        }))
    }

    async fn create(&self, log: LogId, first: Position) -> Result<(), PublishError> {
        self.up()?;
        let created = self.jetstream.create_stream(self.settings.config(log, first)).await;
        created.map(drop).map_err(|error| not_set_up(&error))
    }

    async fn settle(&self, log: LogId) -> Result<(), PublishError> {
        let Info { config, state, .. } = self.info(log).await?.ok_or(PublishError::NoStream)?;
        let config = self.settings.applied(log, config, Position(state.first_sequence));
        let updated = self.jetstream.update_stream(&config).await.map_err(|error| not_set_up(&error))?;
        match self.settings.met_by(log, &updated.config) {
            true => Ok(()),
            false => Err(PublishError::Refused("the stream is of another kind".into())),
        }
    }

    async fn delete(&self, log: LogId) -> Result<(), PublishError> {
        self.up()?;
        match self.jetstream.delete_stream(self.settings.subjects.stream(log)).await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                DeleteStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(()),
                DeleteStreamErrorKind::JetStream(refusal) => Err(refused(&refusal)),
                _ => Err(unavailable(&error)),
            },
        }
    }

    async fn event(&self, log: LogId, position: Position) -> Result<Option<RecordedEvent>, PublishError> {
        self.up()?;
        // To the server, sequence 0 is a malformed request.
        if position == Position(0) {
            return Ok(None);
        }
        let stream = self.jetstream.get_stream_no_info(self.settings.subjects.stream(log)).await.map_err(|error| unavailable(&error))?;
        match stream.get_raw_message(position.0).await {
            Ok(message) => Ok(Event::decode(message.payload).ok().and_then(|event| from_wire(event).ok())),
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(None),
                RawMessageErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Err(PublishError::NoStream)
                }
                RawMessageErrorKind::JetStream(refusal) => Err(refused(&refusal)),
                _ => Err(unavailable(&error)),
            },
        }
    }

    async fn publish(&self, event: &RecordedEvent) -> Result<Ack, PublishError> {
        self.up()?;
        let (name, position) = (self.settings.subjects.stream(event.log), event.position.0);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_STREAM, name.as_str());
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, (position - 1).to_string().as_str());
        // It was checked when it came in; one that no header may hold is left out rather than stopping the log.
        if let Ok(traceparent) = event.traceparent.parse::<async_nats::HeaderValue>()
            && !event.traceparent.is_empty()
        {
            headers.insert("traceparent", traceparent);
        }
        let body = to_wire(event).encode_to_vec().into();
        let subject = self.settings.subjects.log(event.log);
        let sent = self.jetstream.publish_with_headers(subject, headers, body).await.map_err(|error| not_published(&error))?;
        Ok(async move {
            let ack = sent.await.map_err(|error| not_published(&error))?;
            // Only an acknowledgement at the very position counts; a duplicate stored nothing.
            if ack.stream == name && ack.sequence == position && !ack.duplicate {
                return Ok(());
            }
            Err(PublishError::Misplaced { stream: ack.stream, sequence: ack.sequence, duplicate: ack.duplicate })
        }
        .boxed())
    }
}

fn unavailable(error: &dyn Display) -> PublishError {
    PublishError::Unavailable(error.to_string())
}

/// What an answer of JetStream's means.
fn refused(refusal: &jetstream::Error) -> PublishError {
    match refusal.error_code() {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => PublishError::WrongSequence,
        ErrorCode::STREAM_STORE_FAILED | ErrorCode::STORAGE_RESOURCES_EXCEEDED | ErrorCode::INSUFFICIENT_RESOURCES => PublishError::Full,
        ErrorCode::STREAM_NOT_MATCH | ErrorCode::STREAM_SUBJECT_OVERLAP => PublishError::ForeignStream,
        ErrorCode::STREAM_NOT_FOUND => PublishError::NoStream,
        _ if refusal.code() == 503 => unavailable(refusal),
        _ => PublishError::Refused(refusal.to_string()),
    }
}

fn not_set_up(error: &context::CreateStreamError) -> PublishError {
    match error.kind() {
        CreateStreamErrorKind::JetStream(refusal) => refused(&refusal),
        CreateStreamErrorKind::NotFound => PublishError::NoStream,
        _ => unavailable(error),
    }
}

fn not_published(error: &context::PublishError) -> PublishError {
    match error.kind() {
        PublishErrorKind::StreamNotFound => PublishError::NoStream,
        PublishErrorKind::WrongLastSequence => PublishError::WrongSequence,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => unavailable(error),
        PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::WrongLastMessageId => PublishError::Refused(error.to_string()),
        PublishErrorKind::Other => match error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()) {
            Some(refusal) => refused(refusal),
            None => unavailable(error),
        },
    }
}
