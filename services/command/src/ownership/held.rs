use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_event_sourcing::{Epoch, LogId};
use tokio_util::sync::CancellationToken;

use crate::relay::RelayHandle;

/// The logs this process owns, each with its relay.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<HashMap<LogId, Holding>>>);

/// An owned log.
pub struct Holding {
    pub epoch: Epoch,
    pub relay: RelayHandle,
    pub stop: CancellationToken,
}

impl Held {
    /// The log is owned from now on.
    pub fn insert(&self, log: LogId, holding: Holding) {
        self.lock().insert(log, holding);
    }

    /// The log is owned no more; whoever asked for this ends its relay.
    pub fn remove(&self, log: LogId) -> Option<Holding> {
        self.lock().remove(&log)
    }

    /// Another replica took the log over: its relay must stop.
    pub fn lost(&self, log: LogId) {
        if let Some(holding) = self.remove(log) {
            holding.stop.cancel();
        }
    }

    pub fn contains(&self, log: LogId) -> bool {
        self.lock().contains_key(&log)
    }

    /// The epoch a log is owned under.
    pub fn epoch(&self, log: LogId) -> Option<Epoch> {
        self.lock().get(&log).map(|holding| holding.epoch)
    }

    /// Looks at every owned log.
    pub fn each<T>(&self, look: impl Fn(LogId, &Holding) -> T) -> Vec<T> {
        self.lock().iter().map(|(log, holding)| look(*log, holding)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LogId, Holding>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
