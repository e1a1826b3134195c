use std::collections::BTreeMap;

use serde::Serialize;

/// Differences told in full; of more only the number is told.
const TOLD: usize = 20;

/// What an audit counted and what it found wrong.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    /// What was compared, by name.
    pub checked: BTreeMap<&'static str, u64>,
    /// How many differences there are of each kind.
    pub wrong: BTreeMap<&'static str, u64>,
    /// The first differences.
    pub differences: Vec<Difference>,
    /// Entities that stand still in the views: compared only up to where they do, and no difference.
    pub parked: Vec<Difference>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// Log, as region/partition.
    pub log: String,
    pub kind: &'static str,
    pub what: String,
}

impl Findings {
    pub fn count(&mut self, what: &'static str, number: u64) {
        *self.checked.entry(what).or_default() += number;
    }

    pub fn differ(&mut self, log: impl ToString, kind: &'static str, what: impl Into<String>) {
        *self.wrong.entry(kind).or_default() += 1;
        if self.differences.len() < TOLD {
            self.differences.push(Difference { log: log.to_string(), kind, what: what.into() });
        }
    }

    /// Tells of an entity that is parked, which is known and no difference.
    pub fn park(&mut self, log: impl ToString, what: impl Into<String>) {
        self.count("parked entities", 1);
        if self.parked.len() < TOLD {
            self.parked.push(Difference { log: log.to_string(), kind: "parked", what: what.into() });
        }
    }

    pub fn is_clean(&self) -> bool {
        self.wrong.is_empty()
    }

    /// The same, said of a region among several.
    pub fn of(mut self, region: &str) -> Self {
        for told in self.differences.iter_mut().chain(&mut self.parked) {
            told.log = format!("{region}: {}", told.log);
        }
        self
    }

    pub fn add(&mut self, other: Self) {
        for (what, number) in other.checked {
            self.count(what, number);
        }
        for (kind, number) in other.wrong {
            *self.wrong.entry(kind).or_default() += number;
        }
        let room = TOLD.saturating_sub(self.differences.len());
        self.differences.extend(other.differences.into_iter().take(room));
        let room = TOLD.saturating_sub(self.parked.len());
        self.parked.extend(other.parked.into_iter().take(room));
    }
}
