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
        // Whoever waited for the last event of an entity is not told of another: forgotten here, before the table grows.
        if watched.len() == watched.capacity() {
            watched.retain(|_, notify| notify.strong_count() > 0);
            let live = watched.len();
            watched.reserve(live);
        }
        let notify = Arc::new(Notify::new());
        watched.insert(stream.clone(), Arc::downgrade(&notify));
        notify
    }

    /// Tells everybody: what they wait for may have happened unseen, or may be waited for elsewhere from now on.
    pub(super) fn notify_all(&self) {
        self.watched().values().filter_map(Weak::upgrade).for_each(|notify| notify.notify_waiters());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_who_left_are_forgotten() {
        let watchers = Watchers::default();
        let stays = watchers.watch(&StreamId::new("order", "stays"));
        for number in 0..10_000 {
            watchers.watch(&StreamId::new("order", &number.to_string()));
        }
        assert!(watchers.watched().len() < 100, "{}", watchers.watched().len());
        assert!(Arc::ptr_eq(&stays, &watchers.watch(&StreamId::new("order", "stays"))));
    }
}
