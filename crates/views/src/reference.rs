use souk_event_sourcing::{Position, RecordedEvent};
use souk_read_store::{Row, Table, Value};

use crate::{
    ORDER_TIMELINE, Poison, SALES_DAY,
    rows::{Entity, Rows},
};

/// The rows a log must have led to: the fold of its events from the first, by the code the projector runs, but without a
/// store, batches or a cache. What audit compares stored rows with.
#[derive(Debug, Default)]
pub struct Reference(Rows);

/// Folds events from the first on.
///
/// # Errors
/// The first event that no projection can apply.
pub fn fold_reference<'a>(events: impl IntoIterator<Item = &'a RecordedEvent>) -> Result<Reference, Poison> {
    let mut reference = Reference::default();
    events.into_iter().try_for_each(|event| reference.apply(event))?;
    Ok(reference)
}

impl Reference {
    /// Folds the next event in; events of several logs may be mixed, those of one log come in order.
    ///
    /// # Errors
    /// As [`fold_reference`].
    pub fn apply(&mut self, event: &RecordedEvent) -> Result<(), Poison> {
        self.0.apply(event)
    }

    /// The rows that must stand in `table`, in order of key. They compare with `==` to rows read by
    /// [`souk_read_store::ViewStore::scan`]; bring stored ones into [`comparable`] form first.
    pub fn rows(&self, table: &Table) -> Vec<Row> {
        let mut rows: Vec<_> = match table.name {
            name if name == ORDER_TIMELINE.name => self.0.timeline.clone(),
            name if name == SALES_DAY.name => self.0.sales.values().cloned().collect(),
            name => {
                let of_table = |entity: &Entity| entity.table().name == name;
                let held = self.0.entities.iter().filter(|(_, held)| held.position > Position(0) && of_table(&held.entity));
                held.map(|(key, held)| held.to_row(key)).collect()
            }
        };
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        rows
    }
}

/// Whether a stored row only says that its entity is parked: no event is in it, hence no fold has it.
pub fn is_marker(row: &Row) -> bool {
    row.position == Position(0)
}

/// A stored row without what is no function of the events: since when it stands still. (`projected_ms` is never read.)
pub fn comparable(table: &Table, mut row: Row) -> Row {
    for (column, value) in table.value_columns().zip(&mut row.values) {
        if matches!(column.name, "stale_since" | "parked_at") {
            *value = Value::Null;
        }
    }
    row
}
