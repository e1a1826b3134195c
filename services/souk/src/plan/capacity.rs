//! What one of each part carries: stated, or as the last benchmark measured it.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::quantity::parse_number;

/// Where `just bench` leaves its record.
pub const RECORD: &str = "target/bench/summary.json";

/// How much one part carries in a second, and who says so.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Capacity {
    pub per_second: f64,
    pub source: String,
}

/// Per second and piece.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Capacities {
    /// Commands one write database commits.
    pub write_database: Capacity,
    /// Queries one standby of a read database answers when nothing is cached.
    pub read_replica: Capacity,
    /// Events one read database takes over.
    pub read_database: Capacity,
    /// Commands one process of the command service decides.
    pub command: Capacity,
    /// Queries one process of the query service answers, nearly all from its cache.
    pub query: Capacity,
    /// Events one projector folds.
    pub projector: Capacity,
    /// Events one process manager follows.
    pub saga: Capacity,
}

impl Default for Capacities {
    /// Stated, on the low side, for processes and databases of two cores each:
    /// - write database and command service: 5,000/s, half of what the append statement did alone in batches of ten on six million
    ///   events (9,400/s on two cores);
    /// - read replica: 5,000/s, the round figure of the textbook's example; a look-up by primary key through a pool;
    /// - read database and projector: 5,000/s, what the projections of other event stores are known for (KurrentDB: 5–6k events/s);
    /// - query service: 20,000/s, a third of what one core gave for 1 KB from the cache (64–66k calls/s), the rest being for TLS,
    ///   tokens and misses;
    /// - process manager: 5,000/s, as the projector, most events being none of its business.
    fn default() -> Self {
        let stated = |per_second| Capacity { per_second, source: "stated".to_owned() };
        Self {
            write_database: stated(5_000.0),
            read_replica: stated(5_000.0),
            read_database: stated(5_000.0),
            command: stated(5_000.0),
            query: stated(20_000.0),
            projector: stated(5_000.0),
            saga: stated(5_000.0),
        }
    }
}

/// Which entry and figure of the record, as `tests/bench` names them, says what of which part. A bench runs one process and one database, so that what they did
/// together each of them does.
const MEASURED: [(&str, &str, &str); 5] = [
    ("write-database", "B4", "commands_per_second"),
    ("command", "B4", "commands_per_second"),
    ("query", "B1", "hits_per_second"),
    ("projector", "B9", "products_per_second"),
    ("read-database", "B9", "products_per_second"),
];

impl Capacities {
    /// The parts by the names that `--capacity` takes.
    fn named(&mut self, part: &str) -> Option<&mut Capacity> {
        Some(match part {
            "write-database" => &mut self.write_database,
            "read-replica" => &mut self.read_replica,
            "read-database" => &mut self.read_database,
            "command" => &mut self.command,
            "query" => &mut self.query,
            "projector" => &mut self.projector,
            "saga" => &mut self.saga,
            _ => return None,
        })
    }

    /// Takes over what a record of the benchmarks has measured; what it lacks stays as stated.
    pub fn measured(mut self, record: &Value) -> Self {
        for (part, entry, figure) in MEASURED {
            let measured = record[entry]["figures"][figure].as_f64().filter(|per_second| *per_second > 0.0);
            if let (Some(capacity), Some(per_second)) = (self.named(part), measured) {
                *capacity = Capacity { per_second, source: format!("measured, {entry}") };
            }
        }
        self
    }

    /// Takes over what the caller states, as `read-replica=8000`.
    pub fn stated(mut self, stated: &[(String, f64)]) -> Result<Self> {
        for (part, per_second) in stated {
            let Some(capacity) = self.named(part) else {
                bail!("no part is called {part}: want write-database, read-replica, read-database, command, query, projector or saga");
            };
            *capacity = Capacity { per_second: *per_second, source: "given".to_owned() };
        }
        Ok(self)
    }
}

/// The record at a path; none if there is no such file.
pub fn read_record(path: &Path) -> Result<Option<Value>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is no record of benchmarks", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// `read-replica=8000`.
pub fn parse(text: &str) -> Result<(String, f64), String> {
    let (part, per_second) = text.split_once('=').ok_or("want PART=N, as read-replica=8000")?;
    Ok((part.to_owned(), parse_number(per_second)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_measured_goes_over_what_is_stated_and_what_is_given_over_both() {
        let record = json!({
            "B4": {"ratio": 1.1, "figures": {"commands_per_second": 12_345.6}},
            "B1": {"ratio": 1.0, "figures": {"hits_per_second": 0}},
            "B9": {"ratio": 1.0},
        });
        let measured = Capacities::default().measured(&record);
        assert_eq!(measured.write_database, Capacity { per_second: 12_345.6, source: "measured, B4".into() });
        assert_eq!((&measured.query, &measured.projector), (&Capacities::default().query, &Capacities::default().projector));
        let given = measured.stated(&[("write-database".into(), 800.0)]).unwrap();
        assert_eq!((given.write_database.per_second, given.command.per_second), (800.0, 12_345.6));
        assert!(given.stated(&[("edge".into(), 1.0)]).is_err());
    }

    #[test]
    fn a_record_that_is_missing_is_none_and_a_broken_one_an_error() {
        let folder = std::env::temp_dir().join(format!("souk-plan-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("summary.json");
        assert_eq!(read_record(&file).unwrap(), None);
        fs::write(&file, "{\"B4\": {}}").unwrap();
        assert_eq!(read_record(&file).unwrap(), Some(json!({"B4": {}})));
        fs::write(&file, "{").unwrap();
        assert!(read_record(&file).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_capacity_is_given_by_part() {
        assert_eq!(parse("read-replica=8k"), Ok(("read-replica".into(), 8000.0)));
        assert!(parse("read-replica").is_err() && parse("read-replica=none").is_err());
    }
}
