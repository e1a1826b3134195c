use std::collections::{BTreeMap, HashMap};

use souk_event_sourcing::{LogId, RecordedEvent, StreamId, UnixMillis};
use souk_read_store::{ReadStoreError, Row, RowKey, Table, Value, ViewStore};

use crate::{
    Poison,
    rows::{Entity, EntityKey, Held, Rows},
};

/// Folds batches of events into rows, keeping the rows of recently touched entities in memory. What it keeps is what the
/// store holds plus what was applied since: after a write that was lost or whose outcome is unknown the caller must
/// [`forget`](Self::forget) the logs concerned (law 5).
#[derive(Debug)]
pub struct Folder {
    rows: Rows,
    limit: usize,
}

impl Folder {
    /// Keeps about `limit` to twice `limit` entities.
    pub fn new(limit: usize) -> Self {
        Self { rows: Rows::default(), limit }
    }

    /// Loads the rows that `events` need and that are not in memory.
    ///
    /// # Errors
    /// Those of the store; nothing was loaded then.
    pub async fn prepare(&mut self, store: &dyn ViewStore, events: &[RecordedEvent]) -> Result<(), ReadStoreError> {
        let mut missing: BTreeMap<&'static str, (&'static Table, HashMap<RowKey, EntityKey>)> = BTreeMap::new();
        for event in events {
            let key = (event.log, event.stream.clone());
            if self.rows.entities.touch(&key) {
                continue;
            }
            // A category without a view has nothing to load; applying its event says so.
            if let Some(empty) = Entity::empty(event.stream.category()) {
                let table = empty.table();
                let row = RowKey { log: event.log, key: vec![Value::from(event.stream.id())] };
                missing.entry(table.name).or_insert_with(|| (table, HashMap::new())).1.insert(row, key);
            }
        }
        for (table, keys) in missing.into_values() {
            let asked: Vec<_> = keys.keys().cloned().collect();
            for row in store.load(table, &asked).await? {
                let Some(key) = keys.get(&row.key) else { continue };
                self.rows.entities.insert(key.clone(), Held::stored(key.1.category(), &row)?);
            }
            for key in keys.into_values() {
                let category = key.1.category().to_owned();
                self.rows.entities.get_or_insert(&key, || Held::empty(&category));
            }
        }
        Ok(())
    }

    /// Folds one event into rows that [`prepare`](Self::prepare) has loaded.
    ///
    /// # Errors
    /// A poison event leaves the rows as they were; events before it stay folded. Every event of a parked entity is one.
    pub fn apply(&mut self, event: &RecordedEvent) -> Result<(), Poison> {
        self.rows.apply(event)
    }

    /// Marks the row of an event that is set aside; the first such event of an entity decides from where on it is parked.
    pub fn park(&mut self, event: &RecordedEvent, since: UnixMillis) {
        self.rows.park(event, since);
    }

    /// Takes the mark off an entity whose row [`prepare`](Self::prepare) has loaded: its parked events come now, in order.
    pub fn release(&mut self, log: LogId, stream: &StreamId) {
        self.rows.release(log, stream);
    }

    /// Passes over an event that is given up: the row counts it and is not changed by it.
    pub fn skip(&mut self, event: &RecordedEvent) {
        self.rows.skip(event);
    }

    /// Takes the rows that changed, by the name of their table; ends the batch.
    pub fn finish(&mut self) -> BTreeMap<&'static str, Vec<Row>> {
        let changed = self.rows.take_changed();
        self.rows.entities.age(self.limit);
        changed
    }

    /// Drops everything of a log.
    pub fn forget(&mut self, log: LogId) {
        self.rows.forget(log);
    }
}
