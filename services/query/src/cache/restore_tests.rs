//! The horizon of one log, a cached row and tokens, while the log is restored, state by state: views that are ahead of the
//! log and go back, messages that are lost on the way, a load that began before. The rules are the code's own; the steps
//! around them are those of [`super::rows::RowCache`], whose order and locks `model` tests on the cache itself.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use souk_event_sourcing::{Epoch, Position, UnixMillis};
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::freshness::{Advance, Horizon, Making, Mark, Provenance, Standing, Step as Heard};

const PROOF_AGE: Duration = Duration::from_secs(3);
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

struct Restores {
    appends: u8,
    losses: u8,
    mutant: Mutant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// A hole in the feed leaves what was read before as it is.
    FloorForgotten,
    /// A row read ahead of the feed is trusted for ever.
    AheadTrusted,
    /// A token is a position and no more.
    EpochForgotten,
    /// Nobody is told that views are being made anew.
    RebuildingForgotten,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    log: Vec<Event>,
    /// How often the log went back: an event, a view and a message of an earlier history are known by it.
    history: u8,
    lost: Vec<Event>,
    views: Views,
    feed: Vec<Message>,
    horizon: Horizon,
    /// Where the epoch after the restore begins, and whether the horizon has heard of that.
    restored_from: Option<Position>,
    learned: bool,
    named: Position,
    cached: Option<Cached>,
    load: Option<Load>,
    /// How often messages and readings of before have ceased to be proof.
    age: u32,
    appends: u8,
    losses: u8,
}

/// An event, and whether it changes the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Event {
    mark: Mark,
    changes: bool,
    history: u8,
}

/// The views as of a place, and the last event in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Views {
    mark: Mark,
    row: Mark,
    history: u8,
    /// Emptied, and not come to the log's end since.
    rebuilding: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Message {
    from: Position,
    views: Views,
    changes: bool,
    /// Whether the log had been taken anew under its later epoch.
    restored: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Cached {
    provenance: Provenance,
    views: Views,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Load {
    history: u64,
    began: Instant,
    read: Option<Views>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Append {
        changes: bool,
    },
    Restore(usize),
    /// The projector applies all there is, or finds that the log went back and starts over.
    Project,
    Announce,
    Deliver,
    Lose,
    Load,
    Read,
    Admit,
    /// Messages and readings of before are no proof any more.
    Wait,
}

impl State {
    fn now(&self) -> Instant {
        *START + PROOF_AGE * self.age
    }

    fn epoch(&self) -> Epoch {
        Epoch(u64::from(self.history) + 1)
    }

    fn row_at(&self, position: Position) -> Mark {
        self.log.iter().rev().find(|event| event.changes && event.mark.position <= position).map_or(Mark::default(), |event| event.mark)
    }

    fn views_are_lost(&self) -> bool {
        self.views.mark != Mark::default() && self.log.iter().all(|event| event.mark != self.views.mark)
    }

    fn project(&mut self) -> Option<()> {
        let before = self.views;
        if self.views_are_lost() {
            self.views = Views { history: self.history, rebuilding: true, ..Views::default() };
            self.say(Position(0), false);
            return Some(());
        }
        let mark = self.log.last().map(|event| event.mark).filter(|mark| *mark != before.mark || before.rebuilding);
        let mark = mark.or_else(|| before.rebuilding.then(Mark::default))?;
        self.views = Views { mark, row: self.row_at(mark.position), history: self.history, rebuilding: false };
        self.say(before.mark.position, self.views.row != before.row);
        Some(())
    }

    fn say(&mut self, from: Position, changes: bool) {
        self.feed.push(Message { from, views: self.views, changes, restored: self.restored_from.is_some() });
    }

    /// The epochs that the horizon has heard of, each with its first position.
    fn epochs(&self) -> Vec<Mark> {
        let later = self.restored_from.filter(|_| self.learned).map(|position| Mark { epoch: Epoch(2), position });
        [Mark { epoch: Epoch(1), position: Position(1) }].into_iter().chain(later).collect()
    }
}

impl Restores {
    /// What is told of the making of views.
    fn making(&self, views: Views) -> Making {
        Making { revision: 1, repaired: UnixMillis(0), rebuilding: views.rebuilding && self.mutant != Mutant::RebuildingForgotten }
    }

    fn hear(&self, state: &mut State) -> Option<()> {
        let message = (!state.feed.is_empty()).then(|| state.feed.remove(0))?;
        let Message { from, views, changes, restored } = message;
        let advance = Advance { epoch: views.mark.epoch, from, to: views.mark.position, making: self.making(views) };
        let (before, now) = (state.horizon, state.now());
        let step = state.horizon.hear(advance, now, UnixMillis(0));
        if self.mutant == Mutant::FloorForgotten {
            state.horizon.floor = before.floor;
        }
        match step {
            Heard::Repeated => {}
            Heard::Continued if changes => state.named = state.named.max(views.mark.position),
            Heard::Continued => {}
            Heard::Jumped => state.named = Position(0),
        }
        if step != Heard::Repeated && changes {
            state.cached = None;
        }
        state.learned = restored;
        Some(())
    }

    fn admit(&self, state: &mut State) -> Option<()> {
        let Load { history, began, read } = state.load.take()?;
        let views = read?;
        let provenance = Provenance { as_of: views.mark, making: self.making(views), history, began };
        let later = |kept: Cached| kept.provenance.history == history && kept.provenance.as_of > provenance.as_of;
        if state.horizon.admits(provenance, state.named) && !state.cached.is_some_and(later) {
            state.cached = Some(Cached { provenance, views });
        }
        Some(())
    }

    fn serves(&self, state: &State, token: Option<Mark>) -> Option<Cached> {
        let now = state.now();
        let began = |cached: &Cached| if self.mutant == Mutant::AheadTrusted { now } else { cached.provenance.began };
        state.cached.filter(|cached| state.horizon.serves(Provenance { began: began(cached), ..cached.provenance }, token, now))
    }

    fn reached(&self, state: &State, token: Mark) -> bool {
        match self.mutant {
            Mutant::EpochForgotten => state.horizon.feed.position >= token.position,
            _ => token.against(state.horizon.feed, &state.epochs()) == Standing::Reached,
        }
    }

    /// Whether all becomes as it should be when the log stays as it is and messages arrive.
    fn becomes_true(&self, state: &State) -> bool {
        let mut state = state.clone();
        for _ in 0..2 {
            while state.project().is_some() {}
            state.age += 1;
            state.say(state.views.mark.position, false);
            while self.hear(&mut state).is_some() {}
            let _ = self.admit(&mut state);
        }
        let head = state.log.last().map_or(Mark::default(), |event| event.mark);
        let row = state.row_at(head.position);
        self.reached(&state, head) && self.serves(&state, None).is_none_or(|cached| cached.views.row == row)
    }
}

impl Model for Restores {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            log: Vec::new(),
            history: 0,
            lost: Vec::new(),
            views: Views::default(),
            feed: Vec::new(),
            horizon: Horizon::new(PROOF_AGE),
            restored_from: None,
            learned: false,
            named: Position(0),
            cached: None,
            load: None,
            age: 0,
            appends: 0,
            losses: 0,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.appends < self.appends {
            steps.extend([Step::Append { changes: true }, Step::Append { changes: false }]);
        }
        if state.history == 0 {
            steps.extend((0..state.log.len()).map(Step::Restore));
        }
        if state.feed.len() < 2 {
            steps.push(Step::Project);
        }
        if state.feed.is_empty() {
            steps.push(Step::Announce);
        } else {
            steps.push(Step::Deliver);
            if state.losses < self.losses {
                steps.push(Step::Lose);
            }
        }
        steps.push(match state.load {
            None => Step::Load,
            Some(Load { read: None, .. }) => Step::Read,
            Some(_) => Step::Admit,
        });
        if state.age == 0 {
            steps.push(Step::Wait);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Append { changes } => {
                state.appends += 1;
                let mark = Mark { epoch: state.epoch(), position: Position(state.log.len() as u64 + 1) };
                state.log.push(Event { mark, changes, history: state.history });
            }
            Step::Restore(fork) => {
                state.history += 1;
                state.lost.extend(state.log.drain(fork..));
                state.restored_from = Some(Position(fork as u64 + 1));
                if !state.views_are_lost() {
                    state.views.history = state.history;
                }
            }
            Step::Project => state.project()?,
            Step::Announce => state.say(state.views.mark.position, false),
            Step::Deliver => self.hear(&mut state)?,
            Step::Lose => {
                state.losses += 1;
                state.feed.remove(0);
            }
            Step::Load => state.load = Some(Load { history: state.horizon.history, began: state.now(), read: None }),
            Step::Read => {
                let views = state.views;
                state.load.as_mut()?.read = Some(views);
            }
            Step::Admit => self.admit(&mut state)?,
            Step::Wait => state.age += 1,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LOST, |model: &Self, state: &State| {
                // As long as the horizon has not heard of the restore, it speaks of the history that was lost.
                !state.learned || state.lost.iter().all(|event| !model.reached(state, event.mark))
            }),
            Property::always(HELD, |model: &Self, state: &State| {
                let holds = |event: &Event| {
                    model
                        .serves(state, Some(event.mark))
                        .is_none_or(|cached| cached.views.row.position >= state.row_at(event.mark.position).position)
                };
                state.log.iter().all(holds)
            }),
            Property::always(WHOLE, |model: &Self, state: &State| model.serves(state, None).is_none_or(|cached| !cached.views.rebuilding)),
            Property::always(MENDS, |model: &Self, state: &State| model.becomes_true(state)),
            Property::sometimes("a row is served", |model: &Self, state: &State| model.serves(state, None).is_some()),
            Property::sometimes("a row of a lost history is in the cache", |_, state: &State| {
                state.cached.is_some_and(|cached| state.lost.iter().any(|event| event.mark == cached.views.row))
            }),
        ]
    }
}

const LOST: &str = "a token of a lost part is not reached once the log is known to have gone back";
const HELD: &str = "a row that is served holds what the token names";
const WHOLE: &str = "a row of views that are being made anew is not served";
const MENDS: &str = "left alone, rows and tokens are those of the log";

#[test]
fn neither_rows_nor_tokens_of_a_lost_part_outlive_it() {
    let started = Instant::now();
    let checker = Restores { appends: 3, losses: 1, mutant: Mutant::None }.checker().threads(2).spawn_bfs().join();
    println!("restores: {} states, {} steps deep, in {:?}", checker.unique_state_count(), checker.max_depth(), started.elapsed());
    checker.assert_properties();
}

#[test]
fn a_horizon_that_forgets_is_caught() {
    for (mutant, broken) in [
        (Mutant::FloorForgotten, HELD),
        (Mutant::AheadTrusted, MENDS),
        (Mutant::EpochForgotten, LOST),
        (Mutant::RebuildingForgotten, WHOLE),
    ] {
        let model = Restores { appends: 3, losses: 1, mutant };
        let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyOf([broken].into())).spawn_bfs().join();
        let path = checker.discovery(broken).unwrap_or_else(|| panic!("{mutant:?} went unnoticed"));
        println!("{mutant:?} breaks '{broken}': {:?}", path.into_actions());
    }
}
