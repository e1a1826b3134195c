//! The query service: answers from the views of its region, as fresh as the caller's token asks for.
//!
//! It never sees the write side (law 8): neither domain nor event store nor the publishing half of the bus is among its
//! dependencies.
//!
//! # Layout
//! - `service`: [`run`]: doors, store, change feed, drain
//! - `api`: the RPCs of all contexts
//! - `core`: what they work with; waiting lists and how fresh they are
//! - `cache`: rows in memory, served only while provably fresh; waiting for tokens
//! - `doors`: a queue before each read database
//! - `feed`: the change feed on its way into the cache
//! - `check`: requests checked whole; `page`: page tokens; `reply`: replies made of rows; `failure`: why there is none
//! - `readiness`, `admin`: what operators see

mod admin;
mod api;
mod cache;
mod check;
mod core;
mod doors;
mod failure;
mod feed;
mod page;
mod readiness;
mod reply;
mod service;

pub use service::run;
