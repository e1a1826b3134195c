use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use async_trait::async_trait;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, UnixMillis};

use crate::{Advance, Batch, Checkpoint, Fence, Kind, Page, ReadStoreError, Row, RowKey, Table, Value, ViewStore, Written};

/// [`ViewStore`] in memory, for tests of what is built on it.
#[derive(Debug)]
pub struct MemoryViews {
    tables: &'static [&'static Table],
    state: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    checkpoints: BTreeMap<LogId, Checkpoint>,
    rows: BTreeMap<&'static str, BTreeMap<RowKey, Row>>,
}

impl MemoryViews {
    /// An empty store of `tables` in which `logs` are placed.
    pub fn new(logs: impl IntoIterator<Item = LogId>, tables: &'static [&'static Table]) -> Self {
        let checkpoints = logs.into_iter().map(|log| (log, start(log, Fence(0), UnixMillis(0)))).collect();
        Self { tables, state: Mutex::new(Tables { checkpoints, rows: BTreeMap::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

fn start(log: LogId, fence: Fence, written: UnixMillis) -> Checkpoint {
    Checkpoint { log, fence, epoch: Epoch(0), position: Position(0), hash: LogHash::EMPTY, revision: 0, written }
}

/// The row as it is after writing `row` over `before`.
fn merge(table: &Table, before: Option<&Row>, row: &Row) -> Row {
    let mut merged = row.clone();
    for (index, column) in table.value_columns().enumerate() {
        if let (Kind::Sum, Some(Value::Int(sum)), Value::Int(more)) =
            (column.kind, before.map(|before| &before.values[index]), &row.values[index])
        {
            merged.values[index] = Value::Int(sum.saturating_add(*more));
        }
    }
    merged
}

#[async_trait]
impl ViewStore for MemoryViews {
    async fn claim(&self, logs: &[LogId], now: UnixMillis) -> Result<Vec<Checkpoint>, ReadStoreError> {
        let mut tables = self.lock();
        let held = tables.checkpoints.values_mut().filter(|checkpoint| logs.contains(&checkpoint.log));
        Ok(held
            .map(|checkpoint| {
                checkpoint.fence = Fence((checkpoint.fence.0 + 1).max(now.0 as u64));
                *checkpoint
            })
            .collect())
    }

    async fn checkpoints(&self, logs: &[LogId]) -> Result<Vec<Checkpoint>, ReadStoreError> {
        Ok(self.lock().checkpoints.values().filter(|checkpoint| logs.contains(&checkpoint.log)).copied().collect())
    }

    async fn load(&self, table: &'static Table, keys: &[RowKey]) -> Result<Vec<Row>, ReadStoreError> {
        let tables = self.lock();
        let rows = tables.rows.get(table.name);
        Ok(keys.iter().filter_map(|key| rows?.get(key)).cloned().collect())
    }

    async fn write(&self, batch: &Batch) -> Result<Written, ReadStoreError> {
        let mut tables = self.lock();
        let mut lost = Vec::new();
        for advance in &batch.advances {
            let believed = (advance.fence, advance.from_epoch, advance.from_position);
            match tables.checkpoints.get_mut(&advance.log) {
                Some(stored) if (stored.fence, stored.epoch, stored.position) == believed => {
                    let Advance { log, fence, epoch, position, hash, .. } = *advance;
                    *stored = Checkpoint { log, fence, epoch, position, hash, revision: batch.revision, written: batch.now };
                }
                _ => lost.push(advance.log),
            }
        }
        let won = |log: LogId| !lost.contains(&log) && batch.advances.iter().any(|advance| advance.log == log);
        for table in self.tables {
            let stored = tables.rows.entry(table.name).or_default();
            for row in batch.rows.get(table.name).into_iter().flatten().filter(|row| won(row.key.log)) {
                match stored.get(&row.key) {
                    Some(before) if before.position >= row.position => {}
                    before => {
                        let merged = merge(table, before, row);
                        stored.insert(row.key.clone(), merged);
                    }
                }
            }
        }
        Ok(Written { lost })
    }

    async fn rewind(&self, log: LogId, fence: Fence, now: UnixMillis) -> Result<bool, ReadStoreError> {
        let mut tables = self.lock();
        match tables.checkpoints.get_mut(&log) {
            Some(stored) if stored.fence == fence => *stored = start(log, fence, now),
            _ => return Ok(false),
        }
        tables.rows.values_mut().for_each(|rows| rows.retain(|key, _| key.log != log));
        Ok(true)
    }

    async fn scan(&self, table: &'static Table, log: LogId, after: Option<&RowKey>, limit: usize) -> Result<Page, ReadStoreError> {
        let tables = self.lock();
        let checkpoint = *tables.checkpoints.get(&log).ok_or(ReadStoreError::NotPlaced(log))?;
        let rows = tables.rows.get(table.name).into_iter().flat_map(BTreeMap::values);
        let rows = rows.filter(|row| row.key.log == log && after.is_none_or(|after| row.key > *after));
        Ok(Page { checkpoint, rows: rows.take(limit).cloned().collect() })
    }
}
