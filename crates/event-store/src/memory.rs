use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent, RequestId, StreamId, Version};

use crate::{
    BatchOutcome, Belief, Copies, EpochStart, EventLog, Head, Lane, LogBatch, ReplicaBatch, Replicated, StoreError, StoredReply,
    StoredStream,
    replica::{End, Fit},
};

/// The ports in memory, for tests of what stands above them. Clones share the same logs.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<HashMap<LogId, MemoryLog>>>);

/// One log in memory. Its append is in the two steps of `append.sql`, between which other statements may commit: what
/// the statement's snapshot shows, and what happens under the lock of the head.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemoryLog {
    head: Belief,
    epochs: Vec<EpochStart>,
    events: Vec<Arc<RecordedEvent>>,
    versions: BTreeMap<StreamId, Version>,
    ledger: BTreeMap<(StreamId, RequestId), StoredReply>,
    /// Of a copy: up to where its origin vouches for it, unless for all.
    proven: Option<Position>,
}

/// What a statement's snapshot shows of a part: the repeats and the stale streams in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Examined {
    pub repeats: Vec<(usize, StoredReply)>,
    pub stale: Vec<(StreamId, Version)>,
}

impl Default for MemoryLog {
    fn default() -> Self {
        let head = Belief { epoch: Epoch(0), batch: 0, position: Position(0), hash: LogHash::EMPTY };
        Self { head, epochs: Vec::new(), events: Vec::new(), versions: BTreeMap::new(), ledger: BTreeMap::new(), proven: None }
    }
}

impl MemoryLog {
    /// Takes the log over at `now_ms`: raises its epoch.
    pub fn take(&mut self, now_ms: u64) -> Belief {
        self.head.epoch = self.head.epoch.next(now_ms);
        self.epochs.push(EpochStart { epoch: self.head.epoch, first: self.head.position.next() });
        self.head
    }

    /// The head as stored.
    pub const fn head(&self) -> Belief {
        self.head
    }

    /// The epochs it went through, oldest first.
    pub fn epochs(&self) -> &[EpochStart] {
        &self.epochs
    }

    /// All events in order.
    pub fn events(&self) -> &[Arc<RecordedEvent>] {
        &self.events
    }

    /// How many events a stream has.
    pub fn version(&self, stream: &StreamId) -> Version {
        self.versions.get(stream).copied().unwrap_or_default()
    }

    /// The reply remembered of a command.
    pub fn reply(&self, stream: &StreamId, id: RequestId) -> Option<&StoredReply> {
        self.ledger.get(&(stream.clone(), id))
    }

    /// Appends a part at once.
    pub fn append(&mut self, batch: &LogBatch) -> BatchOutcome {
        self.commit(batch, self.examine(batch), Belief::meets)
    }

    /// What a snapshot taken now shows.
    pub fn examine(&self, batch: &LogBatch) -> Examined {
        let found = |(index, entry): (usize, &crate::LedgerEntry)| Some((index, self.reply(&entry.stream, entry.request_id)?.clone()));
        let stale = batch.streams.iter().filter(|advance| self.version(&advance.stream) != advance.expected);
        Examined {
            repeats: batch.ledger.iter().enumerate().filter_map(found).collect(),
            stale: stale.map(|advance| (advance.stream.clone(), self.version(&advance.stream))).collect(),
        }
    }

    /// Writes the part if its snapshot showed nothing against it and the head meets the belief. `fence` is
    /// [`Belief::meets`], unless a test wants to see what becomes of another.
    pub fn commit(&mut self, batch: &LogBatch, examined: Examined, fence: impl Fn(&Belief, &Belief) -> bool) -> BatchOutcome {
        let Examined { repeats, stale } = examined;
        if !repeats.is_empty() || !stale.is_empty() {
            return BatchOutcome::Refused { repeats, stale };
        }
        if !fence(&batch.belief, &self.head) {
            return BatchOutcome::Fenced;
        }
        let after = batch.after();
        // Like the statement: counted onward from what is stored, the epoch left alone.
        let position = Position(self.head.position.0 + batch.events.len() as u64);
        self.head = Belief { epoch: self.head.epoch, batch: self.head.batch + 1, position, hash: after.hash };
        for advance in &batch.streams {
            self.versions.insert(advance.stream.clone(), advance.new);
        }
        for entry in &batch.ledger {
            let Some(reply) = entry.reply.clone() else { continue };
            let reply = StoredReply { fingerprint: entry.fingerprint.0.to_vec(), reply };
            self.ledger.insert((entry.stream.clone(), entry.request_id), reply);
        }
        self.events.extend(batch.events.iter().cloned());
        BatchOutcome::Done
    }
}

impl MemoryLog {
    fn end(&self) -> End {
        End { epoch: self.head.epoch, position: self.head.position, hash: self.head.hash }
    }

    fn ends_at(&self, seen: End) -> bool {
        (self.head.position, self.head.hash) == (seen.position, seen.hash)
    }

    fn replicate(&mut self, batch: &ReplicaBatch) -> Result<Replicated, StoreError> {
        let end = self.end();
        let from = match batch.fit(end)? {
            Fit::From(from) => from,
            Fit::Hole => return Ok(Replicated::Hole(end)),
            Fit::Forked => return Ok(Replicated::Forked(end)),
        };
        let after = batch.end(from, end);
        for event in &batch.events[from..] {
            self.versions.insert(event.stream.clone(), event.version);
            self.events.push(Arc::new(event.clone()));
        }
        for row in &batch.ledger {
            let reply = StoredReply { fingerprint: row.fingerprint.to_vec(), reply: row.reply.clone() };
            self.ledger.entry((row.stream.clone(), row.request_id)).or_insert(reply);
        }
        for start in batch.epochs.iter().filter(|start| start.first <= after.position.next()) {
            if self.epochs.iter().all(|known| known.epoch != start.epoch) {
                self.epochs.push(*start);
            }
        }
        self.epochs.sort_by_key(|start| start.epoch);
        self.head = Belief { epoch: after.epoch, batch: self.head.batch + 1, position: after.position, hash: after.hash };
        Ok(Replicated::Done(after))
    }

    fn rewind(&mut self, fork: Position, epochs: &[EpochStart]) {
        let lost = self.events.split_off(fork.0 as usize);
        self.ledger.retain(|(_, id), _| lost.iter().all(|event| event.request_id != Some(*id)));
        for event in &lost {
            self.versions.remove(&event.stream);
        }
        self.versions.extend(self.events.iter().map(|event| (event.stream.clone(), event.version)));
        self.epochs = epochs.iter().filter(|start| start.first <= fork.next()).copied().collect();
        self.proven = self.proven.filter(|proven| *proven < fork);
        self.head.epoch = self.epochs.iter().map(|start| start.epoch).max().unwrap_or_default();
        self.head.position = fork;
        self.head.hash = self.events.last().map_or(LogHash::EMPTY, |event| event.hash);
    }
}

impl MemoryStore {
    /// Takes a log over at `now_ms`: raises its epoch.
    pub fn take(&self, log: LogId, now_ms: u64) -> Belief {
        self.logs().entry(log).or_default().take(now_ms)
    }

    /// The reply remembered of a command.
    pub fn reply(&self, log: LogId, stream: &StreamId, id: RequestId) -> Option<StoredReply> {
        self.logs().get(&log)?.reply(stream, id).cloned()
    }

    /// A backup: what is there now, apart from what comes.
    #[must_use]
    pub fn back_up(&self) -> Self {
        Self(Arc::new(Mutex::new(self.logs().clone())))
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<LogId, MemoryLog>> {
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
        Ok(logs.iter().map(|log| (*log, stored.entry(*log).or_default().head())).collect())
    }

    async fn load(&mut self, streams: &[(LogId, StreamId)], _: u32) -> Result<Vec<StoredStream>, StoreError> {
        let logs = self.logs();
        let events = |log: &LogId, stream: &StreamId| {
            let events = logs.get(log).into_iter().flat_map(MemoryLog::events);
            events.filter(|event| event.stream == *stream).map(|event| RecordedEvent::clone(event)).collect()
        };
        Ok(streams.iter().map(|(log, stream)| StoredStream { snapshot: None, events: events(log, stream) }).collect())
    }
}

#[async_trait::async_trait]
impl EventLog for MemoryStore {
    async fn read(&self, log: LogId, from: Position, limit: usize) -> Result<Vec<RecordedEvent>, StoreError> {
        let logs = self.logs();
        let events = logs.get(&log).into_iter().flat_map(MemoryLog::events);
        Ok(events.filter(|event| event.position >= from).take(limit).map(|event| RecordedEvent::clone(event)).collect())
    }

    async fn head(&self, log: LogId) -> Result<Head, StoreError> {
        let mut logs = self.logs();
        let log = logs.entry(log).or_default();
        let head = log.head();
        Ok(Head { epoch: head.epoch, position: head.position, hash: head.hash, epochs: log.epochs().to_vec() })
    }
}

#[async_trait::async_trait]
impl Copies for MemoryStore {
    async fn replicate(&self, batch: &ReplicaBatch) -> Result<Replicated, StoreError> {
        self.logs().entry(batch.log).or_default().replicate(batch)
    }

    async fn borrow(&self, batch: &ReplicaBatch) -> Result<Replicated, StoreError> {
        let mut logs = self.logs();
        let copy = logs.entry(batch.log).or_default();
        let before = copy.end();
        let done = copy.replicate(batch)?;
        if copy.end() != before {
            copy.proven.get_or_insert(before.position);
        }
        Ok(done)
    }

    async fn rewind(&self, log: LogId, fork: Position, seen: End, epochs: &[EpochStart]) -> Result<bool, StoreError> {
        let mut logs = self.logs();
        let copy = logs.entry(log).or_default();
        let ends_there = copy.ends_at(seen);
        if ends_there {
            copy.rewind(fork, epochs);
        }
        Ok(ends_there)
    }

    async fn prove(&self, log: LogId, seen: End) -> Result<bool, StoreError> {
        let mut logs = self.logs();
        let copy = logs.entry(log).or_default();
        let ends_there = copy.ends_at(seen);
        Ok(copy.proven.take_if(|_| ends_there).is_some())
    }

    async fn unproven(&self, log: LogId) -> Result<Option<Position>, StoreError> {
        Ok(self.logs().get(&log).and_then(|copy| copy.proven))
    }
}
