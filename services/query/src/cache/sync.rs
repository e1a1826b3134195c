//! What tasks share without `await`, and how they are begun; under the feature `shuttle` as shuttle schedules it.
//!
//! Shuttle rather than loom: what is shared here is awaited as often as it is atomic, and moka and tokio's channels cannot
//! be built for loom. Shuttle interleaves tasks at these types and at every `await`, the rest runs as it is; its schedules
//! are random, which finds a swapped order within a few hundred, and a failing one is printed to be replayed. It takes every
//! atomic for sequentially consistent: that Acquire and Release suffice is not its business.

#[cfg(not(all(test, feature = "shuttle")))]
pub(super) use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

#[cfg(all(test, feature = "shuttle"))]
pub(super) use shuttle::{
    future::spawn,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
#[cfg(not(all(test, feature = "shuttle")))]
pub(super) use tokio::spawn;
