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
    ahead::{AHEAD_FOR, Load},
    changes, parking,
    reader::{Arrival, What},
    sequence::Tail,
    shard::{Held, Shard, now},
};

/// What came of folding a batch in memory.
#[derive(Default)]
pub(crate) struct Folded {
    /// Per log: after the last event that was applied or set aside.
    pub tails: BTreeMap<LogId, Tail>,
    pub culprits: Vec<Culprit>,
    pub parked: Vec<ParkedEvent>,
    pub rows: BTreeMap<&'static str, Vec<Row>>,
}

/// Events that are written together.
#[derive(Default)]
struct Part {
    events: Vec<RecordedEvent>,
    /// Why the database refused what a single event led to.
    refused: Option<String>,
    /// What they come to, if they were folded already.
    folded: Option<Folded>,
}

/// A log that cannot go on, and why.
pub(crate) struct Culprit {
    log: LogId,
    position: Position,
    reason: String,
    /// Whether the rows may be to blame, which folding anew mends.
    mendable: bool,
}

impl Part {
    fn of(events: Vec<RecordedEvent>) -> Self {
        Self { events, ..Self::default() }
    }
}

impl Shard {
    /// Writes what has arrived in one transaction; while as much again arrives, that as well.
    ///
    /// # Errors
    /// When the database does not answer; all logs concerned are read anew then.
    pub(crate) async fn project(&mut self, first: Arrival) -> Result<(), ReadStoreError> {
        self.keep_pace().await;
        let (arrivals, began) = (self.arrived(first), tokio::time::Instant::now());
        let mut next = Some(self.load(arrivals));
        while let Some(load) = next {
            next = self.write_load(load, began.elapsed() < AHEAD_FOR).await?;
            if next.is_some()
                && let Err(error) = self.tell_in_time().await
            {
                next.into_iter().for_each(|load| self.abandon(load));
                return Err(error);
            }
        }
        self.end_rebuilds().await
    }

    /// Writes a load. Gives the next one, which may be taken meanwhile if there is time for it.
    async fn write_load(&mut self, load: Load, time_ahead: bool) -> Result<Option<Load>, ReadStoreError> {
        let Load { events, permits, diverged, folded, .. } = load;
        let (began, mut ahead) = (tokio::time::Instant::now(), None);
        // Their readers have ended: should anything fail before their turn comes, they are read anew.
        self.unsynced.extend(&diverged);
        let culprits = if events.is_empty() {
            Vec::new()
        } else {
            let bytes: usize = events.iter().map(|event| event.payload.len()).sum();
            let in_numbers = events.len() > self.config.many_events() || bytes > self.config.batch_bytes / 2;
            let next = (time_ahead && in_numbers).then_some(&mut ahead);
            match self.write_or_split(Part { events, refused: None, folded }, next).await {
                Ok(culprits) => culprits,
                Err(error) => {
                    ahead.into_iter().for_each(|load| self.abandon(load));
                    return Err(error);
                }
            }
        };
        self.pace.wrote(began, permits.len());
        drop(permits);
        let known: BTreeSet<_> = culprits.iter().map(|culprit| culprit.log).filter(|log| self.unsynced.insert(*log)).collect();
        let settled = self.settle(culprits, &known, diverged).await;
        match settled {
            Ok(()) => Ok(ahead.and_then(|load| self.still_next(load))),
            Err(error) => {
                ahead.into_iter().for_each(|load| self.abandon(load));
                Err(error)
            }
        }
    }

    /// Has the logs stand still, or be folded anew, that cannot go on as they were.
    async fn settle(&mut self, culprits: Vec<Culprit>, known: &BTreeSet<LogId>, diverged: BTreeSet<LogId>) -> Result<(), ReadStoreError> {
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
        Ok(())
    }

    /// Writes a batch. If the database refuses it, writes it in ever smaller parts, so that only the culprit is set aside,
    /// or its log stands still. What arrives while the whole of it is written goes `ahead`.
    async fn write_or_split(&mut self, whole: Part, mut ahead: Option<&mut Option<Load>>) -> Result<Vec<Culprit>, ReadStoreError> {
        let logs: BTreeSet<LogId> = whole.events.iter().map(|event| event.log).collect();
        let mut culprits: Vec<Culprit> = Vec::new();
        // The part to be written next is the last one.
        let mut parts = vec![whole];
        while let Some(mut part) = parts.pop() {
            part.events.retain(|event| culprits.iter().all(|culprit| culprit.log != event.log));
            let Some(first) = part.events.first() else { continue };
            let (log, position) = (first.log, first.position);
            let error = match self.write_batch(&mut part, ahead.take()).await {
                Ok(more) => {
                    culprits.extend(more);
                    continue;
                }
                Err(error) => error,
            };
            let Part { mut events, refused, .. } = part;
            // Nothing was written, or the outcome is unknown: memory is ahead of the store either way.
            events.iter().for_each(|event| self.folder.forget(event.log));
            if error.retryable() {
                self.unsynced.extend(logs);
                return Err(error);
            }
            if events.len() > 1 {
                let rest = events.split_off(events.len() / 2);
                parts.extend([Part::of(rest), Part::of(events)]);
            } else if error.refuses_data() && refused.is_none() {
                parts.push(Part { refused: Some(error.to_string()), ..Part::of(events) });
            } else {
                let mendable = matches!(error, ReadStoreError::Corrupt { .. });
                culprits.push(Culprit { log, position, reason: error.to_string(), mendable });
            }
            // Many parts may be refused, one after the other.
            if let Err(error) = self.tell_in_time().await {
                self.unsynced.extend(logs);
                return Err(error);
            }
        }
        Ok(culprits)
    }

    /// Writes a part of a batch; sets its events aside if the database refused what they led to.
    async fn write_batch(&mut self, part: &mut Part, ahead: Option<&mut Option<Load>>) -> Result<Vec<Culprit>, ReadStoreError> {
        let span = info_span!("project", database = self.database, events = part.events.len());
        telemetry::set_parents(&span, part.events.iter().map(|event| event.traceparent.as_str()));
        self.fold_and_write(part, ahead).instrument(span).await
    }

    async fn fold_and_write(&mut self, part: &mut Part, ahead: Option<&mut Option<Load>>) -> Result<Vec<Culprit>, ReadStoreError> {
        let (started, now) = (Instant::now(), now());
        let folded = match part.folded.take() {
            Some(folded) => folded,
            None => {
                self.folder.prepare(&*self.store, &part.events).await?;
                self.fold(&part.events, part.refused.as_deref(), now)
            }
        };
        let Folded { tails, mut culprits, parked, rows } = folded;
        let events = part.events.as_slice();
        let (advances, released) = (self.advances(&tails), Vec::new());
        let batch = Batch { advances, rows, parked, released, revision: souk_views::revision(), now };
        let store = self.store.clone();
        let writing = std::pin::pin!(async { (store.write(&batch).await, started.elapsed()) });
        // What is set aside counts before the next events do.
        let (written, took) = match ahead.filter(|_| batch.parked.is_empty() && culprits.is_empty()) {
            Some(ahead) => {
                let (written, mut load) = self.fold_meanwhile(writing).await;
                if written.0.is_err() {
                    self.unfold(&mut load);
                }
                *ahead = Some(load);
                written
            }
            None => writing.await,
        };
        let written = written?;
        self.meters.commits.record(took);
        self.meters.batches.record(events.len() as f64);
        self.meters.transactions.increment(1);
        let mut changed = changes::changed_rows(&batch.rows, now);
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
        self.sized(events.len(), &folded.rows);
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
