//! Rows of the views in memory, served only while provably fresh (law 9).
//!
//! # Layout
//! - `freshness`: the rules, pure: [`Horizon`], [`Mark`], when a row is kept and when it is served
//! - `key`, `entry`: what is held under what name
//! - `log`: what is known of one log
//! - `rows`: [`RowCache`]: moka, the change feed, admission
//! - `flight`: one load per row at a time
//! - `reader`: [`Reader`]: a row from the cache or the store, waiting for a token

mod entry;
mod flight;
mod freshness;
mod key;
mod log;
mod reader;
mod rows;

#[cfg(test)]
mod model;

pub(crate) use entry::{CachedRow, Entry};
pub(crate) use freshness::{Horizon, Mark, Standing};
pub(crate) use key::{RowRef, View};
pub(crate) use log::Log;
pub(crate) use reader::{ReadError, Reader};
pub(crate) use rows::{Answer, RowCache};
