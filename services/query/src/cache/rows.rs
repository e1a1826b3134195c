use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ahash::{HashMap, RandomState};
use bytes::Bytes;
use futures::FutureExt;
use moka::future::Cache;
use souk_event_sourcing::{Epoch, LogId, Partition, Position, Region, UnixMillis};
use souk_proto::log::v1::ChangeFeed;

use super::{
    entry::Entry,
    freshness::{Advance, Horizon, Making, Mark, Step},
    key::{RowKey, RowRef, View},
    log::Log,
};

/// Rows of the views, each served only while provably fresh (law 9), and what is known of the logs they come from.
///
/// Rows are inserted and removed with the log's gate held and never by an initialiser of moka: its `invalidate` does not
/// stop an initialiser that is under way from inserting what it read before.
pub(crate) struct RowCache {
    /// Callers choose ids: the hash is seeded, as std's is, and a good deal faster.
    rows: Cache<RowKey, Arc<Entry>, RandomState>,
    logs: HashMap<LogId, Arc<Log>>,
    floor_rises: AtomicU64,
    risen: metrics::Counter,
}

/// What the cache may hold, and how long it trusts in silence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheLimits {
    /// Weight of all rows together.
    pub bytes: u64,
    /// Buckets per log that remember where the feed last named a key.
    pub buckets: usize,
    /// A log not heard of for this long counts as unproven.
    pub proof_age: Duration,
}

/// A row that answers a reader.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub entry: Arc<Entry>,
    /// Every event up to here is in it.
    pub contained: Mark,
    /// When the log was last heard of.
    pub heard: UnixMillis,
}

/// What the cache says to a reader.
pub(crate) enum Look {
    Hit(Answer),
    Miss(Wanted),
}

/// What a row must be, to answer the reader that missed it in the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    history: u64,
    least: Mark,
    token: Option<Mark>,
}

impl Wanted {
    /// The least that a snapshot must contain to answer.
    pub fn mark(&self) -> Mark {
        self.least.max(self.token.unwrap_or_default())
    }

    /// Whether a row that was perhaps read before the reader came holds all that had been named by then.
    pub fn met_by(&self, entry: &Entry) -> bool {
        let row = entry.provenance;
        row.history == self.history && row.as_of >= self.least && self.token.is_none_or(|token| row.as_of >= token)
    }
}

impl RowCache {
    pub fn new(logs: impl IntoIterator<Item = LogId>, limits: CacheLimits) -> Self {
        let rows = Cache::builder()
            .name("view rows")
            .max_capacity(limits.bytes)
            .weigher(|key: &RowKey, entry: &Arc<Entry>| entry.weight(key))
            .build_with_hasher(RandomState::new());
        Self {
            rows,
            logs: logs.into_iter().map(|id| (id, Arc::new(Log::new(id, &limits)))).collect(),
            floor_rises: AtomicU64::new(0),
            risen: metrics::counter!("souk_cache_floor_rises_total"),
        }
    }

    /// `None` for a log whose views this region does not keep.
    pub fn log(&self, id: LogId) -> Option<&Arc<Log>> {
        self.logs.get(&id)
    }

    pub fn logs(&self) -> impl Iterator<Item = &Arc<Log>> {
        self.logs.values()
    }

    /// The row, if it answers a reader with this token now.
    pub async fn look(&self, log: &Log, key: RowRef<'_>, token: Option<Mark>, now: Instant) -> Look {
        let horizon = log.horizon();
        if horizon.proven(now)
            && let Some(entry) = self.rows.get(&key).await
            && let Some(answer) = answer(entry, &horizon, token, now)
        {
            return Look::Hit(answer);
        }
        // A hit needs none of this, and buckets are many: they are seldom in the processor's caches.
        let (changed, horizon) = log.observe(key.bucket_hash());
        Look::Miss(Wanted { history: horizon.history, least: horizon.least(changed), token })
    }

    /// The same without waiting, for use under a lock: `None` also when moka is busy.
    pub fn glance(&self, log: &Log, key: RowRef<'_>, token: Option<Mark>, now: Instant) -> Option<Answer> {
        let horizon = log.horizon();
        let entry = self.rows.get(&key).now_or_never()??;
        answer(entry, &horizon, token, now)
    }

    /// Keeps a row read from the store, if no change of it may have been missed since; says whether it did.
    pub async fn admit(&self, log: &Log, key: RowKey, entry: &Arc<Entry>) -> bool {
        let _gate = log.gate.lock().await;
        let changed = log.changed.last(key.borrow().bucket_hash());
        let fresh = log.horizon().admits(entry.provenance, changed);
        if fresh {
            self.put(key, entry.clone()).await;
        }
        fresh
    }

    /// Takes in a message of the change feed; `None` when it is about a log unknown here.
    pub async fn hear(&self, message: &ChangeFeed, now: Instant, time: UnixMillis) -> Option<Step> {
        let log = self.logs.get(&log_of(message)?)?;
        let _gate = log.gate.lock().await;
        log.learn(&message.epochs);
        let before = log.horizon();
        let mut horizon = before;
        let advance = Advance {
            epoch: Epoch(message.epoch),
            from: Position(message.from_position),
            to: Position(message.position),
            making: Making::of(message),
        };
        let step = horizon.hear(advance, now, time);
        if !message.rebuilding {
            log.seen(horizon.feed, now);
        }
        let changes = changes(message, log.id);
        match step {
            Step::Repeated => {}
            Step::Continued => {
                // Named, then replaced, then shown: whoever sees the new horizon finds no row from before it.
                changes.for_each(|(key, _)| log.changed.name(key.bucket_hash(), advance.to));
            }
            Step::Jumped => {
                // The floor first: it stands in for the names.
                log.show(horizon);
                log.changed.forget();
                if before.proof_ends().is_some() {
                    self.floor_rises.fetch_add(1, Ordering::Relaxed);
                    self.risen.increment(1);
                }
            }
        }
        if step != Step::Repeated && !message.rebuilding {
            self.write_through(message, log.id, &horizon, now).await;
        }
        log.show(horizon);
        Some(step)
    }

    /// Throws a row out, as moka may do at any time.
    #[cfg(test)]
    pub async fn evict(&self, key: RowRef<'_>) {
        self.forget(key).await;
    }

    /// How often rows read before had to be distrusted.
    pub fn floor_rises(&self) -> u64 {
        self.floor_rises.load(Ordering::Relaxed)
    }

    /// Number of rows held, roughly.
    pub fn entries(&self) -> u64 {
        self.rows.entry_count()
    }

    /// Bytes held, roughly.
    pub fn weight(&self) -> u64 {
        self.rows.weighted_size()
    }

    async fn write_through(&self, message: &ChangeFeed, log: LogId, horizon: &Horizon, now: Instant) {
        for (key, body) in changes(message, log) {
            match body {
                Some(body) => {
                    let entry = Entry::carried(body, message, horizon.history, now);
                    self.put(key.to_key(), Arc::new(entry)).await;
                }
                None => self.forget(key).await,
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "no initialiser of moka ever runs here, and insertions wait at the gate")]
    async fn forget(&self, key: RowRef<'_>) {
        self.rows.invalidate(&key).await;
    }

    /// Inserts, unless a later row is there already.
    async fn put(&self, key: RowKey, entry: Arc<Entry>) {
        if let Some(kept) = self.rows.get(&key).await {
            let (kept, new) = (kept.provenance, entry.provenance);
            if kept.history == new.history && kept.making == new.making && kept.as_of > new.as_of {
                return;
            }
        }
        self.rows.insert(key, entry).await;
    }
}

fn answer(entry: Arc<Entry>, horizon: &Horizon, token: Option<Mark>, now: Instant) -> Option<Answer> {
    horizon.serves(entry.provenance, token, now).then(|| Answer {
        contained: horizon.feed.max(entry.provenance.as_of),
        heard: horizon.time.max(entry.written),
        entry,
    })
}

fn log_of(message: &ChangeFeed) -> Option<LogId> {
    Some(LogId { region: Region(u16::try_from(message.region).ok()?), partition: Partition(u16::try_from(message.partition).ok()?) })
}

/// The rows of a message that are cached here, with their bodies.
fn changes(message: &ChangeFeed, log: LogId) -> impl Iterator<Item = (RowRef<'_>, Option<&Bytes>)> {
    message.rows.iter().filter_map(move |row| {
        let view = View::named(&row.view)?;
        Some((RowRef { view, log, key: &row.key }, row.row.as_ref()))
    })
}
