use std::{collections::HashMap, num::NonZeroUsize};

use lru::LruCache;
use souk_event_sourcing::{LogId, StreamId, Version};
use souk_event_store::StoredStream;

use super::{DamagedHistory, Model};

/// An entity and how many events it has seen.
#[derive(Debug, Clone)]
pub(super) struct Entity<E> {
    pub state: E,
    pub version: Version,
}

/// Recently used entities of the logs this lane owns. A hint: the append checks every version it rests on (law 6).
pub(super) struct Entities<M: Model> {
    cache: LruCache<StreamId, (u64, Entity<M::Entity>)>,
    /// Raised to forget all entities of a log at once: entries of an older generation count as absent.
    generations: HashMap<LogId, u64>,
}

impl<M: Model> Entities<M> {
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self { cache: LruCache::new(capacity), generations: HashMap::new() }
    }

    pub fn get(&mut self, log: LogId, stream: &StreamId) -> Option<&Entity<M::Entity>> {
        let generation = self.generation(log);
        self.cache.get(stream).filter(|(of, _)| *of == generation).map(|(_, entity)| entity)
    }

    pub fn put(&mut self, log: LogId, stream: StreamId, entity: Entity<M::Entity>) {
        let generation = self.generation(log);
        self.cache.put(stream, (generation, entity));
    }

    pub fn forget(&mut self, stream: &StreamId) {
        self.cache.pop(stream);
    }

    pub fn forget_log(&mut self, log: LogId) {
        *self.generations.entry(log).or_default() += 1;
    }

    fn generation(&self, log: LogId) -> u64 {
        self.generations.get(&log).copied().unwrap_or_default()
    }
}

/// The state and version of a stream as it was stored.
///
/// # Errors
/// When it cannot be read.
pub fn folded<M: Model>(stream: &StreamId, stored: StoredStream) -> Result<(M::Entity, Version), DamagedHistory> {
    fold::<M>(stream, stored).map(|entity| (entity.state, entity.version))
}

/// Folds what was stored of a stream. The number of events behind the snapshot comes with it.
pub(super) fn fold<M: Model>(stream: &StreamId, stored: StoredStream) -> Result<Entity<M::Entity>, DamagedHistory> {
    let damaged = |reason: &str| DamagedHistory { stream: stream.clone(), reason: reason.to_owned() };
    let usable = stored.snapshot.as_ref().and_then(|snapshot| {
        let state = M::decode_snapshot(stream, snapshot.fold_version, &snapshot.state)?;
        Some(Entity { state, version: snapshot.version })
    });
    if usable.is_none() && stored.snapshot.is_some() {
        return Err(damaged("its snapshot cannot be read; delete it"));
    }
    let initial = || M::initial(stream).map(|state| Entity { state, version: Version(0) });
    let mut entity = usable.or_else(initial).ok_or_else(|| damaged("unknown category"))?;
    for event in &stored.events {
        if event.version != entity.version.next() {
            return Err(damaged(&format!("version {} follows {}", event.version, entity.version)));
        }
        M::evolve(&mut entity.state, &M::decode(event)?)?;
        entity.version = event.version;
    }
    Ok(entity)
}
