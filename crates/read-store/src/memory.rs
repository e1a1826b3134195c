use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, StreamId, UnixMillis};

use crate::{
    Batch, Checkpoint, Fence, Kind, Members, Page, Parked, ParkedEntity, ParkedEvent, ParkedQuery, ReadStoreError, Replica, Row, RowKey,
    Table, Value, ViewStore, Written,
};

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
    parked: BTreeMap<(LogId, Position), ParkedEvent>,
    /// Address and last heartbeat by id.
    replicas: BTreeMap<String, (String, Instant)>,
    holders: BTreeMap<LogId, String>,
}

impl Tables {
    fn lives(&self, replica: &str, ttl: Duration) -> bool {
        self.replicas.get(replica).is_some_and(|(_, heard)| heard.elapsed() < ttl)
    }
}

impl MemoryViews {
    /// An empty store of `tables` in which `logs` are placed.
    pub fn new(logs: impl IntoIterator<Item = LogId>, tables: &'static [&'static Table]) -> Self {
        let checkpoints = logs.into_iter().map(|log| (log, start(log, Fence(0), UnixMillis(0)))).collect();
        Self { tables, state: Mutex::new(Tables { checkpoints, ..Tables::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

fn start(log: LogId, fence: Fence, written: UnixMillis) -> Checkpoint {
    Checkpoint {
        log,
        fence,
        epoch: Epoch(0),
        position: Position(0),
        hash: LogHash::EMPTY,
        revision: 0,
        parked: 0,
        repaired: UnixMillis(0),
        written,
        rebuilding: false,
    }
}

/// The row as it is after writing `row` over `before`.
fn merge(table: &Table, before: Option<&Row>, row: &Row) -> Row {
    let mut merged = row.clone();
    for (index, column) in table.value_columns().enumerate() {
        if let (Kind::Sum, Some(Value::Int(sum)), Value::Int(more)) =
            (column.kind, before.map(|before| &before.values[index]), &row.values[index])
        {
            merged.values[index] = Value::Int(sum.saturating_add(*more));
            merged.position = merged.position.max(before.map_or(Position(0), |before| before.position));
        }
    }
    merged
}

/// Whether `row` takes the place of `before` (law 4).
fn replaces(table: &Table, before: &Row, row: &Row) -> bool {
    let mark = |row: &Row| table.mark().map(|index| row.values[index].clone());
    table.adds_up() || row.position > before.position || (row.position == before.position && mark(row) != mark(before))
}

#[async_trait]
impl ViewStore for MemoryViews {
    async fn heartbeat(&self, replica: &Replica) -> Result<(), ReadStoreError> {
        self.lock().replicas.insert(replica.id.clone(), (replica.address.clone(), Instant::now()));
        Ok(())
    }

    async fn members(&self, ttl: Duration) -> Result<Members, ReadStoreError> {
        let tables = self.lock();
        let live = tables.replicas.iter().filter(|(id, _)| tables.lives(id, ttl));
        let live = live.map(|(id, (address, _))| Replica { id: id.clone(), address: address.clone() }).collect();
        Ok(Members { live, holders: tables.holders.clone() })
    }

    async fn claim(&self, logs: &[LogId], replica: &str, ttl: Duration, now: UnixMillis) -> Result<Vec<Checkpoint>, ReadStoreError> {
        let mut tables = self.lock();
        let mut claimed = Vec::new();
        for log in logs {
            let held = tables.holders.get(log).is_some_and(|holder| holder != replica && tables.lives(holder, ttl));
            let Some(checkpoint) = tables.checkpoints.get_mut(log).filter(|_| !held) else { continue };
            checkpoint.fence = Fence((checkpoint.fence.0 + 1).max(now.0 as u64));
            claimed.push(*checkpoint);
            tables.holders.insert(*log, replica.to_owned());
        }
        Ok(claimed)
    }

    async fn release(&self, logs: &[LogId], replica: &str) -> Result<(), ReadStoreError> {
        self.lock().holders.retain(|log, holder| holder != replica || !logs.contains(log));
        Ok(())
    }

    async fn leave(&self, replica: &str) -> Result<(), ReadStoreError> {
        self.lock().replicas.remove(replica);
        Ok(())
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
        for (table, rows) in &batch.rows {
            let mut seen = BTreeSet::new();
            assert!(rows.iter().all(|row| seen.insert(&row.key)), "a row of {table} twice in a batch, which Postgres refuses");
        }
        let mut tables = self.lock();
        let mut written = Written::default();
        for advance in &batch.advances {
            let believed = (advance.fence, advance.from_epoch, advance.from_position);
            let stored = tables.checkpoints.get(&advance.log);
            if stored.is_none_or(|stored| (stored.fence, stored.epoch, stored.position) != believed) {
                written.lost.push(advance.log);
            }
        }
        let won = |log: LogId| !written.lost.contains(&log) && batch.advances.iter().any(|advance| advance.log == log);
        for table in self.tables {
            let stored = tables.rows.entry(table.name).or_default();
            for row in batch.rows.get(table.name).into_iter().flatten().filter(|row| won(row.key.log)) {
                match stored.get(&row.key) {
                    Some(before) if !replaces(table, before, row) => {}
                    before => {
                        let merged = merge(table, before, row);
                        stored.insert(row.key.clone(), merged);
                    }
                }
            }
        }
        for (log, stream) in batch.released.iter().filter(|(log, _)| won(*log)) {
            tables.parked.retain(|_, event| (event.log, &event.stream) != (*log, stream));
        }
        for event in batch.parked.iter().filter(|event| won(event.log)) {
            tables.parked.insert((event.log, event.position), event.clone());
        }
        for advance in batch.advances.iter().filter(|advance| won(advance.log)) {
            let log = advance.log;
            let parked = tables.parked.values().filter(|event| event.log == log).count() as u32;
            let Some(stored) = tables.checkpoints.get_mut(&log) else { continue };
            (stored.epoch, stored.position, stored.hash) = (advance.epoch, advance.position, advance.hash);
            (stored.revision, stored.parked, stored.written) = (batch.revision, parked, batch.now);
            stored.rebuilding &= !advance.whole;
            if batch.released.iter().any(|(of, _)| *of == log) {
                stored.repaired = stored.repaired_at(batch.now);
            }
            written.moved.push(*stored);
        }
        Ok(written)
    }

    async fn rewind(&self, log: LogId, fence: Fence, now: UnixMillis) -> Result<bool, ReadStoreError> {
        let mut tables = self.lock();
        match tables.checkpoints.get_mut(&log) {
            Some(stored) if stored.fence == fence => {
                *stored = Checkpoint { repaired: stored.repaired_at(now), rebuilding: true, ..start(log, fence, now) };
            }
            _ => return Ok(false),
        }
        tables.parked.retain(|_, event| event.log != log);
        tables.rows.values_mut().for_each(|rows| rows.retain(|key, _| key.log != log));
        Ok(true)
    }

    async fn parked_entities(&self, query: ParkedQuery<'_>) -> Result<Vec<ParkedEntity>, ReadStoreError> {
        let tables = self.lock();
        let mut entities: BTreeMap<(LogId, &StreamId), ParkedEntity> = BTreeMap::new();
        for event in tables.parked.values().filter(|event| query.logs.contains(&event.log)) {
            let key = (event.log, &event.stream);
            if query.stream.is_some_and(|only| *only != event.stream) || query.after.is_some_and(|after| key <= after) {
                continue;
            }
            let entity = entities.entry(key).or_insert_with(|| ParkedEntity {
                log: event.log,
                stream: event.stream.clone(),
                events: 0,
                parked: Parked { at: event.position, since: event.since },
                reason: event.reason.clone(),
            });
            entity.events += 1;
        }
        Ok(entities.into_values().take(query.limit).collect())
    }

    async fn parked_events(
        &self,
        log: LogId,
        stream: &StreamId,
        after: Position,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadStoreError> {
        let tables = self.lock();
        let events = tables.parked.values().filter(|event| event.log == log && event.stream == *stream && event.position > after);
        Ok(events.take(limit).cloned().collect())
    }

    async fn blame(&self, log: LogId, fence: Fence, stream: &StreamId, reason: &str) -> Result<bool, ReadStoreError> {
        let mut tables = self.lock();
        let held = tables.checkpoints.get(&log).is_some_and(|stored| stored.fence == fence);
        let first = tables.parked.values_mut().find(|event| held && event.log == log && event.stream == *stream);
        Ok(first.map(|event| reason.clone_into(&mut event.reason)).is_some())
    }

    async fn scan(&self, table: &'static Table, log: LogId, after: Option<&RowKey>, limit: usize) -> Result<Page, ReadStoreError> {
        let tables = self.lock();
        let checkpoint = *tables.checkpoints.get(&log).ok_or(ReadStoreError::NotPlaced(log))?;
        let rows = tables.rows.get(table.name).into_iter().flat_map(BTreeMap::values);
        let rows = rows.filter(|row| row.key.log == log && after.is_none_or(|after| row.key > *after));
        Ok(Page { checkpoint, rows: rows.take(limit).cloned().collect() })
    }
}
