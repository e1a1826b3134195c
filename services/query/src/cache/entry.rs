use std::time::Instant;

use bytes::{Bytes, BytesMut};
use souk_event_sourcing::{Epoch, Position, UnixMillis};
use souk_proto::log::v1::ChangeFeed;
use souk_read_store::{Parked, RowRead};

use super::{
    freshness::{Making, Mark, Provenance},
    key::RowKey,
};
use crate::reply;

/// What the cache holds of a row: the row itself, or that there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub row: Option<CachedRow>,
    /// Set when events of this entity could not be applied: tokens at or past the first of them cannot be served.
    pub parked: Option<Parked>,
    pub provenance: Provenance,
    /// When the checkpoint of that snapshot was written.
    pub written: UnixMillis,
}

/// A row as it goes into a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CachedRow {
    /// The encoded view message as a field of the reply: number, length and message.
    pub field: Bytes,
    /// Bytes of number and length.
    head: u8,
    /// Position of the last event in it; of a row that came with the feed, that of the whole transaction.
    pub position: Position,
}

/// What an entry costs beside key and body: moka's own nodes, the key, the `Arc` and the allocations.
const OVERHEAD_BYTES: usize = 320;

impl Making {
    /// What a message says of the rows at its position.
    pub fn of(message: &ChangeFeed) -> Self {
        Self { revision: message.revision, repaired: UnixMillis(message.repaired_ms), rebuilding: message.rebuilding }
    }
}

impl CachedRow {
    /// Copies `body`: what it is a slice of need not stay in memory.
    pub fn new(body: &[u8], position: Position) -> Self {
        let mut field = BytesMut::with_capacity(reply::ENTITY_HEAD_MAX + body.len());
        let head = reply::put_entity(body, &mut field);
        Self { field: field.freeze(), head, position }
    }

    /// The encoded view message.
    pub fn body(&self) -> Bytes {
        self.field.slice(usize::from(self.head)..)
    }
}

impl Entry {
    /// From a snapshot of the store; `history` is the horizon's at `began`, before the reading.
    pub fn read(read: RowRead, history: u64, began: Instant) -> Self {
        let as_of = Mark { epoch: read.as_of.position.epoch, position: read.as_of.position.position };
        let making = Making { revision: read.as_of.revision, repaired: read.as_of.repaired, rebuilding: read.as_of.rebuilding };
        let row = read.row.map(|row| CachedRow::new(&row.body, row.position));
        let provenance = Provenance { as_of, making, history, began };
        Self { row, parked: read.parked, provenance, written: read.as_of.written }
    }

    /// A row carried by a message of the feed, taken in under `history` at `heard`.
    pub fn carried(body: &[u8], message: &ChangeFeed, history: u64, heard: Instant) -> Self {
        let as_of = Mark { epoch: Epoch(message.epoch), position: Position(message.position) };
        let row = CachedRow::new(body, as_of.position);
        let provenance = Provenance { as_of, making: Making::of(message), history, began: heard };
        // The rows of parked entities come without their bodies.
        Self { row: Some(row), parked: None, provenance, written: UnixMillis(message.time_ms) }
    }

    /// Bytes it takes in the cache.
    pub fn weight(&self, key: &RowKey) -> u32 {
        let bytes = OVERHEAD_BYTES + key.key.len() + self.row.as_ref().map_or(0, |row| row.field.len());
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}
