use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::gauge;
use souk_event_sourcing::{LogId, Position, Region};
use souk_proto::internal::v1::PartitionStatus;
use tokio::time::Instant;

/// Longest silence of a region that counts as reachable.
const REACHABLE: Duration = Duration::from_secs(10);

/// How far the copies of this process are. Clones share it.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<Shown>>);

#[derive(Default)]
struct Shown {
    copies: BTreeMap<LogId, Copied>,
    /// Batches refused, by who sent them.
    refused: BTreeMap<Region, u64>,
}

#[derive(Default)]
struct Copied {
    origin: Position,
    here: Position,
    /// A head the copy has not reached, and when it was told; once it is reached, the latest told then is waited for.
    goal: Option<(Position, Instant)>,
    /// When `origin` was told.
    told: Option<Instant>,
    /// The last position the origin vouches for, unless it does for all.
    proven: Option<Position>,
    /// When the origin was last heard.
    heard: Option<Instant>,
}

/// How far the copies of one region are.
#[derive(Debug, Default, Clone, Copy)]
pub struct Link {
    pub lag_events: u64,
    pub lag: Duration,
    /// Lent by a third region, and not vouched for by the origin yet.
    pub unproven: u64,
    /// Since when nothing was heard from the region's most silent log.
    pub silence: Duration,
}

impl Board {
    /// The log is copied here.
    pub fn take(&self, log: LogId) {
        self.lock().copies.insert(log, Copied { heard: Some(Instant::now()), ..Copied::default() });
    }

    pub fn lose(&self, log: LogId) {
        self.lock().copies.remove(&log);
    }

    /// The origin tells where it ends.
    pub fn origin(&self, log: LogId, head: Position) {
        let now = Some(Instant::now());
        self.note(log, |copied| {
            if copied.origin != head {
                (copied.origin, copied.told) = (head, now);
            }
            copied.heard = now;
        });
    }

    /// The copy ends here.
    pub fn here(&self, log: LogId, end: Position) {
        self.note(log, |copied| copied.here = end);
    }

    /// The origin vouches for the copy up to here, or for all of it.
    pub fn unproven(&self, log: LogId, proven: Option<Position>) {
        self.note(log, |copied| copied.proven = proven);
    }

    /// What a region sent was refused.
    pub fn refused(&self, from: Region) {
        *self.lock().refused.entry(from).or_default() += 1;
    }

    /// Batches refused, by who sent them.
    pub fn refusals(&self) -> BTreeMap<Region, u64> {
        self.lock().refused.clone()
    }

    fn note(&self, log: LogId, note: impl FnOnce(&mut Copied)) {
        if let Some(copied) = self.lock().copies.get_mut(&log) {
            note(copied);
            copied.aim();
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
        self.lock().copies.iter().map(status).collect()
    }

    pub fn links(&self) -> BTreeMap<Region, Link> {
        let mut links = BTreeMap::<Region, Link>::new();
        for (log, copied) in &self.lock().copies {
            let link = links.entry(log.region).or_default();
            link.lag_events += copied.origin.0.saturating_sub(copied.here.0);
            link.lag = link.lag.max(copied.lag());
            link.unproven += copied.proven.map_or(0, |proven| copied.here.0.saturating_sub(proven.0));
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
            gauge!("souk_replicator_reachable", &region).set(f64::from(link.is_reachable()));
            gauge!("souk_replicator_unproven_events", &region).set(link.unproven as f64);
        }
        gauge!("souk_replicator_partitions").set(self.lock().copies.len() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Whether all logs were heard of lately; each is every second.
    pub fn is_reachable(&self) -> bool {
        self.silence < REACHABLE
    }
}

impl Copied {
    fn lag(&self) -> Duration {
        self.goal.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// Goes on to the latest head once the one waited for is reached, so that a copy that is always a little behind under load
    /// does not look as if it had been behind all the time.
    fn aim(&mut self) {
        let open = |goal: &(Position, Instant)| goal.0 > self.here && goal.0 <= self.origin;
        self.goal = self.goal.filter(open).or_else(|| self.told.map(|told| (self.origin, told)).filter(open));
    }
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::Partition;
    use tokio::time::advance;

    use super::*;

    const LOG: LogId = LogId { region: Region(2), partition: Partition(0) };

    fn link(board: &Board) -> Link {
        board.links()[&LOG.region]
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_keeps_up_under_load_does_not_lag_since_the_beginning() {
        let board = Board::default();
        board.take(LOG);
        for position in 1..100 {
            board.origin(LOG, Position(position + 1));
            board.here(LOG, Position(position));
            advance(Duration::from_millis(10)).await;
        }
        assert_eq!((link(&board).lag_events, link(&board).lag), (1, Duration::from_millis(10)));
        board.here(LOG, Position(100));
        assert_eq!((link(&board).lag_events, link(&board).lag), (0, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_stands_still_lags_more_and_more() {
        let board = Board::default();
        board.take(LOG);
        for head in 5..20 {
            board.origin(LOG, Position(head));
            advance(Duration::from_millis(10)).await;
        }
        assert_eq!((link(&board).lag_events, link(&board).lag), (19, Duration::from_millis(150)));
        // The origin went back: that head is never reached.
        board.origin(LOG, Position(0));
        assert_eq!(link(&board).lag, Duration::ZERO);
    }

    #[test]
    fn what_is_lent_counts_as_unproven_until_the_origin_vouches_for_it() {
        let board = Board::default();
        board.take(LOG);
        board.here(LOG, Position(9));
        board.unproven(LOG, Some(Position(4)));
        assert_eq!(link(&board).unproven, 5);
        board.unproven(LOG, None);
        assert_eq!(link(&board).unproven, 0);
        assert!(link(&board).is_reachable() && !Link { silence: Duration::from_secs(60), ..Link::default() }.is_reachable());
    }
}
