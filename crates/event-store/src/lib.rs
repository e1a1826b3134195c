//! The write store: logs of events, the ledger of commands, snapshots and leases. Payloads are opaque here.
//!
//! # Layout
//! - `batch`: the [`Lane`] port through which a committer appends and loads, and what goes in and out of it
//! - `log`: the [`EventLog`] port through which everybody else reads
//! - `replica`: the [`Copies`] port: copies of logs that other regions write
//! - `ledger`: how long request ids are remembered and where ([`Retention`])
//! - `restored`: what was lost when a log went back ([`Restored`])
//! - `postgres`: the ports on Postgres, with migrations, placement and ownership ([`PostgresStore`])
//! - `memory`: the ports in memory ([`MemoryStore`]), and one log of it, step by step, for models ([`MemoryLog`])
//! - `conformance`: the law of the ports as tests that every adapter runs

mod batch;
mod error;
mod ledger;
mod log;
mod memory;
mod postgres;
mod replica;
mod restored;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use batch::{BatchOutcome, Belief, Fingerprint, Lane, LedgerEntry, LogBatch, StoredReply, StoredSnapshot, StoredStream, StreamAdvance};
pub use error::StoreError;
pub use ledger::{Bucket, Retention, UntimelyRequestId};
pub use log::{EpochStart, EventLog, Head};
pub use memory::{Examined, MemoryLog, MemoryStore};
pub use postgres::{
    Addresses, DatabaseConfig, Lease, Ownership, PostgresLane, PostgresStore, Replica, Survey, Taken, migrate_guarded, missing_migrations,
};
pub use replica::{Copies, End, LedgerRow, ReplicaBatch, Replicated};
pub use restored::{Lost, Restored};
