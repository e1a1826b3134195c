use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_event_sourcing::{LogHash, Position, RecordedEvent};
use tokio::sync::Notify;

/// Payload bytes one ring holds at most, beside its latest event: with a ring per log they count many times over.
const MOST_BYTES: usize = 4 << 20;

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub position: Position,
    /// Running hash at `position`.
    pub hash: LogHash,
}

/// Just-committed events of one log, the latest of them, without holes. The committer never waits here: what no longer
/// fits is read from the table.
pub struct Ring {
    kept: Mutex<Kept>,
    capacity: usize,
    pushed: Notify,
}

struct Kept {
    events: VecDeque<Arc<RecordedEvent>>,
    bytes: usize,
    head: Head,
}

impl Kept {
    fn forget_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= event.payload.len();
        }
    }
}

impl Ring {
    /// Of a log that ends at `head`, for at most `capacity` events.
    pub fn new(capacity: usize, head: Head) -> Self {
        let kept = Kept { events: VecDeque::new(), bytes: 0, head };
        Self { kept: Mutex::new(kept), capacity: capacity.max(1), pushed: Notify::new() }
    }

    /// Adds the next event, dropping the oldest when full.
    pub fn push(&self, event: Arc<RecordedEvent>) {
        let mut kept = self.lock();
        if kept.events.back().is_some_and(|last| last.position.next() != event.position) {
            kept.events.clear();
            kept.bytes = 0;
        }
        kept.head = Head { position: event.position, hash: event.hash };
        kept.bytes += event.payload.len();
        kept.events.push_back(event);
        while kept.events.len() > self.capacity || (kept.bytes > MOST_BYTES && kept.events.len() > 1) {
            kept.forget_oldest();
        }
        drop(kept);
        self.pushed.notify_one();
    }

    /// The log turned out to end elsewhere than what was pushed here, as when the outcome of an append was unknown: what
    /// lies between is read from the table.
    pub fn ends_at(&self, head: Head) {
        let mut kept = self.lock();
        kept.events.clear();
        kept.bytes = 0;
        kept.head = head;
        drop(kept);
        self.pushed.notify_one();
    }

    /// The event at a position, if it is still here.
    pub fn get(&self, position: Position) -> Option<Arc<RecordedEvent>> {
        let kept = self.lock();
        let first = kept.events.front()?.position;
        kept.events.get(position.0.checked_sub(first.0)? as usize).cloned()
    }

    /// Where the log ends.
    pub fn head(&self) -> Head {
        self.lock().head
    }

    /// Forgets what was acknowledged, so that an idle log holds no memory.
    pub fn release(&self, acknowledged: Position) {
        let mut kept = self.lock();
        while kept.events.front().is_some_and(|event| event.position <= acknowledged) {
            kept.forget_oldest();
        }
        if kept.events.is_empty() && kept.events.capacity() > 64 {
            kept.events.shrink_to_fit();
        }
    }

    /// Wakes after a push.
    pub async fn pushed(&self) {
        self.pushed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use souk_event_sourcing::{Epoch, EventId, Hlc, LogId, Partition, Region, Version};

    use super::*;

    const EMPTY: Head = Head { position: Position(0), hash: LogHash::EMPTY };

    fn event(position: u64, bytes: usize) -> Arc<RecordedEvent> {
        Arc::new(RecordedEvent {
            log: LogId { region: Region(1), partition: Partition(0) },
            position: Position(position),
            epoch: Epoch(1),
            hash: LogHash([position as u8; 16]),
            stream: "thing-1".parse().expect("a name"),
            version: Version(position),
            kind: "Happened".into(),
            schema_version: 1,
            payload: Bytes::from(vec![0; bytes]),
            event_id: EventId(uuid::Uuid::from_u128(position.into())),
            request_id: None,
            causation_id: None,
            correlation_id: None,
            actor: String::new(),
            hlc: Hlc(0),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        })
    }

    fn held(ring: &Ring, positions: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        positions.filter(|position| ring.get(Position(*position)).is_some()).collect()
    }

    #[test]
    fn a_full_ring_drops_the_oldest() {
        let ring = Ring::new(3, EMPTY);
        (1..=5).for_each(|position| ring.push(event(position, 1)));
        assert_eq!(held(&ring, 0..=7), [3, 4, 5]);
        assert_eq!(ring.head(), Head { position: Position(5), hash: LogHash([5; 16]) });
    }

    #[test]
    fn large_events_are_bounded_by_their_bytes_and_the_latest_stays() {
        let ring = Ring::new(1000, EMPTY);
        (1..=3).for_each(|position| ring.push(event(position, MOST_BYTES / 2)));
        assert_eq!(held(&ring, 1..=3), [2, 3]);
        ring.push(event(4, MOST_BYTES + 1));
        assert_eq!(held(&ring, 1..=4), [4]);
    }

    #[test]
    fn what_was_acknowledged_is_forgotten_but_for_where_the_log_ends() {
        let ring = Ring::new(10, EMPTY);
        (1..=4).for_each(|position| ring.push(event(position, 1)));
        ring.release(Position(2));
        assert_eq!(held(&ring, 1..=4), [3, 4]);
        ring.release(Position(9));
        assert_eq!((held(&ring, 1..=4), ring.head().position), (vec![], Position(4)));
        ring.push(event(5, 1));
        assert_eq!(held(&ring, 1..=5), [5]);
    }

    #[test]
    fn a_hole_empties_the_ring_so_that_positions_stay_dense() {
        let ring = Ring::new(10, EMPTY);
        [1, 2, 7, 8].into_iter().for_each(|position| ring.push(event(position, 1)));
        assert_eq!(held(&ring, 1..=8), [7, 8]);
    }
}
