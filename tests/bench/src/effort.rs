use std::{future::Future, time::Duration};

use anyhow::Result;
use souk_devstack::StackOptions;

use crate::pairs::by_turns;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Everything once, for tests of the benchmarks themselves.
    Smoke,
    /// Half the pairs, half the time.
    Quick,
    Full,
}

/// How long and how often to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub pairs: usize,
    /// Of each side of a pair.
    pub time: Duration,
    size: Size,
}

impl Effort {
    pub const fn new(size: Size) -> Self {
        let (pairs, millis) = match size {
            Size::Smoke => (1, 500),
            Size::Quick => (4, 2_000),
            Size::Full => (7, 4_000),
        };
        Self { pairs, time: Duration::from_millis(millis), size }
    }

    /// What a full run takes of something, a quick one, and one that only shows that everything works.
    pub fn of<T>(&self, full: T, quick: T, smoke: T) -> T {
        match self.size {
            Size::Full => full,
            Size::Quick => quick,
            Size::Smoke => smoke,
        }
    }

    /// Whether it is long enough to hold the outcome against goals.
    pub fn judges(&self) -> bool {
        self.size != Size::Smoke
    }

    /// A test must not fail because the machine is busy: nothing is refused for having waited.
    pub fn adapt(&self, options: &mut StackOptions) {
        if self.size == Size::Smoke {
            options.set("command.queue_wait", "20s").set("query.queue_wait", "20s");
        }
    }

    /// Products of the headline, and of everything else.
    pub fn products(&self) -> u64 {
        self.of(100_000, 100_000, 300)
    }

    /// Pairs of what the two sides came to.
    ///
    /// # Errors
    /// When a side cannot be measured.
    pub async fn pairs<T, A, B>(&self, a: impl FnMut() -> A, b: impl FnMut() -> B) -> Result<Vec<(T, T)>>
    where
        A: Future<Output = Result<T>>,
        B: Future<Output = Result<T>>,
    {
        by_turns(self.pairs, a, b).await
    }
}
