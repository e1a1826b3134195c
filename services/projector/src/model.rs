//! A reader of a log that goes back, while the bus still holds what was lost, loses and repeats what it delivers, and is
//! made anew when its relay gets to it. Left alone, what was applied becomes the log, from any state there is; and at no
//! time is it a mixture of two histories.
//!
//! What the reader concludes is the code's own, [`Tail`]; what it does then is that of [`crate::reader::Reader`].

use std::{sync::OnceLock, time::Instant};

use souk_event_sourcing::{Position, RecordedEvent};
use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::{
    sequence::{Tail, Verdict},
    testing::{history, rewritten},
};

/// Events a log has at most.
const EVENTS: usize = 4;

/// A history: the first one, or one that left it after so many events.
type Branch = usize;
const FIRST: Branch = EVENTS;

fn events(of: Branch) -> &'static [RecordedEvent] {
    static MADE: OnceLock<Vec<Vec<RecordedEvent>>> = OnceLock::new();
    &MADE.get_or_init(|| (0..EVENTS).map(|fork| rewritten(EVENTS, fork)).chain([history(EVENTS)]).collect())[of]
}

struct Restores {
    mutant: Mutant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// What lies before the tail is dropped, whatever it is, and what comes next is taken.
    HashNotCompared,
    /// A head before the tail is taken to be late.
    HeadsNotDoubted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Log {
    branch: Branch,
    length: usize,
}

impl Log {
    fn events(&self) -> &'static [RecordedEvent] {
        &events(self.branch)[..self.length]
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    truth: Log,
    /// What the bus holds; nothing of it has to arrive.
    bus: Log,
    /// Where the reader stands, and how many events it has applied to empty views.
    tail: Place,
    applied: usize,
    /// Whether something was applied on top of what it does not follow from.
    mixed: bool,
    truth_first: bool,
    at_announcement: Position,
}

/// A [`Tail`] by the event it stands after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Start,
    After(Branch, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Append,
    /// The log goes back to so many events; what is appended then is another history.
    Restore(usize),
    /// The relay brings the bus one event further, or makes it anew.
    Relay,
    Deliver(usize),
    ReadLog,
    Announce,
}

/// Log and tail belong to different histories.
struct Diverged;

impl State {
    fn tail(&self) -> Tail {
        match self.tail {
            Place::Start => Tail::START,
            Place::After(branch, count) => Tail::after(&events(branch)[count - 1]),
        }
    }

    fn bus_is_a_copy(&self) -> bool {
        self.truth.events().starts_with(self.bus.events())
    }

    fn apply(&mut self, branch: Branch, event: &RecordedEvent) {
        self.mixed |= !event.continues(self.tail().position, self.tail().hash);
        self.tail = Place::After(branch, event.position.0 as usize);
        self.applied += 1;
    }

    fn rewind(&mut self) {
        (self.tail, self.applied, self.mixed, self.truth_first) = (Place::Start, 0, false, true);
    }
}

impl Restores {
    fn judge(&self, tail: &Tail, event: &RecordedEvent) -> Verdict {
        match self.mutant {
            Mutant::HashNotCompared if event.position == tail.position.next() => Verdict::Next,
            Mutant::HashNotCompared if event.position <= tail.position => Verdict::Old,
            _ => tail.judge(event),
        }
    }

    fn read_log(&self, state: &mut State, to: usize) -> Result<(), Diverged> {
        let log = state.truth;
        // Asked for what lies beyond its end, the log says so.
        if state.tail().position.0 as usize > log.length {
            return Err(Diverged);
        }
        while state.tail().position.0 < log.length.min(to) as u64 {
            let event = &log.events()[state.tail().position.0 as usize];
            match self.judge(&state.tail(), event) {
                Verdict::Next => state.apply(log.branch, event),
                _ => return Err(Diverged),
            }
        }
        state.truth_first = false;
        Ok(())
    }

    fn verify(state: &State) -> Result<(), Diverged> {
        let there = (state.tail().position.0 as usize).checked_sub(1).and_then(|index| state.truth.events().get(index));
        if state.tail().is_held_by(there) { Ok(()) } else { Err(Diverged) }
    }

    fn deliver(&self, state: &mut State, index: usize) -> Result<(), Diverged> {
        let (bus, event) = (state.bus, &state.bus.events()[index]);
        if self.judge(&state.tail(), event) == Verdict::Hole {
            self.read_log(state, index)?;
        }
        match self.judge(&state.tail(), event) {
            Verdict::Next => state.apply(bus.branch, event),
            Verdict::Foreign => {
                Self::verify(state)?;
                self.read_log(state, EVENTS)?;
            }
            Verdict::Old | Verdict::Hole => {}
        }
        Ok(())
    }

    fn announce(&self, state: &mut State) -> Result<(), Diverged> {
        let (head, tail) = (state.truth, state.tail());
        let position = Position(head.length as u64);
        let hash = head.events().last().map(|event| event.hash);
        let doubted = self.mutant != Mutant::HeadsNotDoubted && tail.is_doubted_by(position, hash, state.at_announcement);
        let outcome = if doubted { Self::verify(state) } else { Ok(()) };
        state.at_announcement = tail.position;
        outcome
    }

    fn relay(state: &mut State) {
        if state.bus_is_a_copy() {
            state.bus = Log { branch: state.truth.branch, length: (state.bus.length + 1).min(state.truth.length) };
        } else {
            state.bus = Log { branch: state.truth.branch, length: 0 };
        }
    }

    fn reads(&self, state: &mut State, step: Step) {
        let outcome = match step {
            Step::Deliver(index) => self.deliver(state, index),
            Step::ReadLog => self.read_log(state, EVENTS),
            Step::Announce => self.announce(state),
            Step::Append | Step::Restore(_) | Step::Relay => Ok(()),
        };
        if outcome.is_err() {
            state.rewind();
        }
    }

    /// Whether all that was applied becomes the log when nothing more happens to it and everything arrives.
    fn becomes_the_log(&self, state: &State) -> bool {
        let mut state = state.clone();
        (0..=2 * EVENTS).for_each(|_| Self::relay(&mut state));
        for _ in 0..3 {
            self.reads(&mut state, Step::Announce);
            if state.truth_first {
                self.reads(&mut state, Step::ReadLog);
            }
            (0..state.bus.length).for_each(|index| self.reads(&mut state, Step::Deliver(index)));
        }
        state.applied == state.truth.length && state.tail() == state.truth.events().last().map_or(Tail::START, Tail::after)
    }
}

impl Model for Restores {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let empty = Log { branch: FIRST, length: 0 };
        vec![State {
            truth: empty,
            bus: empty,
            tail: Place::Start,
            applied: 0,
            mixed: false,
            truth_first: false,
            at_announcement: Position(0),
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.truth.length < EVENTS {
            steps.push(Step::Append);
        }
        if state.truth.branch == FIRST {
            steps.extend((0..state.truth.length).map(Step::Restore));
        }
        steps.extend([Step::Relay, Step::ReadLog, Step::Announce]);
        if !state.truth_first {
            steps.extend((0..state.bus.length).map(Step::Deliver));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Append => state.truth.length += 1,
            Step::Restore(fork) => state.truth = Log { branch: fork, length: fork },
            Step::Relay => Self::relay(&mut state),
            _ => self.reads(&mut state, step),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(WHOLE, |_, state: &State| state.applied as u64 == state.tail().position.0),
            Property::always(ONE_HISTORY, |_, state: &State| !state.mixed),
            Property::always(MENDS, |model: &Self, state: &State| model.becomes_the_log(state)),
            Property::sometimes("views are ahead of the log", |_, state: &State| state.applied > state.truth.length),
            Property::sometimes("views hold another history than the log", |_, state: &State| Self::verify(state).is_err()),
        ]
    }
}

const WHOLE: &str = "every event up to the tail is applied once";
const ONE_HISTORY: &str = "nothing is applied on top of what it does not follow from";
const MENDS: &str = "left alone, what was applied becomes the log";

#[test]
fn views_become_the_log_however_it_went_back() {
    let started = Instant::now();
    let checker = Restores { mutant: Mutant::None }.checker().threads(2).spawn_bfs().join();
    println!("restores: {} states, {} steps deep, in {:?}", checker.unique_state_count(), checker.max_depth(), started.elapsed());
    checker.assert_properties();
}

#[test]
fn a_reader_that_compares_less_is_caught() {
    for (mutant, broken) in [(Mutant::HashNotCompared, ONE_HISTORY), (Mutant::HeadsNotDoubted, MENDS)] {
        let checker = Restores { mutant }.checker().threads(2).finish_when(HasDiscoveries::AnyOf([broken].into())).spawn_bfs().join();
        let path = checker.discovery(broken).unwrap_or_else(|| panic!("{mutant:?} went unnoticed"));
        println!("{mutant:?} breaks '{broken}': {:?}", path.into_actions());
    }
}
