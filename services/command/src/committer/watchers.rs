use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use souk_event_sourcing::StreamId;
use tokio::sync::Notify;

/// Callers who wait for an entity to move on.
#[derive(Default)]
pub struct Watchers(Mutex<HashMap<StreamId, Weak<Notify>>>);

impl Watchers {
    /// Is notified of every append to `stream` from now on. Ask for the notification before reading the entity, so
    /// that none is missed between.
    pub fn watch(&self, stream: &StreamId) -> Arc<Notify> {
        let mut watched = self.watched();
        if let Some(notify) = watched.get(stream).and_then(Weak::upgrade) {
            return notify;
        }
        let notify = Arc::new(Notify::new());
        watched.insert(stream.clone(), Arc::downgrade(&notify));
        notify
    }

    pub(super) fn notify(&self, stream: &StreamId) {
        let mut watched = self.watched();
        if let Some(notify) = watched.get(stream) {
            match notify.upgrade() {
                Some(notify) => notify.notify_waiters(),
                None => drop(watched.remove(stream)),
            }
        }
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<StreamId, Weak<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
