use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use souk_event_sourcing::{LogId, Position, RecordedEvent, UnixMillis};
use souk_proto::log::v1::EpochStart;
use souk_read_store::{Advance, Batch, Checkpoint, ParkedEvent, ReadStoreError, Row};
use souk_runtime::telemetry;
use souk_views::{Poison, PoisonReason};
use tracing::{Instrument, info_span};

use crate::{
    changes, parking,
    reader::{Arrival, What},
    sequence::Tail,
    shard::{Held, Shard, now},
};

/// What came of folding a batch in memory.
#[derive(Default)]
struct Folded {
    /// Per log: after the last event that was applied or set aside.
    tails: BTreeMap<LogId, Tail>,
    culprits: Vec<Culprit>,
    parked: Vec<ParkedEvent>,
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
        self.keep_pace().await;
        let began = tokio::time::Instant::now();
        for arrival in self.arrived(first) {
            match arrival.what {
                What::Whole(position) => {
                    if let Some(progress) = self.logs.get_mut(&arrival.log) {
                        progress.whole = Some(position);
                    }
                }
                What::Event(event, permit) => {
                    events.push(*event);
                    permits.push(permit);
                }
                What::Diverged => drop(diverged.insert(arrival.log)),
            }
        }
        events.retain(|event| !diverged.contains(&event.log));
        // Their readers have ended: should anything fail before their turn comes, they are read anew.
        self.unsynced.extend(&diverged);
        let culprits = if events.is_empty() { Vec::new() } else { self.write_or_split(&events).await? };
        self.pace.wrote(began, permits.len());
        drop(permits);
        let known: BTreeSet<_> = culprits.iter().map(|culprit| culprit.log).filter(|log| self.unsynced.insert(*log)).collect();
        for Culprit { log, position, reason, mendable } in culprits {
            if known.contains(&log) {
                self.unsynced.remove(&log);
            }
            self.stand_still(log, position, reason, mendable).await?;
        }
        for log in diverged {
            tracing::warn!(%log, "the log went back; its views are folded anew");
            self.rewind(log).await?;
        }
        self.end_rebuilds().await
    }

    /// Writes a batch. If the database refuses it, writes it in ever smaller parts, so that only the culprit is set aside,
    /// or its log stands still.
    async fn write_or_split(&mut self, events: &[RecordedEvent]) -> Result<Vec<Culprit>, ReadStoreError> {
        let mut culprits: Vec<Culprit> = Vec::new();
        // The part to be written next is the last one.
        let mut parts = vec![(events.to_vec(), None)];
        while let Some((mut part, refused)) = parts.pop() {
            part.retain(|event| culprits.iter().all(|culprit| culprit.log != event.log));
            let Some(first) = part.first() else { continue };
            let error = match self.write_batch(&part, refused.as_deref()).await {
                Ok(more) => {
                    culprits.extend(more);
                    continue;
                }
                Err(error) => error,
            };
            // Nothing was written, or the outcome is unknown: memory is ahead of the store either way.
            part.iter().for_each(|event| self.folder.forget(event.log));
            if error.retryable() {
                self.unsynced.extend(events.iter().map(|event| event.log));
                return Err(error);
            }
            if part.len() > 1 {
                let rest = part.split_off(part.len() / 2);
                parts.extend([(rest, None), (part, None)]);
            } else if error.refuses_data() && refused.is_none() {
                parts.push((part, Some(error.to_string())));
            } else {
                let mendable = matches!(error, ReadStoreError::Corrupt { .. });
                culprits.push(Culprit { log: first.log, position: first.position, reason: error.to_string(), mendable });
            }
        }
        Ok(culprits)
    }

    /// Writes a part of a batch; sets its events aside if the database `refused` what they led to.
    async fn write_batch(&mut self, events: &[RecordedEvent], refused: Option<&str>) -> Result<Vec<Culprit>, ReadStoreError> {
        let span = info_span!("project", database = self.database, events = events.len());
        telemetry::set_parents(&span, events.iter().map(|event| event.traceparent.as_str()));
        self.fold_and_write(events, refused).instrument(span).await
    }

    async fn fold_and_write(&mut self, events: &[RecordedEvent], refused: Option<&str>) -> Result<Vec<Culprit>, ReadStoreError> {
        let started = Instant::now();
        self.folder.prepare(&*self.store, events).await?;
        let now = now();
        let Folded { tails, mut culprits, parked, rows } = self.fold(events, refused, now);
        let (advances, released) = (self.advances(&tails), Vec::new());
        let batch = Batch { advances, rows, parked, released, revision: souk_views::revision(), now };
        let written = self.store.write(&batch).await?;
        self.meters.commits.record(started.elapsed());
        self.meters.batches.record(events.len() as f64);
        self.meters.transactions.increment(1);
        let mut changed = changes::changed_rows(&batch.rows);
        written.lost.iter().for_each(|log| self.lost(*log));
        for checkpoint in written.moved {
            let Some(progress) = self.logs.get_mut(&checkpoint.log) else { continue };
            let before = progress.checkpoint.replace(checkpoint).unwrap_or(checkpoint);
            let from = before.position;
            if checkpoint.epoch != before.epoch {
                let first = of_log(events, checkpoint.log).find(|event| event.epoch == checkpoint.epoch);
                progress.epoch_start = first.map(|event| EpochStart { epoch: event.epoch.0, first_position: event.position.0 });
            }
            self.meters.events.increment(checkpoint.position.0 - from.0);
            // It moves again: whatever it stood still for is behind it.
            (progress.halted, progress.moved) = (None, Some(tokio::time::Instant::now()));
            let mut message = self.message(&checkpoint, from);
            message.rows = changed.remove(&checkpoint.log).unwrap_or_default();
            message.traceparents = changes::traceparents(of_log(events, checkpoint.log).map(|event| event.traceparent.as_str()));
            self.ports.changes.publish(message);
            self.note(checkpoint.log);
        }
        culprits.retain(|culprit| !written.lost.contains(&culprit.log));
        Ok(culprits)
    }

    /// Applies events in order, and sets aside those that cannot be (law 11). A log ends before the first event that can
    /// be neither: its rows are astray and shall be folded anew, or too many are set aside already.
    fn fold(&mut self, events: &[RecordedEvent], refused: Option<&str>, now: UnixMillis) -> Folded {
        let mut folded = Folded::default();
        for event in events {
            if folded.culprits.iter().any(|culprit| culprit.log == event.log) {
                continue;
            }
            let poison = match refused {
                None => self.folder.apply(event).err(),
                Some(_) => None,
            };
            let why = refused.map(str::to_owned).or_else(|| poison.as_ref().map(ToString::to_string));
            if let Some(why) = why {
                match self.set_aside(event, poison.as_ref(), why, &folded, now) {
                    Ok(parked) => folded.parked.push(parked),
                    Err(culprit) => {
                        folded.culprits.push(culprit);
                        continue;
                    }
                }
            }
            folded.tails.insert(event.log, Tail::after(event));
        }
        folded.rows = self.folder.finish();
        folded
    }

    fn set_aside(
        &mut self,
        event: &RecordedEvent,
        poison: Option<&Poison>,
        reason: String,
        folded: &Folded,
        since: UnixMillis,
    ) -> Result<ParkedEvent, Culprit> {
        let RecordedEvent { log, position, .. } = *event;
        let progress = self.logs.get(&log);
        let astray = matches!(poison.map(|poison| &poison.reason), Some(PoisonReason::RowAstray { .. }));
        if astray && progress.is_some_and(|progress| progress.mended_at != Some(position)) {
            return Err(Culprit { log, position, reason, mendable: true });
        }
        let before = progress.and_then(|progress| progress.checkpoint).map_or(0, |checkpoint| checkpoint.parked as usize);
        let parked = before + folded.parked.iter().filter(|event| event.log == log).count();
        if parked >= self.config.parked_events_max as usize {
            let reason = format!("{parked} events are set aside, which is the most (projector.parked_events_max); {reason}");
            return Err(Culprit { log, position, reason, mendable: false });
        }
        if !matches!(poison.map(|poison| &poison.reason), Some(PoisonReason::Behind(_))) {
            tracing::error!(%log, %position, stream = %event.stream, reason, "an event cannot be applied; its entity is parked");
        }
        self.folder.park(event, since);
        Ok(parking::parked(event, reason, since))
    }

    /// From what is believed to be stored to what was folded.
    fn advances(&self, tails: &BTreeMap<LogId, Tail>) -> Vec<Advance> {
        let advance = |(log, tail): (&LogId, &Tail)| {
            let progress = self.logs.get(log)?;
            let (Some(checkpoint), Held::Us(_)) = (progress.checkpoint, progress.held) else { return None };
            Some(step(&checkpoint, *tail))
        };
        tails.iter().filter_map(advance).collect()
    }
}

/// From `checkpoint`, which is ours, to `tail`.
pub(crate) fn step(checkpoint: &Checkpoint, tail: Tail) -> Advance {
    Advance {
        log: checkpoint.log,
        fence: checkpoint.fence,
        from_epoch: checkpoint.epoch,
        from_position: checkpoint.position,
        epoch: tail.epoch,
        position: tail.position,
        hash: tail.hash,
        whole: false,
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
            What::Whole(_) | What::Diverged => 0,
        }
    }
}
