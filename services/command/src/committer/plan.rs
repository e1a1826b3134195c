use std::{collections::HashMap, sync::Arc};

use souk_event_sourcing::{EventId, HlcClock, LogHash, LogId, LogPosition, NewEvent, RecordedEvent, StreamId, UnixMillis, Version};
use souk_event_store::{LedgerEntry, LogBatch, StreamAdvance};
use uuid::{NoContext, Timestamp, Uuid};

use super::{
    Answer, CommandError, Model, Request,
    entities::{Entities, Entity},
    heads::Owned,
    lane::Pending,
    replies,
};

/// What one log's commands lead to if the append succeeds: the entities after it and an answer for each command.
pub(super) struct Plan<M: Model> {
    log: LogId,
    /// Entities as the decisions so far leave them, and their version before: commands of one batch see each other.
    entities: HashMap<StreamId, (Entity<M::Entity>, Version)>,
    /// In the order of the batch's ledger.
    planned: Vec<Planned<M>>,
}

/// A decided command.
pub(super) struct Planned<M: Model> {
    pub pending: Pending<M>,
    pub answer: Result<Answer, CommandError>,
}

/// An entity with its version before the batch.
type Touched<M> = (StreamId, Entity<<M as Model>::Entity>, Version);

impl<M: Model> Plan<M> {
    /// Decides the commands of one log in order.
    pub fn of(
        log: LogId,
        owned: &Owned,
        queue: Vec<Pending<M>>,
        entities: &mut Entities<M>,
        clock: &HlcClock,
        now: UnixMillis,
    ) -> (LogBatch, Self) {
        let mut plan = Self { log, entities: HashMap::new(), planned: Vec::with_capacity(queue.len()) };
        let mut batch = LogBatch { log, belief: owned.belief, ledger: Vec::new(), streams: Vec::new(), events: Vec::new() };
        let mut head = owned.head(log);
        for pending in queue {
            let Some(pending) = plan.collapse(pending) else { continue };
            plan.borrow(&pending, log, entities);
            let outcome = plan.decide(&pending, &mut batch, &mut head, owned, clock, now);
            let reply = outcome.as_ref().map_or_else(replies::remembered, |answer| Some(replies::accepted(answer)));
            batch.ledger.push(ledger_entry(&pending, reply));
            plan.planned.push(Planned { pending, answer: outcome });
        }
        batch.streams = plan
            .entities
            .iter()
            .map(|(stream, (entity, before))| StreamAdvance { stream: stream.clone(), expected: *before, new: entity.version })
            .collect();
        (batch, plan)
    }

    pub fn is_empty(&self) -> bool {
        self.planned.is_empty()
    }

    pub fn len(&self) -> usize {
        self.planned.len()
    }

    pub fn traceparents(&self) -> impl Iterator<Item = &str> {
        self.planned.iter().map(|planned| planned.pending.job.request.traceparent.as_str())
    }

    /// The commands as they were before they were decided.
    pub fn give_back(self, queue: &mut std::collections::BTreeMap<LogId, Vec<Pending<M>>>) {
        queue.insert(self.log, self.planned.into_iter().map(|planned| planned.pending).collect());
    }

    /// Entities with their version before the batch, and the commands.
    pub fn into_parts(self) -> (impl Iterator<Item = Touched<M>>, Vec<Planned<M>>) {
        (self.entities.into_iter().map(|(stream, (entity, before))| (stream, entity, before)), self.planned)
    }

    /// Joins a repeat to the command of this batch that has the same id; another body under the id is refused.
    fn collapse(&mut self, pending: Pending<M>) -> Option<Pending<M>> {
        let (id, primary) = (pending.job.request.id, &pending.job.streams[0]);
        let same =
            self.planned.iter_mut().find(|planned| planned.pending.job.request.id == id && planned.pending.job.streams[0] == *primary);
        let Some(same) = same else { return Some(pending) };
        if same.pending.job.request.fingerprint == pending.job.request.fingerprint {
            same.pending.repeats.push(pending.job.answer);
            same.pending.repeats.extend(pending.repeats);
        } else {
            pending.answer(&Err(CommandError::RequestIdReused(id)));
        }
        None
    }

    /// Takes the entities a command names into the plan.
    fn borrow(&mut self, pending: &Pending<M>, log: LogId, entities: &mut Entities<M>) {
        for stream in &pending.job.streams {
            if !self.entities.contains_key(stream)
                && let Some(entity) = entities.get(log, stream)
            {
                self.entities.insert(stream.clone(), (entity.clone(), entity.version));
            }
        }
    }

    fn decide(
        &mut self,
        pending: &Pending<M>,
        batch: &mut LogBatch,
        head: &mut LogPosition,
        owned: &Owned,
        clock: &HlcClock,
        now: UnixMillis,
    ) -> Result<Answer, CommandError> {
        let job = &pending.job;
        // Evicted between loading and deciding: only when one batch names more entities than the cache holds.
        if job.streams.iter().any(|stream| !self.entities.contains_key(stream)) {
            return Err(CommandError::Overloaded);
        }
        let primary = &job.streams[0];
        let current = self.entities[primary].0.version;
        if job.etag.is_some_and(|etag| etag.version != current || etag.region != self.log.region) {
            return Err(CommandError::StaleEtag { stream: primary.clone(), current });
        }
        let states: Vec<&M::Entity> = job.streams.iter().map(|stream| &self.entities[stream].0.state).collect();
        let events = (job.decide)(&states).map_err(CommandError::Refused)?;
        // Folded on copies first: a command that cannot be folded leaves no trace in the batch.
        let mut after: Vec<_> = job.streams.iter().map(|stream| self.entities[stream].0.clone()).collect();
        let mut versions = Vec::with_capacity(events.len());
        for (index, event) in &events {
            M::evolve(&mut after[*index].state, event)?;
            after[*index].version = after[*index].version.next();
            versions.push(after[*index].version);
        }
        for (stream, entity) in job.streams.iter().zip(after) {
            self.entities.get_mut(stream).expect("borrowed above").0 = entity;
        }
        for ((index, event), version) in events.into_iter().zip(versions) {
            let previous = batch.events.last().map_or(owned.belief.hash, |event| event.hash);
            let place = LogPosition { log: self.log, epoch: owned.belief.epoch, position: head.position.next() };
            let event = record(M::encode(&job.streams[index], &event), version, place, previous, &job.request, clock, now);
            *head = place;
            batch.events.push(Arc::new(event));
        }
        let after: Vec<_> =
            job.streams.iter().map(|stream| &self.entities[stream].0).map(|entity| (&entity.state, entity.version)).collect();
        Ok(Answer { response: (job.respond)(&after), at: *head })
    }
}

/// Gives a decided event its place in the log.
fn record(
    event: NewEvent,
    version: Version,
    place: LogPosition,
    previous: LogHash,
    request: &Request,
    clock: &HlcClock,
    now: UnixMillis,
) -> RecordedEvent {
    let hlc = clock.tick(now);
    let time = hlc.time().0 as u64;
    let event_id = EventId(Uuid::new_v7(Timestamp::from_unix(NoContext, time / 1000, (time % 1000) as u32 * 1_000_000)));
    let mut event = RecordedEvent {
        log: place.log,
        position: place.position,
        epoch: place.epoch,
        hash: LogHash::EMPTY,
        stream: event.stream,
        version,
        kind: event.kind.to_owned(),
        schema_version: event.schema_version,
        payload: event.payload,
        event_id,
        request_id: Some(request.id),
        causation_id: request.causation_id,
        correlation_id: request.correlation_id,
        actor: request.actor.clone(),
        hlc,
        traceparent: request.traceparent.clone(),
        home_epoch: souk_event_sourcing::Epoch(0),
        key_id: None,
    };
    event.hash = previous.after(&event);
    event
}

fn ledger_entry<M: Model>(pending: &Pending<M>, reply: Option<bytes::Bytes>) -> LedgerEntry {
    let request = &pending.job.request;
    LedgerEntry {
        stream: pending.job.streams[0].clone(),
        request_id: request.id,
        method: request.method,
        command: request.body.clone(),
        fingerprint: request.fingerprint,
        reply,
        actor: request.actor.clone(),
        recorded: request.received,
    }
}
