use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    time::Duration,
};

use souk_event_sourcing::{LogId, RecordedEvent};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    batch::Folded,
    reader::{Arrival, What},
    sequence::Tail,
    shard::Shard,
};

/// So long, and one batch more, one follows another before the shard looks at what else there is to do.
pub(crate) const AHEAD_FOR: Duration = Duration::from_millis(250);

/// What has arrived and is to be written together.
#[derive(Default)]
pub(crate) struct Load {
    pub events: Vec<RecordedEvent>,
    /// Held until the events are written, so that the room bounds what is in memory.
    pub permits: Vec<OwnedSemaphorePermit>,
    /// Logs that are another one than was read; none of their events are here.
    pub diverged: BTreeSet<LogId>,
    /// What the events come to, if they were folded already.
    pub folded: Option<Folded>,
    /// Which reader of each log the events are of.
    generations: BTreeMap<LogId, u64>,
}

impl Shard {
    /// Sorts out what has arrived.
    pub(crate) fn load(&mut self, arrivals: Vec<Arrival>) -> Load {
        let mut load = Load::default();
        for Arrival { log, generation, what } in arrivals {
            // What follows an event that was not written would leave a hole: such a log is read anew.
            if self.unsynced.contains(&log) {
                continue;
            }
            let Some(progress) = self.logs.get_mut(&log).filter(|progress| progress.generation == generation) else { continue };
            match what {
                What::Whole(position) => progress.whole = Some(position),
                What::Event(event, permit) => {
                    load.events.push(*event);
                    load.permits.push(permit);
                    load.generations.insert(log, generation);
                }
                What::Diverged => drop(load.diverged.insert(log)),
            }
        }
        let Load { events, diverged, .. } = &mut load;
        events.retain(|event| !diverged.contains(&event.log));
        load
    }

    /// Takes what arrives while a batch is `writing`, and folds it once it fills another: else the database would wait for the
    /// folding, and the folding for the database.
    pub(crate) async fn fold_meanwhile<W>(&mut self, mut writing: Pin<&mut (impl Future<Output = W> + Send)>) -> (W, Load) {
        let mut arrivals = Vec::new();
        let mut bytes = 0;
        while arrivals.len() < self.most_events() && bytes < self.config.batch_bytes {
            tokio::select! {
                biased;
                written = &mut writing => return (written, self.load(arrivals)),
                Some(arrival) = self.inbox.recv() => {
                    bytes += arrival.bytes();
                    arrivals.push(arrival);
                }
            }
        }
        let mut load = self.load(arrivals);
        let (written, ()) = tokio::join!(writing, self.fold_ahead(&mut load));
        (written, load)
    }

    /// Folds what follows a batch that is being written. Its rows are in memory, or not of that batch. Whatever is in the way is
    /// left for when its turn comes.
    async fn fold_ahead(&mut self, load: &mut Load) {
        if !load.diverged.is_empty() || self.folder.prepare(&*self.store, &load.events).await.is_err() {
            return;
        }
        let mut tails = BTreeMap::new();
        for event in &load.events {
            if self.folder.apply(event).is_err() {
                self.unfold(load);
                return;
            }
            tails.insert(event.log, Tail::after(event));
        }
        let rows = self.folder.finish();
        self.sized(load.events.len(), &rows);
        load.folded = Some(Folded { tails, rows, ..Folded::default() });
    }

    /// What of `load` still continues what is stored, now that the batch before it has had its turn.
    pub(crate) fn still_next(&mut self, mut load: Load) -> Option<Load> {
        let gathered = load.events.len();
        let (logs, unsynced, generations) = (&self.logs, &self.unsynced, &load.generations);
        let current = |log: &LogId| logs.get(log).is_some_and(|progress| generations.get(log) == Some(&progress.generation));
        load.events.retain(|event| current(&event.log) && !unsynced.contains(&event.log));
        if load.events.len() < gathered {
            self.unfold(&mut load);
        }
        (!load.events.is_empty() || !load.diverged.is_empty()).then_some(load)
    }

    /// Leaves what was taken to be read anew, for it is unknown what is stored before it.
    pub(crate) fn abandon(&mut self, mut load: Load) {
        self.unfold(&mut load);
        self.unsynced.extend(load.generations.keys().chain(&load.diverged));
    }

    /// Memory holds nothing of these logs any more.
    pub(crate) fn unfold(&mut self, load: &mut Load) {
        load.folded = None;
        load.generations.keys().for_each(|log| self.folder.forget(*log));
    }
}
