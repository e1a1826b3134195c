//! The machinery of the read side: databases, placement, checkpoints, and a write that no second writer can tear.
//! Nothing here knows commerce; tables and rows are described by whoever projects (`souk-views`).
//!
//! A read store is one or more Postgres databases. Every log (region, partition) is *placed* in one of them, and with it
//! all view rows made of its events. A row and the checkpoint of its log are written in one transaction and are read in
//! one snapshot, so that every answer knows exactly which prefix of the log it contains (laws 5 and 9).
//!
//! # Layout
//! - `server`: primary and standbys of a database, and how far a standby's snapshot must reach: [`Server`], [`Demand`]
//! - `store`: [`ReadStore`], its [`Database`]s, the placement of logs
//! - `install`: migrations under a lock, [`Installation`], placement seeded once
//! - `checkpoint`: how far a log is projected: [`Checkpoint`], fencing by [`Fence`]
//! - `table`: what a view table looks like: [`Table`], [`Column`], [`Row`], [`Value`]
//! - `members`: who shares the logs of a database: [`Replica`], [`Members`]
//! - `parked`: events set aside, and the mark on their entity: [`ParkedEvent`], [`Parked`]
//! - `port`: what a projector needs of a database: [`ViewStore`], [`Batch`]
//! - `postgres`, `memory`: its adapters, [`PostgresViews`] and [`MemoryViews`]
//! - `sql`: the statements, built once from the tables
//! - `point`: one row with the checkpoint of its snapshot: [`PointView`], [`RowRead`]
//! - `entity`: SeaORM entities of the store's own tables
//! - `error`: [`ReadStoreError`]

mod checkpoint;
pub mod entity;
mod error;
mod install;
mod members;
mod memory;
mod migration;
mod parked;
mod point;
mod port;
mod postgres;
mod server;
mod sql;
mod store;
mod table;

pub use checkpoint::{Checkpoint, Fence};
pub use error::ReadStoreError;
pub use install::{Installation, missing_migrations};
pub use members::{Members, Replica};
pub use memory::MemoryViews;
pub use parked::{Parked, ParkedEntity, ParkedEvent, ParkedQuery};
pub use point::{AsOf, PointView, RowRead, ViewRow};
pub use port::{Advance, Batch, Page, ViewStore, Written};
pub use postgres::PostgresViews;
pub use server::{Demand, Least, Server, Snapshot};
pub use store::{Access, Database, DatabaseConfig, ReadStore};
pub use table::{Column, Kind, Row, RowKey, Table, Value};
