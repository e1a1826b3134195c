use souk_event_sourcing::{Position, RecordedEvent, StreamId, Version};

/// An event that no projection here can apply. Deterministic: the same event fails again until the code or the rows change,
/// so it parks the entity it belongs to (law 11) and is never skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {position} ({kind} of {stream}) cannot be applied: {reason}")]
pub struct Poison {
    pub stream: StreamId,
    pub position: Position,
    pub kind: String,
    pub reason: PoisonReason,
}

/// What is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoisonReason {
    #[error("no view knows its category")]
    UnknownCategory,
    #[error("no view knows its name")]
    UnknownKind,
    #[error("schema version {0} is not known")]
    UnknownSchema(u32),
    #[error("its payload is encrypted")]
    Encrypted,
    #[error("its payload does not decode: {0}")]
    Malformed(String),
    /// An earlier event of its entity is set aside.
    #[error("it stands behind event {0} of its entity")]
    Behind(Position),
    /// The row is not the fold of the events before: somebody changed or removed it.
    #[error("the row is at version {row}, the event at {event}")]
    RowAstray { row: Version, event: Version },
}

impl Poison {
    pub(crate) fn new(event: &RecordedEvent, reason: PoisonReason) -> Self {
        Self { stream: event.stream.clone(), position: event.position, kind: event.kind.clone(), reason }
    }
}

/// Decodes the payload of an event whose name said it is an `M`.
pub(crate) fn decode<M: prost::Message + Default>(event: &RecordedEvent) -> Result<M, Poison> {
    if event.schema_version != 1 {
        return Err(Poison::new(event, PoisonReason::UnknownSchema(event.schema_version)));
    }
    if event.key_id.is_some() {
        return Err(Poison::new(event, PoisonReason::Encrypted));
    }
    M::decode(event.payload.clone()).map_err(|error| Poison::new(event, PoisonReason::Malformed(error.to_string())))
}

/// Declares the events of one category as an enum over their stored payloads, with `decode` by name. Projections read the
/// contracts themselves: a view needs no rule of the domain, and the query side does not come to depend on it.
macro_rules! events {
    ($name:ident in $package:ident { $($event:ident),+ $(,)? }) => {
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) enum $name {
            $($event(souk_proto::$package::v1::$event)),+
        }

        impl $name {
            pub(crate) fn decode(event: &souk_event_sourcing::RecordedEvent) -> Result<Self, $crate::Poison> {
                match event.kind.as_str() {
                    $(stringify!($event) => $crate::payload::decode(event).map(Self::$event),)+
                    _ => Err($crate::Poison::new(event, $crate::PoisonReason::UnknownKind)),
                }
            }
        }
    };
}

pub(crate) use events;
