//! The whole service on real Postgres and NATS.

mod lists;
mod operations;
mod points;
mod rebuilding;
mod standbys;
mod watch;
mod world;
