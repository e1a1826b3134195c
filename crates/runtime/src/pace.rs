use std::time::Duration;

use tokio::time::Instant;

/// When the next transaction may begin, so that what comes fast shares one. What comes alone is written at once, and what has
/// come in numbers without a pause.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    interval: Duration,
    enough: usize,
    next: Option<Instant>,
}

impl Pace {
    /// At least `interval` from one shared transaction to the next, unless `enough` waits for it.
    pub fn new(interval: Duration, enough: usize) -> Self {
        Self { interval, enough, next: None }
    }

    /// A transaction of so many was begun.
    pub fn wrote(&mut self, began: Instant, many: usize) {
        self.next = (many > 1).then(|| began + self.interval);
    }

    /// Until when more is let arrive, while so many wait; `None` for not at all.
    pub fn pause(&self, waiting: usize) -> Option<Instant> {
        self.next.filter(|_| waiting < self.enough)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(5);

    #[test]
    fn only_what_follows_a_shared_transaction_waits_and_no_backlog_does() {
        let (mut pace, began) = (Pace::new(INTERVAL, 4), Instant::now());
        assert_eq!(pace.pause(0), None, "the first");
        pace.wrote(began, 1);
        assert_eq!(pace.pause(0), None, "after a lonely one");
        pace.wrote(began, 2);
        assert_eq!((pace.pause(0), pace.pause(3)), (Some(began + INTERVAL), Some(began + INTERVAL)));
        assert_eq!(pace.pause(4), None, "enough waits");
        pace.wrote(began, 1);
        assert_eq!(pace.pause(3), None);
    }
}
