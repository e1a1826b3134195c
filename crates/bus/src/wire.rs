use bytes::Bytes;
use souk_event_sourcing::{Epoch, EventId, Hlc, LogHash, LogId, Partition, Position, RecordedEvent, Region, RequestId, Version};
use souk_proto::log::v1 as wire;
use uuid::Uuid;

use crate::MalformedEvent;

/// An event as a message.
pub fn to_wire(event: &RecordedEvent) -> wire::Event {
    let id = |id: Option<Uuid>| id.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(id.as_bytes()));
    wire::Event {
        region: event.log.region.0.into(),
        partition: event.log.partition.0.into(),
        position: event.position.0,
        epoch: event.epoch.0,
        hash: Bytes::copy_from_slice(&event.hash.0),
        stream: event.stream.to_string(),
        version: event.version.0,
        r#type: event.kind.clone(),
        schema_version: event.schema_version,
        payload: event.payload.clone(),
        event_id: id(Some(event.event_id.0)),
        request_id: id(event.request_id.map(|id| id.0)),
        causation_id: id(event.causation_id.map(|id| id.0)),
        correlation_id: id(event.correlation_id),
        actor: event.actor.clone(),
        hlc: event.hlc.0,
        traceparent: event.traceparent.clone(),
        home_epoch: event.home_epoch.0,
        key_id: id(event.key_id),
    }
}

/// The event a message holds.
///
/// # Errors
/// When a field cannot be what it should be. Whether the hash is right is for the reader to check: it knows the event
/// before.
pub fn from_wire(event: wire::Event) -> Result<RecordedEvent, MalformedEvent> {
    let wrong = |what: &str| MalformedEvent(format!("{what} at position {}", event.position));
    let small = |number: u32, what| u16::try_from(number).map_err(|_| wrong(what));
    let id = |bytes: &Bytes, what| match bytes.len() {
        0 => Ok(None),
        _ => Uuid::from_slice(bytes).map(Some).map_err(|_| wrong(what)),
    };
    Ok(RecordedEvent {
        log: LogId { region: Region(small(event.region, "region")?), partition: Partition(small(event.partition, "partition")?) },
        position: Position(event.position),
        epoch: Epoch(event.epoch),
        hash: LogHash::from_slice(&event.hash).ok_or_else(|| wrong("hash"))?,
        stream: event.stream.parse().map_err(|_| wrong("stream"))?,
        version: Version(event.version),
        event_id: EventId(id(&event.event_id, "event id")?.ok_or_else(|| wrong("event id"))?),
        request_id: id(&event.request_id, "request id")?.map(RequestId),
        causation_id: id(&event.causation_id, "causation id")?.map(EventId),
        correlation_id: id(&event.correlation_id, "correlation id")?,
        key_id: id(&event.key_id, "key id")?,
        kind: event.r#type,
        schema_version: event.schema_version,
        payload: event.payload,
        actor: event.actor,
        hlc: Hlc(event.hlc),
        traceparent: event.traceparent,
        home_epoch: Epoch(event.home_epoch),
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn event() -> RecordedEvent {
        let mut event = RecordedEvent {
            log: LogId { region: Region(1), partition: Partition(7) },
            position: Position(42),
            epoch: Epoch(1_700_000_000_000),
            hash: LogHash::EMPTY,
            stream: "order-1".parse().unwrap(),
            version: Version(3),
            kind: "OrderPlaced".into(),
            schema_version: 1,
            payload: Bytes::from_static(b"payload"),
            event_id: EventId(Uuid::from_u128(1)),
            request_id: Some(RequestId(Uuid::from_u128(2))),
            causation_id: None,
            correlation_id: Some(Uuid::from_u128(3)),
            actor: "somebody".into(),
            hlc: Hlc(99 << 16 | 1),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = LogHash::EMPTY.after(&event);
        event
    }

    #[test]
    fn an_event_round_trips_and_its_bytes_are_pinned() {
        let bytes = to_wire(&event()).encode_to_vec();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../golden/event.hex").trim());
        assert_eq!(from_wire(wire::Event::decode(bytes.as_slice()).unwrap()), Ok(event()));
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let good = to_wire(&event());
        let short = Bytes::from_static(b"short");
        for bad in [
            wire::Event { hash: short.clone(), ..good.clone() },
            wire::Event { event_id: Bytes::new(), ..good.clone() },
            wire::Event { request_id: short, ..good.clone() },
            wire::Event { stream: "nostream".into(), ..good.clone() },
            wire::Event { partition: 70_000, ..good },
            wire::Event::default(),
        ] {
            assert!(from_wire(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
