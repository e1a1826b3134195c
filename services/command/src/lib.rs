//! The command service: decides commands in batches, appends them durably, publishes what was appended.
//!
//! # Layout
//! - `api`: the gRPC edge: requests to commands, errors to statuses
//! - `gateway`: from a command to the lane of its log, and back
//! - [`committer`]: drain → load → decide → append → reply; knows no commerce
//! - `commerce`: the model the committer works on
//! - `topology`: which regions there are, as last read
//! - `ownership`: which logs this process owns
//! - `service`: how all of it starts and ends ([`run`])

mod api;
mod commerce;
pub mod committer;
mod gateway;
mod ownership;
mod service;
mod topology;

pub use service::run;
