use bytes::Bytes;
use souk_domain::Event;
use souk_event_sourcing::{NewEvent, RecordedEvent, StreamId};

use crate::{cart, order, product, stock, upcast};

/// Every event there is, by its stable name.
pub const KINDS: &[&str] = &[
    "ProductCreated",
    "ProductDetailsChanged",
    "PriceSet",
    "ProductPublished",
    "ProductDiscontinued",
    "StockOpened",
    "SaleOpened",
    "SaleClosed",
    "StockReceived",
    "StockAdjusted",
    "StockReserved",
    "ReservationReleased",
    "ReservationCommitted",
    "ReservationExpired",
    "ItemAdded",
    "ItemQuantitySet",
    "ItemRemoved",
    "CartCleared",
    "CartCheckedOut",
    "OrderPlaced",
    "OrderReserved",
    "OrderRejected",
    "PaymentRecorded",
    "OrderCancelled",
    "OrderShipped",
    "OrderDelivered",
];

/// Why a stored event cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A name this build does not know on streams of that category.
    #[error("no event '{kind}' is known on '{category}' streams")]
    UnknownType { category: String, kind: String },
    /// Written by a newer build.
    #[error("'{kind}' has schema version {schema_version}, newer than this build")]
    TooNew { kind: String, schema_version: u32 },
    /// The payload is not what its name and version promise.
    #[error("the payload of '{kind}' is damaged")]
    Malformed { kind: String },
}

/// The event as it is stored on `stream`.
pub fn encode(stream: &StreamId, event: &Event) -> NewEvent {
    let (kind, payload) = match event {
        Event::Product(event) => product::encode(event),
        Event::Stock(event) => stock::encode(event),
        Event::Cart(event) => cart::encode(event),
        Event::Order(event) => order::encode(event),
    };
    let schema_version = upcast::newest(upcast::UPCASTERS, kind);
    NewEvent { stream: stream.clone(), kind, schema_version, payload: Bytes::from(payload) }
}

/// The event that was stored on `stream` under these names.
pub fn decode(stream: &StreamId, kind: &str, schema_version: u32, payload: &[u8]) -> Result<Event, DecodeError> {
    let category = stream.category();
    let payload = upcast::upcast(upcast::UPCASTERS, kind, schema_version, payload)?;
    let decoded = match category {
        souk_domain::product::CATEGORY => product::decode(kind, &payload).map(|event| event.map(Event::Product)),
        souk_domain::stock::CATEGORY => stock::decode(kind, &payload).map(|event| event.map(Event::Stock)),
        souk_domain::cart::CATEGORY => cart::decode(kind, &payload).map(|event| event.map(Event::Cart)),
        souk_domain::order::CATEGORY => order::decode(kind, &payload).map(|event| event.map(Event::Order)),
        _ => None,
    };
    match decoded {
        None => Err(DecodeError::UnknownType { category: category.to_owned(), kind: kind.to_owned() }),
        Some(None) => Err(DecodeError::Malformed { kind: kind.to_owned() }),
        Some(Some(event)) => Ok(event),
    }
}

/// [`decode`] of an event as it lies in its log.
pub fn decode_recorded(event: &RecordedEvent) -> Result<Event, DecodeError> {
    decode(&event.stream, &event.kind, event.schema_version, &event.payload)
}

/// Bytes of a message; `None` when damaged.
pub(crate) fn message<M: prost::Message + Default>(payload: &[u8]) -> Option<M> {
    M::decode(payload).ok()
}
