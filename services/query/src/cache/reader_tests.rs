//! Readers against a store in memory that can be held and moved.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64},
    },
};

use bytes::Bytes;
use futures::future::join_all;
use souk_event_sourcing::{Epoch, LogPosition, Partition, Position, Region, UnixMillis};
use souk_proto::log::v1::{ChangeFeed, ChangedRow};
use souk_read_store::{AsOf, Parked, ViewRow};
use tokio::sync::Semaphore;

use super::*;
use crate::cache::rows::CacheLimits;

const LOG: LogId = LogId { region: Region(1), partition: Partition(3) };
const EPOCH: u64 = 7;
const PROOF_AGE: Duration = Duration::from_millis(300);

/// A store of one log: each change of a key writes its position as the row.
struct Shelf {
    state: Mutex<(u64, BTreeMap<String, u64>)>,
    parked: Mutex<BTreeMap<String, u64>>,
    reads: AtomicU64,
    away: AtomicBool,
    rebuilding: AtomicBool,
    /// Snapshots that may be handed out; many, unless a test holds them back.
    released: Semaphore,
}

impl Shelf {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            parked: Mutex::default(),
            reads: AtomicU64::new(0),
            away: AtomicBool::new(false),
            rebuilding: AtomicBool::new(false),
            released: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    fn hold(&self) {
        self.released.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn release(&self) {
        self.released.add_permits(1_000_000);
    }

    /// Changes a key; returns what the feed says of it.
    fn change(&self, key: &str, with_row: bool) -> ChangeFeed {
        let mut state = self.state.lock().unwrap();
        let from = state.0;
        state.0 += 1;
        let position = state.0;
        state.1.insert(key.to_owned(), position);
        let row = with_row.then(|| Bytes::from(position.to_string()));
        message(from, position, vec![ChangedRow { view: View::Product.table().name().to_owned(), key: key.to_owned(), row }])
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl RowSource for Shelf {
    async fn read_row(&self, _: View, log: LogId, key: &str, _: &Demand) -> Result<RowRead, ReadError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let (position, row) = {
            let state = self.state.lock().unwrap();
            (state.0, state.1.get(key).copied())
        };
        self.released.acquire().await.expect("never closed").forget();
        if self.away.load(Ordering::SeqCst) {
            return Err(souk_read_store::ReadStoreError::NotInstalled("shelf".into()).into());
        }
        let parked = self.parked.lock().unwrap().get(key).copied();
        let row = row.map(|row| ViewRow {
            version: Default::default(),
            position: Position(row),
            revision: 1,
            updated: UnixMillis(0),
            body: row.to_string().into(),
        });
        let position = LogPosition { log, epoch: Epoch(EPOCH), position: Position(position) };
        let parked = parked.map(|at| Parked { at: Position(at), since: UnixMillis(5) });
        let rebuilding = self.rebuilding.load(Ordering::SeqCst);
        Ok(RowRead { row, parked, as_of: AsOf { position, written: UnixMillis(0), revision: 1, repaired: UnixMillis(0), rebuilding } })
    }

    async fn read_rows(&self, view: View, keys: &[(LogId, &str)], demand: &Demand) -> Result<Vec<RowRead>, ReadError> {
        join_all(keys.iter().map(|(log, key)| self.read_row(view, *log, key, demand))).await.into_iter().collect()
    }
}

fn message(from: u64, to: u64, rows: Vec<ChangedRow>) -> ChangeFeed {
    ChangeFeed {
        region: LOG.region.0.into(),
        partition: LOG.partition.0.into(),
        epoch: EPOCH,
        from_position: from,
        position: to,
        rows,
        revision: 1,
        ..Default::default()
    }
}

fn token(position: u64) -> Token {
    LogPosition { log: LOG, epoch: Epoch(EPOCH), position: Position(position) }.into()
}

fn key(key: &str) -> RowRef<'_> {
    RowRef { view: View::Product, log: LOG, key }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn value(answer: &Answer) -> Option<u64> {
    answer.entry.row.as_ref().map(|row| std::str::from_utf8(&row.body()).unwrap().parse().unwrap())
}

struct Bench {
    shelf: Arc<Shelf>,
    reader: Arc<Reader>,
}

impl Bench {
    fn new() -> Self {
        let shelf = Shelf::new();
        let cache = Arc::new(RowCache::new([LOG], CacheLimits { bytes: 1 << 20, buckets: 64, proof_age: PROOF_AGE }));
        Self { reader: Arc::new(Reader::new(cache, shelf.clone())), shelf }
    }

    async fn hear(&self, message: ChangeFeed) {
        self.reader.cache().hear(&message, Instant::now(), UnixMillis::now()).await.unwrap();
    }

    async fn announce(&self, position: u64) {
        self.hear(message(position, position, Vec::new())).await;
    }

    fn spawn_read(&self, token: Token) -> tokio::task::JoinHandle<Result<Answer, ReadError>> {
        let reader = self.reader.clone();
        tokio::spawn(async move { reader.read(key("a"), &token, soon()).await })
    }

    async fn until_reads(&self, reads: u64) {
        while self.shelf.reads() < reads {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_thousand_concurrent_misses_of_one_row_read_the_store_once() {
    let bench = Bench::new();
    bench.shelf.change("a", false);
    bench.announce(1).await;
    bench.shelf.hold();
    let readers: Vec<_> = (0..1000).map(|_| bench.spawn_read(Token::default())).collect();
    bench.until_reads(1).await;
    bench.shelf.release();
    for reader in readers {
        assert_eq!(value(&reader.await.unwrap().unwrap()), Some(1));
    }
    assert_eq!(bench.shelf.reads(), 1);
    let (hits, misses) = bench.reader.hits_and_misses();
    assert_eq!(hits + misses, 1000);
}

#[tokio::test]
async fn that_there_is_no_row_is_remembered_too() {
    let bench = Bench::new();
    bench.announce(0).await;
    let message = bench.shelf.change("b", false);
    bench.hear(message).await;
    for _ in 0..3 {
        assert_eq!(value(&bench.reader.read(key("a"), &token(1), soon()).await.unwrap()), None);
    }
    assert_eq!(bench.shelf.reads(), 1);
    let message = bench.shelf.change("a", false);
    bench.hear(message).await;
    assert_eq!(value(&bench.reader.read(key("a"), &token(2), soon()).await.unwrap()), Some(2));
}

#[tokio::test]
async fn a_load_begun_before_a_change_does_not_satisfy_a_reader_whose_token_is_past_it() {
    let bench = Bench::new();
    bench.shelf.change("a", false);
    bench.announce(1).await;
    bench.shelf.hold();
    let early = bench.spawn_read(Token::default());
    bench.until_reads(1).await;
    let change = bench.shelf.change("a", false);
    bench.hear(change).await;
    let late = bench.spawn_read(token(2));
    let without_token = bench.spawn_read(Token::default());
    tokio::task::yield_now().await;
    bench.shelf.release();
    assert_eq!(value(&early.await.unwrap().unwrap()), Some(1));
    assert_eq!(value(&late.await.unwrap().unwrap()), Some(2));
    assert_eq!(value(&without_token.await.unwrap().unwrap()), Some(2), "the change was known when this reader came");
    assert_eq!(bench.shelf.reads(), 2);
    assert_eq!(value(&bench.reader.read(key("a"), &token(2), soon()).await.unwrap()), Some(2));
    assert_eq!(bench.shelf.reads(), 2, "the late load was kept, the early one was not");
}

#[tokio::test]
async fn a_load_survives_the_reader_that_began_it() {
    let bench = Bench::new();
    bench.announce(0).await;
    bench.shelf.hold();
    let first = bench.spawn_read(Token::default());
    bench.until_reads(1).await;
    let second = bench.spawn_read(Token::default());
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    bench.shelf.release();
    assert_eq!(value(&second.await.unwrap().unwrap()), None);
    assert_eq!(bench.shelf.reads(), 1);
}

#[tokio::test]
async fn a_failed_load_is_told_to_all_and_tried_anew_by_the_next() {
    let bench = Bench::new();
    bench.announce(0).await;
    bench.shelf.away.store(true, Ordering::SeqCst);
    assert!(matches!(bench.reader.read(key("a"), &Token::default(), soon()).await, Err(ReadError::Store(_))));
    bench.shelf.away.store(false, Ordering::SeqCst);
    assert_eq!(value(&bench.reader.read(key("a"), &Token::default(), soon()).await.unwrap()), None);
}

#[tokio::test]
async fn a_token_is_waited_for_until_the_feed_reaches_it() {
    let bench = Bench::new();
    bench.announce(0).await;
    let change = bench.shelf.change("a", true);
    let reader = bench.spawn_read(token(1));
    // It waits for the feed, not for the store, which has the row already.
    tokio::task::yield_now().await;
    assert_eq!((reader.is_finished(), bench.shelf.reads()), (false, 0));
    bench.hear(change).await;
    assert_eq!(value(&reader.await.unwrap().unwrap()), Some(1));
    assert_eq!(bench.shelf.reads(), 0, "the feed carried the row");
}

#[tokio::test]
async fn a_silent_feed_sends_readers_to_the_store() {
    let bench = Bench::new();
    bench.shelf.change("a", false);
    assert_eq!(value(&bench.reader.read(key("a"), &token(1), soon()).await.unwrap()), Some(1));
    // The announcement is lost while a reader waits for it.
    bench.announce(1).await;
    let reader = bench.spawn_read(token(2));
    tokio::task::yield_now().await;
    bench.shelf.change("a", false);
    assert_eq!(value(&reader.await.unwrap().unwrap()), Some(2));
}

#[tokio::test]
async fn what_does_not_become_visible_in_time_is_told_with_its_lag() {
    let bench = Bench::new();
    bench.shelf.change("a", false);
    for announced in [false, true] {
        if announced {
            bench.announce(1).await;
        }
        let until = Instant::now() + Duration::from_millis(60);
        match bench.reader.read(key("a"), &token(9), until).await {
            Err(ReadError::NotYetVisible { token, known, .. }) => assert_eq!((token.position.0, known.position.0), (9, 1)),
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() >= until);
    }
}

#[tokio::test]
async fn a_token_of_a_log_that_went_back_is_refused_at_once() {
    let bench = Bench::new();
    bench.shelf.change("a", false);
    let lost: Token = LogPosition { log: LOG, epoch: Epoch(EPOCH - 1), position: Position(5) }.into();
    for announced in [false, true] {
        if announced {
            bench.announce(1).await;
        }
        assert!(matches!(bench.reader.read(key("a"), &lost, soon()).await, Err(ReadError::Restored { .. })));
        assert!(matches!(bench.reader.read_many(&[key("a")], &lost, soon()).await, Err(ReadError::Restored { .. })));
    }
}

#[tokio::test]
async fn a_token_past_a_parked_event_is_refused_and_the_row_stays_readable() {
    let bench = Bench::new();
    bench.shelf.change("a", false);
    bench.shelf.change("b", false);
    bench.shelf.parked.lock().unwrap().insert("a".into(), 2);
    bench.announce(2).await;
    for _ in 0..2 {
        assert!(matches!(bench.reader.read(key("a"), &token(2), soon()).await, Err(ReadError::Parked { .. })));
        let answer = bench.reader.read(key("a"), &token(1), soon()).await.unwrap();
        assert_eq!(answer.entry.parked.unwrap().since, UnixMillis(5));
    }
    assert_eq!(bench.shelf.reads(), 1);
}

/// Its first event could not be applied, so there is no row: that is told at once, and not waited for.
#[tokio::test]
async fn a_token_past_the_parked_first_event_of_an_entity_is_refused() {
    let bench = Bench::new();
    bench.shelf.change("b", false);
    bench.shelf.parked.lock().unwrap().insert("a".into(), 1);
    bench.announce(1).await;
    for _ in 0..2 {
        assert!(matches!(bench.reader.read(key("a"), &token(1), soon()).await, Err(ReadError::Parked { .. })));
        assert!(matches!(bench.reader.read_many(&[key("a")], &token(1), soon()).await, Err(ReadError::Parked { .. })));
        assert!(bench.reader.read(key("a"), &Token::default(), soon()).await.unwrap().entry.row.is_none());
    }
}

/// A replay changes rows where no position moves.
#[tokio::test]
async fn a_row_from_before_a_repair_is_read_again() {
    let bench = Bench::new();
    bench.shelf.change("a", false);
    bench.announce(1).await;
    bench.reader.read(key("a"), &token(1), soon()).await.unwrap();
    bench.reader.read(key("a"), &token(1), soon()).await.unwrap();
    assert_eq!(bench.shelf.reads(), 1);
    bench.hear(ChangeFeed { repaired_ms: 5, ..message(1, 1, Vec::new()) }).await;
    bench.reader.read(key("a"), &token(1), soon()).await.unwrap();
    assert_eq!(bench.shelf.reads(), 2);
}

#[tokio::test]
async fn views_that_are_made_anew_answer_nobody_until_they_are_whole() {
    let bench = Bench::new();
    let rebuilding = |rebuilding| ChangeFeed { rebuilding, ..message(1, 1, Vec::new()) };
    bench.shelf.change("a", false);
    bench.shelf.rebuilding.store(true, Ordering::SeqCst);
    for (announced, reads) in [(false, 3), (true, 3)] {
        if announced {
            bench.hear(rebuilding(true)).await;
        }
        let refused = bench.reader.read(key("a"), &Token::default(), soon()).await;
        assert!(matches!(refused, Err(ReadError::Rebuilding { position: Position(1), .. })), "{refused:?}");
        assert!(matches!(bench.reader.read_many(&[key("x")], &Token::default(), soon()).await, Err(ReadError::Rebuilding { .. })));
        // Who has a token waits for its end.
        let impatient = bench.reader.read(key("a"), &token(1), Instant::now() + Duration::from_millis(1)).await;
        assert!(matches!(impatient, Err(ReadError::Rebuilding { .. })), "{impatient:?}");
        assert!(bench.shelf.reads() >= reads, "the store is asked while the feed is silent");
    }
    let asked = bench.shelf.reads();
    let patient = bench.spawn_read(token(1));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((patient.is_finished(), bench.shelf.reads()), (false, asked), "it waits for the feed");
    bench.shelf.rebuilding.store(false, Ordering::SeqCst);
    bench.hear(rebuilding(false)).await;
    assert_eq!(value(&patient.await.unwrap().unwrap()), Some(1));
    assert_eq!(value(&bench.reader.read(key("a"), &Token::default(), soon()).await.unwrap()), Some(1));
    assert_eq!(bench.shelf.reads(), asked + 1, "what was read of views that were not whole was not kept");
}

#[tokio::test]
async fn a_batch_takes_from_the_cache_what_it_can_and_keeps_the_order() {
    let bench = Bench::new();
    for key in ["a", "b", "c"] {
        bench.shelf.change(key, false);
    }
    bench.announce(3).await;
    bench.reader.read(key("b"), &Token::default(), soon()).await.unwrap();
    let keys = [key("c"), key("b"), key("x"), key("a"), key("c")];
    let answers = bench.reader.read_many(&keys, &token(3), soon()).await.unwrap();
    assert_eq!(answers.iter().map(value).collect::<Vec<_>>(), [Some(3), Some(2), None, Some(1), Some(3)]);
    assert_eq!(bench.shelf.reads(), 5, "b was cached; c was asked for twice");
    let again = bench.reader.read_many(&keys, &token(3), soon()).await.unwrap();
    assert_eq!((again.iter().map(value).collect::<Vec<_>>(), bench.shelf.reads()), (answers.iter().map(value).collect(), 5));
}

#[tokio::test]
async fn an_unknown_log_is_told() {
    let bench = Bench::new();
    let stranger = RowRef { log: LogId { partition: Partition(4), ..LOG }, ..key("a") };
    assert!(matches!(bench.reader.read(stranger, &Token::default(), soon()).await, Err(ReadError::UnknownLog(_))));
}

#[tokio::test]
async fn no_row_is_kept_while_a_message_is_taken_in() {
    let bench = Bench::new();
    bench.announce(0).await;
    let log = bench.reader.cache().log(LOG).unwrap().clone();
    let gate = log.gate.lock().await;
    let reader = bench.spawn_read(Token::default());
    bench.until_reads(1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!reader.is_finished(), "the row was checked or inserted beside the message");
    drop(gate);
    reader.await.unwrap().unwrap();
}

/// The guarantee under real concurrency: changes, a feed that loses messages, and readers on several threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_reader_gets_a_row_older_than_its_token_while_everything_moves() {
    const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
    let bench = Arc::new(Bench::new());
    bench.announce(0).await;
    let done = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (bench, done) = (bench.clone(), done.clone());
        async move {
            for count in 0u64..5_000 {
                let message =
                    bench.shelf.change(KEYS[(count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % KEYS.len()], count % 3 == 0);
                // Every seventh message is lost; the next one tells.
                if count % 7 != 3 {
                    bench.hear(message).await;
                }
                if count % 4 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            done.store(true, Ordering::SeqCst);
        }
    });
    let readers = (0..6).map(|reader| {
        let (bench, done) = (bench.clone(), done.clone());
        tokio::spawn(async move {
            let (mut reads, mut seen) = (0, [0; KEYS.len()]);
            while !done.load(Ordering::SeqCst) {
                let index = (reads + reader) % KEYS.len();
                let (position, expected) = {
                    let state = bench.shelf.state.lock().unwrap();
                    (state.0, state.1.get(KEYS[index]).copied())
                };
                let answer = bench.reader.read(key(KEYS[index]), &token(position), soon()).await.unwrap();
                assert!(value(&answer) >= expected, "{:?} for a reader who knew {expected:?}", value(&answer));
                assert!(value(&answer).unwrap_or(0) >= seen[index], "went back though the token grew");
                seen[index] = value(&answer).unwrap_or(0);
                reads += 1;
                // A reader that only hits never waits, and would keep the writer from its turn.
                tokio::task::yield_now().await;
            }
            reads
        })
    });
    let reads: usize = join_all(readers).await.into_iter().map(Result::unwrap).sum();
    writer.await.unwrap();
    let (hits, _) = bench.reader.hits_and_misses();
    assert!(reads > 200 && hits > 20, "{reads} reads, {hits} hits: nothing was shown");
}
