//! The transport between log and readers: what every side may know. Publishing to JetStream is a crate of its own,
//! which the query service cannot name.
//!
//! # Layout
//! - `port`: the laws of transport: [`EventSource`] and [`Feed`]
//! - `wire`: events as messages ([`to_wire`], [`from_wire`])
//! - `subjects`: names of subjects and JetStream streams ([`Subjects`])
//! - `jetstream`: both ports on NATS ([`JetStreamBus`])
//! - `memory`: both ports in memory ([`MemoryBus`])

mod error;
mod jetstream;
mod memory;
mod port;
mod subjects;
mod wire;

pub use error::{BusError, MalformedEvent};
pub use jetstream::{JetStreamBus, connect};
pub use memory::MemoryBus;
pub use port::{EventSource, Events, Feed};
pub use subjects::Subjects;
pub use wire::{from_wire, to_wire};
