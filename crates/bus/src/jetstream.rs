use std::time::Duration;

use async_nats::{
    Client, ConnectOptions,
    jetstream::{self, consumer::{DeliverPolicy, pull::OrderedConfig}},
};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use prost::Message;
use souk_event_sourcing::{LogId, Partition, Position, Region};
use souk_proto::log::v1::{ChangeFeed, Event, HeadAnnouncement};
use tracing::warn;

use crate::{BusError, EventSource, Events, Feed, Subjects, from_wire};

/// Half-open connections show within twice this; the default leaves them for minutes.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages buffered per subscription before the server's are dropped.
const SUBSCRIPTION_CAPACITY: usize = 16 * 1024;

/// Connects to NATS and stays connected: it reconnects for ever, also when the first attempt fails.
///
/// # Errors
/// When `url` is malformed.
pub async fn connect(url: &str, name: &str) -> Result<Client, BusError> {
    ConnectOptions::new()
        .name(name)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(|attempt| Duration::from_millis((50 << attempt.min(5)) as u64))
        .event_callback(|event| async move {
            match event {
                async_nats::Event::Connected => {}
                event => warn!(%event, "nats"),
            }
        })
        .connect(url.split(',').map(str::trim).collect::<Vec<_>>())
        .await
        .map_err(|error| BusError::Unavailable(error.to_string()))
}

/// Both ports on NATS: logs from JetStream, announcements over core NATS.
#[derive(Debug, Clone)]
pub struct JetStreamBus {
    client: Client,
    jetstream: jetstream::Context,
    subjects: Subjects,
}

impl JetStreamBus {
    /// Connects as `name`.
    ///
    /// # Errors
    /// When `url` is malformed.
    pub async fn connect(url: &str, prefix: &str, name: &str) -> Result<Self, BusError> {
        Ok(Self::new(connect(url, name).await?, Subjects::new(prefix)))
    }

    pub fn new(client: Client, subjects: Subjects) -> Self {
        Self { jetstream: jetstream::new(client.clone()), client, subjects }
    }

    pub const fn client(&self) -> &Client {
        &self.client
    }

    pub const fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    async fn publish(&self, subject: String, message: Vec<u8>) -> Result<(), BusError> {
        self.client.publish(subject, Bytes::from(message)).await.map_err(|error| BusError::Unavailable(error.to_string()))
    }

    async fn subscribe<T: Message + Default + 'static>(&self, subject: String) -> Result<BoxStream<'static, T>, BusError> {
        let messages = self.client.subscribe(subject).await.map_err(|error| BusError::Unavailable(error.to_string()))?;
        Ok(messages
            .filter_map(|message| async move {
                let decoded = T::decode(message.payload);
                if let Err(error) = &decoded {
                    warn!(subject = %message.subject, %error, "malformed announcement dropped");
                }
                decoded.ok()
            })
            .boxed())
    }
}

#[async_trait::async_trait]
impl EventSource for JetStreamBus {
    async fn consume(&self, log: LogId, from: Position) -> Result<Events, BusError> {
        let unavailable = |error: &dyn std::fmt::Display| BusError::Unavailable(format!("log {log}: {error}"));
        let stream = self.jetstream.get_stream_no_info(self.subjects.stream(log)).await.map_err(|error| unavailable(&error))?;
        let config = OrderedConfig { deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.0.max(1) }, ..Default::default() };
        let consumer = stream.create_consumer(config).await.map_err(|error| unavailable(&error))?;
        let messages = consumer.messages().await.map_err(|error| unavailable(&error))?;
        let events = messages.map(move |message| {
            let message = message.map_err(|error| BusError::Unavailable(format!("log {log}: {error}")))?;
            let sequence = message.info().map_err(|error| BusError::Unavailable(error.to_string()))?.stream_sequence;
            let event = Event::decode(message.message.payload).map_err(|error| crate::MalformedEvent(error.to_string()))?;
            let event = from_wire(event)?;
            if event.position.0 != sequence || event.log != log {
                return Err(BusError::Misplaced { log, sequence, position: event.position });
            }
            Ok(event)
        });
        Ok(events.boxed())
    }
}

#[async_trait::async_trait]
impl Feed for JetStreamBus {
    async fn publish_head(&self, head: HeadAnnouncement) -> Result<(), BusError> {
        self.publish(self.subjects.head(log_of(head.region, head.partition)), head.encode_to_vec()).await
    }

    async fn subscribe_heads(&self, region: Region) -> Result<BoxStream<'static, HeadAnnouncement>, BusError> {
        self.subscribe(self.subjects.heads(region)).await
    }

    async fn publish_changes(&self, changes: ChangeFeed) -> Result<(), BusError> {
        self.publish(self.subjects.feed(log_of(changes.region, changes.partition)), changes.encode_to_vec()).await
    }

    async fn subscribe_changes(&self, region: Region) -> Result<BoxStream<'static, ChangeFeed>, BusError> {
        self.subscribe(self.subjects.feeds(region)).await
    }
}

fn log_of(region: u32, partition: u32) -> LogId {
    LogId { region: Region(region as u16), partition: Partition(partition as u16) }
}
