use bytes::Bytes;
use souk_event_sourcing::{LogId, Position};

/// Name of the column that marks rows of parked entities.
pub(crate) const PARKED_AT: &str = "parked_at";

/// A view table. Beside the columns named here every table begins with `region`, `partition`, and has `position` (of the
/// last event that went into the row) and `revision` (of the projection that wrote it). Its primary key is
/// (`region`, `partition`, key…).
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    /// The key after region and partition.
    pub key: &'static [Column],
    pub columns: &'static [Column],
}

/// A column of a view table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// smallint
    Small,
    /// int
    Int,
    /// bigint
    Big,
    /// bigint that adds up, never negative: a written row carries what its batch adds. Exact, because a batch is written once and only by
    /// whoever moves the checkpoint.
    Sum,
    /// text collate "C"
    Text,
    /// bytea
    Bytes,
    /// text[]
    Texts,
    /// bigint: when the row was written, Unix milliseconds. The store fills it in from the clock of the transaction, so it
    /// is no function of the events: never bound, never read back, never compared.
    WrittenMs,
}

impl Column {
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind }
    }
}

/// The value of one column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Null,
    Int(i64),
    Text(String),
    Bytes(Bytes),
    Texts(Vec<String>),
}

/// Key of a row in a table that is known from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    pub log: LogId,
    /// One value per key column.
    pub key: Vec<Value>,
}

/// A row as a projection makes it. Rows are compared field by field by the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub key: RowKey,
    /// Position of the last event in it.
    pub position: Position,
    /// Revision of the projection.
    pub revision: u32,
    /// One value per column that is not [`Kind::WrittenMs`], in the table's order.
    pub values: Vec<Value>,
}

impl Row {
    /// Bytes of its encoded values.
    pub fn bytes(&self) -> usize {
        self.values.iter().filter_map(Value::as_bytes).map(Bytes::len).sum()
    }
}

impl Table {
    /// Columns whose values travel in a [`Row`].
    pub fn value_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.kind != Kind::WrittenMs)
    }

    /// Whether its rows are sums.
    pub(crate) fn adds_up(&self) -> bool {
        self.columns.iter().any(|column| column.kind == Kind::Sum)
    }

    /// Index among the values of the column that says from where on the row's entity is parked, if it has one.
    pub(crate) fn mark(&self) -> Option<usize> {
        self.value_columns().position(|column| column.name == PARKED_AT)
    }
}

impl Value {
    /// The number in it.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The text in it.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes in it.
    pub fn as_bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}
