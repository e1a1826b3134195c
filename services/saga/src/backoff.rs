use std::time::Duration;

/// Pauses between attempts: doubling from the first to the longest.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    pub fn longest(&self) -> Duration {
        self.longest
    }

    pub fn reset(&mut self) {
        self.next = self.first;
    }
}
