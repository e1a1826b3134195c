use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use souk_bus::EventSource;
use souk_event_sourcing::{LogId, Position, UnixMillis};
use souk_proto::log::v1::{ChangeFeed, EpochStart};
use souk_read_store::{Checkpoint, Fence, ReadStoreError, Replica, Row, ViewStore};
use souk_runtime::{Component, Pace};
use souk_views::Folder;
use tokio::{
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    backoff::Backoff,
    board::Board,
    changes::{self, Changes},
    heads::Heads,
    log_reader::LogReader,
    membership::Seat,
    meters::Meters,
    parking::{Errand, Errands},
    reader::{Arrival, PERMIT_BYTES, Reader},
    sequence::Tail,
};

/// What a shard reads from and tells.
#[derive(Clone)]
pub(crate) struct Ports {
    pub source: Arc<dyn EventSource>,
    pub truth: Arc<dyn LogReader>,
    pub heads: Heads,
    pub changes: Changes,
    pub board: Board,
}

/// One of those who write to a read database side by side.
pub(crate) struct Writer {
    pub database: String,
    /// Counted from 0.
    pub number: usize,
}

impl Writer {
    /// What falls to one of so many.
    pub(crate) fn share(&self, writers: usize, logs: &[LogId]) -> Vec<LogId> {
        logs.iter().copied().skip(self.number).step_by(writers).collect()
    }
}

/// Projects logs placed in one read database, all of them or the share of one writer: one loop, one transaction at a time, over
/// whatever has arrived.
///
/// Seven files: this one (the loop and what it remembers), `batch` (fold and write), `ahead` (what is folded meanwhile),
/// `recovery` (lost checkpoints, logs that went back, announcements), `membership` (which logs are this replica's), `parking`
/// (what operators ask for), `watchdog` (what hangs).
pub(crate) struct Shard {
    pub(crate) database: String,
    pub(crate) store: Arc<dyn ViewStore>,
    pub(crate) folder: Folder,
    pub(crate) logs: BTreeMap<LogId, Progress>,
    /// Logs whose stored checkpoint must be read before anything else happens to them.
    pub(crate) unsynced: BTreeSet<LogId>,
    pub(crate) ports: Ports,
    pub(crate) config: Config,
    pub(crate) component: Component,
    pub(crate) backoff: Backoff,
    pub(crate) seat: Seat,
    pub(crate) meters: Meters,
    pub(crate) pace: Pace,
    /// Bytes of rows that an event of the last batch led to.
    row_bytes: usize,
    pub(crate) inbox: mpsc::Receiver<Arrival>,
    outbox: mpsc::Sender<Arrival>,
    room: Arc<Semaphore>,
    errands: mpsc::Receiver<Errand>,
    errand_door: mpsc::Sender<Errand>,
}

/// What a shard does next.
pub(crate) enum Turn {
    /// Reads stored checkpoints anew.
    Resync,
    /// Shares the logs with others.
    Sit,
    /// Announces checkpoints.
    Beat,
    Errand(Errand),
    /// Writes what has arrived.
    Project(Arrival),
}

/// Orders about parked entities that may wait.
const ERRANDS: usize = 16;

/// One log as this projector believes it is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// As last read or written; `None` while others hold the log.
    pub checkpoint: Option<Checkpoint>,
    pub held: Held,
    /// Number of the running reader: arrivals of another one are stale.
    pub generation: u64,
    pub reader: Option<AbortHandle>,
    pub halted: Option<Halted>,
    /// Where the epoch of `checkpoint` began, if it did since reading began.
    pub epoch_start: Option<EpochStart>,
    /// When `checkpoint` last moved, or reading began.
    pub moved: Option<Instant>,
    /// Where rows were found astray and the log was folded anew; a second time at the same place it halts instead.
    pub mended_at: Option<Position>,
    /// Where the views are whole again that are made anew, once the reader knows.
    pub whole: Option<Position>,
}

/// Whose a log is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) enum Held {
    /// Free, or another projector's.
    #[default]
    Others,
    Us(Fence),
}

/// Why a log stands still, and when it is tried again.
#[derive(Debug)]
pub(crate) struct Halted {
    pub reason: String,
    pub backoff: Backoff,
    pub retry_at: Instant,
}

/// Rows of one batch have so many times the bytes that its events may have.
const ROWS_OF_PAYLOAD: usize = 4;
/// Most events of the first batch, whose rows may be large: whoever starts again after it ran out of memory must not meet the same.
const EVENTS_AT_FIRST: usize = 1024;

impl Shard {
    pub(crate) fn new(
        writer: Writer,
        replica: Replica,
        store: Arc<dyn ViewStore>,
        logs: impl IntoIterator<Item = LogId>,
        ports: Ports,
        config: Config,
        component: Component,
    ) -> Self {
        let logs: BTreeMap<_, _> = logs.into_iter().map(|log| (log, Progress::default())).collect();
        // Enough that the next batch is there when one is written, and no more.
        let (outbox, inbox) = mpsc::channel(2 * config.batch_events);
        let (errand_door, errands) = mpsc::channel(ERRANDS);
        // For a batch that is written and another that is gathered. An event has a permit for each of its KiB, begun or not.
        let room = 2 * (config.batch_bytes / PERMIT_BYTES + config.batch_events);
        let room = Arc::new(Semaphore::new(room.max(4096)));
        Self {
            meters: Meters::of(&writer),
            database: writer.database,
            store,
            folder: Folder::new((config.row_cache_entries / config.writers / 2).max(1)),
            unsynced: BTreeSet::new(),
            seat: Seat::new(replica, config.lease_ttl),
            logs,
            ports,
            backoff: Backoff::new(config.retry_backoff, config.retry_backoff_max),
            config,
            component,
            pace: Pace::new(config.batch_interval, config.many_events()),
            row_bytes: ROWS_OF_PAYLOAD * config.batch_bytes / EVENTS_AT_FIRST,
            inbox,
            outbox,
            room,
            errands,
            errand_door,
        }
    }

    /// Where this shard takes orders about parked entities.
    pub(crate) fn errands(&self) -> Errands {
        Errands { store: self.store.clone(), logs: self.logs.keys().copied().collect(), door: self.errand_door.clone() }
    }

    /// Projects until `shutdown`, then lets the others take over, writes what has arrived and returns.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut beats = interval(self.config.feed_interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.work(&mut beats, &shutdown).await;
        if self.leave().await {
            let late = CancellationToken::new();
            let timer = {
                let (late, patience) = (late.clone(), 2 * self.config.heartbeat_interval);
                tokio::spawn(async move {
                    sleep(patience).await;
                    late.cancel();
                })
            };
            self.work(&mut beats, &late).await;
            timer.abort();
        }
        self.drain().await;
    }

    /// Projects until `until`, or until there is nothing left that is ours once we are leaving.
    async fn work(&mut self, beats: &mut Interval, until: &CancellationToken) {
        while !until.is_cancelled() && !self.has_left() {
            let turn = if self.unsynced.is_empty() {
                tokio::select! {
                    biased;
                    () = until.cancelled() => return,
                    () = sleep_until(self.seat.next) => Turn::Sit,
                    _ = beats.tick() => Turn::Beat,
                    Some(errand) = self.errands.recv() => Turn::Errand(errand),
                    Some(first) = self.inbox.recv() => Turn::Project(first),
                }
            } else {
                Turn::Resync
            };
            match self.watched(turn).await {
                Ok(()) if self.unsynced.is_empty() => self.recovered(),
                Ok(()) => {}
                Err(error) => self.pause(&error, until).await,
            }
        }
    }

    /// Does one thing; all there is to do goes through here.
    pub(crate) async fn take(&mut self, turn: Turn) -> Result<(), ReadStoreError> {
        match turn {
            Turn::Resync => self.resync().await,
            Turn::Sit => self.sit().await,
            Turn::Beat => self.beat().await,
            Turn::Errand(errand) => self.run_errand(errand).await,
            Turn::Project(first) => self.project(first).await,
        }
    }

    /// The end: no reader sends any more; what has arrived is written once, since it costs nothing to be read again.
    async fn drain(&mut self) {
        self.logs.values_mut().for_each(Progress::stop_reading);
        if let Ok(first) = self.inbox.try_recv()
            && let Err(error) = self.project(first).await
        {
            tracing::warn!(database = self.database, %error, "the last batch was not written; it will be read again");
        }
        if let Err(error) = self.give_up_all().await {
            tracing::warn!(database = self.database, %error, "logs were not given up; others take them when we count as dead");
        }
        tracing::info!(database = self.database, "projection stopped");
    }

    /// Lets more arrive before the next transaction, if that is worth while.
    pub(crate) async fn keep_pace(&self) {
        if let Some(pause) = self.pace.pause(self.inbox.len()) {
            sleep_until(pause).await;
        }
    }

    /// Most events of a batch: fewer if the rows of the last one were large, whatever the events have.
    pub(crate) fn most_events(&self) -> usize {
        self.config.batch_events.min(ROWS_OF_PAYLOAD * self.config.batch_bytes / self.row_bytes.max(1)).max(1)
    }

    /// Remembers how large the rows of a batch were.
    pub(crate) fn sized(&mut self, events: usize, rows: &BTreeMap<&'static str, Vec<Row>>) {
        self.row_bytes = rows.values().flatten().map(Row::bytes).sum::<usize>() / events.max(1);
    }

    /// What has arrived by now besides `first`, within the bounds of a batch.
    pub(crate) fn arrived(&mut self, first: Arrival) -> Vec<Arrival> {
        let mut arrivals = vec![first];
        let mut bytes = arrivals[0].bytes();
        while arrivals.len() < self.most_events() && bytes < self.config.batch_bytes {
            let Ok(arrival) = self.inbox.try_recv() else { break };
            bytes += arrival.bytes();
            arrivals.push(arrival);
        }
        arrivals
    }

    /// Starts reading `log` behind `checkpoint`, which is the stored one and ours.
    pub(crate) fn resume(&mut self, checkpoint: Checkpoint) {
        let log = checkpoint.log;
        self.folder.forget(log);
        let Some(progress) = self.logs.get_mut(&log) else { return };
        progress.stop_reading();
        progress.generation += 1;
        progress.whole = None;
        progress.held = Held::Us(checkpoint.fence);
        progress.checkpoint = Some(checkpoint);
        progress.moved = Some(Instant::now());
        let reader = Reader {
            log,
            generation: progress.generation,
            tail: Tail::from(&checkpoint),
            source: self.ports.source.clone(),
            truth: self.ports.truth.clone(),
            heads: self.ports.heads.clone(),
            epochs: Vec::new(),
            outbox: self.outbox.clone(),
            room: self.room.clone(),
            config: self.config,
            rebuilding: checkpoint.rebuilding,
            moved: Instant::now(),
        };
        progress.reader = Some(tokio::spawn(reader.run()).abort_handle());
        self.note(log);
    }

    /// What caches are told of a log whose checkpoint went from `from` to `checkpoint`.
    pub(crate) fn message(&self, checkpoint: &Checkpoint, from: Position) -> ChangeFeed {
        let mut message = changes::message(checkpoint, from);
        message.epochs = self.ports.heads.epochs(checkpoint.log);
        // An epoch may be seen in events before its owner announces it.
        let seen = self.logs.get(&checkpoint.log).and_then(|progress| progress.epoch_start);
        let seen = seen.filter(|seen| seen.epoch == checkpoint.epoch.0);
        message.epochs.extend(seen.filter(|seen| message.epochs.last().is_none_or(|last| last.epoch < seen.epoch)));
        message
    }

    /// Tells status and metrics how far a log is.
    pub(crate) fn note(&self, log: LogId) {
        let Some(progress) = self.logs.get(&log) else { return };
        let Some(checkpoint) = progress.checkpoint else { return };
        self.ports.board.note(&self.database, &checkpoint, progress.halted.is_some());
    }

    /// The database answered. Ready, unless logs stand still.
    pub(crate) fn recovered(&mut self) {
        self.backoff.reset();
        let halted = self.logs.iter().find_map(|(log, progress)| progress.halted.as_ref().map(|halted| (log, halted)));
        match halted {
            None => self.component.ready(),
            Some((log, halted)) => self.component.not_ready(&format!("log {log} stands still: {}", halted.reason)),
        }
    }

    /// The database did not answer: infrastructure backs off and never parks (law 11).
    async fn pause(&mut self, error: &ReadStoreError, shutdown: &CancellationToken) {
        self.component.impaired(&error.to_string());
        tokio::select! {
            () = sleep(self.backoff.pause()) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.logs.values_mut().for_each(Progress::stop_reading);
    }
}

impl Progress {
    /// Ends the reader; what it sent is stale from now on only once the generation grows.
    pub(crate) fn stop_reading(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
    }
}

/// The wall clock, for checkpoints and fences.
pub(crate) fn now() -> UnixMillis {
    UnixMillis::now()
}
