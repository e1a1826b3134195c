use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use metrics::{counter, histogram};
use souk_event_sourcing::{LogId, Position, RecordedEvent};
use souk_read_store::{Advance, Batch, ReadStoreError, Row};
use souk_runtime::telemetry;
use souk_views::{Poison, PoisonReason};
use tracing::{Instrument, info_span};

use crate::{
    changes,
    reader::{Arrival, What},
    sequence::Tail,
    shard::{Held, Shard, now},
};

/// What came of folding a batch in memory.
#[derive(Default)]
struct Folded {
    /// Per log: after the last event that was applied.
    tails: BTreeMap<LogId, Tail>,
    poison: BTreeMap<LogId, Poison>,
    rows: BTreeMap<&'static str, Vec<Row>>,
}

/// A log that cannot go on, and why.
struct Culprit {
    log: LogId,
    position: Position,
    reason: String,
    /// Whether the rows may be to blame, which folding anew mends.
    mendable: bool,
}

impl Culprit {
    fn from_poison(log: LogId, poison: &Poison) -> Self {
        let mendable = matches!(poison.reason, PoisonReason::RowAstray { .. });
        Self { log, position: poison.position, reason: poison.to_string(), mendable }
    }
}

impl Shard {
    /// Writes what has arrived in one transaction.
    ///
    /// # Errors
    /// When the database does not answer; all logs concerned are read anew then.
    pub(crate) async fn project(&mut self, first: Arrival) -> Result<(), ReadStoreError> {
        let mut events = Vec::new();
        let mut diverged = BTreeSet::new();
        // Permits are held until the events are written, so that the room bounds what is in memory.
        let mut permits = Vec::new();
        for arrival in self.arrived(first) {
            match arrival.what {
                What::Event(event, permit) => {
                    events.push(*event);
                    permits.push(permit);
                }
                What::Diverged => drop(diverged.insert(arrival.log)),
            }
        }
        events.retain(|event| !diverged.contains(&event.log));
        let culprits = if events.is_empty() { Vec::new() } else { self.write_or_split(&events).await? };
        drop(permits);
        for Culprit { log, position, reason, mendable } in culprits {
            self.stand_still(log, position, reason, mendable).await?;
        }
        for log in diverged {
            tracing::warn!(%log, "the log went back; its views are folded anew");
            self.rewind(log).await?;
        }
        Ok(())
    }

    /// Writes a batch; if the database refuses its data, log by log, so that only the culprit stands still.
    async fn write_or_split(&mut self, events: &[RecordedEvent]) -> Result<Vec<Culprit>, ReadStoreError> {
        let logs: BTreeSet<_> = events.iter().map(|event| event.log).collect();
        let error = match self.write_batch(events).await {
            Ok(culprits) => return Ok(culprits),
            Err(error) => error,
        };
        // Nothing was written, or the outcome is unknown: memory is ahead of the store either way.
        logs.iter().for_each(|log| self.folder.forget(*log));
        if error.retryable() {
            self.unsynced.extend(logs);
            return Err(error);
        }
        let mut culprits = Vec::new();
        for log in &logs {
            let events: Vec<_> = of_log(events, *log).cloned().collect();
            match self.write_batch(&events).await {
                Ok(more) => culprits.extend(more),
                Err(error) if error.retryable() => {
                    self.unsynced.extend(logs);
                    return Err(error);
                }
                Err(error) => {
                    let mendable = matches!(error, ReadStoreError::Corrupt { .. });
                    culprits.push(Culprit { log: *log, position: events[0].position, reason: error.to_string(), mendable });
                }
            }
        }
        Ok(culprits)
    }

    async fn write_batch(&mut self, events: &[RecordedEvent]) -> Result<Vec<Culprit>, ReadStoreError> {
        let span = info_span!("project", database = self.database, events = events.len());
        telemetry::set_parents(&span, events.iter().map(|event| event.traceparent.as_str()));
        self.fold_and_write(events).instrument(span).await
    }

    async fn fold_and_write(&mut self, events: &[RecordedEvent]) -> Result<Vec<Culprit>, ReadStoreError> {
        let started = Instant::now();
        self.folder.prepare(&*self.store, events).await?;
        let folded = self.fold(events);
        let batch = Batch { advances: self.advances(&folded.tails), rows: folded.rows, revision: souk_views::revision(), now: now() };
        let written = self.store.write(&batch).await?;
        histogram!("souk_projector_commit_seconds").record(started.elapsed().as_secs_f64());
        histogram!("souk_projector_batch_events").record(events.len() as f64);
        counter!("souk_projector_transactions_total").increment(1);
        let mut changed = changes::changed_rows(&batch.rows);
        for advance in &batch.advances {
            if written.lost.contains(&advance.log) {
                self.lost(advance.log);
                continue;
            }
            let Some(progress) = self.logs.get_mut(&advance.log) else { continue };
            let Some(checkpoint) = &mut progress.checkpoint else { continue };
            (checkpoint.epoch, checkpoint.position, checkpoint.hash) = (advance.epoch, advance.position, advance.hash);
            (checkpoint.revision, checkpoint.written) = (batch.revision, batch.now);
            counter!("souk_projector_events_total").increment(advance.position.0 - advance.from_position.0);
            // It moves again: whatever it stood still for is behind it.
            progress.halted = None;
            let mut message = changes::message(checkpoint, advance.from_position);
            message.rows = changed.remove(&advance.log).unwrap_or_default();
            message.traceparents = changes::traceparents(of_log(events, advance.log).map(|event| event.traceparent.as_str()));
            self.ports.changes.publish(message);
            self.note(advance.log);
        }
        let poison = folded.poison.into_iter().filter(|(log, _)| !written.lost.contains(log));
        Ok(poison.map(|(log, poison)| Culprit::from_poison(log, &poison)).collect())
    }

    /// Applies events in order; a log ends before its first poison event, the others go on.
    fn fold(&mut self, events: &[RecordedEvent]) -> Folded {
        let mut folded = Folded::default();
        for event in events {
            if folded.poison.contains_key(&event.log) {
                continue;
            }
            match self.folder.apply(event) {
                Ok(()) => drop(folded.tails.insert(event.log, Tail::after(event))),
                Err(poison) => drop(folded.poison.insert(event.log, poison)),
            }
        }
        folded.rows = self.folder.finish();
        folded
    }

    /// From what is believed to be stored to what was folded.
    fn advances(&self, tails: &BTreeMap<LogId, Tail>) -> Vec<Advance> {
        let advance = |(log, tail): (&LogId, &Tail)| {
            let progress = self.logs.get(log)?;
            let (Some(checkpoint), Held::Us(fence)) = (progress.checkpoint, progress.held) else { return None };
            Some(Advance {
                log: *log,
                fence,
                from_epoch: checkpoint.epoch,
                from_position: checkpoint.position,
                epoch: tail.epoch,
                position: tail.position,
                hash: tail.hash,
            })
        };
        tails.iter().filter_map(advance).collect()
    }
}

fn of_log(events: &[RecordedEvent], log: LogId) -> impl Iterator<Item = &RecordedEvent> {
    events.iter().filter(move |event| event.log == log)
}

impl Arrival {
    /// Its share of a batch's bytes.
    pub(crate) fn bytes(&self) -> usize {
        match &self.what {
            What::Event(event, _) => event.payload.len(),
            What::Diverged => 0,
        }
    }
}
