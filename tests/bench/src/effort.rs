use std::{future::Future, time::Duration};

use anyhow::Result;
use souk_devstack::StackOptions;

use crate::{
    pairs::{Ratios, by_turns},
    record::progress,
};

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

    /// As the record calls it.
    pub fn name(&self) -> &'static str {
        self.of("full", "quick", "smoke")
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

    /// Pairs of what the two sides came to, [`steady`](Self::steady) as far as they can be had.
    ///
    /// # Errors
    /// When a side cannot be measured.
    pub async fn pairs<T, A, B>(
        &self,
        mut a: impl FnMut() -> A,
        mut b: impl FnMut() -> B,
        ratio: impl Fn(&T, &T) -> f64,
    ) -> Result<Vec<(T, T)>>
    where
        A: Future<Output = Result<T>>,
        B: Future<Output = Result<T>>,
    {
        self.steady(async || by_turns(self.pairs, &mut a, &mut b).await, |(a, b)| ratio(a, b)).await
    }

    /// Measures again, in a full run at most twice, while the ratios differ too much to judge by them. The last word stands.
    ///
    /// # Errors
    /// Those of `measure`.
    pub async fn steady<M>(&self, mut measure: impl AsyncFnMut() -> Result<Vec<M>>, ratio: impl Fn(&M) -> f64) -> Result<Vec<M>> {
        for _ in 0..self.of(2, 0, 0) {
            let measured = measure().await?;
            if !Ratios::of(measured.iter().map(&ratio).collect()).too_noisy() {
                return Ok(measured);
            }
            progress("too noisy to judge by; measured again");
        }
        measure().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often something is measured whose first `noisy` times say nothing, and what stands.
    async fn measured(size: Size, noisy: usize) -> (usize, Vec<f64>) {
        let mut times = 0;
        let measure = async || {
            times += 1;
            Ok(if times <= noisy { vec![0.5, 1.0, 1.5, 2.0] } else { vec![1.0, 1.01, 0.99, 1.0] })
        };
        let stands = Effort::new(size).steady(measure, |ratio| *ratio).await.unwrap();
        (times, stands)
    }

    #[tokio::test]
    async fn what_is_too_noisy_is_measured_again_at_most_twice() {
        let (steady, noisy) = (vec![1.0, 1.01, 0.99, 1.0], vec![0.5, 1.0, 1.5, 2.0]);
        assert_eq!(measured(Size::Full, 0).await, (1, steady.clone()));
        assert_eq!(measured(Size::Full, 2).await, (3, steady));
        assert_eq!(measured(Size::Full, 3).await, (3, noisy.clone()));
        assert_eq!(measured(Size::Quick, 1).await, (1, noisy), "a quick run is to end in time");
    }
}
