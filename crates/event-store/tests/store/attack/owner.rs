use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IteratorRandom};
use souk_event_sourcing::{Epoch, LogId, Partition, Position, StreamId};
use souk_event_store::{BatchOutcome, Belief, EventLog, Lane, PostgresLane, PostgresStore, StoreError, StoredReply, Taken};

use super::{
    command::{Command, Kind, Part},
    proxy::Wire,
    report::{Ack, Reply, Report},
};
use crate::world::PARTITIONS;

/// Answered commands an owner keeps to repeat them.
const REPEATABLE: usize = 200;
/// Longer than a statement takes, so that it is hit before, within and after.
const MIDST: Duration = Duration::from_millis(6);

/// Takes logs over and appends to them, as a committer does, and is careless where law 6 says that it may be.
pub struct Owner {
    name: String,
    /// Everything but the lane.
    store: Arc<PostgresStore>,
    /// The lane's connections go through `wire`.
    wired: Arc<PostgresStore>,
    wire: Arc<Wire>,
    lane: PostgresLane,
    rng: SmallRng,
    held: BTreeMap<LogId, Held>,
    /// Commands without an answer. They outlive the ownership of their log: callers repeat.
    open: BTreeMap<LogId, Vec<Command>>,
    answered: VecDeque<(LogId, Command, Reply)>,
    unsure: bool,
}

/// A log as its owner sees it.
struct Held {
    belief: Belief,
    versions: HashMap<StreamId, u64>,
}

fn report(what: Report) {
    println!("{what}");
}

fn wrong(what: String) {
    report(Report::Wrong(what));
}

/// An error is part of the game if trying again may help; a deadlock never is.
fn note(error: &StoreError) {
    if !error.retryable() || error.to_string().contains("40P01") {
        wrong(error.to_string());
    }
}

impl Owner {
    pub fn new(name: String, store: Arc<PostgresStore>, wired: Arc<PostgresStore>, wire: Arc<Wire>, seed: u64) -> Self {
        let lane = wired.lane("w1").expect("configured");
        let (held, open) = (BTreeMap::new(), BTreeMap::new());
        let rng = SmallRng::seed_from_u64(seed);
        Self { name, store, wired, wire, lane, rng, held, open, answered: VecDeque::new(), unsure: false }
    }

    /// One thing an owner does.
    pub async fn step(&mut self) {
        if self.held.is_empty() || self.rng.random_ratio(1, 10) {
            return self.take().await;
        }
        // Now and then it goes on with what it believed: the fence must see to that.
        if self.unsure && !self.rng.random_ratio(1, 4) {
            return self.refresh().await;
        }
        self.commit().await;
    }

    async fn take(&mut self) {
        let count = self.rng.random_range(1..=3);
        let partitions: Vec<_> = (0..PARTITIONS).map(Partition).choose_multiple(&mut self.rng, count);
        match self.store.ownership(&self.name).take("w1", &partitions, Duration::ZERO).await {
            Ok(taken) => {
                for taken in taken {
                    report(Report::Took);
                    self.check_written(&taken).await;
                    self.held.insert(taken.log, Held { belief: taken.belief, versions: HashMap::new() });
                }
            }
            Err(error) => note(&error),
        }
    }

    /// The epoch of the event at the head is what the takeover says.
    async fn check_written(&self, taken: &Taken) {
        let position = taken.belief.position;
        let last = if position == Position(0) { Ok(vec![]) } else { self.store.read(taken.log, position, 1).await };
        match last {
            Ok(last) => {
                let (epoch, hash) = last.first().map_or((Epoch(0), taken.belief.hash), |last| (last.epoch, last.hash));
                if (epoch, hash) != (taken.written, taken.belief.hash) {
                    wrong(format!("{taken:?}, but the event at the head is of epoch {epoch} with hash {hash:?}"));
                }
            }
            Err(error) => note(&error),
        }
    }

    /// The procedure after an unknown outcome.
    async fn refresh(&mut self) {
        let logs: Vec<_> = self.held.keys().copied().collect();
        match self.lane.heads(&logs).await {
            Ok(heads) => {
                if heads.len() != logs.len() {
                    wrong(format!("{} heads for {} logs", heads.len(), logs.len()));
                }
                for (log, stored) in heads {
                    let held = self.held.get_mut(&log).expect("asked for");
                    if stored.epoch != held.belief.epoch {
                        self.held.remove(&log);
                    } else if stored != held.belief {
                        *held = Held { belief: stored, versions: HashMap::new() };
                    }
                }
                self.unsure = false;
            }
            Err(error) => note(&error),
        }
    }

    async fn commit(&mut self) {
        let count = self.rng.random_range(1..=3);
        let logs: Vec<_> = self.held.keys().copied().choose_multiple(&mut self.rng, count);
        for log in &logs {
            self.draw(*log);
        }
        if let Err(error) = self.load(&logs).await {
            return note(&error);
        }
        let mut parts = Vec::new();
        for log in &logs {
            let (held, open) = (&self.held[log], self.open.get_mut(log).expect("drawn"));
            parts.push(Part::of(*log, held.belief, &held.versions, open, &mut self.rng));
            open.iter_mut().for_each(|command| command.sent += 1);
        }
        match self.send(&parts).await {
            Some(Ok(outcomes)) => {
                if outcomes.len() != parts.len() {
                    wrong(format!("{} outcomes for {} parts", outcomes.len(), parts.len()));
                }
                for (part, outcome) in parts.into_iter().zip(outcomes) {
                    self.settle(part, outcome);
                }
            }
            Some(Err(error)) => {
                note(&error);
                if matches!(error, StoreError::Unknown(_)) {
                    report(Report::Unknown);
                    self.unsure = true;
                }
            }
            None => {
                report(Report::Abandoned);
                self.unsure = true;
                // On the same connection, or on a new one while the old backend may still be at it.
                if self.rng.random() {
                    self.lane = self.wired.lane("w1").expect("configured");
                }
            }
        }
    }

    /// Adds new commands, and at times an old one, to those of a log that wait for an answer.
    fn draw(&mut self, log: LogId) {
        let (position, open) = (self.held[&log].belief.position, self.open.entry(log).or_default());
        for _ in 0..self.rng.random_range(usize::from(open.is_empty())..=3) {
            open.push(Command::draw(&mut self.rng, position));
        }
        if self.rng.random_ratio(1, 8) {
            let here = self.answered.iter().filter(|(of, ..)| *of == log);
            let known = here.choose(&mut self.rng).filter(|(_, command, _)| open.iter().all(|other| other.request != command.request));
            open.extend(known.map(|(_, command, reply)| Command { kind: Kind::Repeat(*reply), ..command.clone() }));
        }
    }

    /// Loads what the cache of each log lacks.
    async fn load(&mut self, logs: &[LogId]) -> Result<(), StoreError> {
        let mut missing = Vec::new();
        for log in logs {
            for stream in self.open[log].iter().flat_map(|command| &command.streams) {
                if !self.held[log].versions.contains_key(stream) && !missing.contains(&(*log, stream.clone())) {
                    missing.push((*log, stream.clone()));
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let loaded = self.lane.load(&missing, 1).await?;
        for ((log, stream), stored) in missing.into_iter().zip(loaded) {
            let versions: Vec<_> = stored.events.iter().map(|event| event.version.0).collect();
            if versions.iter().zip(1..).any(|(version, want)| *version != want) {
                wrong(format!("stream {stream} of log {log} loads as {versions:?}"));
            }
            self.held.get_mut(&log).expect("held").versions.insert(stream, versions.len() as u64);
        }
        Ok(())
    }

    /// Appends, or does not wait for the end of it (`None`), or cuts the wire.
    async fn send(&mut self, parts: &[Part]) -> Option<Result<Vec<BatchOutcome>, StoreError>> {
        let batches: Vec<_> = parts.iter().map(|part| part.batch.clone()).collect();
        let midst = self.rng.random_range(Duration::ZERO..MIDST);
        match self.rng.random_range(0..12) {
            0 => tokio::time::timeout(midst, self.lane.append(&batches)).await.ok(),
            1 => {
                let wire = self.wire.clone();
                let cut = async {
                    tokio::time::sleep(midst).await;
                    wire.cut();
                    report(Report::Cut);
                };
                Some(tokio::join!(self.lane.append(&batches), cut).0)
            }
            _ => Some(self.lane.append(&batches).await),
        }
    }

    fn settle(&mut self, part: Part, outcome: BatchOutcome) {
        let log = part.batch.log;
        let commands = self.open.remove(&log).expect("planned");
        match outcome {
            BatchOutcome::Done => {
                let held = self.held.get_mut(&log).expect("held");
                held.belief = part.after();
                held.versions.extend(part.batch.streams.iter().map(|advance| (advance.stream.clone(), advance.new.0)));
                for (command, reply) in commands.into_iter().zip(part.replies) {
                    self.answer(log, command, reply);
                }
            }
            BatchOutcome::Refused { repeats, stale } => {
                let held = self.held.get_mut(&log).expect("held");
                held.versions.retain(|stream, _| stale.iter().all(|(stale, _)| stale != stream));
                let mut known: HashMap<usize, StoredReply> = repeats.into_iter().collect();
                for (index, command) in commands.into_iter().enumerate() {
                    match known.remove(&index) {
                        Some(stored) => self.recall(log, command, &stored),
                        None if command.kind == Kind::Stale && !stale.is_empty() => report(Report::Void(command.request.0)),
                        None => self.open.entry(log).or_default().push(command),
                    }
                }
            }
            BatchOutcome::Fenced => {
                report(Report::Fenced);
                self.unsure = true;
                self.open.insert(log, commands);
            }
        }
    }

    /// A command was carried out by this append.
    fn answer(&mut self, log: LogId, command: Command, reply: Reply) {
        match command.kind {
            Kind::Stale => wrong(format!("a stale version was accepted: {command:?}")),
            Kind::Repeat(_) => wrong(format!("a repeat was carried out: {command:?}")),
            _ => self.acknowledge(log, command, reply),
        }
    }

    /// A command was carried out by an earlier append.
    fn recall(&mut self, log: LogId, command: Command, stored: &StoredReply) {
        let Some(reply) = std::str::from_utf8(&stored.reply).ok().and_then(|text| text.parse().ok()) else {
            return wrong(format!("{command:?} has the reply {stored:?}"));
        };
        match command.kind {
            Kind::Repeat(before) if before == reply => report(Report::Repeated),
            Kind::Repeat(_) | Kind::Ask | Kind::Stale => wrong(format!("{command:?} was answered with {reply}")),
            _ if command.sent < 2 => wrong(format!("{command:?} was sent once and is a repeat")),
            _ => self.acknowledge(log, command, reply),
        }
    }

    fn acknowledge(&mut self, log: LogId, command: Command, reply: Reply) {
        let stream = command.streams[0].to_string();
        report(Report::Ack(Ack { partition: log.partition.0, request: command.request.0, stream, reply }));
        if command.kind != Kind::Ask {
            self.answered.push_back((log, command, reply));
        }
        if self.answered.len() > REPEATABLE {
            self.answered.pop_front();
        }
    }
}
