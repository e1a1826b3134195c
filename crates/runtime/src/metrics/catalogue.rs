use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric that some process of Souk exposes.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// What it tells and by which labels, as scrapers and operators read it.
    pub text: &'static str,
}

impl Metric {
    pub(super) fn describe(&self) {
        let unit = if self.name.ends_with("_seconds") { Unit::Seconds } else { Unit::Count };
        match self.kind {
            Kind::Counter => describe_counter!(self.name, unit, self.text),
            Kind::Gauge => describe_gauge!(self.name, unit, self.text),
            Kind::Histogram => describe_histogram!(self.name, unit, self.text),
        }
    }
}

const fn counter(name: &'static str, text: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, text }
}

const fn gauge(name: &'static str, text: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, text }
}

const fn histogram(name: &'static str, text: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, text }
}

/// Every metric there is. Labels are bounded by what is configured: methods, databases, partitions. None is named
/// `service`, `job`, `instance`, `pod` or `namespace`, which belong to whoever scrapes.
pub const CATALOGUE: &[Metric] = &[
    // Every process
    gauge("souk_build_info", "1, by version"),
    gauge("souk_process_start_time_seconds", "When the process started, Unix time"),
    gauge("souk_clock_seconds", "The clock of the process, Unix time; held against the time of the scrape it shows skew"),
    gauge("souk_ready", "1 while all components are ready"),
    gauge("souk_impaired", "1 while a component serves without something it shares with others, such as a database"),
    gauge("souk_draining", "1 from the signal to end until the end"),
    // gRPC
    counter("souk_rpc_requests_total", "Calls answered, by grpc_service, grpc_method and grpc_code"),
    histogram("souk_rpc_seconds", "From a call's arrival to its answer, by grpc_service, grpc_method and grpc_code"),
    gauge("souk_rpc_in_flight", "Calls under way, by door"),
    gauge("souk_rpc_in_flight_max", "Calls beyond which more are refused, by door"),
    gauge("souk_rpc_streams_open", "Open streams, by door"),
    counter("souk_rpc_shed_total", "Calls refused because too many were under way"),
    counter("souk_rpc_untaken_total", "Streams cut off because the caller did not take what was sent"),
    counter("souk_rpc_connections_refused_total", "Connections refused because too many were open"),
    counter("souk_rpc_connections_unasked_total", "Connections closed because nothing was asked on them"),
    counter("souk_forwarded_abroad_total", "Commands sent to their home in another region, by region"),
    counter("souk_forwarded_total", "Commands passed on to the owner of their log"),
    // Queues before databases
    gauge("souk_queue_length", "Who waits or is served, by queue (write/DATABASE, read/DATABASE)"),
    histogram("souk_queue_wait_seconds", "Time in the queue, by queue: of a command until its turn, of a query until its rows are read"),
    counter(
        "souk_queue_refused_total",
        "Calls refused because they would have waited too long, by queue; those refused unread, by the shortest",
    ),
    gauge("souk_pool_connections", "Connections of a pool, by pool (write/DATABASE, read/SERVER) and state (used, idle)"),
    gauge("souk_pool_connections_max", "Most connections of a pool, by pool"),
    // Committer
    histogram("souk_commit_seconds", "Time of an append, by database; its sum per second is the share of time a lane is busy"),
    histogram("souk_commit_batch_commands", "Commands in an append, by database"),
    counter("souk_commit_events_total", "Events appended, by database"),
    counter("souk_conflicts_total", "Commands decided on an entity that had changed; decided again within bounds, by database"),
    counter("souk_fenced_total", "Appends refused by the fence, by database"),
    // Ownership of logs
    gauge("souk_command_partitions", "Logs owned, by database"),
    counter("souk_leases_taken_total", "Logs taken over, by database"),
    counter("souk_leases_lost_total", "Logs found in another's hands"),
    counter("souk_leases_handed_over_total", "Logs given to another replica in order"),
    counter("souk_logs_restored_total", "Logs that went back behind what was known of them"),
    // Relay
    gauge("souk_relay_lag_events", "Events committed and not acknowledged by JetStream, by region and partition"),
    gauge("souk_relay_lag_seconds", "Age of the oldest event JetStream does not have, by region and partition"),
    histogram("souk_relay_publish_seconds", "From publishing an event to its acknowledgement"),
    counter("souk_relay_troubles_total", "Times a relay had to check its stream again"),
    counter("souk_relay_rebuilds_total", "Streams made anew because they were no copy of their log, by flaw"),
    // Projector
    gauge("souk_projection_lag_events", "Events not projected yet, by database, region and partition"),
    gauge("souk_projection_lag_seconds", "For how long a head is known that is not reached, by database, region and partition"),
    gauge(
        "souk_projection_stalled_seconds",
        "For how long a log that lags, or is folded anew, has not moved, by database, region and partition",
    ),
    gauge("souk_projection_position", "Position projected, by database, region and partition; 0 where another replica projects"),
    gauge("souk_projection_halted", "1 for a log that stands still at an event, by database, region and partition"),
    gauge("souk_projector_partitions", "Logs held, by database and writer"),
    gauge("souk_parked_events", "Events set aside, by database, region and partition"),
    gauge("souk_parked_entities", "Entities with events set aside, by database and writer"),
    counter("souk_projector_events_total", "Events projected, by database"),
    counter("souk_projector_transactions_total", "Batches written, by database"),
    histogram("souk_projector_commit_seconds", "Time of a batch to its commit, with its folding unless that was done ahead; by database"),
    histogram("souk_projector_batch_events", "Events in a batch, by database"),
    counter("souk_projector_claims_total", "Logs claimed, by database"),
    counter("souk_projector_taken_over_total", "Logs found in another's hands"),
    counter("souk_projector_lost_total", "Writes that found another checkpoint than believed"),
    counter("souk_projector_rewinds_total", "Logs folded anew"),
    counter("souk_projector_divergences_total", "Times a log was another one than was projected"),
    counter("souk_projector_backfills_total", "Times events were read from the log instead of the bus"),
    counter("souk_projector_feed_failures_total", "Changes that could not be announced"),
    counter("souk_watchdog_restarts_total", "Times something hung and was started anew"),
    // Process manager
    gauge("souk_saga_lag_events", "Events not applied yet, by region and partition"),
    gauge("souk_saga_lag_seconds", "For how long a log has been behind its head, by region and partition"),
    gauge("souk_saga_stalled_seconds", "For how long a log that lags has not moved, by region and partition"),
    gauge("souk_saga_partitions", "Logs held, by database"),
    gauge("souk_saga_outbox_steps", "Steps under way or waiting, by database"),
    counter("souk_saga_steps_total", "Attempts at steps, by step and outcome"),
    histogram("souk_saga_step_seconds", "From when a step was due to its end, by step"),
    counter("souk_saga_refusals_total", "Steps that a rule refused, by step"),
    histogram("souk_saga_batch_events", "Events in a batch"),
    counter("souk_saga_claims_total", "Logs claimed, by database"),
    counter("souk_saga_fenced_total", "Logs found in another's hands"),
    counter("souk_saga_divergences_total", "Times a log was another one than was applied"),
    counter("souk_saga_backfills_total", "Times events were read from the log instead of the bus"),
    // Replicator
    gauge("souk_replicator_partitions", "Copies of other regions' logs that this process makes"),
    gauge("souk_replicator_lag_events", "Events of a region that are not copied yet, by region"),
    gauge("souk_replicator_lag_seconds", "For how long the copy of some log of a region has been behind, by region"),
    gauge("souk_replicator_silence_seconds", "Time since a region was last heard, by region"),
    gauge("souk_replicator_reachable", "1 while every log of a region was heard of within 10 s, by region"),
    gauge("souk_replicator_unproven_events", "Events of a region that a third one lent and it has not vouched for yet, by region"),
    counter("souk_replicator_lent_total", "Events of a region copied from a third one, by region"),
    counter("souk_replicator_refused_total", "Batches refused because they do not fit the copy, by region that sent them"),
    counter("souk_replicator_events_total", "Events copied, by region"),
    counter("souk_replicator_rewinds_total", "Copies that followed an origin that went back"),
    counter("souk_replicator_divergences_total", "Looks at a copy that has nothing in common with its origin"),
    // Query
    counter("souk_cache_hits_total", "Rows answered from memory"),
    counter("souk_cache_misses_total", "Rows looked for in vain"),
    counter("souk_cache_loads_total", "Rows read from a database"),
    counter("souk_cache_floor_rises_total", "Times cached rows stopped counting because the feed had a hole"),
    gauge("souk_cache_entries", "Rows in memory"),
    gauge("souk_cache_bytes", "Size of the rows in memory"),
    gauge("souk_feed_age_seconds", "For how long the change feed of some log has been silent"),
    histogram("souk_token_wait_seconds", "For how long queries waited until the views had what their token names"),
    counter("souk_read_server_answers_total", "Reads, by server and outcome (answered, behind, failed)"),
    // Auditor
    gauge("souk_audit_differences", "Differences the last audit found"),
    gauge("souk_audit_checked", "What the last audit looked at, by what"),
    gauge("souk_audit_finished_time_seconds", "When the last audit that looked at everything ended, Unix time"),
    gauge("souk_audit_seconds", "Time the last audit took"),
    counter("souk_audit_failures_total", "Audits that could not look at everything"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_prometheus() {
        let names: BTreeSet<_> = CATALOGUE.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), CATALOGUE.len(), "each once");
        for Metric { name, kind, .. } in CATALOGUE {
            assert!(name.starts_with("souk_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        }
    }
}
