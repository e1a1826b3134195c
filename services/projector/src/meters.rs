use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::shard::Writer;

/// What one writer of a read database counts.
pub(crate) struct Meters {
    pub commits: Histogram,
    pub batches: Histogram,
    pub transactions: Counter,
    pub events: Counter,
    pub claims: Counter,
    pub partitions: Gauge,
    pub parked_entities: Gauge,
}

impl Meters {
    pub fn of(writer: &Writer) -> Self {
        let labels = [("database", writer.database.clone())];
        // A gauge is not added up: each has its own.
        let own = [("database", writer.database.clone()), ("writer", writer.number.to_string())];
        Self {
            commits: histogram!("souk_projector_commit_seconds", &labels),
            batches: histogram!("souk_projector_batch_events", &labels),
            transactions: counter!("souk_projector_transactions_total", &labels),
            events: counter!("souk_projector_events_total", &labels),
            claims: counter!("souk_projector_claims_total", &labels),
            partitions: gauge!("souk_projector_partitions", &own),
            parked_entities: gauge!("souk_parked_entities", &own),
        }
    }
}
