//! Which logs this process owns, who owns the others, and how a call gets there.
//!
//! # Layout
//! - `owner`: heartbeats; taking logs over, handing them to the replica they fall to, giving all up ([`Owner`])
//! - `held`: the logs owned here, each with its relay ([`Held`])
//! - `directory`: who owns what, as last heard ([`Directory`])
//! - `upkeep`: the tables kept ahead of the logs, and rid of what is old ([`Upkeep`])
//! - `peers`: calls to other replicas ([`Peers`])

mod directory;
mod held;
mod owner;
mod peers;
mod upkeep;

pub use directory::{Directory, Home};
pub use held::{Held, Holding};
pub use owner::Owner;
pub use peers::{Hop, Outgoing, Peers, unreached, unsent};
pub use upkeep::Upkeep;
