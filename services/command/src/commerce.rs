use bytes::Bytes;
use souk_codec as codec;
use souk_domain::{Class, Entity, Event, Rejection};
use souk_event_sourcing::{NewEvent, RecordedEvent, StreamId};

use crate::committer::{DamagedHistory, Model, Refusal, RefusalClass};

/// The model the committer works on: domain and codec, and nothing of its own.
pub struct Commerce;

impl Model for Commerce {
    type Entity = Entity;
    type Event = Event;
    const FOLD_VERSION: u32 = codec::FOLD_VERSION;

    fn initial(stream: &StreamId) -> Option<Entity> {
        Entity::of(stream)
    }

    fn evolve(entity: &mut Entity, event: &Event) -> Result<(), DamagedHistory> {
        // The stream is not known here; the message of a mismatch needs none: it is a bug or damage.
        entity.evolve(event).map_err(|mismatch| DamagedHistory { stream: StreamId::new("unknown", "stream"), reason: mismatch.to_string() })
    }

    fn encode(stream: &StreamId, event: &Event) -> NewEvent {
        codec::encode(stream, event)
    }

    fn decode(event: &RecordedEvent) -> Result<Event, DamagedHistory> {
        codec::decode(&event.stream, &event.kind, event.schema_version, &event.payload)
            .map_err(|error| DamagedHistory { stream: event.stream.clone(), reason: format!("version {}: {error}", event.version) })
    }

    fn encode_snapshot(entity: &Entity) -> Bytes {
        codec::encode_snapshot(entity)
    }

    fn decode_snapshot(stream: &StreamId, fold_version: u32, state: &[u8]) -> Option<Entity> {
        codec::decode_snapshot(stream, fold_version, state)
    }
}

/// A rejection as the committer remembers and answers it.
pub fn refusal(rejection: Rejection) -> Refusal {
    Refusal {
        class: match rejection.class() {
            Class::NotFound => RefusalClass::NotFound,
            Class::AlreadyExists => RefusalClass::AlreadyExists,
            Class::Rule => RefusalClass::Rule,
            Class::Conflict => RefusalClass::Conflict,
        },
        reason: rejection.reason().to_owned(),
        message: rejection.message(),
        metadata: rejection.metadata().into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}
