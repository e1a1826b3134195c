use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;
use souk_event_sourcing::{Etag, LogId, Position, RecordedEvent, UnixMillis, Version};
use souk_read_store::{Parked, Row, RowKey, Table, Value};

/// A view with one row per entity, whose row is an encoded message. Pure: the row is a function of the entity's events.
pub(crate) trait EntityView: Message + Default {
    /// Category of the streams it is made of.
    const CATEGORY: &'static str;
    const TABLE: &'static Table;
    /// Grows with every change of what a row says; a store written under another revision is folded anew.
    const REVISION: u32;
    type Event;

    /// The events before this one are in `self`. Total: every stored event applies.
    fn apply(&mut self, event: &Self::Event, at: &Moment);

    /// Writes id, version, etag and time of the last event.
    fn stamp(&mut self, at: &Moment);

    fn version(&self) -> Version;

    fn updated(&self) -> UnixMillis;

    /// Values of the columns after `body`.
    fn filters(&self) -> Vec<Value>;

    fn to_row(&self, key: RowKey, position: Position, parked: Option<Parked>) -> Row {
        let mut values = vec![
            Value::Int(self.version().0 as i64),
            parked.map_or(Value::Null, |parked| Value::Int(parked.since.0)),
            parked.map_or(Value::Null, |parked| Value::Int(parked.at.0 as i64)),
            Value::Int(self.updated().0),
            Value::Bytes(self.encode_to_vec().into()),
        ];
        values.extend(self.filters());
        Row { key, position, revision: Self::REVISION, values }
    }
}

/// Indices of version and time of the last event among the values of such a row.
const VERSION: usize = 0;
const UPDATED: usize = 3;
/// Index of `body` among the values of such a row.
pub(crate) const BODY: usize = 4;

/// What such a row says of events set aside.
pub(crate) fn mark(row: &Row) -> Option<Parked> {
    let (since, at) = (row.values[1].as_int()?, row.values[2].as_int()?);
    Some(Parked { at: Position(at as u64), since: UnixMillis(since) })
}

/// What an event brings besides its payload.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub log: LogId,
    /// Id of the entity.
    pub id: String,
    pub version: Version,
    pub time: Timestamp,
}

impl Moment {
    pub(crate) fn of(event: &RecordedEvent) -> Self {
        Self { log: event.log, id: event.stream.id().to_owned(), version: event.version, time: timestamp(event.hlc.time()) }
    }

    pub(crate) fn etag(&self) -> String {
        Etag { region: self.log.region, version: self.version }.to_string()
    }
}

pub(crate) fn timestamp(time: UnixMillis) -> Timestamp {
    Timestamp { seconds: time.0.div_euclid(1_000), nanos: (time.0.rem_euclid(1_000) * 1_000_000) as i32 }
}

pub(crate) fn millis(time: Option<&Timestamp>) -> UnixMillis {
    UnixMillis(time.map_or(0, |time| time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000))
}

/// Key and body of a row of one of the entity views, as the change feed carries them; `None` for rows of other tables. The
/// row of a parked entity comes without its body, for the feed cannot say how far it may be trusted: caches read it again,
/// with its marks.
pub fn changed_body<'a>(view: &str, row: &'a Row) -> Option<(&'a str, Option<&'a Bytes>)> {
    let is_entity = [&crate::PRODUCT, &crate::AVAILABILITY, &crate::CART, &crate::ORDER].iter().any(|table| table.name == view);
    is_entity.then_some(())?;
    let body = row.values[BODY].as_bytes().filter(|_| mark(row).is_none());
    Some((row.key.key.first()?.as_text()?, body))
}

/// When the only event of a row of one of the entity views was written; `None` if it holds more than one.
pub fn first_event(row: &Row) -> Option<UnixMillis> {
    (row.values[VERSION].as_int() == Some(1)).then(|| row.values[UPDATED].as_int().map(UnixMillis))?
}
