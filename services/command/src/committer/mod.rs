//! Drain → load → decide → append → reply, for entities it knows nothing about.
//!
//! # Layout
//! - `model`: what it must be told of the entities ([`Model`])
//! - `job`: a command on its way, and what may become of it
//! - `lane`: the loop ([`Committer`]); `round`: what it takes up at once; `heads`: the logs it may append to, and where they end
//! - `plan`: one log's commands decided in memory, before the append
//! - `meters`: what it counts
//! - `entities`: the entity cache; `replies`: the ledger's encoding; `watchers`: who waits for an entity

mod entities;
mod heads;
mod job;
mod lane;
mod meters;
mod model;
mod plan;
mod replies;
mod round;
mod watchers;

pub use entities::folded;
pub use heads::{LostOwnership, Outlet};
pub use job::{Answer, CommandError, Job, RETRY_AFTER, Refusal, RefusalClass, Request};
pub use lane::{Committer, Limits, LostLog, Seen, SnapshotSink, Work};
pub use model::{DamagedHistory, Model};
pub use watchers::Watchers;
