//! The nouns of event sourcing as Souk uses them: what a log, a stream, a position and a decision are.
//! Nothing here knows commerce, a database or a wire format.
//!
//! # Layout
//! - `log`: where an event lies: [`Region`], [`Partition`], [`Position`], [`Epoch`], the running [`LogHash`]
//! - `rendezvous`: [`rendezvous`], which replica a log falls to; `sharing`: what follows for one of them, [`Share`] and [`Patience`]
//! - `stream`: one entity's events: [`StreamId`], [`Version`], [`Etag`]
//! - `event`: [`NewEvent`] before, [`RecordedEvent`] after it was stored
//! - `request`: [`RequestId`], the key of idempotency; `minted_id`: [`MintedId`], an id that follows from one
//! - `topology`: which regions there are, and [`Topology::home`], the log of an id
//! - `token`: consistency [`Token`]s and their signature; `held_token`: [`HeldToken`], a token without the key
//! - `clock`: the hybrid logical clock, [`Hlc`]
//! - `decider`: the [`Decider`] of one aggregate
//! - `given`: given/when/then for tests of deciders

mod clock;
mod decider;
mod event;
mod given;
mod held_token;
mod log;
mod minted_id;
mod rendezvous;
mod request;
mod sharing;
mod stream;
mod token;
mod topology;

pub use clock::{Hlc, HlcClock, UnixMillis};
pub use decider::Decider;
pub use event::{EventId, MAX_PAYLOAD_BYTES, NewEvent, RecordedEvent};
pub use given::{Given, When, given};
pub use held_token::HeldToken;
pub use log::{Epoch, LogHash, LogId, LogPosition, Partition, Position, Region, partition_of, routing_hash};
pub use minted_id::{InvalidMintedId, MintedId};
pub use rendezvous::rendezvous;
pub use request::{InvalidRequestId, RequestId};
pub use sharing::{Holding, Patience, Share};
pub use stream::{Etag, InvalidEtag, InvalidStreamId, StreamId, Version};
pub use token::{InvalidToken, Token, TokenKey};
pub use topology::{InvalidKey, InvalidTopology, RoutingKey, Site, Topology, UnknownRegion};
