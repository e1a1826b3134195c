//! Load for gRPC servers, as lean as a loader has to be that fills a server's core from one of its own.
//!
//! Calls go through `h2` as frames encoded beforehand; a fixed set of workers shares several connections. Under an open loop a call's
//! latency counts from the time it was meant to be sent, so that a server that stalls cannot hide the calls it kept from being sent
//! ("coordinated omission", Gil Tene). Nothing is dropped in silence: what could not be sent, was sent late, timed out or lost its
//! connection is counted.
//!
//! Everything runs on the caller's runtime; a current-thread runtime on a core of its own measures best.
//!
//! # Layout
//! - `target`: [`Target`], the servers and connections; [`Rpc`], what all calls of a method share
//! - `connection`: one connection, opened anew when it is lost
//! - `source`: [`Source`], what to send; [`Request`], [`frame`]
//! - `schedule`: [`Schedule`], when to send it
//! - `pacer`, `timer`: who sends which call, and the waiting until it is due
//! - `call`: one call on one connection
//! - `load`: [`Load`], a run
//! - `recorder`: what is counted meanwhile; `report`: [`Report`], what came of it

mod call;
mod connection;
mod load;
mod pacer;
mod recorder;
mod report;
mod schedule;
mod source;
mod target;
mod timer;

pub use load::{Load, Until};
pub use report::{ErrorCount, Histogram, Kind, Report, Second};
pub use schedule::Schedule;
pub use source::{Reply, Request, Source, frame};
pub use target::{Error, Rpc, ServiceId, Target};
pub use tonic::Code;
