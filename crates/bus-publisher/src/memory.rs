use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::FutureExt;
use souk_event_sourcing::{LogId, Position, RecordedEvent};

use crate::{Ack, LogPublisher, PublishError, StreamState};

/// [`LogPublisher`] in memory. Clones share the same streams.
#[derive(Debug, Clone, Default)]
pub struct MemoryPublisher(Arc<Mutex<HashMap<LogId, Stream>>>);

#[derive(Debug, Default)]
struct Stream {
    last: u64,
    events: BTreeMap<u64, RecordedEvent>,
}

impl MemoryPublisher {
    fn streams(&self) -> MutexGuard<'_, HashMap<LogId, Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl LogPublisher for MemoryPublisher {
    async fn state(&self, log: LogId) -> Result<Option<StreamState>, PublishError> {
        let streams = self.streams();
        Ok(streams.get(&log).map(|stream| {
            let first = stream.events.keys().next().copied().unwrap_or(stream.last + 1);
            let whole = stream.events.len() as u64 == stream.last + 1 - first;
            StreamState { first: Position(first), last: Position(stream.last), whole, ours: true }
        }))
    }

    async fn create(&self, log: LogId, first: Position) -> Result<(), PublishError> {
        self.streams().insert(log, Stream { last: first.0.saturating_sub(1), events: BTreeMap::new() });
        Ok(())
    }

    async fn delete(&self, log: LogId) -> Result<(), PublishError> {
        self.streams().remove(&log);
        Ok(())
    }

    async fn event(&self, log: LogId, position: Position) -> Result<Option<RecordedEvent>, PublishError> {
        Ok(self.streams().get(&log).and_then(|stream| stream.events.get(&position.0).cloned()))
    }

    async fn publish(&self, event: &RecordedEvent) -> Result<Ack, PublishError> {
        let mut streams = self.streams();
        let outcome = match streams.get_mut(&event.log) {
            None => Err(PublishError::NoStream),
            Some(stream) if stream.last + 1 != event.position.0 => Err(PublishError::WrongSequence),
            Some(stream) => {
                stream.last = event.position.0;
                stream.events.insert(event.position.0, event.clone());
                Ok(())
            }
        };
        Ok(async move { outcome }.boxed())
    }
}
