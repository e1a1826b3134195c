use std::time::Duration;

use async_nats::{Client, jetstream};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use prost::Message;
use souk_event_sourcing::{LogId, Partition, Position, Region};
use souk_proto::log::v1::{ChangeFeed, HeadAnnouncement};
use tracing::warn;

use crate::{BusError, Connection, EventSource, Events, Feed, Subjects, consumer};

/// An announcement that cannot be handed to the connection so long is dropped.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Both ports on NATS: logs from JetStream, announcements over core NATS.
#[derive(Debug, Clone)]
pub struct JetStreamBus {
    connection: Connection,
    jetstream: jetstream::Context,
    subjects: Subjects,
}

impl JetStreamBus {
    /// Connects as `name`; see [`Connection::open`].
    ///
    /// # Errors
    /// When `url` is malformed.
    pub async fn connect(url: &str, prefix: &str, name: &str) -> Result<Self, BusError> {
        Ok(Self::new(Connection::open(url, name).await?, Subjects::new(prefix)))
    }

    pub fn new(connection: Connection, subjects: Subjects) -> Self {
        Self { jetstream: jetstream::new(connection.client().clone()), connection, subjects }
    }

    pub const fn client(&self) -> &Client {
        self.connection.client()
    }

    pub const fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    async fn publish(&self, subject: String, message: Vec<u8>) -> Result<(), BusError> {
        self.connection.up()?;
        let sent = tokio::time::timeout(ANNOUNCE_TIMEOUT, self.client().publish(subject, Bytes::from(message))).await;
        sent.map_err(|_| BusError::Unavailable("the connection takes no messages".into()))?
            .map_err(|error| BusError::Unavailable(error.to_string()))
    }

    async fn subscribe<T: Message + Default + 'static>(&self, subject: String) -> Result<BoxStream<'static, T>, BusError> {
        let messages = self.client().subscribe(subject).await.map_err(|error| BusError::Unavailable(error.to_string()))?;
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
        self.connection.came_up().await?;
        // Before the consumer is made, so that no session passes unseen in between.
        let sessions = self.connection.sessions();
        consumer::read(&self.jetstream, self.subjects.stream(log), log, from, sessions).await
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
