use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use metrics::histogram;
use souk_domain::Event;
use souk_event_sourcing::{Epoch, LogId, Partition, RecordedEvent, UnixMillis};
use souk_event_store::StoreError;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    backoff::Backoff,
    changes::{Advance, Changes, OrderKey, Tail},
    fold::{Effect, effects, is_relevant},
    reader::Reader,
    shard::Shard,
    step::{Step, Subject, Timer},
    worker::{Outcome, Task},
};

/// Steps in the outbox beyond which no more events are read: what waits is in memory, too.
const MAX_OPEN_STEPS: usize = 10_000;
/// Timers turned into steps at a time.
const TIMER_PAGE: u32 = 500;
/// Leases are renewed this often while they last.
const RENEWALS_PER_LEASE: u32 = 3;

/// From taking logs over until they are lost: what this process knows of one write database, all of it read from there.
pub(crate) struct Session<'a> {
    shard: &'a Shard,
    held: BTreeMap<LogId, Held>,
    inbox: mpsc::Receiver<RecordedEvent>,
    _readers: JoinSet<()>,
    /// Steps under way and, behind each, those about the same subject that wait for it.
    queues: HashMap<(LogId, Subject), VecDeque<Step>>,
    tasks: JoinSet<(Task, Outcome)>,
    /// Tasks waiting for their next attempt.
    pauses: JoinSet<Task>,
    open: usize,
}

/// A log and how far it was applied.
#[derive(Debug)]
struct Held {
    epoch: Epoch,
    checkpoint: Tail,
    /// An event could not be read: nothing behind it is applied.
    blocked: bool,
}

/// Why a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Shutdown,
    /// A write was refused: another process holds logs of this one, or a log lacks an event that the bus delivered.
    Fenced,
    /// Logs that another process held are free.
    Free,
    /// A task panicked; its step is still in the outbox.
    Panicked,
}

/// What has come in since the last transaction.
#[derive(Default)]
struct Incoming {
    events: Vec<RecordedEvent>,
    results: Vec<(Task, Outcome)>,
    timers: Vec<Timer>,
}

impl<'a> Session<'a> {
    /// Takes logs over, reads what is due, starts to read them on.
    pub async fn start(shard: &'a Shard, forced: bool) -> Result<Self, StoreError> {
        let taken = shard.store.take(&shard.partitions, &shard.owner, shard.config.lease, forced).await?;
        let partitions: Vec<_> = taken.iter().map(|taken| taken.log.partition).collect();
        let steps = shard.store.steps(&partitions).await?;
        tracing::info!(database = shard.database, logs = taken.len(), of = shard.partitions.len(), steps = steps.len(), "logs taken over");
        let (outbox, inbox) = mpsc::channel(shard.config.batch_events.max(1));
        let mut readers = JoinSet::new();
        let mut held = BTreeMap::new();
        for taken in taken {
            let (log, tail, epoch) = (taken.log, taken.tail, taken.epoch);
            shard.sources.board.hold(log, epoch, tail.position);
            readers.spawn(Reader { log, tail, sources: shard.sources.clone(), outbox: outbox.clone() }.run());
            held.insert(log, Held { epoch, checkpoint: tail, blocked: false });
        }
        let (queues, tasks, pauses) = (HashMap::new(), JoinSet::new(), JoinSet::new());
        let mut session = Self { shard, held, inbox, _readers: readers, queues, tasks, pauses, open: 0 };
        steps.into_iter().for_each(|step| session.enqueue(step));
        Ok(session)
    }

    pub fn logs(&self) -> impl Iterator<Item = LogId> {
        self.held.keys().copied()
    }

    /// Works until shutdown, loss or an error of the database.
    pub async fn run(&mut self, backoff: &mut Backoff) -> Result<End, StoreError> {
        let config = &self.shard.config;
        let mut timers = interval(config.timer_interval);
        timers.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leases = interval(config.lease / RENEWALS_PER_LEASE);
        leases.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut incoming = Incoming::default();
            tokio::select! {
                () = self.shard.shutdown.cancelled() => return self.drain().await,
                Some(event) = self.inbox.recv(), if self.open < MAX_OPEN_STEPS => incoming.events.push(event),
                Some(result) = self.tasks.join_next() => match result {
                    Ok(result) => incoming.results.push(result),
                    Err(_) => return Ok(End::Panicked),
                },
                Some(Ok(task)) = self.pauses.join_next() => self.spawn(task),
                _ = timers.tick(), if self.open < MAX_OPEN_STEPS => {
                    incoming.timers = self.due().await?;
                    if incoming.timers.len() >= TIMER_PAGE as usize {
                        timers.reset_immediately();
                    }
                }
                _ = leases.tick() => {
                    if let Some(end) = self.renew().await? {
                        return Ok(end);
                    }
                }
            }
            if self.gather(&mut incoming).is_err() {
                return Ok(End::Panicked);
            }
            if !self.commit(incoming).await? {
                return Ok(End::Fenced);
            }
            backoff.reset();
        }
    }

    /// Adds what has come in besides, so that one transaction serves all of it.
    fn gather(&mut self, incoming: &mut Incoming) -> Result<(), JoinError> {
        while incoming.events.len() < self.shard.config.batch_events && self.open < MAX_OPEN_STEPS {
            let Ok(event) = self.inbox.try_recv() else { break };
            incoming.events.push(event);
        }
        while let Some(result) = self.tasks.try_join_next() {
            incoming.results.push(result?);
        }
        Ok(())
    }

    async fn due(&self) -> Result<Vec<Timer>, StoreError> {
        let partitions = self.partitions();
        self.shard.store.due(&partitions, UnixMillis::now(), TIMER_PAGE).await
    }

    fn partitions(&self) -> Vec<Partition> {
        self.held.keys().map(|log| log.partition).collect()
    }

    /// A sign of life; also looks for logs that others have left.
    async fn renew(&self) -> Result<Option<End>, StoreError> {
        self.shard.sources.board.measure();
        let held: Vec<_> = self.held.iter().map(|(log, held)| (log.partition, held.epoch)).collect();
        if !self.shard.store.renew(&held, self.shard.config.lease).await? {
            return Ok(Some(End::Fenced));
        }
        let others: Vec<_> =
            self.shard.partitions.iter().filter(|partition| !self.held.contains_key(&self.shard.log(**partition))).copied().collect();
        let free = !others.is_empty() && self.shard.store.any_free(&others).await?;
        Ok(free.then_some(End::Free))
    }

    /// Folds what came in, writes it, and only then sends what it leads to. Returns false when the write was fenced.
    async fn commit(&mut self, incoming: Incoming) -> Result<bool, StoreError> {
        let Incoming { events, results, timers } = incoming;
        let mut changes = self.fold(events).await?;
        timers.into_iter().for_each(|timer| changes.fire(timer));
        let mut freed = Vec::new();
        for (task, outcome) in results {
            self.settle(task, outcome, &mut changes, &mut freed);
        }
        self.fence(&mut changes);
        if !changes.is_empty() {
            let applied = self.shard.store.apply(&changes).await?;
            if applied.len() < changes.advances.len() {
                return Ok(false);
            }
        }
        for (log, advance) in &changes.advances {
            if let Some(held) = self.held.get_mut(log) {
                held.checkpoint = advance.to;
                self.shard.sources.board.advance(*log, advance.to.position);
            }
        }
        self.open -= changes.done.len();
        freed.into_iter().for_each(|key| self.next(key));
        changes.renewed.into_iter().for_each(|step| self.spawn(Task::new(step, self.shard.config.backoff.clone())));
        changes.due.into_iter().for_each(|step| self.enqueue(step));
        self.shard.sources.board.steps(&self.shard.database, self.open);
        Ok(true)
    }

    /// The changes that events lead to, with the advance of their logs.
    async fn fold(&mut self, events: Vec<RecordedEvent>) -> Result<Changes, StoreError> {
        let mut changes = Changes::default();
        if events.is_empty() {
            return Ok(changes);
        }
        histogram!("souk_saga_batch_events").record(events.len() as f64);
        let read: Vec<_> = events.iter().map(read).collect();
        let orders: BTreeSet<OrderKey> = read.iter().flatten().flat_map(|(log, effects)| orders_of(*log, effects)).collect();
        let stored = self.shard.store.placed(&orders.into_iter().collect::<Vec<_>>()).await?;
        for (event, read) in events.iter().zip(read) {
            let Some(held) = self.held.get_mut(&event.log).filter(|held| !held.blocked) else { continue };
            let outcome = read.map_err(|error| error.to_string());
            let outcome = outcome.and_then(|(_, effects)| changes.apply(event, effects, &stored).map_err(|error| error.to_string()));
            if let Err(why) = outcome {
                held.blocked = true;
                self.block(event, why);
                continue;
            }
            let (epoch, from, to) = (held.epoch, held.checkpoint.position, Tail::after(event));
            changes.advances.entry(event.log).or_insert(Advance { epoch, from, to }).to = to;
        }
        Ok(changes)
    }

    /// An event that cannot be read stops its log: what comes after may rest on it. A newer build reads it, or somebody
    /// mends it; until then it is seen by everyone who looks.
    fn block(&self, event: &RecordedEvent, why: String) {
        tracing::error!(log = %event.log, position = %event.position, kind = event.kind, why, "an event cannot be applied; its log stands still");
        self.shard.ready.not_ready("a log stands still at an event that cannot be applied");
        self.shard.sources.board.block(event.log, why);
    }

    fn settle(&mut self, task: Task, outcome: Outcome, changes: &mut Changes, freed: &mut Vec<(LogId, Subject)>) {
        let key = (task.step.origin.log, task.step.subject.clone());
        match outcome {
            Outcome::Finished => {
                changes.done.insert(task.step.id());
                freed.push(key);
            }
            Outcome::Again(due) => {
                changes.done.insert(task.step.id());
                changes.set_timer(task.step.again(due));
                freed.push(key);
            }
            Outcome::Renew => {
                tracing::info!(step = task.step.kind.name(), subject = %task.step.subject, "request ids of a step are spent; sending under new ones");
                changes.renewed.push(task.step.renewed(UnixMillis::now()));
            }
            Outcome::Later(pause) => {
                self.pauses.spawn(async move {
                    sleep(pause).await;
                    task
                });
            }
        }
    }

    /// Every log that is written to is written under its checkpoint, also when that stays where it is.
    fn fence(&self, changes: &mut Changes) {
        let mut logs: BTreeSet<LogId> = changes.done.iter().map(|(log, ..)| *log).collect();
        logs.extend(changes.due.iter().chain(&changes.renewed).map(|step| step.origin.log));
        logs.extend(changes.set.keys().map(|(log, ..)| *log));
        logs.extend(changes.cleared.iter().map(|(log, ..)| *log));
        for log in logs {
            if let Some(Held { epoch, checkpoint, .. }) = self.held.get(&log) {
                let stay = Advance { epoch: *epoch, from: checkpoint.position, to: *checkpoint };
                changes.advances.entry(log).or_insert(stay);
            }
        }
    }

    fn enqueue(&mut self, step: Step) {
        self.open += 1;
        let key = (step.origin.log, step.subject.clone());
        match self.queues.get_mut(&key) {
            Some(queue) => queue.push_back(step),
            None => {
                self.queues.insert(key, VecDeque::new());
                self.spawn(Task::new(step, self.shard.config.backoff.clone()));
            }
        }
    }

    /// The step before is done: the next about the same subject goes out.
    fn next(&mut self, key: (LogId, Subject)) {
        match self.queues.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(step) => self.spawn(Task::new(step, self.shard.config.backoff.clone())),
            None => {
                self.queues.remove(&key);
            }
        }
    }

    fn spawn(&mut self, task: Task) {
        self.tasks.spawn(self.shard.worker.clone().work(task));
    }

    /// Reads no more, lets what is under way end, and keeps what came of it.
    async fn drain(&mut self) -> Result<End, StoreError> {
        self.shard.worker.permits.close();
        self.inbox.close();
        let mut incoming = Incoming::default();
        let _ = timeout(self.shard.config.step_deadline, async {
            while let Some(result) = self.tasks.join_next().await {
                incoming.results.extend(result.ok().filter(|(_, outcome)| !matches!(outcome, Outcome::Later(_))));
            }
        })
        .await;
        self.commit(incoming).await?;
        Ok(End::Shutdown)
    }
}

/// Effects of an event, none when it means nothing here.
fn read(event: &RecordedEvent) -> Result<(LogId, Vec<Effect>), Unreadable> {
    if !is_relevant(&event.kind) {
        return Ok((event.log, vec![]));
    }
    let decoded: Event = souk_codec::decode_recorded(event)?;
    let effects = effects(&event.stream, &decoded).ok_or_else(|| Unreadable::Stream(event.stream.to_string()))?;
    Ok((event.log, effects))
}

/// Why an event cannot be applied.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error(transparent)]
    Payload(#[from] souk_codec::DecodeError),
    #[error("stream '{0}' has no such id")]
    Stream(String),
}

/// The orders that effects are about and that were remembered before them.
fn orders_of(log: LogId, effects: &[Effect]) -> impl Iterator<Item = OrderKey> {
    effects.iter().filter_map(move |effect| match effect {
        Effect::Due(_, Subject::Order(order)) | Effect::Set(_, Subject::Order(order), _) => Some((log, *order)),
        _ => None,
    })
}
