use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, stream, stream::BoxStream};
use souk_event_sourcing::{LogId, Position, RecordedEvent, Region};
use souk_proto::log::v1::{ChangeFeed, HeadAnnouncement};
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;

use crate::{BusError, EventSource, Events, Feed};

const FEED_CAPACITY: usize = 4096;

/// Both ports in memory, for tests of what stands above them. Clones share the same logs.
#[derive(Debug, Clone)]
pub struct MemoryBus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    logs: Mutex<HashMap<LogId, BTreeMap<u64, RecordedEvent>>>,
    changed: watch::Sender<u64>,
    heads: broadcast::Sender<HeadAnnouncement>,
    changes: broadcast::Sender<ChangeFeed>,
}

impl Default for MemoryBus {
    fn default() -> Self {
        let logs = Mutex::default();
        let (heads, changes) = (broadcast::Sender::new(FEED_CAPACITY), broadcast::Sender::new(FEED_CAPACITY));
        Self(Arc::new(Inner { logs, changed: watch::Sender::new(0), heads, changes }))
    }
}

impl MemoryBus {
    /// Puts an event where its position says.
    pub fn put(&self, event: RecordedEvent) {
        self.logs().entry(event.log).or_default().insert(event.position.0, event);
        self.0.changed.send_modify(|version| *version += 1);
    }

    /// Forgets what a log holds below `position`, as a bounded stream does.
    pub fn forget_below(&self, log: LogId, position: Position) {
        self.logs().entry(log).or_default().retain(|at, _| *at >= position.0);
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<LogId, BTreeMap<u64, RecordedEvent>>> {
        self.0.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, log: LogId, from: u64) -> Option<RecordedEvent> {
        self.logs().get(&log)?.range(from..).next().map(|(_, event)| event.clone())
    }
}

#[async_trait::async_trait]
impl EventSource for MemoryBus {
    async fn consume(&self, log: LogId, from: Position) -> Result<Events, BusError> {
        let state = (self.clone(), self.0.changed.subscribe(), from.0.max(1));
        let events = stream::unfold(state, move |(bus, mut changed, from)| async move {
            loop {
                changed.mark_unchanged();
                if let Some(event) = bus.next(log, from) {
                    let next = event.position.0 + 1;
                    return Some((Ok(event), (bus, changed, next)));
                }
                changed.changed().await.ok()?;
            }
        });
        Ok(events.boxed())
    }
}

#[async_trait::async_trait]
impl Feed for MemoryBus {
    async fn publish_head(&self, head: HeadAnnouncement) -> Result<(), BusError> {
        // Nobody listening is no error: announcements are at most once.
        let _ = self.0.heads.send(head);
        Ok(())
    }

    async fn subscribe_heads(&self, region: Region) -> Result<BoxStream<'static, HeadAnnouncement>, BusError> {
        let heads = BroadcastStream::new(self.0.heads.subscribe());
        Ok(heads.filter_map(move |head| async move { head.ok().filter(|head| head.region == u32::from(region.0)) }).boxed())
    }

    async fn publish_changes(&self, changes: ChangeFeed) -> Result<(), BusError> {
        let _ = self.0.changes.send(changes);
        Ok(())
    }

    async fn subscribe_changes(&self, region: Region) -> Result<BoxStream<'static, ChangeFeed>, BusError> {
        let changes = BroadcastStream::new(self.0.changes.subscribe());
        Ok(changes.filter_map(move |changes| async move { changes.ok().filter(|changes| changes.region == u32::from(region.0)) }).boxed())
    }
}
