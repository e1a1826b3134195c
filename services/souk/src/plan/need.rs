//! How many of a part are needed, and what for.

use serde::Serialize;

/// What an installation has one or several of, or more or less of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Processes of the command service.
    Command,
    /// Processes of the query service.
    Query,
    /// Processes of the projector.
    Projector,
    /// Processes of the process manager.
    Saga,
    /// Databases the events are spread over.
    WriteDatabase,
    /// Databases the views are spread over.
    ReadDatabase,
    /// Standbys of read databases, all together.
    ReadReplica,
    /// Servers of NATS.
    Nats,
    /// MiB for cached replies in each process of the query service.
    Cache,
    /// MiB that JetStream keeps of each partition.
    JetStream,
}

impl Part {
    /// Whether it is counted in MiB.
    pub const fn is_memory(self) -> bool {
        matches!(self, Self::Cache | Self::JetStream)
    }
}

/// One reason for a number: so much of something, of which one carries so much.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cause {
    /// What saturates the part.
    pub what: &'static str,
    pub load: f64,
    /// How much of it one carries.
    pub one: f64,
}

/// How a number is brought to one that can be had.
#[derive(Debug, Clone, Copy)]
pub enum Rounding {
    /// So many more than are needed, and no more than partitions, for those beyond would have nothing to do.
    Spare { spares: u64, most: u64 },
    /// A number that the partitions can be divided by, so that all carry alike.
    Evenly { partitions: u64 },
    /// As many for each of these, and at least so many together.
    Each { of: u64, least: u64 },
    /// At least so many.
    Least(u64),
    /// A power of two within bounds.
    PowerOfTwo { least: u64, most: u64 },
}

/// How many of a part are needed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Need {
    pub part: Part,
    pub count: u64,
    /// The cause that asks for most stands first.
    pub causes: Vec<Cause>,
    /// More would be needed than can be had.
    pub exceeded: bool,
}

impl Cause {
    pub fn new(what: &'static str, load: f64, one: f64) -> Self {
        Self { what, load, one }
    }

    /// How many are needed for this alone, with a fraction.
    pub fn wanted(&self) -> f64 {
        self.load / self.one
    }

    /// The same as a whole number.
    pub fn count(&self) -> u64 {
        // A number that is whole but for the last bits of a double is whole.
        let wanted = self.wanted();
        let near = wanted.round();
        if (wanted - near).abs() < 1e-9 * near.max(1.0) { near as u64 } else { wanted.ceil() as u64 }
    }
}

impl Need {
    /// # Panics
    /// Without a cause.
    pub fn new(part: Part, rounding: Rounding, mut causes: Vec<Cause>) -> Self {
        causes.sort_by(|a, b| b.wanted().total_cmp(&a.wanted()));
        let wanted = causes[0].count();
        let count = rounding.round(wanted);
        Self { part, count, causes, exceeded: count < wanted }
    }

    /// What asks for most.
    pub fn cause(&self) -> &Cause {
        &self.causes[0]
    }

    /// Share of what all of them carry; none if there are none.
    pub fn used(&self) -> Option<f64> {
        (self.count > 0).then(|| self.cause().wanted() / self.count as f64)
    }
}

impl Rounding {
    fn round(self, wanted: u64) -> u64 {
        match self {
            Self::Spare { spares, most } => (wanted.max(1) + spares).min(most.max(1)),
            Self::Evenly { partitions } => {
                (wanted.max(1)..=partitions).find(|count| partitions.is_multiple_of(*count)).unwrap_or(partitions)
            }
            Self::Each { of, least } => wanted.max(least).div_ceil(of) * of,
            Self::Least(least) => wanted.max(least),
            Self::PowerOfTwo { least, most } => wanted.clamp(1, most).next_power_of_two().clamp(least, most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rounding: Rounding, wanted: f64) -> (u64, bool) {
        let need = Need::new(Part::Query, rounding, vec![Cause::new("", wanted, 1.0)]);
        (need.count, need.exceeded)
    }

    #[test]
    fn numbers_are_rounded_to_what_can_be_had() {
        let spare = Rounding::Spare { spares: 1, most: 64 };
        assert_eq!(
            [0.0, 1.0, 1.2, 63.5, 70.0].map(|wanted| count(spare, wanted)),
            [(2, false), (2, false), (3, false), (64, false), (64, true)]
        );
        let evenly = Rounding::Evenly { partitions: 48 };
        assert_eq!([0.1, 4.5, 9.0, 49.0].map(|wanted| count(evenly, wanted)), [(1, false), (6, false), (12, false), (48, true)]);
        let each = Rounding::Each { of: 2, least: 1 };
        assert_eq!([0.0, 2.0, 2.1].map(|wanted| count(each, wanted)), [(2, false), (2, false), (4, false)]);
        assert_eq!([0.0, 4.0].map(|wanted| count(Rounding::Least(3), wanted)), [(3, false), (4, false)]);
        let memory = Rounding::PowerOfTwo { least: 64, most: 2048 };
        assert_eq!(
            [0.0, 65.0, 2048.0, 9999.0].map(|wanted| count(memory, wanted)),
            [(64, false), (128, false), (2048, false), (2048, true)]
        );
    }

    #[test]
    fn the_cause_that_asks_for_most_decides() {
        let need = Need::new(Part::WriteDatabase, Rounding::Least(0), vec![Cause::new("few", 1.0, 2.0), Cause::new("many", 7.0, 2.0)]);
        assert_eq!((need.count, need.cause().what, need.used()), (4, "many", Some(3.5 / 4.0)));
    }

    #[test]
    fn a_number_that_is_whole_but_for_its_last_bits_is_whole() {
        assert_eq!(count(Rounding::Least(0), 2.0000000000000004).0, 2);
        assert_eq!(count(Rounding::Least(0), 2.000001).0, 3);
    }
}
