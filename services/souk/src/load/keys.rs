use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rand::{Rng, rngs::SmallRng};
use serde::Deserialize;

/// Sets of ids that calls are about, some asked for more often than others.
#[derive(Debug, Default)]
pub struct Keys(Vec<Set>);

/// A set as a scenario describes it: `p-1`, `p-2`, … for `prefix = "p-"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    prefix: String,
    count: usize,
    /// The exponent: the key of rank n is asked for n^-zipf times as often as the first; 0 makes all alike.
    #[serde(default)]
    zipf: f64,
}

#[derive(Debug)]
struct Set {
    name: String,
    prefix: String,
    /// The share of draws up to each key, in all.
    shares: Vec<f64>,
}

impl Keys {
    pub fn new(settings: &BTreeMap<String, KeySettings>) -> Result<Self> {
        let sets = settings.iter().map(|(name, settings)| {
            let KeySettings { prefix, count, zipf } = settings;
            ensure!(*count > 0, "keys.{name} has none");
            ensure!(zipf.is_finite() && *zipf >= 0.0, "keys.{name}: an exponent is at least 0, not {zipf}");
            let mut sum = 0.0;
            let mut shares: Vec<f64> = (1..=*count)
                .map(|rank| {
                    sum += (rank as f64).powf(-zipf);
                    sum
                })
                .collect();
            shares.iter_mut().for_each(|share| *share /= sum);
            Ok(Set { name: name.clone(), prefix: prefix.clone(), shares })
        });
        Ok(Self(sets.collect::<Result<_>>()?))
    }

    pub fn find(&self, name: &str) -> Result<usize> {
        self.0.iter().position(|set| set.name == name).with_context(|| format!("there are no keys called {name:?}"))
    }

    pub fn draw(&self, set: usize, random: &mut SmallRng) -> String {
        let Set { prefix, shares, .. } = &self.0[set];
        let chosen: f64 = random.random();
        let rank = shares.partition_point(|share| *share <= chosen).min(shares.len() - 1);
        format!("{prefix}{}", rank + 1)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn keys_are_drawn_by_rank() {
        let settings = |zipf| KeySettings { prefix: "p-".into(), count: 1000, zipf };
        let keys = Keys::new(&BTreeMap::from([("even".into(), settings(0.0)), ("steep".into(), settings(1.0))])).expect("two sets");
        let mut random = SmallRng::seed_from_u64(7);
        let mut share = |set, key: &str| (0..20_000).filter(|_| keys.draw(set, &mut random) == key).count() as f64 / 20_000.0;
        // The harmonic number of 1000 is 7.485.
        let (first, tenth) = (share(1, "p-1"), share(1, "p-10"));
        assert!((first - 1.0 / 7.485).abs() < 0.01, "{first}");
        assert!((tenth - 0.1 / 7.485).abs() < 0.004, "{tenth}");
        let even = share(0, "p-1000");
        assert!((0.0001..0.003).contains(&even), "{even}");
        assert!(keys.find("odd").is_err());
        assert!(Keys::new(&BTreeMap::from([("none".into(), KeySettings { count: 0, ..settings(0.0) })])).is_err());
    }
}
