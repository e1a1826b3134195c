//! The publishing half of JetStream: only a log's owner names this crate.
//!
//! # Layout
//! - `port`: what a relay needs of the broker ([`LogPublisher`]), and what may go wrong
//! - `jetstream`: the port on NATS ([`JetStreamPublisher`]); `settings`: what its streams should be ([`StreamLimits`])
//! - `memory`: the port in memory ([`MemoryPublisher`])
//! - `conformance`: the law of publishing and reading as tests that all adapters run

#[cfg(feature = "conformance")]
pub mod conformance;
mod jetstream;
mod memory;
mod port;
mod settings;

pub use jetstream::JetStreamPublisher;
pub use memory::MemoryPublisher;
pub use port::{Ack, LogPublisher, PublishError, StreamState};
pub use settings::StreamLimits;
