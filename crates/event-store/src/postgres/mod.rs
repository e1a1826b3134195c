//! Both ports on Postgres.
//!
//! # Layout
//! - `append.sql`, `lane`: the fenced append and everything on its dedicated connection; `warnings`: what the server says beside the result
//! - `load`: histories of streams; `reader`: the event log; `row`: event rows
//! - `replicate.sql`, `replica`: copies of other regions' logs, and who makes them
//! - `setup`: connecting, migrations, installation and placement
//! - `ownership`: taking logs over, heartbeats and leases
//! - `restored`: what was lost when a log went back
//! - `topology`: the document of all regions
//! - `upkeep`: children of partitioned tables, snapshots

mod lane;
mod load;
mod migration;
mod ownership;
mod reader;
mod replica;
mod restored;
mod row;
mod setup;
mod topology;
mod upkeep;
mod warnings;

pub use lane::PostgresLane;
pub use migration::{migrate_guarded, missing_migrations};
pub use ownership::{Addresses, Lease, Ownership, Replica, Survey, Taken};
pub use setup::{DatabaseConfig, PostgresStore};
