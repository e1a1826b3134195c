//! Whole-system tests: real Postgres, NATS, processes and sockets; what several of them need.
//!
//! # Layout
//! - [`System`]: the system under test, each service a process of its own
//! - [`World`]: several whole regions, joined by links
//! - [`Site`]: the same as `souk up` starts it, again and again over its data
//! - [`Shop`]: products, stock and orders with few words
//! - [`Gate`]: a door before a service that counts calls and refuses some
//! - [`open_loop`], [`closed_loop`]: load, and what became of it
//! - [`PythonExample`]: the example of another language, with its packages
//! - [`raw_http2`]: HTTP/2 as no client would speak it
//! - [`TraceReceiver`]: an OTLP receiver for the services' spans
//! - [`Network`]: proxies between services and servers, for bad networks
//! - `ledger`: acknowledged commands, proved by SQL alone
//! - [`linearizability`]: whether one order of operations explains what concurrent callers saw
//! - [`SmallDisk`]: a file system that gets full
//! - [`Prometheus`]: a real one that scrapes the system, with the chart's rules
//! - `plan`: the seed of a test, and how long it stays with a fault

mod gate;
mod ledger;
pub mod linearizability;
mod load;
mod network;
mod plan;
mod prometheus;
mod python;
pub mod raw_http2;
mod shop;
mod site;
mod small_disk;
mod system;
mod traces;
mod world;

pub use gate::Gate;
pub use ledger::Acknowledged;
pub use load::{Outcome, closed_loop, open_loop};
pub use network::Network;
pub use plan::{fault_time, seed, seeds};
pub use prometheus::{Prometheus, Rule, alerts, chart, get as http_get};
pub use python::{PythonExample, repository};
pub use shop::{Shop, eur};
pub use site::{Site, Up};
pub use small_disk::SmallDisk;
pub use system::{System, patient, until};
pub use traces::{Recorded, TraceReceiver};
pub use world::World;
