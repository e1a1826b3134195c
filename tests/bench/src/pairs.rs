//! Two sides by turns: A B A B …

use std::{future::Future, time::Duration};

use anyhow::Result;

/// From this spread of the ratios on (between their quarters, over the median) a run says nothing.
const TOO_NOISY: f64 = 0.25;

/// What the pairs of a benchmark came to.
#[derive(Debug, Clone)]
pub struct Ratios {
    /// In the order measured.
    pub all: Vec<f64>,
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Ratios {
    /// # Panics
    /// When there are none.
    pub fn of(all: Vec<f64>) -> Self {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        Self { median: median(&sorted), min: sorted[0], max: sorted[sorted.len() - 1], all }
    }

    /// Whether the pairs differ too much among themselves to judge by them.
    pub fn too_noisy(&self) -> bool {
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        (quantile(&sorted, 0.75) - quantile(&sorted, 0.25)) / self.median > TOO_NOISY
    }
}

/// Between two values in proportion, so that of few pairs the outermost count as well.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * share;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// What one side of a pair came to.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    /// Operations per second.
    pub rate: f64,
    /// CPU time of those who did them, for one, in microseconds.
    pub cpu_us: f64,
}

impl Side {
    /// A rate, and the CPU time of so many operations.
    pub fn new(rate: f64, operations: u64, cpu: Duration) -> Self {
        Self { rate, cpu_us: cpu.as_secs_f64() * 1e6 / operations.max(1) as f64 }
    }

    /// So many operations in some time, and their CPU time.
    pub fn of(operations: u64, took: Duration, cpu: Duration) -> Self {
        Self::new(operations as f64 / took.as_secs_f64(), operations, cpu)
    }

    /// How much faster this side is.
    pub fn ratio(&self, other: &Self) -> f64 {
        self.rate / other.rate
    }
}

/// Measures by turns, the order changing from pair to pair so that a machine that grows slower favours nobody.
///
/// # Errors
/// When a side cannot be measured.
pub async fn by_turns<T, A, B>(count: usize, mut a: impl FnMut() -> A, mut b: impl FnMut() -> B) -> Result<Vec<(T, T)>>
where
    A: Future<Output = Result<T>>,
    B: Future<Output = Result<T>>,
{
    let mut pairs = Vec::with_capacity(count);
    for turn in 0..count {
        let pair = if turn % 2 == 0 {
            let first = a().await?;
            (first, b().await?)
        } else {
            let second = b().await?;
            (a().await?, second)
        };
        pairs.push(pair);
    }
    Ok(pairs)
}

pub fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// The median of values in any order.
///
/// # Panics
/// When there are none.
pub fn median_of(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    median(&values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_between_the_least_and_the_most() {
        let ratios = Ratios::of(vec![1.1, 0.9, 1.0, 1.05]);
        assert_eq!((ratios.min, ratios.max), (0.9, 1.1));
        assert!((ratios.median - 1.025).abs() < 1e-9);
        assert!(!ratios.too_noisy());
        assert!(Ratios::of(vec![0.5, 1.0, 1.5, 2.0]).too_noisy());
        assert!(Ratios::of(vec![0.2, 1.0, 1.0, 5.0]).too_noisy(), "two that agree are not enough");
    }

    #[tokio::test]
    async fn the_sides_take_turns_at_being_first() {
        let order = std::sync::Mutex::new(String::new());
        let side = |name: char| {
            let order = &order;
            move || {
                order.lock().unwrap().push(name);
                async move { Ok(name) }
            }
        };
        let pairs = by_turns(3, side('a'), side('b')).await.unwrap();
        assert_eq!(pairs, [('a', 'b'); 3]);
        assert_eq!(*order.lock().unwrap(), "abbaab");
    }
}
