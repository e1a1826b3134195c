use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use souk_event_sourcing::{LogPosition, Token, TokenKey, Topology, UnixMillis};
use souk_read_store::{AsOf, Demand, ReadStore};
use souk_runtime::{Deadline, Failure, Settings};
use souk_views::read::{Page, Routing, Scope};

use crate::{
    cache::{CacheLimits, Log, Mark, ReadError, Reader, RowCache, Wait, mark_of, timely},
    doors::Doors,
};

/// What every query works with, once the read store is open.
pub(crate) struct Core {
    pub store: Arc<ReadStore>,
    pub reader: Reader,
    doors: Arc<Doors>,
    pub routing: Routing,
    pub token_key: TokenKey,
    pub settings: Arc<Settings>,
}

/// How fresh an answer is.
#[derive(Debug, Clone)]
pub(crate) struct Freshness {
    /// Everything up to these positions is in it.
    pub positions: Vec<LogPosition>,
    /// When this was last known to be what the views are, the least of these logs.
    pub heard: UnixMillis,
    pub stale_since: Option<UnixMillis>,
}

impl Core {
    pub fn new(store: ReadStore, topology: Topology, settings: Arc<Settings>) -> Self {
        let store = Arc::new(store);
        let limits = CacheLimits {
            bytes: settings.query.cache_bytes,
            buckets: settings.query.change_buckets,
            proof_age: settings.query.unproven_after,
        };
        let cache = Arc::new(RowCache::new(store.logs(), limits));
        let doors = Arc::new(Doors::new(store.clone(), &settings));
        Self {
            reader: Reader::new(cache, doors.clone()),
            doors,
            store,
            routing: Routing::new(Arc::new(topology)),
            token_key: settings.installation.token_key(),
            settings,
        }
    }

    /// Until when a call may wait for what its token names.
    pub fn patience(&self, deadline: Deadline) -> Instant {
        Instant::now() + deadline.budget(self.settings.query.token_margin, self.settings.query.token_wait)
    }

    /// Bytes that rows of one reply may have, beside `freshness`.
    pub fn room(&self, freshness: &Freshness) -> usize {
        const PER_POSITION: usize = 80;
        const REST: usize = 1024;
        self.settings.grpc.max_message_bytes.saturating_sub(freshness.positions.len() * PER_POSITION + REST)
    }

    /// Runs a query over many rows until its snapshots hold what the token names of the logs in `scope`, whose views must all be
    /// whole: rows that are missing from a list, or from a sum, nobody could tell.
    pub async fn listed<T, F>(&self, scope: Scope, token: &Token, until: Instant, query: impl Fn(Demand) -> F) -> Result<Page<T>, ReadError>
    where
        F: Future<Output = Result<Page<T>, souk_read_store::ReadStoreError>>,
    {
        for part in token.parts().iter().filter(|part| scope.contains(part.log)) {
            self.reader.log(part.log)?;
        }
        let mut wait = Wait::new(until);
        'again: loop {
            for log in self.reader.cache().logs().filter(|log| scope.contains(log.id)) {
                wait.reach(log, mark_of(token, log.id)).await?;
            }
            let places = self.doors.enter(self.store.logs().filter(|log| scope.contains(*log)))?;
            let page = timely(until, async { Ok(query(self.demand(scope, token)).await?) }).await?;
            drop(places);
            for as_of in &page.as_of {
                let log = self.reader.log(as_of.position.log)?;
                let contained = Mark { epoch: as_of.position.epoch, position: as_of.position.position };
                if !wait.satisfied(log, mark_of(token, log.id), contained, as_of.rebuilding).await? {
                    continue 'again;
                }
            }
            return Ok(page);
        }
    }

    /// How far a replica must be to answer with a list of the logs in `scope`: as far as the token, and no longer behind than
    /// an answer may be old; while the primary is away, no longer behind what was last seen. A replica that has crashed itself
    /// may answer out of the past until it has replayed what it knew.
    fn demand(&self, scope: Scope, token: &Token) -> Demand {
        let (now, least) = (Instant::now(), |log: &Log| mark_of(token, log.id).unwrap_or_default());
        let logs = || self.reader.cache().logs().filter(|log| scope.contains(log.id));
        Demand {
            fresh: logs().map(|log| log.recent(least(log), now)).collect(),
            least: Some(logs().map(|log| log.last_seen(least(log))).collect()),
        }
    }

    /// How fresh a list is.
    pub fn freshness_of(&self, as_of: &[AsOf], stale_since: Option<UnixMillis>) -> Freshness {
        let begun = || as_of.iter().filter(|as_of| as_of.position.position.0 > 0);
        let heard = begun().map(|as_of| {
            let contained = Mark { epoch: as_of.position.epoch, position: as_of.position.position };
            let known = self.reader.log(as_of.position.log).map(|log| log.current_until(contained));
            known.unwrap_or_default().max(as_of.written)
        });
        Freshness {
            heard: heard.min().unwrap_or_else(UnixMillis::now),
            positions: begun().map(|as_of| as_of.position).collect(),
            stale_since,
        }
    }
}

/// The way to [`Core`], which is not there before the read store is open, and another one when the regions have changed.
#[derive(Clone, Default)]
pub(crate) struct Entrance(Arc<RwLock<Option<Arc<Core>>>>);

const RETRY_START: Duration = Duration::from_millis(500);

impl Entrance {
    /// # Errors
    /// UNAVAILABLE (STARTING) as long as there is no read store.
    pub fn core(&self) -> Result<Arc<Core>, Failure> {
        let core = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        core.ok_or_else(|| Failure::unavailable("STARTING", "the read store is not open yet", RETRY_START))
    }

    /// Lets queries in to this core from now on.
    pub fn open(&self, core: Arc<Core>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(core);
    }
}
