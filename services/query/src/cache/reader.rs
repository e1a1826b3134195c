use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::future::join_all;
use souk_event_sourcing::{LogId, Position, Token, UnixMillis};
use souk_read_store::{ReadStore, ReadStoreError, RowRead};
use tokio::time::{sleep, timeout, timeout_at};

use super::{
    entry::Entry,
    flight::{Boarding, Crashed, Flights},
    freshness::{Mark, Standing},
    key::{RowKey, RowRef, View},
    log::Log,
    rows::{Answer, Look, RowCache, Wanted},
};

/// Longest a row may take to come from the store, so that a hanging connection does not hold its readers for ever.
const LOAD_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at a store that is behind: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// Where rows come from.
#[async_trait]
pub(crate) trait RowSource: Send + Sync + 'static {
    /// The row of `key` and the checkpoint of its log, in one snapshot.
    async fn read_row(&self, view: View, log: LogId, key: &str) -> Result<RowRead, ReadStoreError>;

    /// Several rows of one view in the order asked for.
    async fn read_rows(&self, view: View, keys: &[(LogId, &str)]) -> Result<Vec<RowRead>, ReadStoreError>;
}

#[async_trait]
impl RowSource for ReadStore {
    async fn read_row(&self, view: View, log: LogId, key: &str) -> Result<RowRead, ReadStoreError> {
        ReadStore::read_row(self, view.table(), log, key).await
    }

    async fn read_rows(&self, view: View, keys: &[(LogId, &str)]) -> Result<Vec<RowRead>, ReadStoreError> {
        ReadStore::read_rows(self, view.table(), keys).await
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("position {} of log {log} is not visible yet, the views are at {}", token.position, known.position)]
    NotYetVisible { log: LogId, token: Mark, known: Mark },
    #[error("position {} of log {log} was taken back by a restore", token.position)]
    Restored { log: LogId, token: Mark },
    #[error("an event of this entity at position {at} of log {log} could not be applied")]
    Parked { log: LogId, at: Position },
    #[error("log {0} is not kept in this region")]
    UnknownLog(LogId),
    #[error(transparent)]
    Store(Arc<ReadStoreError>),
    #[error("the read store did not answer in time")]
    Slow,
    #[error(transparent)]
    Crashed(#[from] Crashed),
}

/// Reads rows from the cache or the store, as fresh as a token asks for.
pub(crate) struct Reader {
    cache: Arc<RowCache>,
    flights: Flights<RowKey, Result<Arc<Entry>, ReadError>>,
    source: Arc<dyn RowSource>,
    counts: Counts,
}

/// How often the cache answered.
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    hit: metrics::Counter,
    missed: metrics::Counter,
}

impl Reader {
    pub fn new(cache: Arc<RowCache>, source: Arc<dyn RowSource>) -> Self {
        let counts = Counts {
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            hit: metrics::counter!("souk_cache_hits_total"),
            missed: metrics::counter!("souk_cache_misses_total"),
        };
        Self { cache, flights: Flights::new(), source, counts }
    }

    pub fn cache(&self) -> &Arc<RowCache> {
        &self.cache
    }

    /// Reads answered by the cache, and by the store.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.counts.hits.load(Ordering::Relaxed), self.counts.misses.load(Ordering::Relaxed))
    }

    /// One row, containing what `token` names of its log. Waits for that until `until` at most.
    pub async fn read(&self, key: RowRef<'_>, token: &Token, until: Instant) -> Result<Answer, ReadError> {
        let log = self.log(key.log)?;
        let token = mark_of(token, key.log);
        let mut wait = Wait::new(until);
        loop {
            if let Some(token) = token {
                wait.reach(log, token).await?;
            }
            let answer = match self.cache.look(log, key, token, Instant::now()).await {
                Look::Hit(answer) => {
                    self.counts.hit();
                    answer
                }
                Look::Miss(wanted) => self.load(log, key, wanted, token).await?,
            };
            match judge(log.id, &answer, token)? {
                Verdict::Enough => return Ok(answer),
                Verdict::Behind(token) => wait.pause(log, token, answer.contained).await?,
            }
        }
    }

    /// Several rows of one view in the order asked for.
    pub async fn read_many(&self, keys: &[RowRef<'_>], token: &Token, until: Instant) -> Result<Vec<Answer>, ReadError> {
        let logs = keys.iter().map(|key| self.log(key.log)).collect::<Result<Vec<_>, _>>()?;
        let mut answers: Vec<Option<Answer>> = vec![None; keys.len()];
        let mut open: Vec<usize> = (0..keys.len()).collect();
        let mut wait = Wait::new(until);
        loop {
            let mut missed = Vec::new();
            for index in open {
                let (key, log, token) = (keys[index], logs[index], mark_of(token, keys[index].log));
                if let Some(token) = token {
                    wait.reach(log, token).await?;
                }
                match self.cache.look(log, key, token, Instant::now()).await {
                    Look::Hit(answer) => {
                        self.counts.hit();
                        judge(key.log, &answer, token)?;
                        answers[index] = Some(answer);
                    }
                    Look::Miss(_) => missed.push(index),
                }
            }
            let mut behind = None;
            open = Vec::new();
            for (index, answer) in missed.iter().zip(self.load_many(&missed, keys, &logs).await?) {
                if let Verdict::Behind(token) = judge(keys[*index].log, &answer, mark_of(token, keys[*index].log))? {
                    behind = Some((*index, token, answer.contained));
                    open.push(*index);
                } else {
                    answers[*index] = Some(answer);
                }
            }
            match behind {
                Some((index, token, known)) => wait.pause(logs[index], token, known).await?,
                None => return Ok(answers.into_iter().map(|answer| answer.expect("neither missed nor behind")).collect()),
            }
        }
    }

    fn log(&self, id: LogId) -> Result<&Arc<Log>, ReadError> {
        self.cache.log(id).ok_or(ReadError::UnknownLog(id))
    }

    /// Reads a row from the store, together with everyone else who wants it. A load that had begun before this reader
    /// came counts only if it met all that was known then; if not, one that begins now does.
    async fn load(&self, log: &Arc<Log>, key: RowRef<'_>, wanted: Wanted, token: Option<Mark>) -> Result<Answer, ReadError> {
        let arrived = self.flights.now();
        let owned = key.to_key();
        loop {
            let find = || self.cache.glance(log, key, token, Instant::now());
            let flight = match self.flights.board(&owned, find, || self.begin(log.clone(), owned.clone())) {
                Boarding::Found(answer) => {
                    self.counts.hit();
                    return Ok(answer);
                }
                Boarding::Flight(flight) => flight,
            };
            let began = flight.began;
            let entry = flight.land().await??;
            if began > arrived || wanted.met_by(&entry) {
                self.counts.missed();
                return Ok(fresh(entry, log));
            }
        }
    }

    fn begin(&self, log: Arc<Log>, key: RowKey) -> impl Future<Output = Result<Arc<Entry>, ReadError>> + Send + 'static {
        let (cache, source) = (self.cache.clone(), self.source.clone());
        async move {
            let history = log.horizon().history;
            let read = timeout(LOAD_LIMIT, source.read_row(key.view, key.log, &key.key)).await;
            let entry = Arc::new(Entry::read(read.map_err(|_| ReadError::Slow)?.map_err(store_error)?, history));
            cache.admit(&log, key, &entry).await;
            Ok(entry)
        }
    }

    async fn load_many(&self, missed: &[usize], keys: &[RowRef<'_>], logs: &[&Arc<Log>]) -> Result<Vec<Answer>, ReadError> {
        let Some(first) = missed.first() else { return Ok(Vec::new()) };
        let histories: Vec<_> = missed.iter().map(|index| logs[*index].horizon().history).collect();
        let asked: Vec<_> = missed.iter().map(|index| (keys[*index].log, keys[*index].key)).collect();
        let reads = timeout(LOAD_LIMIT, self.source.read_rows(keys[*first].view, &asked)).await;
        let reads = reads.map_err(|_| ReadError::Slow)?.map_err(store_error)?;
        let entries: Vec<_> =
            reads.into_iter().zip(histories).map(|(read, history)| Arc::new(Entry::read(read, history))).collect();
        join_all(missed.iter().zip(&entries).map(|(index, entry)| {
            self.counts.missed();
            self.cache.admit(logs[*index], keys[*index].to_key(), entry)
        }))
        .await;
        Ok(missed.iter().zip(entries).map(|(index, entry)| fresh(entry, logs[*index])).collect())
    }
}

impl Counts {
    fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.hit.increment(1);
    }

    fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.missed.increment(1);
    }
}

/// Waiting for tokens within one call.
pub(crate) struct Wait {
    until: Instant,
    pause: Duration,
    began: Option<Instant>,
}

impl Wait {
    pub fn new(until: Instant) -> Self {
        Self { until, pause: PAUSES.0, began: None }
    }

    /// Waits until the feed says that the views have reached `token`. Returns at once when the feed is silent: then only
    /// the store can tell.
    pub async fn reach(&mut self, log: &Log, token: Mark) -> Result<(), ReadError> {
        let mut horizon = log.horizon();
        if horizon.standing(token) == Standing::Reached {
            return Ok(());
        }
        let mut horizons = log.watch();
        loop {
            match horizon.standing(token) {
                Standing::Reached => return Ok(()),
                Standing::Lost => return Err(ReadError::Restored { log: log.id, token }),
                Standing::Ahead => {}
            }
            let now = Instant::now();
            let Some(proof_ends) = horizon.proof_ends().filter(|ends| *ends > now) else { return Ok(()) };
            if now >= self.until {
                return Err(ReadError::NotYetVisible { log: log.id, token, known: horizon.feed });
            }
            self.began.get_or_insert(now);
            // Either a new horizon, or time is up: the next round tells which.
            let _ = timeout_at(self.until.min(proof_ends).into(), horizons.changed()).await;
            horizon = *horizons.borrow_and_update();
        }
    }

    /// Waits before the store is asked again, since it was behind the token at `known`.
    pub async fn pause(&mut self, log: &Log, token: Mark, known: Mark) -> Result<(), ReadError> {
        let now = Instant::now();
        if now >= self.until {
            return Err(ReadError::NotYetVisible { log: log.id, token, known: known.max(log.horizon().feed) });
        }
        self.began.get_or_insert(now);
        sleep(self.pause.min(self.until - now)).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
        Ok(())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            metrics::histogram!("souk_token_wait_seconds").record(began.elapsed());
        }
    }
}

enum Verdict {
    Enough,
    /// The token that is ahead of the answer.
    Behind(Mark),
}

/// Whether an answer holds what the token names of its log.
fn judge(log: LogId, answer: &Answer, token: Option<Mark>) -> Result<Verdict, ReadError> {
    let Some(token) = token else { return Ok(Verdict::Enough) };
    if let Some(at) = answer.entry.row.as_ref().and_then(|row| row.parked_at).filter(|at| *at <= token.position) {
        return Err(ReadError::Parked { log, at });
    }
    match token.against_snapshot(answer.contained) {
        Standing::Reached => Ok(Verdict::Enough),
        Standing::Ahead => Ok(Verdict::Behind(token)),
        Standing::Lost => Err(ReadError::Restored { log, token }),
    }
}

/// An answer from the store: it says of itself when it was true.
fn fresh(entry: Arc<Entry>, log: &Log) -> Answer {
    Answer { contained: entry.provenance.as_of, heard: log.horizon().time.max(entry.written), entry }
}

/// What a token says of a log.
pub(crate) fn mark_of(token: &Token, log: LogId) -> Option<Mark> {
    token.of(log).map(|part| Mark { epoch: part.epoch, position: part.position })
}

pub(crate) fn store_error(error: ReadStoreError) -> ReadError {
    ReadError::Store(Arc::new(error))
}

/// The wall clock.
pub(crate) fn wall_clock() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
