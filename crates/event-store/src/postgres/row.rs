use souk_event_sourcing::{Epoch, EventId, Hlc, LogHash, LogId, Partition, Position, RecordedEvent, Region, RequestId, StreamId, Version};
use sqlx::{
    Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use crate::StoreError;

/// The columns of an event row, in the order [`event`] reads them by name.
pub(super) const COLUMNS: &str = "e.region, e.partition, e.position, e.epoch, e.hash, e.stream, e.version, e.type, e.schema_version, e.payload, \
     e.event_id, e.request_id, e.causation_id, e.correlation_id, e.actor, e.hlc, e.traceparent, e.home_epoch, e.key_id";

/// Binds the columns of events behind the partition as arrays, in the order of [`COLUMNS`].
pub(super) fn bind_events<'q>(
    query: Query<'q, Postgres, PgArguments>,
    events: impl Iterator<Item = &'q RecordedEvent> + Clone,
) -> Query<'q, Postgres, PgArguments> {
    macro_rules! column {
        ($event:ident => $value:expr) => {
            events.clone().map(|$event| $value).collect::<Vec<_>>()
        };
    }
    query
        .bind(column!(event => event.position.0 as i64))
        .bind(column!(event => event.epoch.0 as i64))
        .bind(column!(event => event.hash.0.to_vec()))
        .bind(column!(event => event.stream.as_str()))
        .bind(column!(event => event.version.0 as i64))
        .bind(column!(event => event.kind.as_str()))
        .bind(column!(event => event.schema_version as i32))
        .bind(column!(event => event.payload.as_ref()))
        .bind(column!(event => event.event_id.0))
        .bind(column!(event => event.request_id.map(|id| id.0)))
        .bind(column!(event => event.causation_id.map(|id| id.0)))
        .bind(column!(event => event.correlation_id))
        .bind(column!(event => event.actor.as_str()))
        .bind(column!(event => event.hlc.0 as i64))
        .bind(column!(event => event.traceparent.as_str()))
        .bind(column!(event => event.home_epoch.0 as i64))
        .bind(column!(event => event.key_id))
}

/// Reads an event row.
pub(super) fn event(row: &PgRow) -> Result<RecordedEvent, StoreError> {
    let stream: &str = row.try_get("stream")?;
    Ok(RecordedEvent {
        log: LogId {
            region: Region(row.try_get::<i16, _>("region")? as u16),
            partition: Partition(row.try_get::<i32, _>("partition")? as u16),
        },
        position: Position(number(row, "position")?),
        epoch: Epoch(number(row, "epoch")?),
        hash: hash(row.try_get("hash")?)?,
        stream: stream.parse::<StreamId>().map_err(|error| StoreError::Corrupt(error.to_string()))?,
        version: Version(number(row, "version")?),
        kind: row.try_get("type")?,
        schema_version: row.try_get::<i32, _>("schema_version")? as u32,
        payload: row.try_get::<Vec<u8>, _>("payload")?.into(),
        event_id: EventId(row.try_get("event_id")?),
        request_id: row.try_get::<Option<Uuid>, _>("request_id")?.map(RequestId),
        causation_id: row.try_get::<Option<Uuid>, _>("causation_id")?.map(EventId),
        correlation_id: row.try_get("correlation_id")?,
        actor: row.try_get("actor")?,
        hlc: Hlc(number(row, "hlc")?),
        traceparent: row.try_get("traceparent")?,
        home_epoch: Epoch(number(row, "home_epoch")?),
        key_id: row.try_get("key_id")?,
    })
}

pub(super) fn number(row: &PgRow, column: &str) -> Result<u64, StoreError> {
    Ok(row.try_get::<i64, _>(column)? as u64)
}

pub(super) fn hash(bytes: &[u8]) -> Result<LogHash, StoreError> {
    LogHash::from_slice(bytes).ok_or_else(|| StoreError::Corrupt(format!("a running hash of {} bytes", bytes.len())))
}
