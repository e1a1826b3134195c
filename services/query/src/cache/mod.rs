//! Rows of the views in memory, served only while provably fresh (law 9).
//!
//! # Layout
//! - `freshness`: the rules, pure: [`Horizon`], [`Mark`], when a row is kept and when it is served
//! - `key`, `entry`: what is held under what name
//! - `sightings`: where the views were of late, by which replicas are judged
//! - `log`: what is known of one log
//! - `rows`: [`RowCache`]: moka, the change feed, admission
//! - `flight`: one load per row at a time; `sync`: what tasks share, so that shuttle can interleave them
//! - `wait`: waiting for a token, and why a read fails: [`Wait`], [`ReadError`]
//! - `reader`: [`Reader`]: a row from the cache or the store, as fresh as a token asks

mod entry;
mod flight;
mod freshness;
mod key;
mod log;
mod reader;
mod rows;
mod sightings;
mod sync;
mod wait;

#[cfg(all(test, feature = "shuttle"))]
mod interleaving_tests;
#[cfg(test)]
mod model;
#[cfg(test)]
mod restore_tests;

#[cfg(test)]
pub(crate) use entry::CachedRow;
pub(crate) use entry::Entry;
pub(crate) use freshness::{Horizon, Mark, Standing};
pub(crate) use key::{RowRef, View};
pub(crate) use log::Log;
pub(crate) use reader::{Reader, RowSource, timely};
pub(crate) use rows::{Answer, CacheLimits, RowCache};
pub(crate) use wait::{ReadError, Wait, mark_of};
