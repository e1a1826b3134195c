use std::collections::BTreeMap;

use souk_event_sourcing::LogId;

/// A projector that shares the logs of a read database with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// A name that is this replica's alone while it runs.
    pub id: String,
    /// Where its internal port is reached.
    pub address: String,
}

/// Who shares the logs of a read database. A hint to spare needless takeovers: safety is the fence alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Those that told of late that they live, by id.
    pub live: Vec<Replica>,
    /// By id, who claimed a log last and did not release it, living or dead.
    pub holders: BTreeMap<LogId, String>,
}
