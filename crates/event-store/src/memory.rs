use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_event_sourcing::{Epoch, LogId, Position, RecordedEvent, RequestId, StreamId, Version};

use crate::{BatchOutcome, Belief, EpochStart, EventLog, Head, Lane, LogBatch, StoreError, StoredReply, StoredStream};

/// Both ports in memory, for tests of what stands above them. Clones share the same logs.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<HashMap<LogId, Log>>>);

#[derive(Debug, Clone, Default)]
struct Log {
    belief: Option<Belief>,
    epochs: Vec<EpochStart>,
    events: Vec<RecordedEvent>,
    versions: HashMap<StreamId, Version>,
    ledger: HashMap<(StreamId, RequestId), StoredReply>,
}

impl Log {
    fn belief(&self) -> Belief {
        self.belief.unwrap_or(Belief { epoch: Epoch(0), batch: 0, position: Position(0), hash: souk_event_sourcing::LogHash::EMPTY })
    }

    fn append(&mut self, batch: &LogBatch) -> BatchOutcome {
        let repeats: Vec<_> = (batch.ledger.iter().enumerate())
            .filter_map(|(index, entry)| Some((index, self.ledger.get(&(entry.stream.clone(), entry.request_id))?.clone())))
            .collect();
        let version = |stream: &StreamId| self.versions.get(stream).copied().unwrap_or_default();
        let stale: Vec<_> = (batch.streams.iter())
            .filter(|advance| version(&advance.stream) != advance.expected)
            .map(|advance| (advance.stream.clone(), version(&advance.stream)))
            .collect();
        if !repeats.is_empty() || !stale.is_empty() {
            return BatchOutcome::Refused { repeats, stale };
        }
        if self.belief() != batch.belief {
            return BatchOutcome::Fenced;
        }
        for advance in &batch.streams {
            self.versions.insert(advance.stream.clone(), advance.new);
        }
        for entry in &batch.ledger {
            let Some(reply) = entry.reply.clone() else { continue };
            let reply = StoredReply { fingerprint: entry.fingerprint.0.to_vec(), reply };
            self.ledger.insert((entry.stream.clone(), entry.request_id), reply);
        }
        let hash = batch.events.last().map_or(batch.belief.hash, |event| event.hash);
        let position = Position(batch.belief.position.0 + batch.events.len() as u64);
        self.belief = Some(Belief { epoch: batch.belief.epoch, batch: batch.belief.batch + 1, position, hash });
        self.events.extend(batch.events.iter().map(|event| RecordedEvent::clone(event)));
        BatchOutcome::Done
    }
}

impl MemoryStore {
    /// Takes a log over at `now_ms`: raises its epoch.
    pub fn take(&self, log: LogId, now_ms: u64) -> Belief {
        let mut logs = self.logs();
        let log = logs.entry(log).or_default();
        let before = log.belief();
        let belief = Belief { epoch: before.epoch.next(now_ms), ..before };
        log.epochs.push(EpochStart { epoch: belief.epoch, first: belief.position.next() });
        log.belief = Some(belief);
        belief
    }

    /// A backup: what is there now, apart from what comes.
    #[must_use]
    pub fn back_up(&self) -> Self {
        Self(Arc::new(Mutex::new(self.logs().clone())))
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<LogId, Log>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Lane for MemoryStore {
    async fn append(&mut self, batches: &[LogBatch]) -> Result<Vec<BatchOutcome>, StoreError> {
        let mut logs = self.logs();
        Ok(batches.iter().map(|batch| logs.entry(batch.log).or_default().append(batch)).collect())
    }

    async fn heads(&mut self, logs: &[LogId]) -> Result<Vec<(LogId, Belief)>, StoreError> {
        let mut stored = self.logs();
        Ok(logs.iter().map(|log| (*log, stored.entry(*log).or_default().belief())).collect())
    }

    async fn load(&mut self, streams: &[(LogId, StreamId)], _: u32) -> Result<Vec<StoredStream>, StoreError> {
        let logs = self.logs();
        let events = |log: &LogId, stream: &StreamId| {
            let events = logs.get(log).into_iter().flat_map(|log| &log.events);
            events.filter(|event| event.stream == *stream).cloned().collect()
        };
        Ok(streams.iter().map(|(log, stream)| StoredStream { snapshot: None, events: events(log, stream) }).collect())
    }
}

#[async_trait::async_trait]
impl EventLog for MemoryStore {
    async fn read(&self, log: LogId, from: Position, limit: usize) -> Result<Vec<RecordedEvent>, StoreError> {
        let logs = self.logs();
        let events = logs.get(&log).into_iter().flat_map(|log| &log.events);
        Ok(events.filter(|event| event.position >= from).take(limit).cloned().collect())
    }

    async fn head(&self, log: LogId) -> Result<Head, StoreError> {
        let mut logs = self.logs();
        let log = logs.entry(log).or_default();
        let belief = log.belief();
        Ok(Head { epoch: belief.epoch, position: belief.position, hash: belief.hash, epochs: log.epochs.clone() })
    }
}
