//! The publishing half of JetStream: only a log's owner names this crate.
//!
//! # Layout
//! - `port`: what a relay needs of the broker ([`LogPublisher`]), and what may go wrong
//! - `jetstream`: the port on NATS ([`JetStreamPublisher`])
//! - `memory`: the port in memory ([`MemoryPublisher`])

mod jetstream;
mod memory;
mod port;

pub use jetstream::{JetStreamPublisher, StreamLimits};
pub use memory::MemoryPublisher;
pub use port::{Ack, LogPublisher, PublishError, StreamState};
