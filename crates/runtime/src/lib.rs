//! What every service runs on: settings, telemetry, the gRPC server with its limits, health, drain.
//!
//! # Layout
//! - `settings`: [`Settings`] from a file and the environment, checked before a port is bound
//! - `process`: what a service is given ([`Process`], [`Listeners`]) and which services there are ([`ServiceKind`])
//! - `peer`: [`Peer`], calls to the replicas of another service
//! - [`topology`]: the topology on the wire, and followed by a process
//! - `main_of`: the whole of a service's `main`
//! - `grpc`: [`GrpcServer`], its layers, health and reflection; [`take_unary`], [`unary_reply`] and [`unary_reply_of`] for replies that are encoded already
//! - [`call`]: what a call brings along: [`caller`], [`token`], [`Deadline`]
//! - `queue`: [`Queue`], a door that refuses whoever would wait too long
//! - `pace`: [`Pace`], when the next transaction begins
//! - `failure`: [`Failure`] and [`Violations`], errors as callers read them
//! - `health`: [`Health`], readiness by component
//! - `telemetry`: logs and traces, trace context in metadata and stored events
//! - [`metrics`], [`ops`]: the Prometheus recorder and the HTTP port for operators

pub mod call;
mod failure;
mod grpc;
mod health;
mod main_of;
pub mod metrics;
pub mod ops;
mod pace;
mod peer;
mod process;
mod queue;
pub mod settings;
pub mod telemetry;
pub mod topology;

/// The allocator of whatever links this crate, so that benchmarks and tests run with that of the services. A call makes dozens
/// of allocations, one of them of tonic's 8 KiB for its reply; with glibc's a quarter of a query's time went into them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub use call::{Deadline, caller, token};
pub use failure::{ERROR_DOMAIN, Failure, Violations};
pub use grpc::{GrpcServer, ReplyPatience, code_name, take_unary, unary_reply, unary_reply_of};
pub use health::{Component, Health, SchemaTooOld};
pub use main_of::{install_tls_provider, main_of, run_service, termination, use_small_pages};
pub use pace::Pace;
pub use peer::Peer;
pub use process::{Listeners, Process, ServiceKind, bind};
pub use queue::{Place, Queue, TooLong};
pub use settings::{ConfigError, Database, Settings};
pub use telemetry::Telemetry;
