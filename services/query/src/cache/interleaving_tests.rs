//! Tasks that meet in the cache in every order shuttle comes upon: the feed against readers and loads, and loads against
//! each other. Each order of steps that matters is also tried the wrong way round, which must be noticed.

use std::{
    panic,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use shuttle::future::{block_on, spawn};
use souk_event_sourcing::{Epoch, LogId, LogPosition, Partition, Position, Region, UnixMillis};
use souk_proto::log::v1::{ChangeFeed, ChangedRow};
use souk_read_store::{AsOf, RowRead, ViewRow};

use super::{
    entry::Entry,
    flight::{Boarding, Flights},
    freshness::{Advance, Making, Mark},
    key::{RowRef, View},
    log::Log,
    rows::{CacheLimits, Look, RowCache},
};

const LOG: LogId = LogId { region: Region(1), partition: Partition(0) };
const ROW: RowRef<'_> = RowRef { view: View::Order, log: LOG, key: "a" };
const SCHEDULES: usize = 3_000;

/// Whether `run` holds under all schedules that are tried.
fn holds(run: impl Fn() + Send + Sync + 'static) -> bool {
    panic::catch_unwind(panic::AssertUnwindSafe(|| shuttle::check_random(run, SCHEDULES))).is_ok()
}

fn message(from: u64, to: u64, changes: bool) -> ChangeFeed {
    let row = ChangedRow { view: ROW.view.table().name().to_owned(), key: ROW.key.to_owned(), row: None };
    ChangeFeed {
        region: LOG.region.0.into(),
        partition: LOG.partition.0.into(),
        epoch: 1,
        from_position: from,
        position: to,
        rows: changes.then_some(row).into_iter().collect(),
        revision: 1,
        ..Default::default()
    }
}

/// The row as a snapshot at `position` has it, read before anything else happened.
fn row_as_of(position: u64, began: Instant) -> Arc<Entry> {
    let position = Position(position);
    let as_of = AsOf {
        position: LogPosition { log: LOG, epoch: Epoch(1), position },
        written: UnixMillis(0),
        revision: 1,
        repaired: UnixMillis(0),
        rebuilding: false,
    };
    let row = ViewRow {
        version: souk_event_sourcing::Version(1),
        position,
        revision: 1,
        updated: UnixMillis(0),
        body: Bytes::from_static(b"row"),
    };
    Arc::new(Entry::read(RowRead { row: Some(row), parked: None, as_of }, 0, began))
}

struct World {
    cache: RowCache,
    log: Arc<Log>,
    now: Instant,
}

impl World {
    /// The feed is at position 1.
    async fn new() -> Arc<Self> {
        let limits = CacheLimits { bytes: 1 << 20, buckets: 1, proof_age: Duration::from_secs(60) };
        let (cache, now) = (RowCache::new([LOG], limits), Instant::now());
        cache.hear(&message(0, 1, false), now, UnixMillis(0)).await;
        let log = cache.log(LOG).expect("its log").clone();
        Arc::new(Self { cache, log, now })
    }

    async fn hear(&self, message: ChangeFeed) {
        self.cache.hear(&message, self.now, UnixMillis(0)).await;
    }

    /// Takes a message in the wrong way round: shown, then named, then replaced.
    async fn hear_shown_first(&self, message: ChangeFeed) {
        let advance = Advance {
            epoch: Epoch(message.epoch),
            from: Position(message.from_position),
            to: Position(message.position),
            making: Making::of(&message),
        };
        let mut horizon = self.log.horizon();
        horizon.hear(advance, self.now, UnixMillis(0));
        self.log.show(horizon);
        self.log.changed.name(ROW.bucket_hash(), advance.to);
        self.cache.evict(ROW).await;
    }

    /// A row that answers now holds what it is said to hold: it changed at position 2.
    async fn read(&self) {
        if let Look::Hit(answer) = self.cache.look(&self.log, ROW, None, self.now).await {
            let as_of = answer.entry.provenance.as_of.position;
            assert!(
                answer.contained.position < Position(2) || as_of >= Position(2),
                "a row as of {as_of} is said to hold all of {:?}",
                answer.contained
            );
        }
    }
}

/// A message that changes the row arrives while it is read and while a load from before it lands.
fn feed_against_readers(shown_first: bool) -> bool {
    holds(move || {
        block_on(async move {
            let world = World::new().await;
            let old = row_as_of(1, world.now);
            world.cache.admit(&world.log, ROW.to_key(), &old).await;
            let feed = spawn({
                let world = world.clone();
                async move {
                    match shown_first {
                        true => world.hear_shown_first(message(1, 2, true)).await,
                        false => world.hear(message(1, 2, true)).await,
                    }
                }
            });
            let load = spawn({
                let world = world.clone();
                async move {
                    world.cache.admit(&world.log, ROW.to_key(), &old).await;
                }
            });
            let reader = spawn({
                let world = world.clone();
                async move { world.read().await }
            });
            for task in [feed, load, reader] {
                task.await.expect("a task");
            }
            world.read().await;
        });
    })
}

#[test]
fn named_then_replaced_then_shown_leaves_no_old_row_under_a_new_horizon() {
    assert!(feed_against_readers(false));
    assert!(!feed_against_readers(true), "shown first, and nobody noticed");
}

/// What a reader that misses the row asks of it, while the feed jumps and forgets what it named: the row changed at
/// position 2, so that one as of 1 must not do.
fn reader_against_a_jump(observe: fn(&Log) -> (Position, super::Horizon)) -> bool {
    holds(move || {
        block_on(async move {
            let world = World::new().await;
            world.hear(message(1, 2, true)).await;
            let feed = spawn({
                let world = world.clone();
                async move { world.hear(message(3, 4, false)).await }
            });
            let reader = spawn({
                let world = world.clone();
                async move {
                    let (changed, horizon) = observe(&world.log);
                    let old = Mark { epoch: Epoch(1), position: Position(1) };
                    assert!(old < horizon.least(changed), "a row from before its change would do");
                }
            });
            feed.await.expect("the feed");
            reader.await.expect("a reader");
        });
    })
}

#[test]
fn what_was_named_is_looked_at_before_the_horizon() {
    assert!(reader_against_a_jump(|log| log.observe(ROW.bucket_hash())));
    let horizon_first = |log: &Log| {
        let horizon = log.horizon();
        (log.changed.last(ROW.bucket_hash()), horizon)
    };
    assert!(!reader_against_a_jump(horizon_first), "the horizon first, and nobody noticed");
}

/// Two callers want the same row, which is loaded once: whoever comes when the load has landed finds it.
fn callers_against_each_other(find_before: bool) -> bool {
    holds(move || {
        block_on(async move {
            let flights: Arc<Flights<u8, u64>> = Arc::new(Flights::new());
            let (loads, kept) = (Arc::new(AtomicUsize::new(0)), Arc::new(super::sync::AtomicU64::new(0)));
            let caller = || {
                let (flights, loads, kept) = (flights.clone(), loads.clone(), kept.clone());
                spawn(async move {
                    let found = || Some(kept.load(Ordering::SeqCst)).filter(|found| *found > 0);
                    let before = if find_before { found() } else { None };
                    let find = || if find_before { before } else { found() };
                    let load = || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        let kept = kept.clone();
                        async move {
                            kept.store(7, Ordering::SeqCst);
                            7
                        }
                    };
                    match flights.board(&1, find, load) {
                        Boarding::Flight(flight) => assert_eq!(flight.land().await, Ok(7)),
                        Boarding::Found(found) => assert_eq!(found, 7),
                    }
                })
            };
            for task in [caller(), caller()] {
                task.await.expect("a caller");
            }
            assert_eq!(loads.load(Ordering::SeqCst), 1, "loads of one row");
        });
    })
}

#[test]
fn a_row_that_two_want_is_loaded_once() {
    assert!(callers_against_each_other(false));
    assert!(!callers_against_each_other(true), "looked for before boarding, and nobody noticed");
}
