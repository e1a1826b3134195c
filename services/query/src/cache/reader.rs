use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::future::join_all;
use souk_event_sourcing::{LogId, Token};
use souk_read_store::{Demand, Parked, RowRead};
use tokio::time::{timeout, timeout_at};

use super::{
    entry::Entry,
    flight::{Boarding, Flights},
    freshness::Mark,
    key::{RowKey, RowRef, View},
    log::Log,
    rows::{Answer, Look, RowCache, Wanted},
    wait::{ReadError, Wait, mark_of},
};

/// Longest a row may take to come from the store, so that a hanging connection does not hold its readers for ever.
const LOAD_LIMIT: Duration = Duration::from_secs(10);

/// Longest a reader waits for the store that has no time left. It is less than the margin kept of its deadline.
const LAST_LOOK: Duration = Duration::from_millis(25);

/// Where rows come from.
#[async_trait]
pub(crate) trait RowSource: Send + Sync + 'static {
    /// The row of `key` and the checkpoint of its log, in one snapshot.
    async fn read_row(&self, view: View, log: LogId, key: &str, demand: &Demand) -> Result<RowRead, ReadError>;

    /// Several rows of one view in the order asked for.
    async fn read_rows(&self, view: View, keys: &[(LogId, &str)], demand: &Demand) -> Result<Vec<RowRead>, ReadError>;
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
    loads: AtomicU64,
    hit: metrics::Counter,
    missed: metrics::Counter,
    loaded: metrics::Counter,
}

impl Reader {
    pub fn new(cache: Arc<RowCache>, source: Arc<dyn RowSource>) -> Self {
        let counts = Counts {
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            hit: metrics::counter!("souk_cache_hits_total"),
            missed: metrics::counter!("souk_cache_misses_total"),
            loaded: metrics::counter!("souk_cache_loads_total"),
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

    /// Queries of the store: fewer than misses, since readers share them.
    pub fn loads(&self) -> u64 {
        self.counts.loads.load(Ordering::Relaxed)
    }

    /// One row, containing what `token` names of its log. Waits for that until `until` at most.
    pub async fn read(&self, key: RowRef<'_>, token: &Token, until: Instant) -> Result<Answer, ReadError> {
        let log = self.log(key.log)?;
        let token = mark_of(token, key.log);
        let mut wait = Wait::new(until);
        loop {
            wait.reach(log, token).await?;
            let answer = match self.cache.look(log, key, token, Instant::now()).await {
                Look::Hit(answer) => {
                    self.counts.hit();
                    answer
                }
                Look::Miss(wanted) => timely(until, self.load(log, key, wanted, token)).await?,
            };
            if satisfied(&mut wait, log, token, &answer).await? {
                return Ok(answer);
            }
        }
    }

    /// Several rows of one view in the order asked for.
    pub async fn read_many(&self, keys: &[RowRef<'_>], token: &Token, until: Instant) -> Result<Vec<Answer>, ReadError> {
        let logs = keys.iter().map(|key| self.log(key.log)).collect::<Result<Vec<_>, _>>()?;
        let mut answers: Vec<Option<Answer>> = vec![None; keys.len()];
        let mut open: Vec<usize> = (0..keys.len()).collect();
        let mut wait = Wait::new(until);
        while !open.is_empty() {
            let mut missed = Vec::new();
            for index in std::mem::take(&mut open) {
                let (key, log, token) = (keys[index], logs[index], mark_of(token, keys[index].log));
                wait.reach(log, token).await?;
                match self.cache.look(log, key, token, Instant::now()).await {
                    Look::Hit(answer) => {
                        self.counts.hit();
                        refuse_parked(log.id, token, &answer)?;
                        answers[index] = Some(answer);
                    }
                    Look::Miss(wanted) => missed.push((index, wanted.mark())),
                }
            }
            for ((index, _), answer) in missed.iter().zip(timely(until, self.load_many(&missed, keys, &logs)).await?) {
                let token = mark_of(token, keys[*index].log);
                if satisfied(&mut wait, logs[*index], token, &answer).await? {
                    answers[*index] = Some(answer);
                } else {
                    open.push(*index);
                }
            }
        }
        Ok(answers.into_iter().map(|answer| answer.expect("none is open")).collect())
    }

    /// What is known of a log.
    pub fn log(&self, id: LogId) -> Result<&Arc<Log>, ReadError> {
        self.cache.log(id).ok_or(ReadError::UnknownLog(id))
    }

    /// Reads a row from the store, together with everyone else who wants it. A load that had begun before this reader
    /// came counts only if it met all that was known then; if not, one that begins now does.
    async fn load(&self, log: &Arc<Log>, key: RowRef<'_>, wanted: Wanted, token: Option<Mark>) -> Result<Answer, ReadError> {
        let arrived = self.flights.now();
        let owned = key.to_key();
        loop {
            let find = || self.cache.glance(log, key, token, Instant::now());
            let flight = match self.flights.board(&owned, find, || self.begin(log.clone(), owned.clone(), wanted.mark())) {
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

    /// Reads a row that contains the log up to `least`, if there is one: where the views are behind, they are all there is.
    fn begin(&self, log: Arc<Log>, key: RowKey, least: Mark) -> impl Future<Output = Result<Arc<Entry>, ReadError>> + Send + 'static {
        let (cache, source) = (self.cache.clone(), self.source.clone());
        self.counts.load();
        async move {
            let (history, began) = (log.horizon().history, Instant::now());
            let demand = Demand { fresh: log.recent(least, began).map(|fresh| [fresh].into()), least: Some([log.at_least(least)].into()) };
            let read = timeout(LOAD_LIMIT, source.read_row(key.view, key.log, &key.key, &demand)).await;
            let entry = Arc::new(Entry::read(read.map_err(|_| ReadError::Slow)??, history, began));
            cache.admit(&log, key, &entry).await;
            Ok(entry)
        }
    }

    /// Reads the rows missed, each with the least that it must contain.
    async fn load_many(&self, missed: &[(usize, Mark)], keys: &[RowRef<'_>], logs: &[&Arc<Log>]) -> Result<Vec<Answer>, ReadError> {
        let Some((first, _)) = missed.first() else { return Ok(Vec::new()) };
        let began = Instant::now();
        let demand = Demand {
            fresh: missed.iter().map(|(index, least)| logs[*index].recent(*least, began)).collect(),
            least: Some(missed.iter().map(|(index, least)| logs[*index].at_least(*least)).collect()),
        };
        let histories: Vec<_> = missed.iter().map(|(index, _)| logs[*index].horizon().history).collect();
        let asked: Vec<_> = missed.iter().map(|(index, _)| (keys[*index].log, keys[*index].key)).collect();
        self.counts.load();
        let reads = timeout(LOAD_LIMIT, self.source.read_rows(keys[*first].view, &asked, &demand)).await;
        let reads = reads.map_err(|_| ReadError::Slow)??;
        let entries: Vec<_> = reads.into_iter().zip(histories).map(|(read, history)| Arc::new(Entry::read(read, history, began))).collect();
        join_all(missed.iter().zip(&entries).map(|((index, _), entry)| {
            self.counts.missed();
            self.cache.admit(logs[*index], keys[*index].to_key(), entry)
        }))
        .await;
        Ok(missed.iter().zip(entries).map(|((index, _), entry)| self::fresh(entry, logs[*index])).collect())
    }
}

impl Counts {
    fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.hit.increment(1);
    }

    fn load(&self) {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.loaded.increment(1);
    }

    fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.missed.increment(1);
    }
}

/// An answer from the store: it says of itself when it was true.
fn fresh(entry: Arc<Entry>, log: &Log) -> Answer {
    Answer { contained: entry.provenance.as_of, heard: log.horizon().time.max(entry.written), entry }
}

/// The store may be slower than the caller has patience: then the caller is told so, while others still wait.
pub(crate) async fn timely<T>(until: Instant, load: impl Future<Output = Result<T, ReadError>>) -> Result<T, ReadError> {
    // Whoever has waited for a token to the end still gets one look.
    let until = until.max(Instant::now() + LAST_LOOK);
    timeout_at(until.into(), load).await.map_err(|_| ReadError::Slow)?
}

/// Whether an answer holds what the token names of its log, and comes from views that are whole; if not, some time has passed before the next attempt.
async fn satisfied(wait: &mut Wait, log: &Log, token: Option<Mark>, answer: &Answer) -> Result<bool, ReadError> {
    refuse_parked(log.id, token, answer)?;
    wait.satisfied(log, token, answer.contained, answer.entry.provenance.making.rebuilding).await
}

/// Nothing to wait for: an event the token asks for could not be applied (law 11).
fn refuse_parked(log: LogId, token: Option<Mark>, answer: &Answer) -> Result<(), ReadError> {
    match (answer.entry.parked, token) {
        (Some(Parked { at, .. }), Some(token)) if at <= token.position => Err(ReadError::Parked { log, at }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
