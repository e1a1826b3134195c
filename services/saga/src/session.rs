use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use metrics::{counter, histogram};
use souk_domain::Event;
use souk_event_sourcing::{Epoch, LogId, Partition, RecordedEvent, UnixMillis};
use souk_event_store::StoreError;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    backoff::Backoff,
    changes::{Advance, Changes, OrderKey, Tail},
    fold::{Effect, effects, is_relevant},
    membership::Seat,
    reader::{Arrival, Reader},
    shard::Shard,
    step::{Step, Subject, Timer},
    store::Taken,
    worker::{Outcome, Task},
};

/// Steps in the outbox beyond which no more events are read: what waits is in memory, too.
const MAX_OPEN_STEPS: usize = 10_000;
/// Timers turned into steps at a time.
const TIMER_PAGE: u32 = 500;

/// What this process knows of one write database, all of it read from there, until something goes wrong with all of it.
///
/// Three files: this one (read, fold, write, send), `membership` (which logs are this replica's), `watchdog` (what hangs).
pub(crate) struct Session<'a> {
    pub(crate) shard: &'a Shard,
    pub(crate) seat: &'a mut Seat,
    held: BTreeMap<LogId, Held>,
    inbox: mpsc::Receiver<Arrival>,
    outbox: mpsc::Sender<Arrival>,
    timers: Interval,
    tasks: JoinSet<(Task, Outcome)>,
    /// Tasks waiting for their next attempt.
    pauses: JoinSet<Task>,
    /// Steps of all logs held.
    open: usize,
    /// Since when events are read and not left waiting.
    pub(crate) reading_since: Instant,
}

/// A log and how far it was applied.
#[derive(Debug)]
struct Held {
    epoch: Epoch,
    checkpoint: Tail,
    /// How far events were read: beyond the checkpoint as long as nothing came of them.
    read: Tail,
    /// An event could not be read: nothing behind it is applied.
    blocked: bool,
    /// Steps under way and, behind each, those about the same subject that wait for it.
    queues: HashMap<Subject, VecDeque<Step>>,
    _reader: AbortOnDropHandle<()>,
}

/// What a session does next.
pub(crate) enum Turn {
    /// Shares the logs with others.
    Sit,
    /// Turns timers that are due into steps.
    Fire,
    /// Writes what has come in.
    Commit(Incoming),
}

/// Why a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Shutdown,
    /// The database did not answer for long.
    Hung,
    /// A task panicked; its step is still in the outbox.
    Panicked,
}

/// What has come in since the last transaction.
#[derive(Default)]
pub(crate) struct Incoming {
    events: Vec<Arrival>,
    results: Vec<(Task, Outcome)>,
    timers: Vec<Timer>,
}

impl<'a> Session<'a> {
    /// Holds nothing yet.
    pub fn new(shard: &'a Shard, seat: &'a mut Seat) -> Self {
        let (outbox, inbox) = mpsc::channel(shard.config.batch_events.max(1));
        let mut timers = interval(shard.config.timer_interval);
        timers.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (held, tasks, pauses) = (BTreeMap::new(), JoinSet::new(), JoinSet::new());
        seat.next = Instant::now();
        Self { shard, seat, held, inbox, outbox, timers, tasks, pauses, open: 0, reading_since: Instant::now() }
    }

    pub fn logs(&self) -> impl Iterator<Item = LogId> {
        self.held.keys().copied()
    }

    /// Under which this process holds a log.
    pub(crate) fn epoch(&self, log: LogId) -> Option<Epoch> {
        self.held.get(&log).map(|held| held.epoch)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.open >= MAX_OPEN_STEPS
    }

    /// Works until shutdown, or an error of the database.
    pub async fn run(&mut self, backoff: &mut Backoff) -> Result<End, StoreError> {
        loop {
            let mut incoming = Incoming::default();
            let turn = tokio::select! {
                () = self.shard.shutdown.cancelled() => return self.drain().await,
                () = sleep_until(self.seat.next) => Turn::Sit,
                _ = self.timers.tick(), if !self.is_full() => Turn::Fire,
                Some(arrival) = self.inbox.recv(), if !self.is_full() => {
                    incoming.events.push(arrival);
                    Turn::Commit(incoming)
                }
                Some(result) = self.tasks.join_next() => match result {
                    Ok(result) => {
                        incoming.results.push(result);
                        Turn::Commit(incoming)
                    }
                    Err(_) => return Ok(End::Panicked),
                },
                Some(Ok(task)) = self.pauses.join_next() => {
                    self.spawn(task);
                    continue;
                }
            };
            let Ok(turn) = self.gather(turn) else { return Ok(End::Panicked) };
            if let Some(end) = self.watched(turn).await? {
                return Ok(end);
            }
            backoff.reset();
        }
    }

    /// Adds what has come in besides, so that one transaction serves all of it.
    fn gather(&mut self, turn: Turn) -> Result<Turn, JoinError> {
        let Turn::Commit(mut incoming) = turn else { return Ok(turn) };
        while incoming.events.len() < self.shard.config.batch_events && !self.is_full() {
            let Ok(arrival) = self.inbox.try_recv() else { break };
            incoming.events.push(arrival);
        }
        while let Some(result) = self.tasks.try_join_next() {
            incoming.results.push(result?);
        }
        Ok(Turn::Commit(incoming))
    }

    /// Does one thing; all there is to do in the database goes through here.
    pub(crate) async fn take(&mut self, turn: Turn) -> Result<(), StoreError> {
        match turn {
            Turn::Sit => self.sit().await,
            Turn::Fire => self.fire().await,
            Turn::Commit(incoming) => self.commit(incoming).await,
        }
    }

    async fn fire(&mut self) -> Result<(), StoreError> {
        let partitions: Vec<_> = self.held.keys().map(|log| log.partition).collect();
        let timers = self.shard.store.due(&partitions, UnixMillis::now(), TIMER_PAGE).await?;
        if timers.len() >= TIMER_PAGE as usize {
            self.timers.reset_immediately();
        }
        self.commit(Incoming { timers, ..Incoming::default() }).await?;
        self.catch_up().await
    }

    /// Reads on from where logs just taken over were left, and does what is due in them.
    pub(crate) async fn begin(&mut self, taken: Vec<Taken>) -> Result<(), StoreError> {
        let partitions: Vec<Partition> = taken.iter().map(|taken| taken.log.partition).collect();
        // After the claim, never before: an older owner may have written until then.
        let steps = self.shard.store.steps(&partitions).await?;
        if !taken.is_empty() {
            counter!("souk_saga_claims_total", "database" => self.shard.database.clone()).increment(taken.len() as u64);
            tracing::info!(database = self.shard.database, logs = taken.len(), steps = steps.len(), "logs claimed");
        }
        for Taken { log, epoch, tail } in taken {
            self.shard.sources.board.hold(log, epoch, tail.position);
            let reader = Reader { log, epoch, tail, sources: self.shard.sources.clone(), outbox: self.outbox.clone() };
            let reader = AbortOnDropHandle::new(tokio::spawn(reader.run()));
            self.held.insert(log, Held { epoch, checkpoint: tail, read: tail, blocked: false, queues: HashMap::new(), _reader: reader });
        }
        steps.into_iter().for_each(|step| self.enqueue(step));
        Ok(())
    }

    /// The log is not this replica's any more: what was read of it and what is under way means nothing from here on.
    pub(crate) fn let_go(&mut self, log: LogId) {
        if let Some(held) = self.held.remove(&log) {
            self.open -= held.queues.values().map(|waiting| 1 + waiting.len()).sum::<usize>();
            self.shard.sources.board.lose(log);
        }
    }

    /// Tells metrics and readiness how things are.
    pub(crate) fn report(&self) {
        self.shard.sources.board.steps(&self.shard.database, self.open);
        if self.held.values().any(|held| held.blocked) {
            self.shard.ready.not_ready("a log stands still at an event that cannot be applied");
        } else {
            self.shard.ready.ready();
        }
    }

    /// Folds what came in, writes it, and only then sends what it leads to. Logs whose write was refused are lost.
    async fn commit(&mut self, incoming: Incoming) -> Result<(), StoreError> {
        let Incoming { events, results, timers } = incoming;
        let mut changes = self.fold(events).await?;
        timers.into_iter().for_each(|timer| changes.fire(timer));
        let mut freed = Vec::new();
        for (task, outcome) in results {
            self.settle(task, outcome, &mut changes, &mut freed);
        }
        self.fence(&mut changes);
        if !changes.is_idle() {
            self.write(&changes).await?;
        }
        // From here on only what is still held is followed up.
        for (log, advance) in &changes.advances {
            if let Some(held) = self.held.get_mut(log) {
                held.read = advance.to;
                self.shard.sources.board.advance(*log, advance.to.position);
            }
        }
        freed.into_iter().for_each(|(log, subject)| self.next(log, subject));
        changes.renewed.into_iter().for_each(|step| self.send(step));
        changes.due.into_iter().for_each(|step| self.enqueue(step));
        self.shard.sources.board.steps(&self.shard.database, self.open);
        Ok(())
    }

    /// Brings checkpoints to where events were read to. Of most events nothing comes: to read some of them again after a crash
    /// costs less than a transaction for every batch.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let behind = self.held.iter().filter(|(_, held)| held.read != held.checkpoint);
        let advances = behind.map(|(log, held)| (*log, Advance { epoch: held.epoch, from: held.checkpoint.position, to: held.read }));
        let changes = Changes { advances: advances.collect(), ..Changes::default() };
        if changes.advances.is_empty() { Ok(()) } else { self.write(&changes).await }
    }

    async fn write(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let applied = self.shard.store.apply(changes).await?;
        let lost: Vec<_> = changes.advances.keys().filter(|log| !applied.contains(log)).copied().collect();
        self.lose(&lost);
        for (log, advance) in &changes.advances {
            if let Some(held) = self.held.get_mut(log) {
                held.checkpoint = advance.to;
            }
        }
        Ok(())
    }

    /// The changes that events lead to, with the advance of their logs.
    async fn fold(&mut self, arrivals: Vec<Arrival>) -> Result<Changes, StoreError> {
        let mut changes = Changes::default();
        let ours = arrivals.into_iter().filter(|arrival| self.epoch(arrival.event.log) == Some(arrival.epoch));
        let events: Vec<_> = ours.map(|arrival| arrival.event).collect();
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
        if self.epoch(task.step.origin.log) != Some(task.epoch) {
            return;
        }
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

    /// Every log that is written to is written under its checkpoint, also when no event of it came in.
    fn fence(&self, changes: &mut Changes) {
        let mut logs: BTreeSet<LogId> = changes.done.iter().map(|(log, ..)| *log).collect();
        logs.extend(changes.due.iter().chain(&changes.renewed).map(|step| step.origin.log));
        logs.extend(changes.set.keys().map(|(log, ..)| *log));
        logs.extend(changes.cleared.iter().map(|(log, ..)| *log));
        for log in logs {
            if let Some(Held { epoch, checkpoint, read, .. }) = self.held.get(&log) {
                let unmoved = Advance { epoch: *epoch, from: checkpoint.position, to: *read };
                changes.advances.entry(log).or_insert(unmoved);
            }
        }
    }

    fn enqueue(&mut self, step: Step) {
        let Some(held) = self.held.get_mut(&step.origin.log) else { return };
        self.open += 1;
        match held.queues.get_mut(&step.subject) {
            Some(queue) => queue.push_back(step),
            None => {
                held.queues.insert(step.subject.clone(), VecDeque::new());
                self.send(step);
            }
        }
    }

    /// The step before is done: the next about the same subject goes out.
    fn next(&mut self, log: LogId, subject: Subject) {
        let Some(held) = self.held.get_mut(&log) else { return };
        self.open -= 1;
        match held.queues.get_mut(&subject).and_then(VecDeque::pop_front) {
            Some(step) => self.send(step),
            None => drop(held.queues.remove(&subject)),
        }
    }

    fn send(&mut self, step: Step) {
        if let Some(epoch) = self.epoch(step.origin.log) {
            self.spawn(Task::new(step, epoch, self.shard.config.backoff.clone()));
        }
    }

    fn spawn(&mut self, task: Task) {
        if self.epoch(task.step.origin.log) == Some(task.epoch) {
            self.tasks.spawn(self.shard.worker.clone().work(task));
        }
    }

    /// Reads no more, lets what is under way end, and keeps what came of it. The others need not wait for that: what they
    /// take is fenced here, and repeated there under the same ids.
    async fn drain(&mut self) -> Result<End, StoreError> {
        if let Err(error) = self.shard.store.leave(&self.shard.replica).await {
            tracing::warn!(database = self.shard.database, %error, "the others do not know that we leave");
        }
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
        self.catch_up().await?;
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
