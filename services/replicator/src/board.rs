use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metrics::gauge;
use souk_event_sourcing::{LogId, Position, Region};
use souk_proto::internal::v1::PartitionStatus;

/// How far the copies of this process are. Clones share it.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<LogId, Copied>>>);

#[derive(Default)]
struct Copied {
    origin: Position,
    here: Position,
    /// Since when the copy is known to be behind.
    behind: Option<Instant>,
    /// When the origin was last heard.
    heard: Option<Instant>,
}

/// How far the copies of one region are.
#[derive(Debug, Default, Clone, Copy)]
pub struct Link {
    pub lag_events: u64,
    pub lag: Duration,
    /// Since when nothing was heard from the region's most silent log.
    pub silence: Duration,
}

impl Board {
    /// The log is copied here.
    pub fn take(&self, log: LogId) {
        self.lock().insert(log, Copied { heard: Some(Instant::now()), ..Copied::default() });
    }

    pub fn lose(&self, log: LogId) {
        self.lock().remove(&log);
    }

    /// The origin tells where it ends.
    pub fn origin(&self, log: LogId, head: Position) {
        self.note(log, |copied| (copied.origin, copied.heard) = (head, Some(Instant::now())));
    }

    /// The copy ends here.
    pub fn here(&self, log: LogId, end: Position) {
        self.note(log, |copied| copied.here = end);
    }

    fn note(&self, log: LogId, note: impl FnOnce(&mut Copied)) {
        if let Some(copied) = self.lock().get_mut(&log) {
            note(copied);
            let behind = copied.origin > copied.here;
            copied.behind = behind.then(|| copied.behind.unwrap_or_else(Instant::now));
        }
    }

    pub fn partitions(&self) -> Vec<PartitionStatus> {
        let status = |(log, copied): (&LogId, &Copied)| PartitionStatus {
            region: log.region.0.into(),
            partition: log.partition.0.into(),
            head: copied.origin.max(copied.here).0,
            position: copied.here.0,
            lag_seconds: copied.lag().as_secs_f64(),
            ..PartitionStatus::default()
        };
        self.lock().iter().map(status).collect()
    }

    pub fn links(&self) -> BTreeMap<Region, Link> {
        let mut links = BTreeMap::<Region, Link>::new();
        for (log, copied) in self.lock().iter() {
            let link = links.entry(log.region).or_default();
            link.lag_events += copied.origin.0.saturating_sub(copied.here.0);
            link.lag = link.lag.max(copied.lag());
            link.silence = link.silence.max(copied.heard.map_or(Duration::MAX, |heard| heard.elapsed()));
        }
        links
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        for (region, link) in self.links() {
            let region = [("region", region.to_string())];
            gauge!("souk_replicator_lag_events", &region).set(link.lag_events as f64);
            gauge!("souk_replicator_lag_seconds", &region).set(link.lag.as_secs_f64());
            gauge!("souk_replicator_silence_seconds", &region).set(link.silence.as_secs_f64());
        }
        gauge!("souk_replicator_partitions").set(self.lock().len() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LogId, Copied>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copied {
    fn lag(&self) -> Duration {
        self.behind.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
