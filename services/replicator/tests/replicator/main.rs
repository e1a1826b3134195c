//! The whole service on real Postgres and NATS, with event logs of other regions of the test's own.
//!
//! # Layout
//! - `region`: another region as its event log tells of it, and what may be wrong with it
//! - `world`: this region, with the replicator
//! - `following`: one origin; `lending`: an origin that is away, and third regions

mod following;
mod lending;
mod region;
mod world;
