//! The process manager: what follows from a placed order until it ends. A projection with an outbox: fold, timers and due
//! steps are written together with the fenced checkpoint in the write database of each log, commands go out after that,
//! under request ids that a repeat derives again.
//!
//! # Layout
//! The process, pure:
//! - `fold`: what an event means; `step`: what is due, and its request ids; `changes`: all that one transaction writes
//!
//! Around it:
//! - `store`: the tables; `truth`, `reader`: the log, from the bus and where it is true
//! - `commands`: what is sent to the command service; `worker`: carrying one step out
//! - `shard`, `session`: everything in one write database: read, fold, write, then send
//! - `membership`: sharing the logs of a database with other replicas; `watchdog`: starting anew what hangs
//! - `board`, `status`: heads and checkpoints for metrics and `souk status`; `backoff`
//! - `service`: [`run`], which puts it together

mod backoff;
mod board;
mod changes;
mod commands;
mod fold;
mod membership;
mod reader;
mod service;
mod session;
mod shard;
mod status;
mod step;
mod store;
mod truth;
mod watchdog;
mod worker;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use service::{migrate, run};
