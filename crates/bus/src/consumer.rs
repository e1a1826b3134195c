use std::time::Duration;

use async_nats::jetstream::{
    self, Message,
    consumer::{
        AckPolicy, DeliverPolicy,
        pull::{self, Stream},
    },
};
use futures::StreamExt;
use prost::Message as _;
use souk_event_sourcing::{LogId, Position, RecordedEvent};
use souk_proto::log::v1::Event;
use tokio::sync::watch;

use crate::{BusError, Events, MalformedEvent, from_wire};

/// A consumer that sends none for twice this is gone.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a request for messages waits at the server before it is renewed.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server removes a consumer that was not asked for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
/// Bounds of what is on its way to one reader: with a reader per log both count many times over.
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 2 << 20;

/// Reads a log's JetStream stream from a sequence on. Heals nothing: whatever happens to consumer, stream or
/// connection ends it with an error, because only the reader knows where to go on. The ordered consumer of async-nats
/// is not used: it begins again with *all* messages when it is remade before the first one, waits a minute for a
/// missing heartbeat, and does not bound the bytes under way.
pub(crate) async fn read(
    jetstream: &jetstream::Context,
    stream: String,
    log: LogId,
    from: Position,
    sessions: watch::Receiver<u64>,
) -> Result<Events, BusError> {
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.0.max(1) },
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGOTTEN_AFTER,
        memory_storage: true,
        num_replicas: 1,
        ..Default::default()
    };
    let consumer = jetstream.create_consumer_on_stream(config, stream).await.map_err(|error| unavailable(log, &error))?;
    let batches = consumer.stream().max_messages_per_batch(BATCH_MESSAGES).max_bytes_per_batch(BATCH_BYTES);
    let messages = batches.heartbeat(HEARTBEAT).expires(EXPIRES).messages().await.map_err(|error| unavailable(log, &error))?;
    let reading = Reading { log, messages, sessions, delivered: 0 };
    let events = futures::stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        let next = reading.next().await;
        let goes_on = next.is_ok().then_some(reading);
        Some((next, goes_on))
    });
    Ok(events.boxed())
}

struct Reading {
    log: LogId,
    messages: Stream,
    sessions: watch::Receiver<u64>,
    /// Messages the consumer delivered so far, by its own count.
    delivered: u64,
}

impl Reading {
    async fn next(&mut self) -> Result<RecordedEvent, BusError> {
        tokio::select! {
            biased;
            message = self.messages.next() => match message {
                Some(Ok(message)) => self.accept(message),
                Some(Err(error)) => Err(unavailable(self.log, &error)),
                None => Err(unavailable(self.log, &"the consumer ended")),
            },
            // Requests of the session before are lost, and so is the consumer if the server was restarted.
            Ok(()) = self.sessions.changed() => Err(unavailable(self.log, &"reconnected")),
        }
    }

    /// The event in a message, if it lies where its position says.
    fn accept(&mut self, message: Message) -> Result<RecordedEvent, BusError> {
        let info = message.info().map_err(|error| unavailable(self.log, &error))?;
        let (sequence, delivered) = (info.stream_sequence, info.consumer_sequence);
        if delivered != self.delivered + 1 {
            // Not a hole in the stream: async-nats drops messages when a subscription's buffer is full.
            return Err(unavailable(self.log, &"messages were lost on the way"));
        }
        self.delivered = delivered;
        let event = Event::decode(message.message.payload).map_err(|error| MalformedEvent(error.to_string()))?;
        let event = from_wire(event)?;
        if event.position.0 != sequence || event.log != self.log {
            return Err(BusError::Misplaced { log: self.log, sequence, position: event.position });
        }
        Ok(event)
    }
}

fn unavailable(log: LogId, error: &dyn std::fmt::Display) -> BusError {
    BusError::Unavailable(format!("log {log}: {error}"))
}
