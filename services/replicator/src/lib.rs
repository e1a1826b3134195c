//! The replicator: copies the logs of all other regions into this region's write databases, and from there to its JetStream,
//! where projectors find them as if they were written here.
//!
//! One copier per log: the origin's event log from the copy's end on, proven event by event by the running hash, written in
//! batches fenced by the copy's head, published by the same relay that publishes owned logs. What a region does not reach it
//! copies later; nothing here holds up what is written or read at home.
//!
//! # Layout
//! - `source`: the event log of another region
//! - `copier`: one log, from its origin to here; `fork`: where a copy and an origin that went back part (law 13)
//! - `borrow`: what a third region has of it while the origin is away; `lenders`: which one is asked
//! - `relaying`: the copy on its way to JetStream
//! - `membership`: which copies this process makes, as topology and the other replicators have it
//! - `board`, `admin`: how far all of it is
//! - `service`: connecting, starting and stopping in order ([`run`])

mod admin;
mod board;
mod borrow;
mod copier;
mod fork;
mod lenders;
mod membership;
mod relaying;
mod service;
mod source;

pub use service::run;
