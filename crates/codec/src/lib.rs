//! Domain ⇄ protobuf: what events and snapshots look like when they are stored. Nobody else knows both shapes.
//!
//! # Layout
//! - `event`: [`encode`] and [`decode`] an event by its stable name ([`KINDS`])
//! - `upcast`: older payloads are brought up to the newest shape, one version at a time
//! - `snapshot`: [`encode_snapshot`] and [`decode_snapshot`] of an entity, disposable, tied to [`FOLD_VERSION`]
//! - `product`, `stock`, `cart`, `order`: payloads of one aggregate each
//! - [`convert`]: values that payloads share with requests and replies: money, states, lines

mod cart;
mod event;
mod order;
mod product;
mod snapshot;
mod stock;
mod upcast;

pub mod convert;

pub use event::{DecodeError, KINDS, decode, decode_recorded, encode};
pub use snapshot::{FOLD_VERSION, decode_snapshot, encode_snapshot};
