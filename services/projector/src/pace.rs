use std::time::Duration;

use tokio::time::Instant;

/// When the next transaction may begin, so that events that come fast share one. A lonely event is written at once, and a
/// backlog without a pause.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    interval: Duration,
    /// Half a batch.
    backlog: usize,
    next: Option<Instant>,
}

impl Pace {
    pub(crate) fn new(interval: Duration, batch_events: usize) -> Self {
        Self { interval, backlog: batch_events / 2, next: None }
    }

    /// A transaction with so many events was begun.
    pub(crate) fn wrote(&mut self, began: Instant, events: usize) {
        self.next = (events > 1).then(|| began + self.interval);
    }

    /// Until when more is let arrive, while so many events wait; `None` for not at all.
    pub(crate) fn pause(&self, waiting: usize) -> Option<Instant> {
        self.next.filter(|_| waiting < self.backlog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(5);

    #[test]
    fn only_what_follows_a_shared_transaction_waits_and_no_backlog_does() {
        let (mut pace, began) = (Pace::new(INTERVAL, 8), Instant::now());
        assert_eq!(pace.pause(0), None, "the first");
        pace.wrote(began, 1);
        assert_eq!(pace.pause(0), None, "after a lonely event");
        pace.wrote(began, 2);
        assert_eq!((pace.pause(0), pace.pause(3)), (Some(began + INTERVAL), Some(began + INTERVAL)));
        assert_eq!(pace.pause(4), None, "half a batch waits");
        pace.wrote(began, 1);
        assert_eq!(pace.pause(3), None);
    }
}
