use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use metrics::{counter, gauge};
use souk_bus::Feed;
use souk_event_sourcing::{Epoch, LogId, Partition, Position, Region};
use souk_proto::log::v1::HeadAnnouncement;
use tokio::time::Instant;

/// What is known of every log: where it ends, as its owner announced, and how far this process has come. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    logs: BTreeMap<LogId, Progress>,
    steps: BTreeMap<String, usize>,
    restarts: u64,
}

/// One log on the board.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub head: Position,
    pub checkpoint: Position,
    /// Fence under which this process applies the log; 0 when another one does.
    pub epoch: Epoch,
    /// Since when the checkpoint has been behind the head.
    pub behind_since: Option<Instant>,
    /// When the checkpoint last moved, or reading began.
    pub moved: Option<Instant>,
    /// Why the log is not applied any further.
    pub blocked: Option<String>,
}

impl Progress {
    pub fn lag(&self) -> u64 {
        self.head.0.saturating_sub(self.checkpoint.0)
    }

    pub fn lag_seconds(&self) -> f64 {
        self.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }

    /// Since it moved or fell behind, whichever was later.
    fn stalled_seconds(&self) -> f64 {
        let since = self.behind_since.map(|behind| self.moved.map_or(behind, |moved| moved.max(behind)));
        since.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }

    /// Whether the log is behind and its checkpoint stays where it is, both for that long, and nobody knows why.
    fn hangs(&self, after: Duration) -> bool {
        let for_long = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= after);
        self.blocked.is_none() && for_long(self.behind_since) && for_long(self.moved)
    }

    fn update_lag(&mut self) {
        match self.lag() {
            0 => self.behind_since = None,
            _ => {
                self.behind_since.get_or_insert_with(Instant::now);
            }
        }
    }
}

impl Board {
    pub fn head(&self, log: LogId) -> Position {
        self.lock().logs.get(&log).map_or(Position(0), |progress| progress.head)
    }

    pub fn announce(&self, log: LogId, head: Position) {
        self.update(log, |progress| progress.head = head);
    }

    /// This process applies the log from here on, under `epoch`.
    pub fn hold(&self, log: LogId, epoch: Epoch, checkpoint: Position) {
        self.update(log, |progress| {
            let head = progress.head.max(checkpoint);
            *progress = Progress { head, checkpoint, epoch, moved: Some(Instant::now()), ..Progress::default() };
        });
    }

    pub fn lose(&self, log: LogId) {
        self.update(log, |progress| *progress = Progress { head: progress.head, ..Progress::default() });
        measure(log, &Progress::default());
    }

    pub fn advance(&self, log: LogId, checkpoint: Position) {
        self.update(log, |progress| {
            if checkpoint > progress.checkpoint {
                progress.moved = Some(Instant::now());
            }
            progress.checkpoint = checkpoint;
            progress.head = progress.head.max(checkpoint);
        });
    }

    pub fn block(&self, log: LogId, why: String) {
        self.update(log, |progress| progress.blocked = Some(why));
    }

    pub fn hangs(&self, log: LogId, after: Duration) -> bool {
        self.lock().logs.get(&log).is_some_and(|progress| progress.hangs(after))
    }

    /// Something hung and was started anew.
    pub fn restarted(&self) {
        counter!("souk_watchdog_restarts_total").increment(1);
        self.lock().restarts += 1;
    }

    pub fn restarts(&self) -> u64 {
        self.lock().restarts
    }

    /// Steps in the outbox of one write database.
    pub fn steps(&self, database: &str, count: usize) {
        self.lock().steps.insert(database.to_owned(), count);
        gauge!("souk_saga_outbox_steps", "database" => database.to_owned()).set(count as f64);
    }

    pub fn all_steps(&self) -> usize {
        self.lock().steps.values().sum()
    }

    pub fn all(&self) -> Vec<(LogId, Progress)> {
        self.lock().logs.iter().map(|(log, progress)| (*log, progress.clone())).collect()
    }

    /// Shows the logs held as metrics.
    pub fn measure(&self) {
        for (log, progress) in self.all().into_iter().filter(|(_, progress)| progress.epoch != Epoch(0)) {
            measure(log, &progress);
        }
    }

    /// Hears announcements of one region until dropped.
    pub async fn listen(self, feed: Arc<dyn Feed>, region: Region) {
        const PAUSE: Duration = Duration::from_secs(1);
        loop {
            match feed.subscribe_heads(region).await {
                Ok(mut heads) => {
                    while let Some(HeadAnnouncement { partition, position, .. }) = heads.next().await {
                        if let Ok(partition) = u16::try_from(partition) {
                            self.announce(LogId { region, partition: Partition(partition) }, Position(position));
                        }
                    }
                    tracing::debug!(%region, "announcements of heads ended; subscribing again");
                }
                Err(error) => tracing::warn!(%region, %error, "announcements of heads cannot be heard; trying again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn update(&self, log: LogId, change: impl FnOnce(&mut Progress)) {
        let mut inner = self.lock();
        let progress = inner.logs.entry(log).or_default();
        change(progress);
        progress.update_lag();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn measure(log: LogId, progress: &Progress) {
    let labels = [("region", log.region.to_string()), ("partition", log.partition.to_string())];
    gauge!("souk_saga_lag_events", &labels).set(progress.lag() as f64);
    gauge!("souk_saga_lag_seconds", &labels).set(progress.lag_seconds());
    gauge!("souk_saga_stalled_seconds", &labels).set(progress.stalled_seconds());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::LOG;

    #[test]
    fn lag_lasts_until_the_checkpoint_reaches_the_head() {
        let board = Board::default();
        board.hold(LOG, Epoch(5), Position(3));
        board.announce(LOG, Position(5));
        let progress = || board.all()[0].1.clone();
        assert_eq!((progress().lag(), progress().behind_since.is_some()), (2, true));
        board.advance(LOG, Position(4));
        assert_eq!((progress().lag(), progress().behind_since.is_some()), (1, true));
        board.advance(LOG, Position(6));
        assert_eq!((progress().lag(), progress().lag_seconds(), board.head(LOG)), (0, 0.0, Position(6)));
        board.lose(LOG);
        assert_eq!(progress().epoch, Epoch(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_hangs_when_it_is_behind_and_does_not_move_for_long() {
        const LONG: Duration = Duration::from_secs(30);
        let board = Board::default();
        let after = async |seconds| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            board.hangs(LOG, LONG)
        };
        board.hold(LOG, Epoch(5), Position(3));
        assert!(!after(60).await, "it is at its end");
        board.announce(LOG, Position(5));
        assert!(!after(29).await, "it has not been behind for long");
        board.advance(LOG, Position(4));
        assert!(!after(29).await, "it moves");
        board.advance(LOG, Position(4));
        assert!(after(1).await);
        board.block(LOG, "unreadable".into());
        assert!(!after(60).await, "it stands still for a reason");
        board.hold(LOG, Epoch(6), Position(4));
        assert!(!after(29).await && after(1).await);
        board.lose(LOG);
        assert!(!after(60).await, "it is another's");
    }
}
