use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use souk_event_sourcing::LogId;
use souk_event_store::{End, Head, PostgresStore};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

/// How often it is looked where logs end, as long as somebody waits for one to move on.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What was seen longer ago proves nothing any more.
const FRESH: Duration = Duration::from_secs(1);

/// Where all logs kept here end, looked at once for all who follow one: each by itself, the tails of a few regions would keep
/// the databases busy while nothing is written. Clones share it.
#[derive(Clone)]
pub struct Ends {
    shared: Arc<Shared>,
    _looking: Arc<AbortOnDropHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ends: watch::Sender<HashMap<LogId, End>>,
    looked: Mutex<Option<Instant>>,
    wanted: Notify,
}

/// Where one log ends.
pub struct LogEnd {
    log: LogId,
    shared: Arc<Shared>,
    changes: watch::Receiver<HashMap<LogId, End>>,
}

impl Ends {
    pub fn of(store: Arc<PostgresStore>) -> Self {
        let shared = Arc::<Shared>::default();
        let looking = AbortOnDropHandle::new(tokio::spawn(look(store, shared.clone())));
        Self { shared, _looking: Arc::new(looking) }
    }

    pub fn watch(&self, log: LogId) -> LogEnd {
        let changes = self.shared.ends.subscribe();
        self.shared.wanted.notify_one();
        LogEnd { log, shared: self.shared.clone(), changes }
    }
}

async fn look(store: Arc<PostgresStore>, shared: Arc<Shared>) {
    loop {
        if shared.ends.receiver_count() == 0 {
            shared.wanted.notified().await;
        }
        // When the store does not answer, what was seen gets old.
        if let Ok(now) = store.ends().await {
            *shared.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            shared.ends.send_if_modified(|known| {
                let differs = *known != now;
                *known = now;
                differs
            });
        }
        sleep(LOOK_EVERY).await;
    }
}

impl LogEnd {
    /// Waits until something has changed, and the log ends where `is` says.
    pub async fn wait_until(&mut self, is: impl Fn(End) -> bool) {
        // The sender lives as long as this does.
        while self.changes.changed().await.is_ok() {
            if self.changes.borrow_and_update().get(&self.log).copied().is_some_and(&is) {
                return;
            }
        }
    }

    /// Where it ends, if that was looked at a moment ago.
    pub fn now(&self) -> Option<End> {
        let looked = *self.shared.looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.filter(|looked| looked.elapsed() < FRESH)?;
        // Of another region's log, of which nothing was copied yet.
        Some(self.changes.borrow().get(&self.log).copied().unwrap_or_else(|| End::from(&Head::EMPTY)))
    }
}
