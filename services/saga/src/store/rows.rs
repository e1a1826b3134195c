use souk_domain::{
    Event, OrderId,
    order::{self, Placed},
};
use souk_event_sourcing::{EventId, LogId, Partition, Position, Region, UnixMillis};
use souk_event_store::StoreError;
use sqlx::{
    Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use crate::{
    changes::Changes,
    step::{Origin, Step, StepKind, Subject, Timer},
};

/// The arguments of `apply.sql`, in its order.
pub(super) fn bind(region: Region, changes: &Changes) -> Query<'static, Postgres, PgArguments> {
    let query = sqlx::query(include_str!("apply.sql")).bind(region.0 as i16);
    let query = bind_checkpoints(query, changes);
    let query = bind_orders(query, changes);
    let query = bind_timers(query, changes);
    bind_steps(query, changes)
}

type Bound = Query<'static, Postgres, PgArguments>;

/// One array per column, of one value per item.
macro_rules! columns {
    ($query:expr, $items:expr, $($column:expr),+ $(,)?) => {
        $query$(.bind($items.iter().map($column).collect::<Vec<_>>()))+
    };
}

fn bind_checkpoints(query: Bound, changes: &Changes) -> Bound {
    columns!(
        query,
        changes.advances,
        |(log, _)| partition(*log),
        |(_, advance)| advance.epoch.0 as i64,
        |(_, advance)| advance.from.0 as i64,
        |(_, advance)| advance.to.position.0 as i64,
        |(_, advance)| advance.to.epoch.0 as i64,
        |(_, advance)| advance.to.hash.0.to_vec(),
    )
}

fn bind_orders(query: Bound, changes: &Changes) -> Bound {
    let kept: Vec<_> = changes.remembered.iter().map(|((log, order), placed)| (log, order, stored(order, placed))).collect();
    let query = columns!(
        query,
        kept,
        |(log, ..)| partition(**log),
        |(_, order, _)| order.to_string(),
        |(_, _, (schema_version, _))| *schema_version,
        |(_, _, (_, placed))| placed.clone(),
    );
    columns!(query, changes.forgotten, |(log, _)| partition(*log), |(_, order)| order.to_string())
}

fn bind_timers(query: Bound, changes: &Changes) -> Bound {
    let set: Vec<_> = changes.set.values().collect();
    let query = columns!(
        query,
        set,
        |timer| partition(timer.origin.log),
        |timer| timer.kind as i16,
        |timer| timer.subject.to_string(),
        |timer| timer.due.0,
        |timer| timer.origin.position.0 as i64,
        |timer| timer.origin.cause.0,
        |timer| timer.origin.attempt as i32,
        |timer| timer.origin.traceparent.clone(),
    );
    columns!(query, changes.cleared, |(log, ..)| partition(*log), |(_, kind, _)| *kind as i16, |(_, _, subject)| subject.to_string())
}

fn bind_steps(query: Bound, changes: &Changes) -> Bound {
    let stored = |step: &Step| match (&step.subject, &step.placed) {
        (Subject::Order(order), Some(placed)) => Some(stored(order, placed)),
        _ => None,
    };
    let due: Vec<_> = changes.due.iter().map(|step| (step, stored(step))).collect();
    let query = columns!(
        query,
        due,
        |(step, _)| partition(step.origin.log),
        |(step, _)| step.origin.position.0 as i64,
        |(step, _)| step.kind as i16,
        |(step, _)| step.subject.to_string(),
        |(step, _)| step.origin.cause.0,
        |(step, _)| step.origin.time.0,
        |(step, _)| step.origin.attempt as i32,
        |(step, _)| step.origin.traceparent.clone(),
        |(_, stored)| stored.as_ref().map(|(schema_version, _)| *schema_version),
        |(_, stored)| stored.as_ref().map(|(_, placed)| placed.clone()),
    );
    let query = columns!(query, changes.done, |(log, ..)| partition(*log), |(_, position, _)| position.0 as i64, |(.., kind)| *kind as i16);
    columns!(
        query,
        changes.renewed,
        |step| partition(step.origin.log),
        |step| step.origin.position.0 as i64,
        |step| step.kind as i16,
        |step| step.origin.time.0,
        |step| step.origin.attempt as i32,
    )
}

fn partition(log: LogId) -> i32 {
    log.partition.0.into()
}

/// An order in the shape of its own event.
fn stored(order: &OrderId, placed: &Placed) -> (i32, Vec<u8>) {
    let event = souk_codec::encode(&order.stream(), &Event::Order(order::Event::OrderPlaced(placed.clone())));
    (event.schema_version as i32, event.payload.to_vec())
}

/// Reads a stored order.
pub(super) fn placed(order: &OrderId, schema_version: i32, payload: &[u8]) -> Result<Placed, StoreError> {
    match souk_codec::decode(&order.stream(), "OrderPlaced", schema_version as u32, payload) {
        Ok(Event::Order(order::Event::OrderPlaced(placed))) => Ok(placed),
        Ok(_) => Err(StoreError::Corrupt(format!("order {order} as it was placed"))),
        Err(error) => Err(StoreError::Corrupt(format!("order {order}: {error}"))),
    }
}

/// Reads a row of the outbox.
pub(super) fn step(row: &PgRow, region: Region) -> Result<Step, StoreError> {
    let subject = subject(row)?;
    let schema_version: Option<i32> = row.try_get("schema_version")?;
    let payload: Option<&[u8]> = row.try_get("placed")?;
    let placed = match (&subject, schema_version, payload) {
        (Subject::Order(order), Some(schema_version), Some(payload)) => Some(placed(order, schema_version, payload)?),
        _ => None,
    };
    Ok(Step { kind: kind(row)?, subject, origin: origin(row, region, UnixMillis(row.try_get("time_ms")?))?, placed })
}

/// Reads a row of the timers.
pub(super) fn timer(row: &PgRow, region: Region) -> Result<Timer, StoreError> {
    let due = UnixMillis(row.try_get("due_ms")?);
    Ok(Timer { kind: kind(row)?, subject: subject(row)?, due, origin: origin(row, region, due)? })
}

fn kind(row: &PgRow) -> Result<StepKind, StoreError> {
    let number = row.try_get("kind")?;
    StepKind::of_number(number).ok_or_else(|| StoreError::Corrupt(format!("step of kind {number}")))
}

fn subject(row: &PgRow) -> Result<Subject, StoreError> {
    let text: &str = row.try_get("subject")?;
    text.parse().map_err(|error: crate::step::InvalidSubject| StoreError::Corrupt(error.to_string()))
}

fn origin(row: &PgRow, region: Region, time: UnixMillis) -> Result<Origin, StoreError> {
    Ok(Origin {
        log: LogId { region, partition: Partition(row.try_get::<i32, _>("partition")? as u16) },
        position: Position(row.try_get::<i64, _>("position")? as u64),
        cause: EventId(row.try_get::<Uuid, _>("cause")?),
        time,
        attempt: row.try_get::<i32, _>("attempt")? as u32,
        traceparent: row.try_get("traceparent")?,
    })
}
