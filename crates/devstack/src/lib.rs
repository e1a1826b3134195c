//! Real Postgres and NATS, and the services over them, for development and tests. Nothing in here is deployed.
//!
//! Everything started here ends with the process that started it, even if that is killed: the kernel is asked for it on Linux, and the next
//! start ends what is recorded as left over.
//!
//! # Layout
//!
//! - `stack`, started by `options`: Postgres, NATS and services together, with the settings file; what `souk up` and the tests start
//! - `regions`: several stacks, joined by links; `control`: how other processes change these
//! - `service`: one service as a process of its own, killed, paused, restarted, waited for; `replica`: which process of it, at which ports;
//!   `background`: any other command that goes on
//! - `postgres`, over `cluster` (the data folder: initdb, crash clean-up); `backup`: physical copies of it; `standby`: a Postgres that
//!   follows another; `nats`
//! - `pooler`: PgBouncer before it
//! - `proxy`: a TCP connection that is slow, stalls or breaks when a test says so
//! - `run_file`: `.souk/run.json`, by which commands find the running system
//! - `installation`: what a data folder fixes for ever (partitions, shards, token key) or remembers (read replicas)
//! - `folder`: locks and temporary folders; `account`: whom Postgres runs as under root, and where that user can reach its data
//! - `child`, `identity`: processes that end with this one, told apart from later ones with the same pid; `ports`; `tools`: the programs

mod account;
mod background;
mod backup;
mod child;
mod cluster;
mod control;
mod folder;
mod identity;
mod installation;
mod nats;
mod options;
mod pooler;
mod ports;
mod postgres;
mod proxy;
mod regions;
mod replica;
mod run_file;
mod service;
mod stack;
mod standby;
mod tools;

pub use background::BackgroundCommand;
pub use control::{LinkChange, LinkOrder, order};
pub use folder::{FolderLock, TemporaryFolder};
pub use identity::ProcessIdentity;
pub use nats::{MAX_PAYLOAD, Nats, NatsOptions};
pub use options::{RegionIdentity, StackOptions, StackPorts};
pub use ports::{Port, free_port, is_free};
pub use postgres::{Postgres, PostgresOptions};
pub use proxy::FaultProxy;
pub use regions::{Link, LinkState, Links, Regions, RegionsOptions};
pub use replica::{Replica, ReplicaPorts};
pub use run_file::{Addresses, DatabaseUrl, RunFile, Server};
pub use service::{Service, ServiceProcess, readiness, souk_program};
pub use stack::{Part, Stack};
pub use standby::Standby;
pub use tools::souk_folder;
