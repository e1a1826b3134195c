use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use metrics::gauge;
use souk_event_sourcing::{Epoch, LogId, Position};
use souk_proto::internal::v1::PartitionStatus;

use crate::heads::Heads;

/// What this process knows of its logs, for status and metrics; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    heads: Heads,
    entries: Arc<Mutex<BTreeMap<LogId, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    database: String,
    epoch: Epoch,
    position: Position,
    halted: bool,
    /// A head that is not reached yet, and since when it is known.
    behind: Option<(Position, Instant)>,
}

impl Board {
    pub(crate) fn new(heads: Heads) -> Self {
        Self { heads, entries: Arc::default() }
    }

    /// Notes how far a log is.
    pub(crate) fn note(&self, log: LogId, database: &str, epoch: Epoch, position: Position, halted: bool) {
        let head = self.heads.of(log).map_or(position, |head| head.position);
        let mut entries = self.lock();
        let entry = entries.entry(log).or_insert_with(|| Entry { database: database.to_owned(), epoch, position, halted, behind: None });
        (entry.epoch, entry.position, entry.halted) = (epoch, position, halted);
        // Measured from one head to the next, so that a log under constant load does not seem to fall ever further behind.
        if entry.behind.is_none_or(|(target, _)| target <= position) {
            entry.behind = (head > position).then(|| (head, Instant::now()));
        }
        let labels = [("region", log.region.to_string()), ("partition", log.partition.to_string())];
        gauge!("souk_projection_lag_events", &labels).set(head.0.saturating_sub(position.0) as f64);
        gauge!("souk_projection_lag_seconds", &labels).set(entry.lag_seconds());
        gauge!("souk_projection_halted", &labels).set(f64::from(u8::from(halted)));
    }

    /// All logs, in order.
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
            parked: entry.halted.into(),
        });
        status.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LogId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn lag_seconds(&self) -> f64 {
        self.behind.map_or(0.0, |(_, since)| since.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::{Partition, Region};
    use souk_proto::log::v1::HeadAnnouncement;

    use super::*;

    #[test]
    fn lag_is_counted_from_the_first_head_that_is_not_reached() {
        let log = LogId { region: Region(1), partition: Partition(3) };
        let heads = Heads::new([log]);
        let board = Board::new(heads.clone());
        let announce = |position| heads.announce(&HeadAnnouncement { region: 1, partition: 3, position, ..Default::default() });
        let lag = |board: &Board| board.partitions()[0].lag_seconds;
        board.note(log, "r0", Epoch(1), Position(4), false);
        assert_eq!((board.partitions()[0].head, lag(&board)), (4, 0.0));
        announce(9);
        board.note(log, "r0", Epoch(1), Position(4), false);
        let first = board.lock()[&log].behind;
        announce(20);
        board.note(log, "r0", Epoch(1), Position(8), false);
        assert_eq!(board.lock()[&log].behind, first, "9 is still not reached");
        board.note(log, "r0", Epoch(1), Position(12), false);
        assert_eq!(board.lock()[&log].behind.map(|(target, _)| target), Some(Position(20)));
        board.note(log, "r0", Epoch(1), Position(20), true);
        assert_eq!((board.partitions()[0].head, lag(&board), board.partitions()[0].parked), (20, 0.0, 1));
    }
}
