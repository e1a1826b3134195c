//! Two relays of one log, of which one does not know yet that it lost it, and a stream that is deleted, purged, punched,
//! replaced and written to by others. Left alone, the stream becomes a copy of the log from any state there is.
//!
//! What a relay concludes is the code's own: [`misfit`], [`Walk`], [`before_its_time`], [`as_left`]. Deletions are not
//! fenced and lie a step behind the question who owns the log, as in [`super::check`].

use std::{collections::BTreeMap, sync::OnceLock, time::Instant};

use souk_bus_publisher::{StreamState, conformance::History, conformance::log};
use souk_event_sourcing::{LogHash, Position, RecordedEvent, UnixMillis};
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::check::{Copied, Walk, as_left, before_its_time, misfit};

/// Events the log may have.
const EVENTS: u64 = 3;
/// Publishes of one relay under way.
const WINDOW: usize = 2;
const REFILL: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Writer {
    Owner,
    Stranger,
}

/// The event at a position, as the log has it or as a stranger's log has it.
fn event(of: Writer, position: Position) -> &'static RecordedEvent {
    static EVENTS_OF: OnceLock<[Vec<RecordedEvent>; 2]> = OnceLock::new();
    let made = EVENTS_OF.get_or_init(|| ["log", "stranger"].map(|name| History::of(log(1), name).events(2 * EVENTS)));
    &made[of as usize][position.0 as usize - 1]
}

struct Relays {
    disturbances: u8,
    mutant: Mutant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// The last hash is taken to prove all before it.
    EndNotWalked,
    /// Later looks at the stream see its last event and no more, whatever was missed.
    OnlyTheLastSeenAgain,
    /// Another stream that ends alike is taken for the same.
    IncarnationNotSeen,
    /// The stream is checked when a relay starts, and then no more.
    NeverCheckedAgain,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    head: Position,
    /// Of the two relays, the one whose epoch is the log's.
    owner: usize,
    stream: Option<Stream>,
    /// Streams made so far.
    made: u64,
    relays: [Relay; 2],
    disturbances: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stream {
    incarnation: u64,
    begin: Position,
    last: Position,
    messages: BTreeMap<Position, Writer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Relay {
    /// Checks next.
    Starts,
    /// Found the stream wanting; asks whether it owns the log still.
    Doubts,
    Deletes,
    Makes(Position),
    Copies {
        copied: Copied,
        missed: Option<Position>,
        next: Position,
        flights: Vec<Flight>,
    },
    Gone,
}

/// A publish, and whether the server stored it; the relay knows once the answer lands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Flight {
    position: Position,
    stored: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Append,
    TakeOver,
    /// The relay's next step where there is but one.
    Go(usize),
    Send(usize),
    /// The answer to one of its flights arrives.
    Land(usize, usize),
    /// The answer never comes.
    Lose(usize, usize),
    Recheck(usize),
    Disturb(Disturbance),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    Delete,
    Purge,
    Punch,
    /// A stranger publishes behind the end.
    Intrude,
    /// Another stream in its place, of a stranger's events.
    Replace,
}

impl Stream {
    fn new(incarnation: u64, begin: Position) -> Self {
        Self { incarnation, begin, last: Position(begin.0 - 1), messages: BTreeMap::new() }
    }

    fn state(&self) -> StreamState {
        let first = self.messages.keys().next().copied().unwrap_or(self.last.next());
        let whole = self.messages.len() as u64 == self.last.0 + 1 - first.0;
        StreamState {
            incarnation: self.incarnation,
            begin: self.begin,
            first,
            last: self.last,
            whole,
            settled: true,
            keeps_after: Some(UnixMillis(i64::MIN)),
        }
    }

    /// The server's part: only right behind the end.
    fn publish(&mut self, writer: Writer, position: Position) -> bool {
        let fits = self.last.next() == position;
        if fits {
            self.messages.insert(position, writer);
            self.last = position;
        }
        fits
    }
}

/// The log at a position, of a stream.
fn copied(incarnation: u64, first: Position, last: Position) -> Copied {
    let hash = if last.0 == 0 { LogHash::EMPTY } else { event(Writer::Owner, last).hash };
    Copied { incarnation, first, last, hash, committed: UnixMillis(0) }
}

fn walked(mut walk: Walk, stream: &Stream) -> bool {
    walk.positions().all(|at| walk.step(at, event(stream.messages[&at], at)))
}

impl Relays {
    /// What [`super::check::check`] finds of a stream.
    fn judge(&self, head: Position, stream: &Stream) -> Option<Copied> {
        let state = stream.state();
        if misfit(state, head, REFILL).is_some() {
            return None;
        }
        let copied = copied(state.incarnation, state.first, state.last);
        let only_last = Walk::along(log(1), Copied { first: copied.last.max(copied.first), ..copied }, None);
        let walk = if self.mutant == Mutant::EndNotWalked { only_last } else { Walk::along(log(1), copied, None) };
        let gone_early = state.first.0 > 1 && before_its_time(state, UnixMillis(0));
        (walked(walk, stream) && !gone_early).then_some(copied)
    }

    /// What [`super::check::unchanged`] finds.
    fn unchanged(&self, stream: Option<&Stream>, missed: Option<Position>, copied: Copied) -> bool {
        let Some(stream) = stream else { return false };
        let state = stream.state();
        let missed = match self.mutant {
            Mutant::NeverCheckedAgain => return true,
            Mutant::OnlyTheLastSeenAgain => None,
            _ => missed,
        };
        let incarnation = if self.mutant == Mutant::IncarnationNotSeen { copied.incarnation } else { state.incarnation };
        let state = StreamState { incarnation, ..state };
        let gone_early = state.first != copied.first && before_its_time(state, UnixMillis(0));
        as_left(state, copied) && !gone_early && walked(Walk::since(log(1), state, missed, copied), stream)
    }

    fn go(&self, state: &mut State, relay: usize) -> Option<()> {
        let owns = state.owner == relay;
        let first = Position(state.head.0.saturating_sub(REFILL) + 1);
        state.relays[relay] = match &state.relays[relay] {
            _ if !owns && state.relays[relay] == Relay::Starts => Relay::Gone,
            Relay::Starts => match &state.stream {
                None => Relay::Makes(first),
                Some(stream) => match self.judge(state.head, stream) {
                    Some(copied) => Relay::Copies { copied, missed: None, next: copied.last.next(), flights: Vec::new() },
                    None => Relay::Doubts,
                },
            },
            Relay::Doubts if !owns => Relay::Gone,
            Relay::Doubts => Relay::Deletes,
            Relay::Deletes => {
                state.stream = None;
                Relay::Makes(first)
            }
            Relay::Makes(first) => {
                if state.stream.is_none() {
                    state.made += 1;
                }
                let stream = state.stream.get_or_insert_with(|| Stream::new(state.made, *first));
                if stream.begin == *first {
                    let copied = copied(stream.incarnation, *first, Position(first.0 - 1));
                    Relay::Copies { copied, missed: None, next: *first, flights: Vec::new() }
                } else {
                    Relay::Starts
                }
            }
            Relay::Copies { .. } | Relay::Gone => return None,
        };
        Some(())
    }

    fn send(state: &mut State, relay: usize) -> Option<()> {
        let Relay::Copies { next, flights, .. } = &mut state.relays[relay] else { return None };
        let stored = state.stream.as_mut().is_some_and(|stream| stream.publish(Writer::Owner, *next));
        flights.push(Flight { position: *next, stored });
        *next = next.next();
        Some(())
    }

    /// What [`super::pump`] makes of an answer, or of none.
    fn land(state: &mut State, relay: usize, flight: usize, heard: bool) -> Option<()> {
        let Relay::Copies { copied: so_far, missed, flights, .. } = &mut state.relays[relay] else { return None };
        let Flight { position, stored } = flights.remove(flight);
        if heard && stored {
            // It stands for those before it whose own answer is lost; a refusal of one of them still counts.
            if position > so_far.last {
                *so_far = copied(so_far.incarnation, so_far.first, position);
            }
        } else if heard || position > so_far.last {
            state.relays[relay] = Relay::Starts;
        } else {
            *missed = Some(missed.map_or(position, |first| first.min(position)));
        }
        Some(())
    }

    fn recheck(&self, state: &mut State, relay: usize) -> Option<()> {
        let Relay::Copies { copied, missed, .. } = &mut state.relays[relay] else { return None };
        if self.unchanged(state.stream.as_ref(), *missed, *copied) {
            *missed = None;
        } else {
            state.relays[relay] = Relay::Starts;
        }
        Some(())
    }

    fn disturb(state: &mut State, what: Disturbance) -> Option<()> {
        let stream = state.stream.as_mut()?;
        match what {
            Disturbance::Delete => state.stream = None,
            Disturbance::Purge => {
                stream.messages.pop_first()?;
            }
            Disturbance::Punch => {
                let middle = *stream.messages.keys().nth(1).filter(|at| **at < stream.last)?;
                stream.messages.remove(&middle);
            }
            Disturbance::Intrude if stream.last.0 < 2 * EVENTS => {
                stream.publish(Writer::Stranger, stream.last.next());
            }
            Disturbance::Intrude => return None,
            Disturbance::Replace => {
                state.made += 1;
                stream.incarnation = state.made;
                stream.messages.values_mut().for_each(|writer| *writer = Writer::Stranger);
            }
        }
        Some(())
    }

    /// Whether the stream becomes a copy of the log when nobody else touches it: both relays go on, the one that lost the
    /// log first, and every answer arrives.
    fn mends(&self, state: &State) -> bool {
        let mut state = state.clone();
        let owner = state.owner;
        for relay in [1 - owner, owner] {
            for _ in 0..40 {
                let went_on = match &state.relays[relay] {
                    Relay::Gone => break,
                    Relay::Copies { flights, .. } if !flights.is_empty() => Self::land(&mut state, relay, 0, true),
                    Relay::Copies { next, .. } if *next <= state.head && relay == owner => Self::send(&mut state, relay),
                    // What has lost its log is told so by the next beat.
                    Relay::Copies { .. } if relay != owner => break,
                    Relay::Copies { .. } => self.recheck(&mut state, relay),
                    _ => self.go(&mut state, relay),
                };
                debug_assert!(went_on.is_some());
            }
        }
        let Some(stream) = &state.stream else { return false };
        let whole = stream.messages.len() as u64 == state.head.0 + 1 - stream.begin.0;
        whole && stream.last == state.head && stream.messages.values().all(|writer| *writer == Writer::Owner)
    }
}

impl Model for Relays {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State { head: Position(1), owner: 0, stream: None, made: 0, relays: [Relay::Starts, Relay::Gone], disturbances: 0 }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.head.0 < EVENTS {
            steps.push(Step::Append);
        }
        if state.owner == 0 {
            steps.push(Step::TakeOver);
        }
        for (number, relay) in state.relays.iter().enumerate() {
            match relay {
                Relay::Gone => {}
                Relay::Copies { copied, next, flights, .. } => {
                    if *next <= state.head && flights.len() < WINDOW {
                        steps.push(Step::Send(number));
                    }
                    steps.extend((0..flights.len()).flat_map(|flight| [Step::Land(number, flight), Step::Lose(number, flight)]));
                    // Others have answered for those that are not heard of yet.
                    if flights.iter().all(|flight| flight.position <= copied.last) {
                        steps.push(Step::Recheck(number));
                    }
                }
                _ => steps.push(Step::Go(number)),
            }
        }
        if state.disturbances < self.disturbances && state.stream.is_some() {
            use Disturbance::{Delete, Intrude, Punch, Purge, Replace};
            steps.extend([Delete, Purge, Punch, Intrude, Replace].map(Step::Disturb));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Append => state.head = state.head.next(),
            Step::TakeOver => (state.owner, state.relays[1]) = (1, Relay::Starts),
            Step::Go(relay) => self.go(&mut state, relay)?,
            Step::Send(relay) => Self::send(&mut state, relay)?,
            Step::Land(relay, flight) => Self::land(&mut state, relay, flight, true)?,
            Step::Lose(relay, flight) => Self::land(&mut state, relay, flight, false)?,
            Step::Recheck(relay) => self.recheck(&mut state, relay)?,
            Step::Disturb(what) => {
                state.disturbances += 1;
                Self::disturb(&mut state, what)?;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(MENDS, |model: &Self, state: &State| model.mends(state)),
            Property::sometimes("the stream holds what the log does not", |_, state: &State| {
                state.stream.iter().flat_map(|stream| stream.messages.values()).any(|writer| *writer == Writer::Stranger)
            }),
            Property::sometimes("a relay that lost the log deletes its heir's stream", |_, state: &State| {
                let copies = matches!(&state.relays[1], Relay::Copies { copied, .. } if copied.last.0 > 0);
                state.owner == 1 && state.relays[0] == Relay::Deletes && copies
            }),
        ]
    }
}

const MENDS: &str = "left alone, the stream becomes a copy of the log";

#[test]
fn no_stream_differs_from_its_log_for_ever() {
    let started = Instant::now();
    let checker = Relays { disturbances: 2, mutant: Mutant::None }.checker().threads(2).spawn_bfs().join();
    println!("relays: {} states, {} steps deep, in {:?}", checker.unique_state_count(), checker.max_depth(), started.elapsed());
    checker.assert_properties();
}

#[test]
fn a_relay_that_looks_less_closely_is_caught() {
    for mutant in [Mutant::EndNotWalked, Mutant::OnlyTheLastSeenAgain, Mutant::IncarnationNotSeen, Mutant::NeverCheckedAgain] {
        let model = Relays { disturbances: 2, mutant };
        let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyOf([MENDS].into())).spawn_bfs().join();
        let path = checker.discovery(MENDS).unwrap_or_else(|| panic!("{mutant:?} went unnoticed"));
        println!("{mutant:?}: {:?}", path.into_actions());
    }
}
