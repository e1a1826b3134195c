//! Replies as bytes: what a cached row and a time make.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, string},
};
use souk_event_sourcing::{LogPosition, Token, TokenKey, UnixMillis};
use souk_proto::common::v1 as proto;
use souk_runtime::{unary_reply, unary_reply_of};
use tonic::{body::Body, codegen::http::Response};

use crate::{cache::Entry, core::Freshness};

/// Every reply about one entity has it in this field, and `as_of` in the other; one about several has each in this field, and
/// then those of the batch.
const ENTITY_FIELD: u32 = 1;
const AS_OF_FIELD: u32 = 2;
const BATCH_MISSING_FIELD: u32 = 2;
const BATCH_AS_OF_FIELD: u32 = 3;

/// Most bytes of number and length before an entity.
pub(crate) const ENTITY_HEAD_MAX: usize = 11;

/// A reply about one entity: the entity's field as it lies in the cache, then that of `as_of`. Nothing is decoded or encoded
/// again, and the row's own count of holders is left alone: it lies far from everything else that a reply needs.
pub(crate) struct EntityReply {
    /// It has a row.
    pub entry: Arc<Entry>,
    pub as_of: Bytes,
}

/// A reply about several entities in pieces: the fields of those found as they lie in the cache, then the others.
pub(crate) struct BatchReply(Vec<Bytes>);

impl BatchReply {
    /// `found` are fields of entities, in the order asked for.
    pub fn new(mut found: Vec<Bytes>, missing: &[String], as_of: &proto::AsOf) -> Self {
        let mut others = BytesMut::new();
        string::encode_repeated(BATCH_MISSING_FIELD, missing, &mut others);
        put_as_of(BATCH_AS_OF_FIELD, as_of, &mut others);
        found.push(others.freeze());
        Self(found)
    }

    /// Bytes of the encoded reply.
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }
}

/// A reply that needs no encoding.
pub(crate) trait EncodedReply {
    /// The encoded reply.
    fn bytes(&self) -> impl Buf;

    /// As it goes to the wire, where a message has `limit` bytes at most.
    fn response(self, limit: usize) -> Response<Body>;
}

impl EncodedReply for EntityReply {
    fn bytes(&self) -> impl Buf {
        let row = self.entry.row.as_ref().map_or(&[][..], |row| &row.field);
        row.chain(&self.as_of[..])
    }

    fn response(self, limit: usize) -> Response<Body> {
        unary_reply(self.bytes(), limit)
    }
}

impl EncodedReply for BatchReply {
    fn bytes(&self) -> impl Buf {
        Bytes::from(self.0.concat())
    }

    fn response(self, limit: usize) -> Response<Body> {
        unary_reply_of(&self.0, limit)
    }
}

/// Writes an encoded entity as a field of a reply; returns the bytes before it.
pub(crate) fn put_entity(entity: &[u8], reply: &mut BytesMut) -> u8 {
    let before = reply.len();
    encode_key(ENTITY_FIELD, WireType::LengthDelimited, reply);
    encode_varint(entity.len() as u64, reply);
    let head = reply.len() - before;
    reply.put_slice(entity);
    head as u8
}

/// The field that says how fresh an answer is.
pub(crate) fn as_of_field(as_of: &proto::AsOf) -> Bytes {
    let mut field = BytesMut::new();
    put_as_of(AS_OF_FIELD, as_of, &mut field);
    field.freeze()
}

fn put_as_of(field: u32, as_of: &proto::AsOf, reply: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, reply);
    as_of.encode_length_delimited(reply).expect("the buffer grows");
}

/// `as_of` as callers see it.
pub(crate) fn as_of(key: &TokenKey, freshness: Freshness) -> proto::AsOf {
    let token: Token = freshness.positions.iter().copied().collect();
    proto::AsOf {
        token: token.encode(key),
        positions: freshness.positions.into_iter().map(position).collect(),
        time: Some(timestamp(freshness.heard)),
        stale_since: freshness.stale_since.map(timestamp),
    }
}

fn position(at: LogPosition) -> proto::LogPosition {
    proto::LogPosition { region: at.log.region.0.into(), partition: at.log.partition.0.into(), epoch: at.epoch.0, position: at.position.0 }
}

pub(crate) fn timestamp(time: UnixMillis) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.0.div_euclid(1000), nanos: (time.0.rem_euclid(1000) * 1_000_000) as i32 }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use souk_event_sourcing::{Epoch, LogId, Partition, Position, Region};
    use souk_proto::{cart, catalog, log::v1::ChangeFeed, orders, stock};

    use super::*;
    use crate::cache::CachedRow;

    const KEY: TokenKey = TokenKey::new([7; 32]);

    fn some_as_of() -> proto::AsOf {
        let log = LogId { region: Region(1), partition: Partition(5) };
        let freshness = Freshness {
            positions: vec![LogPosition { log, epoch: Epoch(3), position: Position(42) }],
            heard: UnixMillis(1_700_000_000_123),
            stale_since: Some(UnixMillis(-1)),
        };
        as_of(&KEY, freshness)
    }

    #[test]
    fn a_reply_of_bytes_equals_the_encoded_message() {
        let at = some_as_of();
        let entity_reply = |row: &[u8], at: &proto::AsOf| {
            let entry = Arc::new(Entry::carried(row, &ChangeFeed::default(), 0, Instant::now()));
            let kept = entry.row.as_ref().unwrap();
            assert_eq!(kept.body().len() + usize::from(put_entity(&kept.body(), &mut BytesMut::new())), kept.field.len());
            let reply = EntityReply { entry, as_of: as_of_field(at) };
            let mut bytes = reply.bytes();
            bytes.copy_to_bytes(bytes.remaining())
        };
        let product = catalog::v1::Product { product_id: "p-1".into(), version: 300, ..Default::default() };
        let reply = catalog::v1::GetProductResponse { product: Some(product.clone()), as_of: Some(at.clone()) };
        assert_eq!(entity_reply(&product.encode_to_vec(), &at), reply.encode_to_vec());
        let availability = stock::v1::Availability { product_id: "p-1".into(), on_hand: 7, ..Default::default() };
        let reply = stock::v1::GetAvailabilityResponse { availability: Some(availability.clone()), as_of: Some(at.clone()) };
        assert_eq!(entity_reply(&availability.encode_to_vec(), &at), reply.encode_to_vec());
        let cart = cart::v1::Cart { customer_id: "c-1".into(), ..Default::default() };
        let reply = cart::v1::GetCartResponse { cart: Some(cart.clone()), as_of: Some(at.clone()) };
        assert_eq!(entity_reply(&cart.encode_to_vec(), &at), reply.encode_to_vec());
        let order = orders::v1::Order { order_id: "x".repeat(200), ..Default::default() };
        let reply = orders::v1::GetOrderResponse { order: Some(order.clone()), as_of: Some(at.clone()) };
        assert_eq!(entity_reply(&order.encode_to_vec(), &at), reply.encode_to_vec());
    }

    #[test]
    fn a_reply_in_pieces_equals_the_encoded_message() {
        let at = some_as_of();
        let field = |row: &[u8]| CachedRow::new(row, Position(1)).field;
        let product = |id: &str, bytes: usize| catalog::v1::Product {
            product_id: id.into(),
            details: Some(catalog::v1::ProductDetails { description: "x".repeat(bytes), ..Default::default() }),
            ..Default::default()
        };
        let (products, missing) = (vec![product("p-1", 10), product("p-2", 5_000), product("p-1", 10)], vec!["p-3".into(), "p-4".into()]);
        let found = products.iter().map(|product| field(&product.encode_to_vec())).collect();
        let pieces = BatchReply::new(found, &missing, &at);
        let reply = catalog::v1::BatchGetProductsResponse { products, missing: missing.clone(), as_of: Some(at.clone()) };
        assert_eq!((pieces.bytes().chunk(), pieces.len()), (&reply.encode_to_vec()[..], reply.encoded_len()));

        let availability = stock::v1::Availability { product_id: "p-1".into(), on_hand: 7, ..Default::default() };
        let pieces = BatchReply::new(vec![field(&availability.encode_to_vec())], &missing, &at);
        let reply = stock::v1::BatchGetAvailabilityResponse { availabilities: vec![availability], missing, as_of: Some(at) };
        assert_eq!(pieces.bytes().chunk(), reply.encode_to_vec());
    }

    #[test]
    fn as_of_tells_its_positions_and_carries_them_as_a_token() {
        let at = some_as_of();
        let token = Token::decode(&at.token, &KEY).unwrap();
        assert_eq!(token.parts().len(), 1);
        assert_eq!((at.positions[0].partition, at.positions[0].position), (5, 42));
        assert_eq!(at.time, Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 }));
        assert_eq!(at.stale_since, Some(prost_types::Timestamp { seconds: -1, nanos: 999_000_000 }));
    }
}
