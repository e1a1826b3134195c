use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use souk_event_sourcing::{Epoch, HlcClock, LogId, LogPosition, Position, StreamId, UnixMillis, Version};
use souk_event_store::{BatchOutcome, Lane, LogBatch, StoreError, StoredReply, StoredSnapshot, Taken};
use souk_runtime::{Pace, Place, telemetry};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    Answer, CommandError, Job, Model, Watchers,
    entities::{Entities, Entity, fold},
    heads::{LostOwnership, Outlet, Owned},
    meters::Meters,
    plan::{Plan, Planned},
    replies,
    round::{Read, Round},
};

/// Told of a log that this lane must not append to any more; must not block.
pub type LostLog = Box<dyn Fn(LostOwnership) + Send>;
/// Takes snapshots to be kept, each made under an epoch; must not block.
pub type SnapshotSink = Box<dyn Fn(LogId, Epoch, StreamId, StoredSnapshot) + Send>;

/// What a lane is asked to do.
pub enum Work<M: Model> {
    Command(Box<Job<M>>, Place),
    /// The entities as of now, for look-ups and for callers who wait for an outcome.
    Read {
        log: LogId,
        streams: Vec<StreamId>,
        place: Place,
        reply: oneshot::Sender<Result<Seen<M>, CommandError>>,
    },
    /// A log was taken over: commands on it are welcome from now on.
    Own {
        taken: Taken,
        outlet: Box<dyn Outlet>,
    },
    /// A log goes to another replica: what came before is answered, what comes after is refused.
    Release {
        log: LogId,
        done: oneshot::Sender<()>,
    },
}

/// Entities as they were when their log ended at `head`.
pub struct Seen<M: Model> {
    pub head: LogPosition,
    pub entities: Vec<(M::Entity, Version)>,
}

/// Bounds of one committer.
#[derive(Debug, Clone)]
pub struct Limits {
    pub batch_commands: usize,
    pub batch_bytes: usize,
    /// Least time from one append to the next while fewer than [`ENOUGH`] commands share one.
    pub batch_interval: Duration,
    /// How often a command may meet a conflict before it is answered with it.
    pub attempts: u32,
    pub cached_entities: NonZeroUsize,
    /// A snapshot is kept whenever a stream has grown by this many events.
    pub snapshot_every: u64,
}

/// A command that is not answered yet, with the repeats of it that arrived in the same batch.
pub(super) struct Pending<M: Model> {
    pub job: Box<Job<M>>,
    pub repeats: Vec<oneshot::Sender<Result<Answer, CommandError>>>,
    pub attempts: u32,
}

impl<M: Model> Pending<M> {
    pub fn answer(self, answer: &Result<Answer, CommandError>) {
        for caller in self.repeats.into_iter().chain([self.job.answer]) {
            // A caller that has gone repeats under the same id if it wants to know.
            let _ = caller.send(answer.clone());
        }
    }
}

pub(super) type Queue<M> = BTreeMap<LogId, Vec<Pending<M>>>;

/// The committer of one lane: drain → load → decide → append → reply, one statement in flight.
pub struct Committer<M: Model, L: Lane> {
    pub(super) store: L,
    limits: Limits,
    pub(super) entities: Entities<M>,
    pub(super) owned: HashMap<LogId, Owned>,
    clock: HlcClock,
    pub(super) watchers: Arc<Watchers>,
    snapshots: SnapshotSink,
    pub(super) lost: LostLog,
    meters: Meters,
    pace: Pace,
    /// The heads must be read before the next append or look-up: a statement's outcome is unknown, or the connection was
    /// lost, and the database may have gone back meanwhile.
    pub(super) unsure: bool,
    /// When the database last confirmed what is believed.
    pub(super) confirmed: Instant,
}

impl<M: Model, L: Lane> Committer<M, L> {
    /// `database` is for metrics.
    pub fn new(database: &str, store: L, limits: Limits, watchers: Arc<Watchers>, snapshots: SnapshotSink, lost: LostLog) -> Self {
        let entities = Entities::new(limits.cached_entities);
        let (owned, clock) = (HashMap::new(), HlcClock::default());
        let (meters, pace) = (Meters::of(database), Pace::new(limits.batch_interval, ENOUGH));
        Self { store, limits, entities, owned, clock, watchers, snapshots, lost, meters, pace, unsure: false, confirmed: Instant::now() }
    }

    /// Works until every sender of `queue` is gone and what it held is answered.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Work<M>>) {
        while let Some(first) = queue.recv().await {
            let Round { owns, commands, reads, releases, many, .. } = self.gather(first, &mut queue).await;
            for (taken, outlet) in owns {
                self.own(taken, outlet);
            }
            self.pace.wrote(Instant::now(), many);
            self.commit(commands).await;
            for Read { log, streams, reply } in reads {
                let _ = reply.send(self.read(log, &streams).await);
            }
            for (log, done) in releases {
                self.release(log);
                let _ = done.send(());
            }
        }
    }

    /// What waits in the queue, within the bounds of a batch, and what arrives while it is worth while to wait.
    async fn gather(&mut self, first: Work<M>, queue: &mut mpsc::Receiver<Work<M>>) -> Round<M> {
        let mut round = Round::of(first);
        while !round.is_full(&self.limits) {
            let next = match (queue.try_recv(), self.pace.pause(round.many)) {
                (Ok(work), _) => Some(work),
                (Err(_), Some(pause)) if round.may_wait() => timeout_at(pause, queue.recv()).await.ok().flatten(),
                (Err(_), _) => None,
            };
            let Some(work) = next else { break };
            round.take(work);
        }
        round
    }

    /// Brings every command of the queue to an answer.
    async fn commit(&mut self, mut queue: Queue<M>) {
        let mut lost_connections = 0;
        while !queue.is_empty() {
            if self.unsure && !self.refresh().await {
                return answer_all(queue, &CommandError::Unavailable);
            }
            self.drop_foreign(&mut queue);
            if let Err(error) = self.load(&mut queue).await {
                warn!(%error, "loading entities failed");
                self.unsure = true;
                return answer_all(queue, &CommandError::Unavailable);
            }
            let (batches, plans) = self.decide(&mut queue);
            if batches.is_empty() {
                continue;
            }
            match self.append(&batches, &plans).await {
                Ok(outcomes) => {
                    for ((batch, plan), outcome) in batches.into_iter().zip(plans).zip(outcomes) {
                        self.settle(&mut queue, batch, plan, outcome);
                    }
                }
                Err(StoreError::Data { sqlstate, message }) => {
                    plans.into_iter().for_each(|plan| plan.give_back(&mut queue));
                    return self.isolate(queue, &sqlstate, message).await;
                }
                Err(StoreError::Full(message)) if lost_connections == 0 => {
                    warn!(message, "the write store's disk is full");
                    plans.into_iter().for_each(|plan| plan.give_back(&mut queue));
                    return answer_all(queue, &CommandError::StoreFull);
                }
                Err(error) => {
                    warn!(%error, "append failed; its outcome is asked for");
                    plans.into_iter().for_each(|plan| plan.give_back(&mut queue));
                    self.unsure = true;
                    lost_connections += 1;
                    if lost_connections > self.limits.attempts || !error.retryable() {
                        return answer_all(queue, &CommandError::Unavailable);
                    }
                }
            }
        }
    }

    fn drop_foreign(&self, queue: &mut Queue<M>) {
        let foreign: Vec<_> = queue.keys().filter(|log| !self.owned.contains_key(log)).copied().collect();
        for log in foreign {
            for pending in queue.remove(&log).into_iter().flatten() {
                pending.answer(&Err(CommandError::NotOwner(log)));
            }
        }
    }

    /// Loads the entities that the queue names and the cache lacks. A history that cannot be read fails its commands.
    async fn load(&mut self, queue: &mut Queue<M>) -> Result<(), StoreError> {
        let mut missing: Vec<(LogId, StreamId)> = Vec::new();
        for (log, pending) in &*queue {
            for stream in pending.iter().flat_map(|pending| &pending.job.streams) {
                if self.entities.get(*log, stream).is_none() && !missing.iter().any(|(_, known)| known == stream) {
                    missing.push((*log, stream.clone()));
                }
            }
        }
        let damaged = self.fetch(missing).await?;
        for (stream, error) in damaged {
            for pending in queue.values_mut() {
                for hopeless in pending.extract_if(.., |pending| pending.job.streams.contains(&stream)) {
                    hopeless.answer(&Err(error.clone()));
                }
            }
        }
        queue.retain(|_, pending| !pending.is_empty());
        Ok(())
    }

    /// Loads streams into the cache; returns those whose history is damaged.
    async fn fetch(&mut self, missing: Vec<(LogId, StreamId)>) -> Result<Vec<(StreamId, CommandError)>, StoreError> {
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let stored = match self.store.load(&missing, M::FOLD_VERSION).await {
            // The first use of a connection that broke while idle.
            Err(error) if error.retryable() => self.store.load(&missing, M::FOLD_VERSION).await?,
            loaded => loaded?,
        };
        let mut damaged = Vec::new();
        for ((log, stream), stored) in missing.into_iter().zip(stored) {
            for event in &stored.events {
                self.clock.observe(event.hlc);
            }
            match fold::<M>(&stream, stored) {
                Ok(entity) => self.entities.put(log, stream, entity),
                Err(error) => {
                    error!(%error, "entity cannot be loaded");
                    damaged.push((stream, error.into()));
                }
            }
        }
        Ok(damaged)
    }

    /// Decides the whole queue in order; what came of it is in the plans, the queue is empty but for its logs.
    fn decide(&mut self, queue: &mut Queue<M>) -> (Vec<LogBatch>, Vec<Plan<M>>) {
        let now = UnixMillis::now();
        let (mut batches, mut plans) = (Vec::new(), Vec::new());
        for (log, pending) in std::mem::take(queue) {
            let owned = &self.owned[&log];
            let (batch, plan) = Plan::of(log, owned, pending, &mut self.entities, &self.clock, now);
            if !plan.is_empty() {
                batches.push(batch);
                plans.push(plan);
            }
        }
        (batches, plans)
    }

    async fn append(&mut self, batches: &[LogBatch], plans: &[Plan<M>]) -> Result<Vec<BatchOutcome>, StoreError> {
        let commands: usize = plans.iter().map(Plan::len).sum();
        let span = info_span!("append", commands);
        telemetry::set_parents(&span, plans.iter().flat_map(Plan::traceparents));
        let started = Instant::now();
        let outcomes = self.store.append(batches).instrument(span).await;
        if outcomes.is_ok() {
            self.confirmed = Instant::now();
        }
        self.meters.appends.record(started.elapsed());
        self.meters.commands.record(commands as f64);
        outcomes
    }

    fn settle(&mut self, queue: &mut Queue<M>, batch: LogBatch, plan: Plan<M>, outcome: BatchOutcome) {
        match outcome {
            BatchOutcome::Done => self.done(batch, plan),
            BatchOutcome::Refused { repeats, stale } => {
                for (stream, _) in &stale {
                    self.entities.forget(stream);
                }
                self.meters.conflicts.increment(stale.len() as u64);
                self.again(queue, batch.log, plan, repeats, !stale.is_empty());
            }
            BatchOutcome::Fenced => {
                self.meters.fenced.increment(1);
                self.unsure = true;
                self.again(queue, batch.log, plan, Vec::new(), true);
            }
        }
    }

    /// Everything of this log is durable: remember, publish, answer.
    fn done(&mut self, batch: LogBatch, plan: Plan<M>) {
        let owned = self.owned.get_mut(&batch.log).expect("only owned logs are decided on");
        owned.belief = batch.after();
        if let Some(last) = batch.events.last() {
            owned.written = last.epoch;
        }
        self.meters.events.increment(batch.events.len() as u64);
        for event in &batch.events {
            owned.outlet.push(event.clone());
        }
        let (entities, planned) = plan.into_parts();
        for (stream, entity, before) in entities {
            if entity.version.0 / self.limits.snapshot_every > before.0 / self.limits.snapshot_every {
                self.snapshot(&batch, &stream, &entity);
            }
            self.watchers.notify(&stream);
            self.entities.put(batch.log, stream, entity);
        }
        for Planned { pending, answer } in planned {
            pending.answer(&answer);
        }
    }

    fn snapshot(&self, batch: &LogBatch, stream: &StreamId, entity: &Entity<M::Entity>) {
        let (position, state) = (owned_position(batch, stream), M::encode_snapshot(&entity.state));
        let snapshot = StoredSnapshot { version: entity.version, position, fold_version: M::FOLD_VERSION, state };
        (self.snapshots)(batch.log, batch.belief.epoch, stream.clone(), snapshot);
    }

    /// Puts the commands of a refused part back, but for those whose earlier reply is known.
    fn again(&mut self, queue: &mut Queue<M>, log: LogId, plan: Plan<M>, repeats: Vec<(usize, StoredReply)>, conflict: bool) {
        let mut known: HashMap<usize, StoredReply> = repeats.into_iter().collect();
        let (_, planned) = plan.into_parts();
        let mut left = Vec::new();
        for (index, Planned { mut pending, .. }) in planned.into_iter().enumerate() {
            if let Some(stored) = known.remove(&index) {
                let answer = replies::stored(log, &pending.job.request, &stored);
                pending.answer(&answer);
                continue;
            }
            pending.attempts += u32::from(conflict);
            if pending.attempts >= self.limits.attempts {
                let attempts = pending.attempts;
                pending.answer(&Err(CommandError::Conflict { attempts }));
            } else {
                left.push(pending);
            }
        }
        if !left.is_empty() {
            queue.insert(log, left);
        }
    }

    /// A statement was refused for its data: send log by log, then command by command, and fail only the culprit.
    async fn isolate(&mut self, queue: Queue<M>, sqlstate: &str, message: String) {
        let commands: usize = queue.values().map(Vec::len).sum();
        // No child for this position or day: everybody's trouble, and mended by upkeep.
        if sqlstate == "23514" {
            error!(message, "a partition of the event table or the ledger is missing");
            return answer_all(queue, &CommandError::Unavailable);
        }
        if commands == 1 {
            warn!(sqlstate, message, "a command's data cannot be stored");
            return answer_all(queue, &CommandError::Unstorable(sqlstate.to_owned()));
        }
        info!(sqlstate, commands, "data refused; looking for the culprit");
        let single_log = queue.len() == 1;
        for (log, pending) in queue {
            let parts = if single_log { pending.into_iter().map(|one| vec![one]).collect() } else { vec![pending] };
            for part in parts {
                Box::pin(self.commit(BTreeMap::from([(log, part)]))).await;
            }
        }
    }

    async fn read(&mut self, log: LogId, streams: &[StreamId]) -> Result<Seen<M>, CommandError> {
        let doubtful = self.unsure || self.confirmed.elapsed() > LOOK_UP_AGE;
        // The second attempt is for a connection that broke while idle.
        if doubtful && !self.refresh().await && !self.refresh().await {
            return Err(CommandError::Unavailable);
        }
        let head = self.owned.get(&log).ok_or(CommandError::NotOwner(log))?.head(log);
        let missing =
            streams.iter().filter(|stream| self.entities.get(log, stream).is_none()).map(|stream| (log, stream.clone())).collect();
        let damaged = self.fetch(missing).await.map_err(|error| {
            warn!(%error, "loading entities failed");
            self.unsure = true;
            CommandError::Unavailable
        })?;
        if let Some((_, error)) = damaged.into_iter().next() {
            return Err(error);
        }
        let found = streams.iter().map(|stream| self.entities.get(log, stream).map(|entity| (entity.state.clone(), entity.version)));
        let entities = found.collect::<Option<_>>().ok_or(CommandError::Overloaded)?;
        Ok(Seen { head, entities })
    }
}

/// Position of the last event of a stream in a batch.
fn owned_position(batch: &LogBatch, stream: &StreamId) -> Position {
    batch.events.iter().rev().find(|event| event.stream == *stream).map_or(batch.belief.position, |event| event.position)
}

fn answer_all<M: Model>(queue: Queue<M>, error: &CommandError) {
    for pending in queue.into_values().flatten() {
        pending.answer(&Err(error.clone()));
    }
}

/// So many commands share the fixed cost of an append: with ten in a batch a command costs a sixth of what it costs alone, and
/// more of them gain little.
const ENOUGH: usize = 8;
/// A look-up passes no fence: what it answers was true no longer ago than this, whatever became of the log.
const LOOK_UP_AGE: Duration = Duration::from_secs(1);
