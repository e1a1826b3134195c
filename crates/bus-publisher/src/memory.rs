use futures::FutureExt;
use souk_bus::MemoryBus;
use souk_event_sourcing::{LogId, Position, RecordedEvent, UnixMillis};

use crate::{Ack, LogPublisher, PublishError, StreamState};

/// [`LogPublisher`] into the streams of a [`MemoryBus`], which keep everything.
#[derive(Debug, Clone, Default)]
pub struct MemoryPublisher(MemoryBus);

impl MemoryPublisher {
    pub const fn new(bus: MemoryBus) -> Self {
        Self(bus)
    }
}

#[async_trait::async_trait]
impl LogPublisher for MemoryPublisher {
    async fn reachable(&self) {}

    async fn state(&self, log: LogId) -> Result<Option<StreamState>, PublishError> {
        Ok(self.0.change(log, |stream| {
            let first = stream.events.keys().next().copied().unwrap_or(stream.last.next());
            let whole = stream.events.len() as u64 == stream.last.0 + 1 - first.0;
            StreamState {
                incarnation: stream.incarnation,
                begin: stream.begin,
                first,
                last: stream.last,
                whole,
                settled: true,
                keeps_after: Some(UnixMillis(i64::MIN)),
            }
        }))
    }

    async fn create(&self, log: LogId, first: Position) -> Result<(), PublishError> {
        let found = self.0.change(log, |stream| stream.begin);
        match found {
            None => self.0.create(log, first),
            Some(begin) if begin == first => {}
            Some(begin) => return Err(PublishError::Refused(format!("log {log} has a stream that begins at {begin}"))),
        }
        Ok(())
    }

    async fn settle(&self, _: LogId) -> Result<(), PublishError> {
        Ok(())
    }

    async fn delete(&self, log: LogId) -> Result<(), PublishError> {
        self.0.remove(log);
        Ok(())
    }

    async fn event(&self, log: LogId, position: Position) -> Result<Option<RecordedEvent>, PublishError> {
        Ok(self.0.change(log, |stream| stream.events.get(&position).cloned()).flatten())
    }

    async fn publish(&self, event: &RecordedEvent) -> Result<Ack, PublishError> {
        let stored = self.0.change(event.log, |stream| {
            if stream.last.next() != event.position {
                return Err(PublishError::WrongSequence);
            }
            stream.last = event.position;
            stream.events.insert(event.position, event.clone());
            Ok(())
        });
        let outcome = stored.unwrap_or(Err(PublishError::NoStream));
        Ok(async move { outcome }.boxed())
    }
}
