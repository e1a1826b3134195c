//! The transport between log and readers: what every side may know. Publishing to JetStream is a crate of its own,
//! which the query service cannot name.
//!
//! # Layout
//! - `port`: the laws of transport: [`EventSource`] and [`Feed`]
//! - `wire`: events as messages ([`to_wire`], [`from_wire`])
//! - `subjects`: names of subjects and JetStream streams ([`Subjects`])
//! - `connection`: a connection to NATS that is kept ([`Connection`])
//! - `jetstream`: both ports on NATS ([`JetStreamBus`]); `consumer`: reading one JetStream stream
//! - `memory`: both ports in memory ([`MemoryBus`])

mod connection;
mod consumer;
mod error;
mod jetstream;
mod memory;
mod port;
mod subjects;
mod wire;

pub use connection::Connection;
pub use error::{BusError, MalformedEvent};
pub use jetstream::JetStreamBus;
pub use memory::{MemoryBus, MemoryStream};
pub use port::{EventSource, Events, Feed};
pub use subjects::Subjects;
pub use wire::{from_wire, to_wire};
