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

/// Both ports in memory, for tests of what stands above them. Clones share the same streams.
#[derive(Debug, Clone)]
pub struct MemoryBus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    streams: Mutex<Streams>,
    changed: watch::Sender<u64>,
    heads: broadcast::Sender<HeadAnnouncement>,
    changes: broadcast::Sender<ChangeFeed>,
}

#[derive(Debug, Default)]
struct Streams {
    made: u64,
    by_log: HashMap<LogId, MemoryStream>,
}

/// A log's stream in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryStream {
    /// Tells a stream from a later one of the same log.
    pub incarnation: u64,
    /// First position it was made for.
    pub begin: Position,
    /// Last position it took; `begin` − 1 at first.
    pub last: Position,
    pub events: BTreeMap<Position, RecordedEvent>,
}

impl Default for MemoryBus {
    fn default() -> Self {
        let (heads, changes) = (broadcast::Sender::new(FEED_CAPACITY), broadcast::Sender::new(FEED_CAPACITY));
        Self(Arc::new(Inner { streams: Mutex::default(), changed: watch::Sender::new(0), heads, changes }))
    }
}

impl MemoryBus {
    /// Puts an event where its position says, whatever is there already.
    pub fn put(&self, event: RecordedEvent) {
        let (log, position) = (event.log, event.position);
        if self.change(log, |_| ()).is_none() {
            self.create(log, position);
        }
        self.change(log, |stream| {
            stream.last = stream.last.max(position);
            stream.events.insert(position, event);
        });
    }

    /// Forgets what a log holds below `position`, as a bounded stream does.
    pub fn forget_below(&self, log: LogId, position: Position) {
        self.change(log, |stream| stream.events.retain(|at, _| *at >= position));
    }

    /// Makes an empty stream, in place of one that was there.
    pub fn create(&self, log: LogId, begin: Position) {
        let mut streams = self.streams();
        streams.made += 1;
        let stream = MemoryStream { incarnation: streams.made, begin, last: Position(begin.0.saturating_sub(1)), events: BTreeMap::new() };
        streams.by_log.insert(log, stream);
        drop(streams);
        self.wake();
    }

    /// Removes a stream; what reads it fails.
    pub fn remove(&self, log: LogId) {
        self.streams().by_log.remove(&log);
        self.wake();
    }

    /// Looks at a log's stream and changes it; `None` when there is none.
    pub fn change<T>(&self, log: LogId, change: impl FnOnce(&mut MemoryStream) -> T) -> Option<T> {
        let changed = self.streams().by_log.get_mut(&log).map(change);
        self.wake();
        changed
    }

    fn wake(&self) {
        self.0.changed.send_modify(|version| *version += 1);
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first event at or behind `from`, if there is one yet.
    fn next(&self, log: LogId, incarnation: u64, from: Position) -> Result<Option<RecordedEvent>, BusError> {
        let streams = self.streams();
        let stream = streams.by_log.get(&log).filter(|stream| stream.incarnation == incarnation);
        let stream = stream.ok_or_else(|| gone(log))?;
        Ok(stream.events.range(from..).next().map(|(_, event)| event.clone()))
    }
}

fn gone(log: LogId) -> BusError {
    BusError::Unavailable(format!("log {log}: there is no stream"))
}

#[async_trait::async_trait]
impl EventSource for MemoryBus {
    async fn consume(&self, log: LogId, from: Position) -> Result<Events, BusError> {
        let changed = self.0.changed.subscribe();
        let incarnation = self.streams().by_log.get(&log).map(|stream| stream.incarnation).ok_or_else(|| gone(log))?;
        let state = Some((self.clone(), changed, from));
        let events = stream::unfold(state, move |state| async move {
            let (bus, mut changed, from) = state?;
            loop {
                changed.mark_unchanged();
                match bus.next(log, incarnation, from) {
                    Ok(Some(event)) => {
                        let next = event.position.next();
                        return Some((Ok(event), Some((bus, changed, next))));
                    }
                    Ok(None) => changed.changed().await.ok()?,
                    Err(error) => return Some((Err(error), None)),
                }
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
