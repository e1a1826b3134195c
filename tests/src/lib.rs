//! Whole-system tests: real Postgres, NATS, processes and sockets; what several of them need.
//!
//! # Layout
//! - [`System`]: the system under test, each service a process of its own
//! - [`Shop`]: products, stock and orders with few words
//! - [`TraceReceiver`]: an OTLP receiver for the services' spans
//! - `ledger`: acknowledged commands, proved by SQL alone

mod ledger;
mod shop;
mod system;
mod traces;

pub use ledger::Acknowledged;
pub use shop::{Shop, eur};
pub use system::{System, until};
pub use traces::{Recorded, TraceReceiver};
