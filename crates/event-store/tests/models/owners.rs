//! Owners of one log that believe what they like: they take it from each other at any time, hold on to what they knew,
//! lose answers, and send again. No lease is in this model: ownership is a hint, and the fenced append the safety (law 6).
//!
//! The append is [`MemoryLog`]'s, in the two steps of the statement; the owner's conclusions are [`LogBatch::after`] and
//! [`Belief::went_back_from`]. A statement whose sender gave up goes on by itself, at any time.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use souk_event_sourcing::{
    Epoch, EventId, Hlc, LogHash, LogId, Partition, Position, RecordedEvent, Region, RequestId, StreamId, UnixMillis, Version,
};
use souk_event_store::{BatchOutcome, Belief, Examined, Fingerprint, LedgerEntry, LogBatch, MemoryLog, StreamAdvance};
use stateright::{Checker, HasDiscoveries, Model, Property};
use uuid::Uuid;

const LOG: LogId = LogId { region: Region(1), partition: Partition(0) };
const OWNERS: usize = 2;
/// Commands that take one unit each, of which there is [`STOCK`]; the last only looks how much was taken.
const COMMANDS: usize = 3;
const LOOK: usize = COMMANDS - 1;
const STOCK: u64 = 1;

/// How far the model goes, and what it does wrong on purpose.
struct Owners {
    takeovers: u8,
    statements: u8,
    restore: Restore,
    mutant: Mutant,
}

/// When the database may be restored, once, from a backup taken at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restore {
    Never,
    /// To where nobody believes it to be still: whoever thinks the log is theirs will see that it went back.
    NoticeablyBack,
    /// At any time, and whoever restores it raises the epoch, so that nobody is its owner.
    RaisingEpoch,
    /// At any time, and with the epoch it had.
    Plainly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    FenceWithoutEpoch,
    FenceWithoutBatch,
    FenceWithoutBatchAndPosition,
    LedgerNotLookedAt,
    VersionsNotLookedAt,
    AnsweredBeforeCommit,
    GoesOnAfterRestore,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    log: MemoryLog,
    owners: [Owner; OWNERS],
    under_way: Vec<Statement>,
    /// What each command's caller was told.
    answers: [Option<Bytes>; COMMANDS],
    takeovers: u8,
    statements: u8,
    /// Which commands were ever sent, a bit each.
    sent: u8,
    wrong: Option<Wrong>,
    backup: Option<MemoryLog>,
    restored: bool,
    /// The events whose places callers know from their tokens.
    told: Vec<Arc<RecordedEvent>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wrong {
    StaleDecision,
    CarriedOutTwice,
    TwoAnswers,
}

/// What one replica holds true.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Owner {
    belief: Option<Belief>,
    /// The cached entity, kept whatever happens: a stale cache may cost a retry and no more.
    version: Option<Version>,
    /// The statement whose answer it waits for.
    waits_for: Option<u8>,
}

/// An append on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Statement {
    number: u8,
    owner: usize,
    command: usize,
    belief: Belief,
    version: Version,
    /// Set once it has taken its snapshot.
    examined: Option<Examined>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Take(usize),
    /// The log is taken, and whoever took it does not get to know.
    TakeUnknowing,
    Load(usize),
    Send(usize, usize),
    Snapshot(u8),
    Commit(u8),
    /// The connection breaks: the statement goes on without its sender.
    Cut(usize),
    ReadHead(usize),
    Backup,
    /// The database goes back to the backup; statements under way go with it.
    Restore,
}

fn stream() -> StreamId {
    StreamId::new("stock", "1")
}

fn request(command: usize) -> RequestId {
    RequestId(Uuid::from_u128(command as u128 + 1))
}

impl Statement {
    /// Decides the command on what its owner knows.
    fn batch(&self) -> LogBatch {
        let takes = self.command != LOOK && self.version.0 < STOCK;
        let event = takes.then(|| {
            let event = RecordedEvent {
                log: LOG,
                position: self.belief.position.next(),
                epoch: self.belief.epoch,
                hash: LogHash::EMPTY,
                stream: stream(),
                version: self.version.next(),
                kind: "Taken".into(),
                schema_version: 1,
                payload: Bytes::new(),
                event_id: EventId(Uuid::nil()),
                request_id: Some(request(self.command)),
                causation_id: None,
                correlation_id: None,
                actor: String::new(),
                hlc: Hlc(0),
                traceparent: String::new(),
                home_epoch: Epoch(0),
                key_id: None,
            };
            Arc::new(RecordedEvent { hash: self.belief.hash.after(&event), ..event })
        });
        let entry = LedgerEntry {
            stream: stream(),
            request_id: request(self.command),
            method: "stock/Take",
            command: Bytes::new(),
            fingerprint: Fingerprint::new([1; 16]),
            reply: (self.command != LOOK).then(|| self.reply()),
            actor: String::new(),
            recorded: UnixMillis(0),
        };
        let new = Version(self.version.0 + u64::from(takes));
        let advance = StreamAdvance { stream: stream(), expected: self.version, new };
        LogBatch { log: LOG, belief: self.belief, ledger: vec![entry], streams: vec![advance], events: event.into_iter().collect() }
    }

    fn reply(&self) -> Bytes {
        match self.command {
            LOOK => format!("{} taken", self.version).into(),
            _ if self.version.0 < STOCK => format!("yours at {}", self.belief.position.next()).into(),
            _ => "sold out".into(),
        }
    }
}

impl State {
    /// The clock goes on whatever becomes of the database.
    fn take(&mut self) -> Belief {
        self.takeovers += 1;
        self.log.take(10 * u64::from(self.takeovers))
    }

    fn answer(&mut self, command: usize, reply: Bytes) {
        if command != LOOK && self.answers[command].as_ref().is_some_and(|before| *before != reply) {
            self.wrong = Some(Wrong::TwoAnswers);
        }
        self.answers[command] = Some(reply);
        let told = self.log.events().iter().filter(|event| event.request_id == Some(request(command)));
        let new: Vec<_> = told.filter(|event| !self.told.contains(event)).cloned().collect();
        self.told.extend(new);
    }

    fn statement(&self, number: u8) -> usize {
        self.under_way.iter().position(|statement| statement.number == number).expect("under way")
    }
}

impl Owners {
    fn fence(&self, belief: &Belief, head: &Belief) -> bool {
        match self.mutant {
            Mutant::FenceWithoutEpoch => belief.meets(&Belief { epoch: belief.epoch, ..*head }),
            Mutant::FenceWithoutBatch => belief.meets(&Belief { batch: belief.batch, ..*head }),
            Mutant::FenceWithoutBatchAndPosition => belief.meets(&Belief { epoch: head.epoch, ..*belief }),
            _ => belief.meets(head),
        }
    }

    fn examine(&self, log: &MemoryLog, batch: &LogBatch) -> Examined {
        let examined = log.examine(batch);
        match self.mutant {
            Mutant::LedgerNotLookedAt => Examined { repeats: Vec::new(), ..examined },
            Mutant::VersionsNotLookedAt => Examined { stale: Vec::new(), ..examined },
            _ => examined,
        }
    }

    fn send(&self, state: &mut State, owner: usize, command: usize) -> Option<()> {
        let sender = &mut state.owners[owner];
        let number = state.statements;
        let statement = Statement { number, owner, command, belief: sender.belief?, version: sender.version?, examined: None };
        sender.waits_for = Some(number);
        state.statements += 1;
        state.sent |= 1 << command;
        if self.mutant == Mutant::AnsweredBeforeCommit {
            state.answer(command, statement.reply());
        }
        state.under_way.push(statement);
        Some(())
    }

    fn commit(&self, state: &mut State, number: u8) -> Option<()> {
        let statement = state.under_way.remove(state.statement(number));
        let batch = statement.batch();
        let true_now = state.log.examine(&batch);
        let outcome = state.log.commit(&batch, statement.examined.clone()?, |belief, head| self.fence(belief, head));
        if outcome == BatchOutcome::Done {
            if !true_now.stale.is_empty() {
                state.wrong = Some(Wrong::StaleDecision);
            } else if !true_now.repeats.is_empty() {
                state.wrong = Some(Wrong::CarriedOutTwice);
            }
        }
        let owner = &mut state.owners[statement.owner];
        if owner.waits_for != Some(number) {
            return Some(());
        }
        owner.waits_for = None;
        match outcome {
            BatchOutcome::Done => {
                (owner.belief, owner.version) = (Some(batch.after()), Some(batch.streams[0].new));
                state.answer(statement.command, statement.reply());
            }
            BatchOutcome::Refused { repeats, stale } => {
                if !stale.is_empty() {
                    owner.version = None;
                }
                for (_, stored) in repeats {
                    state.answer(statement.command, stored.reply);
                }
            }
            BatchOutcome::Fenced => {}
        }
        Some(())
    }

    fn read_head(&self, state: &mut State, owner: usize) -> Option<()> {
        let (owner, head) = (&mut state.owners[owner], state.log.head());
        let believed = owner.belief?;
        let went_back = self.mutant != Mutant::GoesOnAfterRestore && head.went_back_from(&believed);
        owner.belief = (head.epoch == believed.epoch && !went_back).then_some(head);
        Some(())
    }
}

impl Model for Owners {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let (log, owners, answers) = (MemoryLog::default(), Default::default(), Default::default());
        let (backup, restored, told) = (None, false, Vec::new());
        vec![State {
            log,
            owners,
            under_way: Vec::new(),
            answers,
            takeovers: 0,
            statements: 0,
            sent: 0,
            wrong: None,
            backup,
            restored,
            told,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        // With the restore's own, no more than elsewhere.
        let takeovers = if self.restore == Restore::RaisingEpoch && !state.restored { self.takeovers - 2 } else { self.takeovers };
        for (number, owner) in state.owners.iter().enumerate() {
            if owner.waits_for.is_some() {
                steps.push(Step::Cut(number));
                continue;
            }
            // Owners are alike, and so are the commands that take: one of each is the first.
            if state.takeovers < takeovers && (number == 0 || state.takeovers > 0) {
                steps.push(Step::Take(number));
            }
            let Some(belief) = owner.belief else { continue };
            if belief != state.log.head() {
                steps.push(Step::ReadHead(number));
            }
            if owner.version != Some(state.log.version(&stream())) {
                steps.push(Step::Load(number));
            }
            // Also when an outcome is unknown to it, which the committer is too careful to do.
            if owner.version.is_some() && state.statements < self.statements {
                let first = |command: usize| match command {
                    0 => true,
                    // Looking says nothing of restores.
                    LOOK => self.restore == Restore::Never,
                    _ => state.sent & 1 > 0,
                };
                steps.extend((0..COMMANDS).filter(|command| first(*command)).map(|command| Step::Send(number, command)));
            }
        }
        if state.takeovers > 0 && state.takeovers + 1 == takeovers {
            steps.push(Step::TakeUnknowing);
        }
        if self.restore != Restore::Never && !state.restored {
            let fooled = |backup: &MemoryLog, owner: &Owner| {
                backup.head() != state.log.head() && owner.belief.is_some_and(|belief| belief.meets(&backup.head()))
            };
            match &state.backup {
                None => steps.push(Step::Backup),
                Some(backup) if self.restore == Restore::NoticeablyBack && state.owners.iter().any(|owner| fooled(backup, owner)) => {}
                Some(_) => steps.push(Step::Restore),
            }
        }
        steps.extend(state.under_way.iter().map(|statement| match statement.examined {
            None => Step::Snapshot(statement.number),
            Some(_) => Step::Commit(statement.number),
        }));
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Take(owner) => {
                state.owners[owner].belief = Some(state.take());
            }
            Step::TakeUnknowing => {
                state.take();
            }
            Step::Load(owner) => state.owners[owner].version = Some(state.log.version(&stream())),
            Step::Send(owner, command) => self.send(&mut state, owner, command)?,
            Step::Snapshot(number) => {
                let at = state.statement(number);
                let examined = self.examine(&state.log, &state.under_way[at].batch());
                state.under_way[at].examined = Some(examined);
            }
            Step::Commit(number) => self.commit(&mut state, number)?,
            Step::Cut(owner) => state.owners[owner].waits_for = None,
            Step::Backup => state.backup = Some(state.log.clone()),
            Step::Restore => {
                (state.log, state.restored) = (state.backup.take()?, true);
                state.under_way.clear();
                if self.restore == Restore::RaisingEpoch {
                    state.take();
                }
            }
            Step::ReadHead(owner) => self.read_head(&mut state, owner)?,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = vec![
            Property::always(DENSE, |_, state: &State| dense(&state.log)),
            Property::always(WITHIN_EPOCH, |_, state: &State| within_epoch(&state.log)),
            Property::always(FRESH, |_, state: &State| state.wrong != Some(Wrong::StaleDecision)),
            Property::always(ONCE, |_, state: &State| state.wrong != Some(Wrong::CarriedOutTwice)),
            Property::always(NAMED_ONCE, |_, state: &State| named_once(state)),
        ];
        // A restore takes answers back; nothing else does.
        let unless_restored = vec![
            Property::always(ONE_ANSWER, |_, state: &State| state.wrong != Some(Wrong::TwoAnswers)),
            Property::always(KEPT, |_, state: &State| (0..LOOK).all(|command| kept(state, command))),
        ];
        let sometimes = vec![
            Property::sometimes("every command is answered", |_, state: &State| state.answers[..LOOK].iter().all(Option::is_some)),
            Property::sometimes("two believe that the log is theirs", |_, state: &State| {
                state.owners.iter().all(|owner| owner.belief.is_some())
            }),
            Property::sometimes("a forgotten statement was carried out", |_, state: &State| {
                state.log.head().batch > 0 && state.answers.iter().all(Option::is_none) && state.under_way.is_empty()
            }),
        ];
        let lost = vec![Property::sometimes("what was told is lost", |_, state: &State| state.told.len() > state.log.events().len())];
        [always, if self.restore != Restore::Never { lost } else { unless_restored }, sometimes].into_iter().flatten().collect()
    }
}

const DENSE: &str = "positions are dense, and each event follows from the one before";
const WITHIN_EPOCH: &str = "no event is written under an epoch that is over";
const FRESH: &str = "every decision rests on the entity as it is";
const ONCE: &str = "no command is carried out twice";
const ONE_ANSWER: &str = "a repeated command gets the answer it got";
const NAMED_ONCE: &str = "a place that was told to a caller never names another event";
const KEPT: &str = "what was answered is stored";

fn dense(log: &MemoryLog) -> bool {
    let (mut end, mut version) = ((Position(0), LogHash::EMPTY), Version(0));
    for event in log.events() {
        if !event.continues(end.0, end.1) || event.version != version.next() {
            return false;
        }
        (end, version) = ((event.position, event.hash), event.version);
    }
    end == (log.head().position, log.head().hash) && version == log.version(&stream())
}

fn within_epoch(log: &MemoryLog) -> bool {
    let at = |position| log.epochs().iter().rev().find(|start| start.first <= position).map(|start| start.epoch);
    log.events().iter().all(|event| at(event.position) == Some(event.epoch))
}

fn named_once(state: &State) -> bool {
    let place = |event: &RecordedEvent| (event.epoch, event.position);
    state.told.iter().all(|told| state.log.events().iter().all(|event| place(event) != place(told) || event == told))
}

fn kept(state: &State, command: usize) -> bool {
    let Some(answer) = &state.answers[command] else { return true };
    let events: Vec<_> = state.log.events().iter().filter(|event| event.request_id == Some(request(command))).collect();
    let said = match &events[..] {
        [] => Bytes::from_static(b"sold out"),
        [event] => format!("yours at {}", event.position).into(),
        _ => return false,
    };
    *answer == said && state.log.reply(&stream(), request(command)).is_some_and(|stored| stored.reply == *answer)
}

fn check(what: &str, model: Owners) {
    let started = Instant::now();
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!("{what}: {} states, {} steps deep, in {:?}", checker.unique_state_count(), checker.max_depth(), started.elapsed());
    checker.assert_properties();
}

#[test]
fn whatever_owners_believe_the_log_stays_dense_and_every_answer_true() {
    check("owners", Owners { takeovers: 3, statements: 3, restore: Restore::Never, mutant: Mutant::None });
}

#[test]
fn an_owner_that_sees_its_log_go_back_does_not_go_on_under_the_same_epoch() {
    let restore = Restore::NoticeablyBack;
    check("owners of a log that goes back", Owners { takeovers: 2, statements: 3, restore, mutant: Mutant::None });
}

/// An owner in doubt about its last append cannot see that the log went back behind it.
#[test]
fn a_restore_amid_an_unknown_outcome_is_safe_if_it_raises_the_epoch_and_not_otherwise() {
    let restored = |restore| Owners { takeovers: 3, statements: 3, restore, mutant: Mutant::None };
    check("owners of a log that is restored under a new epoch", restored(Restore::RaisingEpoch));
    let path = counterexample(restored(Restore::Plainly), NAMED_ONCE).expect("the danger this is about");
    println!("restored with its old epoch: {path:?}");
}

fn counterexample(model: Owners, broken: &'static str) -> Option<Vec<Step>> {
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyOf([broken].into())).spawn_bfs().join();
    Some(checker.discovery(broken)?.into_actions())
}

#[test]
fn every_part_of_the_append_is_needed() {
    for (mutant, broken) in [
        (Mutant::FenceWithoutEpoch, WITHIN_EPOCH),
        (Mutant::FenceWithoutBatch, ONCE),
        (Mutant::FenceWithoutBatchAndPosition, DENSE),
        (Mutant::LedgerNotLookedAt, ONCE),
        (Mutant::VersionsNotLookedAt, FRESH),
        (Mutant::AnsweredBeforeCommit, KEPT),
        (Mutant::GoesOnAfterRestore, NAMED_ONCE),
    ] {
        let restore = if mutant == Mutant::GoesOnAfterRestore { Restore::NoticeablyBack } else { Restore::Never };
        let path = counterexample(Owners { takeovers: 3, statements: 3, restore, mutant }, broken);
        println!("{mutant:?} breaks '{broken}': {:?}", path.unwrap_or_else(|| panic!("{mutant:?} went unnoticed")));
    }
}
