//! The cache against a model of store and feed: whatever is lost, doubled, late or thrown out, no row it serves is older
//! than the token asks for or than the bound allows.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};
use souk_event_sourcing::{Epoch, LogId, LogPosition, Partition, Position, Region, UnixMillis};
use souk_proto::log::v1::{ChangeFeed, ChangedRow};
use souk_read_store::{AsOf, RowRead, ViewRow};

use super::{
    entry::Entry,
    freshness::{Mark, Step},
    key::{RowRef, View},
    rows::{CacheLimits, Look, RowCache},
};

const LOG: LogId = LogId { region: Region(1), partition: Partition(3) };
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const PROOF_AGE: Duration = Duration::from_secs(3);
/// Longest a message of the model is under way.
const LONGEST_WAY: Duration = Duration::from_millis(800);

#[derive(Debug, Clone)]
enum Op {
    /// An event is stored in the log that changes keys by the bits of `keys`.
    Append {
        keys: u8,
    },
    /// The projector applies the next events in one transaction and tells of it, with the rows or without.
    Project {
        count: usize,
        with_rows: bool,
    },
    /// The owner of the log changes: later events have a later epoch.
    TakeOver,
    /// The log is restored to an earlier position, and the views with it.
    Restore {
        back: usize,
    },
    /// The read store loses its last transactions; the projector goes on from there.
    Crash {
        back: usize,
    },
    /// Other projections take over at the same position.
    Switch,
    /// The views are emptied, to be made anew from the first event.
    Empty,
    Announce,
    /// One of the messages under way arrives; it may arrive again.
    Deliver(Index),
    /// The oldest one arrives and is then gone.
    DeliverNext,
    Lose(Index),
    /// A load begins, or takes its snapshot from a replica that lags, or ends.
    BeginLoad(usize),
    Snapshot(Index, Index),
    EndLoad(Index),
    Evict(usize),
    Wait(u16),
    Read(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        7 => any::<u8>().prop_map(|keys| Op::Append { keys }),
        7 => (1..4usize, any::<bool>()).prop_map(|(count, with_rows)| Op::Project { count, with_rows }),
        1 => Just(Op::TakeOver),
        1 => (1..6usize).prop_map(|back| Op::Restore { back }),
        1 => (1..4usize).prop_map(|back| Op::Crash { back }),
        1 => Just(Op::Switch),
        1 => Just(Op::Empty),
        4 => Just(Op::Announce),
        4 => any::<Index>().prop_map(Op::Deliver),
        10 => Just(Op::DeliverNext),
        1 => any::<Index>().prop_map(Op::Lose),
        5 => (0..KEYS.len()).prop_map(Op::BeginLoad),
        5 => (any::<Index>(), any::<Index>()).prop_map(|(load, state)| Op::Snapshot(load, state)),
        5 => any::<Index>().prop_map(Op::EndLoad),
        2 => (0..KEYS.len()).prop_map(Op::Evict),
        6 => (0..1_500u16).prop_map(Op::Wait),
        8 => (0..KEYS.len()).prop_map(Op::Read),
    ]
}

/// An event of the log.
#[derive(Debug, Clone)]
struct Event {
    mark: Mark,
    keys: u8,
}

/// What the store held from some moment on.
#[derive(Debug, Clone)]
struct State {
    mark: Mark,
    revision: u32,
    /// Emptied, and not come to the log's end since: it answers nobody.
    rebuilding: bool,
    /// Key → the last event that changed it.
    rows: BTreeMap<&'static str, Mark>,
    since: Instant,
}

struct Load {
    key: &'static str,
    history: u64,
    began: Instant,
    read: Option<State>,
}

struct World {
    cache: RowCache,
    now: Instant,
    log: Vec<Event>,
    /// Events that a restore took back, each with the position the log went back to.
    lost: Vec<(Mark, Position)>,
    epoch: Epoch,
    states: Vec<State>,
    /// Index of the first state a replica may still show: the store has not gone back since.
    present: usize,
    under_way: Vec<(ChangeFeed, Instant)>,
    loads: Vec<Load>,
    served: usize,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            cache: RowCache::new([LOG], CacheLimits { bytes: 1 << 20, buckets: 2, proof_age: PROOF_AGE }),
            now,
            log: Vec::new(),
            lost: Vec::new(),
            epoch: Epoch(1),
            states: vec![State { mark: Mark::default(), revision: 1, rebuilding: false, rows: BTreeMap::new(), since: now }],
            present: 0,
            under_way: Vec::new(),
            loads: Vec::new(),
            served: 0,
        }
    }

    fn state(&self) -> &State {
        self.states.last().expect("there is a first state")
    }

    /// The views of the first `count` events.
    fn fold(&self, count: usize) -> State {
        let State { revision, rebuilding, .. } = *self.state();
        let rebuilding = rebuilding && count < self.log.len();
        let mut state = State { mark: Mark::default(), revision, rebuilding, rows: BTreeMap::new(), since: self.now };
        for event in &self.log[..count] {
            state.mark = event.mark;
            state.rows.extend(changed(event.keys).map(|key| (key, event.mark)));
        }
        state
    }

    fn go_back_to(&mut self, count: usize) {
        let state = self.fold(count);
        self.states.push(state);
        self.present = self.states.len() - 1;
    }

    fn empty(&mut self) {
        let emptied = State { mark: Mark::default(), rebuilding: true, rows: BTreeMap::new(), since: self.now, ..*self.state() };
        self.states.push(emptied);
        self.present = self.states.len() - 1;
        self.announce();
    }

    fn append(&mut self, keys: u8) {
        let position = Position(self.log.len() as u64 + 1);
        self.log.push(Event { mark: Mark { epoch: self.epoch, position }, keys });
    }

    fn project(&mut self, count: usize, with_rows: bool) {
        let from = self.state().mark.position;
        let to = self.log.len().min(from.0 as usize + count);
        if to == from.0 as usize {
            return;
        }
        let next = self.fold(to);
        let keys = self.log[from.0 as usize..to].iter().fold(0, |keys, event| keys | event.keys);
        let rows = changed(keys).map(|key| ChangedRow {
            view: View::Order.table().name().to_owned(),
            key: key.to_owned(),
            row: content(&next, key).filter(|_| with_rows),
        });
        self.under_way.push((message(from, &next, rows.collect()), self.now));
        self.states.push(next);
    }

    fn announce(&mut self) {
        let state = self.state().clone();
        self.under_way.push((message(state.mark.position, &state, Vec::new()), self.now));
    }

    fn restore(&mut self, back: usize) {
        let fork = self.log.len().saturating_sub(back);
        self.lost.extend(self.log.drain(fork..).map(|event| (event.mark, Position(fork as u64))));
        self.epoch = Epoch(self.epoch.0 + 1);
        if self.log.len() < self.state().mark.position.0 as usize {
            self.go_back_to(self.log.len());
            self.announce();
        }
    }

    fn crash(&mut self, back: usize) {
        self.go_back_to((self.state().mark.position.0 as usize).saturating_sub(back));
    }

    fn switch(&mut self) {
        let next = State { revision: self.state().revision + 1, since: self.now, ..self.state().clone() };
        self.states.push(next);
        self.present = self.states.len() - 1;
    }

    async fn deliver(&mut self, index: usize, keep: bool) {
        let (message, sent) = if keep { self.under_way[index].clone() } else { self.under_way.remove(index) };
        if self.now - sent <= LONGEST_WAY {
            self.cache.hear(&message, self.now, UnixMillis(0)).await.expect("the log is known");
        }
    }

    fn begin_load(&mut self, key: &'static str) {
        let history = self.cache.log(LOG).expect("the log is known").horizon().history;
        self.loads.push(Load { key, history, began: self.now, read: None });
    }

    async fn end_load(&mut self, index: usize) {
        let load = self.loads.remove(index);
        let Some(state) = load.read else { return };
        let row = state.rows.get(load.key).map(|mark| ViewRow {
            version: Default::default(),
            position: mark.position,
            revision: state.revision,
            updated: UnixMillis(0),
            body: text(*mark, state.revision),
        });
        let position = LogPosition { log: LOG, epoch: state.mark.epoch, position: state.mark.position };
        let read = RowRead {
            row,
            parked: None,
            as_of: AsOf {
                position,
                written: UnixMillis(0),
                revision: state.revision,
                repaired: UnixMillis(0),
                rebuilding: state.rebuilding,
            },
        };
        let log = self.cache.log(LOG).expect("the log is known").clone();
        self.cache.admit(&log, row_ref(load.key).to_key(), &Arc::new(Entry::read(read, load.history, load.began))).await;
    }

    /// Reads without a token and with that of every event of the log.
    async fn read(&mut self, key: &'static str) -> Result<(), TestCaseError> {
        let tokens: Vec<_> = self.log.iter().map(|event| Some(event.mark)).collect();
        for token in std::iter::once(None).chain(tokens) {
            let log = self.cache.log(LOG).expect("the log is known").clone();
            let Look::Hit(answer) = self.cache.look(&log, row_ref(key), token, self.now).await else { continue };
            self.served += 1;
            let body = answer.entry.row.as_ref().map(|row| row.body());
            self.check_bound(key, &body)?;
            if let Some(token) = token {
                self.check_token(key, &body, token)?;
            }
        }
        Ok(())
    }

    /// The row is one that the store held, whole, not longer ago than a message travels and proves.
    fn check_bound(&self, key: &str, body: &Option<Bytes>) -> Result<(), TestCaseError> {
        let oldest = self.now - PROOF_AGE - LONGEST_WAY;
        let until = |index: usize| self.states.get(index + 1).map_or(self.now, |next| next.since);
        let mut held = self.states.iter().enumerate().filter(|(index, state)| !state.rebuilding && until(*index) >= oldest);
        let recent = held.any(|(_, state)| content(state, key) == *body);
        prop_assert!(recent, "{key} served as {body:?}, which the store has not held of late");
        Ok(())
    }

    /// The row holds every change up to the token: it is one of the folds from there on, or of a history that was taken
    /// back but had the token's part in common.
    fn check_token(&self, key: &str, body: &Option<Bytes>, token: Mark) -> Result<(), TestCaseError> {
        let is = |last: Option<Mark>| (1..=self.state().revision).any(|revision| last.map(|mark| text(mark, revision)) == *body);
        let mut folds = (token.position.0 as usize..=self.log.len()).map(|count| self.fold(count).rows.get(key).copied());
        let mut lost = self.lost.iter().filter(|(_, fork)| *fork >= token.position);
        let holds = folds.any(is) || lost.any(|(mark, _)| is(Some(*mark)));
        prop_assert!(holds, "{key} served as {body:?} to a reader of {token:?}");
        Ok(())
    }
}

fn changed(keys: u8) -> impl Iterator<Item = &'static str> {
    KEYS.iter().enumerate().filter(move |(bit, _)| keys >> bit & 1 == 1).map(|(_, key)| *key)
}

fn row_ref(key: &str) -> RowRef<'_> {
    RowRef { view: View::Order, log: LOG, key }
}

fn text(mark: Mark, revision: u32) -> Bytes {
    format!("{}/{} r{revision}", mark.epoch, mark.position).into()
}

fn content(state: &State, key: &str) -> Option<Bytes> {
    state.rows.get(key).map(|mark| text(*mark, state.revision))
}

fn message(from: Position, to: &State, rows: Vec<ChangedRow>) -> ChangeFeed {
    ChangeFeed {
        region: LOG.region.0.into(),
        partition: LOG.partition.0.into(),
        epoch: to.mark.epoch.0,
        from_position: from.0,
        position: to.mark.position.0,
        rows,
        revision: to.revision,
        time_ms: 0,
        traceparents: Vec::new(),
        repaired_ms: 0,
        epochs: Vec::new(),
        rebuilding: to.rebuilding,
    }
}

async fn run(ops: Vec<Op>) -> Result<usize, TestCaseError> {
    let mut world = World::new();
    world.announce();
    world.deliver(0, false).await;
    for op in ops {
        world.now += Duration::from_millis(10);
        match op {
            Op::Append { keys } => world.append(keys),
            Op::Project { count, with_rows } => world.project(count, with_rows),
            Op::TakeOver => world.epoch = Epoch(world.epoch.0 + 1),
            Op::Restore { back } => world.restore(back),
            Op::Crash { back } => world.crash(back),
            Op::Switch => world.switch(),
            Op::Empty => world.empty(),
            Op::Announce => world.announce(),
            Op::Deliver(index) if !world.under_way.is_empty() => world.deliver(index.index(world.under_way.len()), true).await,
            Op::DeliverNext if !world.under_way.is_empty() => world.deliver(0, false).await,
            Op::Lose(index) if !world.under_way.is_empty() => {
                world.under_way.remove(index.index(world.under_way.len()));
            }
            Op::BeginLoad(key) => world.begin_load(KEYS[key]),
            Op::Snapshot(load, state) if !world.loads.is_empty() => {
                let state = world.present + state.index(world.states.len() - world.present);
                let load = load.index(world.loads.len());
                world.loads[load].read = Some(world.states[state].clone());
            }
            Op::EndLoad(load) if !world.loads.is_empty() => world.end_load(load.index(world.loads.len())).await,
            Op::Evict(key) => world.cache.evict(row_ref(KEYS[key])).await,
            Op::Wait(ms) => world.now += Duration::from_millis(ms.into()),
            Op::Read(key) => world.read(KEYS[key]).await?,
            Op::Deliver(_) | Op::DeliverNext | Op::Lose(_) | Op::Snapshot(..) | Op::EndLoad(_) => {}
        }
    }
    Ok(world.served)
}

#[test]
fn no_row_is_served_below_its_token_or_older_than_the_bound() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let config = ProptestConfig { cases: 4_000, failure_persistence: None, max_shrink_iters: 20_000, ..Default::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let served = std::cell::Cell::new(0);
    let outcome = runner.run(&prop::collection::vec(op(), 1..160), |ops| {
        served.set(served.get() + runtime.block_on(run(ops))?);
        Ok(())
    });
    outcome.unwrap();
    assert!(served.get() > 10_000, "the cache served only {} reads: the model shows nothing", served.get());
}

/// The log is restored before the feed tells of a place that a row was read at, and nothing is appended after.
#[tokio::test]
async fn a_row_of_a_part_that_the_feed_never_told_of_is_not_served_for_ever() {
    let mut world = World::new();
    world.announce();
    world.deliver(0, false).await;
    world.append(8);
    world.project(1, false);
    world.under_way.clear();
    world.begin_load("d");
    world.loads[0].read = Some(world.state().clone());
    world.end_load(0).await;
    world.read("d").await.unwrap();
    assert_eq!(world.served, 2, "the row is served while its reading is recent");
    world.restore(1);
    world.under_way.clear();
    for _ in 0..5 {
        world.now += Duration::from_millis(900);
        world.announce();
        world.deliver(0, false).await;
        world.read("d").await.unwrap();
    }
}

#[tokio::test]
async fn a_row_carried_by_the_feed_is_served_without_a_load() {
    let mut world = World::new();
    world.announce();
    world.deliver(0, false).await;
    world.append(1);
    world.project(1, true);
    world.deliver(0, false).await;
    let log = world.cache.log(LOG).unwrap().clone();
    let Look::Hit(answer) = world.cache.look(&log, row_ref("a"), Some(world.state().mark), world.now).await else { panic!("missed") };
    assert_eq!(answer.entry.row.as_ref().map(|row| row.body()), content(world.state(), "a"));
    assert_eq!(answer.contained, world.state().mark);
}

#[tokio::test]
async fn a_message_for_an_unknown_log_is_ignored() {
    let world = World::new();
    let mut stranger = message(Position(0), world.state(), Vec::new());
    stranger.partition = 4;
    assert_eq!(world.cache.hear(&stranger, world.now, UnixMillis(0)).await, None);
    stranger.partition = 70_000;
    assert_eq!(world.cache.hear(&stranger, world.now, UnixMillis(0)).await, None);
    let own = message(Position(0), world.state(), Vec::new());
    assert_eq!(world.cache.hear(&own, world.now, UnixMillis(0)).await, Some(Step::Jumped));
}
