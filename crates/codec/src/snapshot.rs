use bytes::Bytes;
use souk_domain::Entity;
use souk_event_sourcing::StreamId;

use crate::{cart, order, product, stock};

/// Version of `evolve` and of the snapshots' shape. Raise it when either changes: older snapshots are then ignored and
/// the entity is folded anew.
pub const FOLD_VERSION: u32 = 1;

/// The entity as a snapshot.
pub fn encode_snapshot(entity: &Entity) -> Bytes {
    Bytes::from(match entity {
        Entity::Product(state) => product::encode_state(state),
        Entity::Stock(state) => stock::encode_state(state),
        Entity::Cart(state) => cart::encode_state(state),
        Entity::Order(state) => order::encode_state(state),
    })
}

/// The entity of a snapshot; `None` when it was made by another fold or is damaged.
pub fn decode_snapshot(stream: &StreamId, fold_version: u32, bytes: &[u8]) -> Option<Entity> {
    if fold_version != FOLD_VERSION {
        return None;
    }
    match Entity::of(stream)? {
        Entity::Product(_) => product::decode_state(bytes).map(Entity::Product),
        Entity::Stock(_) => stock::decode_state(bytes).map(Entity::Stock),
        Entity::Cart(_) => cart::decode_state(bytes).map(Entity::Cart),
        Entity::Order(_) => order::decode_state(bytes).map(Entity::Order),
    }
}
