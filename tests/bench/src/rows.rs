use souk_event_sourcing::RecordedEvent;
use souk_event_store::{LedgerEntry, Retention};
use souk_read_store::{Column, Kind, Row, Table, Value};
use uuid::Uuid;

/// Rows as `COPY … FROM STDIN (FORMAT binary)` reads them
/// (<https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format").
#[derive(Debug, Clone)]
pub struct Rows {
    bytes: Vec<u8>,
    pub count: u64,
}

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: &[u8] = &(-1i16).to_be_bytes();
/// Type id of text, in arrays.
const TEXT: i32 = 25;

impl Rows {
    /// None yet; what is made of this begins a COPY.
    pub fn first() -> Self {
        Self { bytes: HEADER.to_vec(), count: 0 }
    }

    /// None yet; what is made of this goes on with a COPY that has begun.
    pub const fn more() -> Self {
        Self { bytes: Vec::new(), count: 0 }
    }

    /// As they are sent, with the end of the COPY.
    pub fn last(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(TRAILER);
        self.bytes
    }

    /// As they are sent, with more to come.
    pub fn part(self) -> Vec<u8> {
        self.bytes
    }

    /// Begins a row of so many columns.
    pub fn row(&mut self, columns: i16) -> &mut Self {
        self.count += 1;
        self.bytes.extend_from_slice(&columns.to_be_bytes());
        self
    }

    pub fn small(&mut self, value: i16) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    pub fn int(&mut self, value: i32) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    pub fn big(&mut self, value: i64) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    /// Text or bytea.
    pub fn field(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(&(value.len() as i32).to_be_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    pub fn id(&mut self, value: Option<Uuid>) -> &mut Self {
        match value {
            Some(id) => self.field(id.as_bytes()),
            None => self.null(),
        }
    }

    pub fn null(&mut self) -> &mut Self {
        self.bytes.extend_from_slice(&(-1i32).to_be_bytes());
        self
    }

    fn texts(&mut self, values: &[String]) -> &mut Self {
        let dimensions = i32::from(!values.is_empty());
        let mut array: Vec<u8> = [dimensions, 0, TEXT].iter().flat_map(|number| number.to_be_bytes()).collect();
        if dimensions > 0 {
            array.extend([values.len() as i32, 1].iter().flat_map(|number| number.to_be_bytes()));
        }
        for value in values {
            array.extend((value.len() as i32).to_be_bytes());
            array.extend(value.as_bytes());
        }
        self.field(&array)
    }

    /// A row of `event`, all columns in the order of the table.
    pub fn event(&mut self, event: &RecordedEvent) -> &mut Self {
        self.row(19)
            .small(event.log.region.0 as i16)
            .int(i32::from(event.log.partition.0))
            .big(event.position.0 as i64)
            .big(event.epoch.0 as i64)
            .field(&event.hash.0)
            .field(event.stream.as_str().as_bytes())
            .big(event.version.0 as i64)
            .field(event.kind.as_bytes())
            .int(event.schema_version as i32)
            .field(&event.payload)
            .id(Some(event.event_id.0))
            .id(event.request_id.map(|id| id.0))
            .id(event.causation_id.map(|id| id.0))
            .id(event.correlation_id)
            .field(event.actor.as_bytes())
            .big(event.hlc.0 as i64)
            .field(event.traceparent.as_bytes())
            .big(event.home_epoch.0 as i64)
            .id(event.key_id)
    }

    /// A row of `ledger`, all columns in the order of the table, beside the event its command led to.
    pub fn remembered(&mut self, event: &RecordedEvent, entry: &LedgerEntry, retention: Retention) -> &mut Self {
        self.row(11)
            .small(event.log.region.0 as i16)
            .int(i32::from(event.log.partition.0))
            .int(retention.bucket(entry.request_id, entry.recorded).0)
            .field(entry.stream.as_str().as_bytes())
            .id(Some(entry.request_id.0))
            .field(entry.method.as_bytes())
            .field(&entry.command)
            .field(&entry.fingerprint.0)
            .field(entry.reply.as_deref().unwrap_or_default())
            .field(entry.actor.as_bytes())
            .big(entry.recorded.0)
    }

    /// A row of a view, in the order that [`view_columns`] names.
    pub fn view(&mut self, table: &Table, row: &Row) -> &mut Self {
        let columns = table.key.iter().chain(table.value_columns());
        self.row(4 + (table.key.len() + row.values.len()) as i16)
            .small(row.key.log.region.0 as i16)
            .int(i32::from(row.key.log.partition.0))
            .big(row.position.0 as i64)
            .int(row.revision as i32);
        for (column, value) in columns.zip(row.key.key.iter().chain(&row.values)) {
            self.value(column, value);
        }
        self
    }

    fn value(&mut self, column: &Column, value: &Value) -> &mut Self {
        match (value, column.kind) {
            (Value::Null, _) => self.null(),
            (Value::Int(number), Kind::Small) => self.small(*number as i16),
            (Value::Int(number), Kind::Int) => self.int(*number as i32),
            (Value::Int(number), _) => self.big(*number),
            (Value::Text(text), _) => self.field(text.as_bytes()),
            (Value::Bytes(bytes), _) => self.field(bytes),
            (Value::Texts(texts), _) => self.texts(texts),
        }
    }
}

/// The columns of a view in the order of [`Rows::view`].
pub fn view_columns(table: &Table) -> String {
    let named = table.key.iter().chain(table.value_columns()).map(|column| column.name);
    ["region", "partition", "position", "revision"].into_iter().chain(named).collect::<Vec<_>>().join(", ")
}
