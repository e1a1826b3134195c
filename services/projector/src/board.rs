use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use metrics::{Gauge, counter, gauge};
use souk_event_sourcing::{Epoch, LogId, Position};
use souk_proto::internal::v1::PartitionStatus;
use souk_read_store::Checkpoint;

use crate::heads::Heads;

/// What this process knows of its logs, for status and metrics; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    heads: Heads,
    entries: Arc<Mutex<BTreeMap<LogId, Entry>>>,
    restarts: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Entry {
    database: String,
    epoch: Epoch,
    position: Position,
    parked: u32,
    halted: bool,
    rebuilding: bool,
    /// A head that is not reached yet, and since when it is known.
    behind: Option<(Position, Instant)>,
    /// When the position last changed.
    moved: Instant,
    gauges: Gauges,
}

/// What is shown of a log at every scrape.
#[derive(Debug)]
struct Gauges {
    lag_events: Gauge,
    lag_seconds: Gauge,
    stalled_seconds: Gauge,
    position: Gauge,
    parked: Gauge,
    halted: Gauge,
}

impl Board {
    pub(crate) fn new(heads: Heads) -> Self {
        Self { heads, entries: Arc::default(), restarts: Arc::default() }
    }

    /// Notes how far a log is.
    pub(crate) fn note(&self, database: &str, checkpoint: &Checkpoint, halted: bool) {
        let Checkpoint { log, epoch, position, parked, rebuilding, .. } = *checkpoint;
        let mut entries = self.lock();
        let fresh = || Entry {
            database: database.to_owned(),
            epoch,
            position,
            parked,
            halted,
            rebuilding,
            behind: None,
            moved: Instant::now(),
            gauges: Gauges::new(database, log),
        };
        let entry = entries.entry(log).or_insert_with(fresh);
        if entry.position != position {
            entry.moved = Instant::now();
        }
        (entry.epoch, entry.position, entry.parked) = (epoch, position, parked);
        (entry.halted, entry.rebuilding) = (halted, rebuilding);
        entry.compare(self.head(log));
    }

    /// Another projector has this log now.
    pub(crate) fn forget(&self, log: LogId) {
        if let Some(entry) = self.lock().remove(&log) {
            entry.gauges.clear();
        }
    }

    /// Shows all logs as metrics, held against the heads known by now: also those that nobody gets to note any more.
    pub(crate) fn measure(&self) {
        for (log, entry) in &mut *self.lock() {
            let head = self.head(*log);
            entry.compare(head);
            let lag = head.map_or(0, |head| head.0.saturating_sub(entry.position.0));
            entry.gauges.lag_events.set(lag as f64);
            entry.gauges.lag_seconds.set(entry.lag_seconds());
            entry.gauges.stalled_seconds.set(entry.stalled_seconds());
            entry.gauges.position.set(entry.position.0 as f64);
            entry.gauges.parked.set(f64::from(entry.parked));
            entry.gauges.halted.set(f64::from(u8::from(entry.halted)));
        }
    }

    fn head(&self, log: LogId) -> Option<Position> {
        self.heads.of(log).map(|head| head.position)
    }

    /// Since when a head is known that the log has not reached.
    pub(crate) fn behind_since(&self, log: LogId) -> Option<Instant> {
        self.lock().get(&log)?.behind.map(|(_, since)| since)
    }

    /// All logs that this process holds, in order.
    pub(crate) fn partitions(&self) -> Vec<PartitionStatus> {
        let entries = self.lock();
        let status = entries.iter().map(|(log, entry)| PartitionStatus {
            region: log.region.0.into(),
            partition: log.partition.0.into(),
            database: entry.database.clone(),
            epoch: entry.epoch.0,
            head: self.heads.of(*log).map_or(entry.position, |head| head.position).0.max(entry.position.0),
            position: entry.position.0,
            lag_seconds: entry.lag_seconds(),
            parked: entry.parked.into(),
            rebuilding: entry.rebuilding,
        });
        status.collect()
    }

    /// Something hung and was started anew.
    pub(crate) fn restarted(&self) {
        counter!("souk_watchdog_restarts_total").increment(1);
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// How many logs' views are folded anew and not whole yet.
    pub(crate) fn rebuilding(&self) -> usize {
        self.lock().values().filter(|entry| entry.rebuilding).count()
    }

    /// How many logs stand still.
    pub(crate) fn halted(&self) -> usize {
        self.lock().values().filter(|entry| entry.halted).count()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LogId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Measured from one head to the next, so that a log under constant load does not seem to fall ever further behind.
    fn compare(&mut self, head: Option<Position>) {
        if self.behind.is_none_or(|(target, _)| target <= self.position) {
            self.behind = head.filter(|head| *head > self.position).map(|head| (head, Instant::now()));
        }
    }

    /// Since it moved or got something to do, whichever was later; views that are folded anew have something to do until they
    /// are whole.
    fn stalled_seconds(&self) -> f64 {
        let since = match self.behind {
            Some((_, since)) => since.max(self.moved),
            None if self.rebuilding => self.moved,
            None => return 0.0,
        };
        since.elapsed().as_secs_f64()
    }

    fn lag_seconds(&self) -> f64 {
        self.behind.map_or(0.0, |(_, since)| since.elapsed().as_secs_f64())
    }
}

impl Gauges {
    fn new(database: &str, log: LogId) -> Self {
        let (region, partition) = (log.region.to_string(), log.partition.to_string());
        let labels = [("database", database.to_owned()), ("region", region), ("partition", partition)];
        Self {
            lag_events: gauge!("souk_projection_lag_events", &labels),
            lag_seconds: gauge!("souk_projection_lag_seconds", &labels),
            stalled_seconds: gauge!("souk_projection_stalled_seconds", &labels),
            position: gauge!("souk_projection_position", &labels),
            parked: gauge!("souk_parked_events", &labels),
            halted: gauge!("souk_projection_halted", &labels),
        }
    }

    fn clear(&self) {
        let Self { lag_events, lag_seconds, stalled_seconds, position, parked, halted } = self;
        [lag_events, lag_seconds, stalled_seconds, position, parked, halted].into_iter().for_each(|gauge| gauge.set(0.0));
    }
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::{LogHash, Partition, Region, UnixMillis};
    use souk_proto::log::v1::HeadAnnouncement;
    use souk_read_store::Fence;

    use super::*;

    #[test]
    fn lag_is_counted_from_the_first_head_that_is_not_reached() {
        let log = LogId { region: Region(1), partition: Partition(3) };
        let heads = Heads::new([log]);
        let board = Board::new(heads.clone());
        let announce = |position| heads.announce(&HeadAnnouncement { region: 1, partition: 3, position, ..Default::default() });
        let rebuilt = |position, halted, rebuilding| {
            let (parked, repaired, written) = (3, UnixMillis(0), UnixMillis(0));
            let (fence, epoch, hash) = (Fence(1), Epoch(1), LogHash::EMPTY);
            let position = Position(position);
            let checkpoint = Checkpoint { log, fence, epoch, position, hash, revision: 1, parked, repaired, written, rebuilding };
            board.note("r0", &checkpoint, halted);
        };
        let note = |position, halted| rebuilt(position, halted, false);
        let lag = |board: &Board| board.partitions()[0].lag_seconds;
        note(4, false);
        assert_eq!((board.partitions()[0].head, lag(&board)), (4, 0.0));
        announce(9);
        note(4, false);
        let first = board.lock()[&log].behind;
        announce(20);
        note(8, false);
        assert_eq!(board.lock()[&log].behind, first, "9 is still not reached");
        note(12, false);
        assert_eq!(board.lock()[&log].behind.map(|(target, _)| target), Some(Position(20)));
        note(20, true);
        assert_eq!(board.lock()[&log].behind, None);
        announce(30);
        assert_eq!(lag(&board), 0.0, "nobody has looked");
        board.measure();
        assert!(lag(&board) > 0.0, "a log that is not noted any more lags all the same");
        note(30, true);
        assert_eq!((board.partitions()[0].head, lag(&board), board.partitions()[0].parked, board.halted()), (30, 0.0, 3, 1));
        let stalled = || board.lock()[&log].stalled_seconds();
        assert_eq!(stalled(), 0.0);
        rebuilt(30, false, true);
        assert!(stalled() > 0.0, "at the head it knows of, and yet not whole");
    }
}
