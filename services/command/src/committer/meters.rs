use metrics::{Counter, Histogram, counter, histogram};

/// What the committer of one database counts.
pub(super) struct Meters {
    /// Their sum per second is the share of time the lane is busy.
    pub appends: Histogram,
    pub commands: Histogram,
    pub events: Counter,
    pub conflicts: Counter,
    pub fenced: Counter,
}

impl Meters {
    pub fn of(database: &str) -> Self {
        let labels = [("database", database.to_owned())];
        Self {
            appends: histogram!("souk_commit_seconds", &labels),
            commands: histogram!("souk_commit_batch_commands", &labels),
            events: counter!("souk_commit_events_total", &labels),
            conflicts: counter!("souk_conflicts_total", &labels),
            fenced: counter!("souk_fenced_total", &labels),
        }
    }
}
