use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_event_sourcing::{Position, RecordedEvent};
use tokio::sync::Notify;

/// Just-committed events of one log, the latest of them. The committer never waits here: what no longer fits is read
/// from the table.
pub struct Ring {
    events: Mutex<VecDeque<Arc<RecordedEvent>>>,
    capacity: usize,
    pushed: Notify,
}

impl Ring {
    pub fn new(capacity: usize) -> Self {
        Self { events: Mutex::default(), capacity: capacity.max(1), pushed: Notify::new() }
    }

    /// Adds the next event, dropping the oldest when full.
    pub fn push(&self, event: Arc<RecordedEvent>) {
        let mut events = self.lock();
        if events.back().is_some_and(|last| last.position.next() != event.position) {
            events.clear();
        }
        if events.len() == self.capacity {
            events.pop_front();
        }
        events.push_back(event);
        drop(events);
        self.pushed.notify_one();
    }

    /// The event at a position, if it is still here.
    pub fn get(&self, position: Position) -> Option<Arc<RecordedEvent>> {
        let events = self.lock();
        let first = events.front()?.position;
        events.get(position.0.checked_sub(first.0)? as usize).cloned()
    }

    /// The latest event.
    pub fn last(&self) -> Option<Arc<RecordedEvent>> {
        self.lock().back().cloned()
    }

    /// Forgets what was acknowledged, so that an idle log holds no memory.
    pub fn release(&self, acknowledged: Position) {
        let mut events = self.lock();
        while events.len() > 1 && events.front().is_some_and(|event| event.position <= acknowledged) {
            events.pop_front();
        }
        if events.len() <= 1 && events.capacity() > 64 {
            events.shrink_to_fit();
        }
    }

    /// Wakes after a push.
    pub async fn pushed(&self) {
        self.pushed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<RecordedEvent>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
