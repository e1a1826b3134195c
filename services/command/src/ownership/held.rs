use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_event_sourcing::{Epoch, LogId};
use souk_event_store::Lost;
use souk_relay::RelayHandle;
use tokio_util::sync::CancellationToken;

use crate::committer::LostOwnership;

/// The logs this process owns, each with its relay.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    logs: HashMap<LogId, Holding>,
    /// Logs that went back, each with the furthest that was known of it; nobody has written that down yet.
    went_back: HashMap<LogId, Lost>,
}

/// An owned log.
pub struct Holding {
    pub epoch: Epoch,
    pub relay: RelayHandle,
    pub stop: CancellationToken,
}

impl Held {
    /// The log is owned from now on.
    pub fn insert(&self, log: LogId, holding: Holding) {
        self.lock().logs.insert(log, holding);
    }

    /// The log is owned no more; whoever asked for this ends its relay.
    pub fn remove(&self, log: LogId) -> Option<Holding> {
        self.lock().logs.remove(&log)
    }

    /// The log must not be written any more, unless it was taken again meanwhile: its relay stops.
    pub fn lost(&self, lost: LostOwnership) {
        let LostOwnership { log, epoch, went_back_from } = lost;
        let mut inner = self.lock();
        if let Some(position) = went_back_from {
            inner.went_back.insert(log, Lost { epoch, position });
        }
        if inner.logs.get(&log).is_some_and(|holding| holding.epoch == epoch)
            && let Some(holding) = inner.logs.remove(&log)
        {
            holding.stop.cancel();
        }
    }

    /// The logs that went back since this was last asked.
    pub fn take_went_back(&self) -> HashMap<LogId, Lost> {
        std::mem::take(&mut self.lock().went_back)
    }

    /// To be asked for again.
    pub fn still_went_back(&self, log: LogId, known: Lost) {
        self.lock().went_back.entry(log).or_insert(known);
    }

    pub fn contains(&self, log: LogId) -> bool {
        self.lock().logs.contains_key(&log)
    }

    /// How many logs are owned.
    pub fn count(&self) -> usize {
        self.lock().logs.len()
    }

    /// Looks at every owned log.
    pub fn each<T>(&self, look: impl Fn(LogId, &Holding) -> T) -> Vec<T> {
        self.lock().logs.iter().map(|(log, holding)| look(*log, holding)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
