use std::time::Duration;

use metrics::counter;
use souk_event_sourcing::{Holding, LogId, Patience, Share};
use souk_read_store::{ParkedQuery, ReadStoreError, Replica};
use tokio::time::Instant;

use crate::shard::{Held, Progress, Shard, now};

/// A replica's place among those that share the logs of one database. Every one of them works out by itself whose each log
/// is; what they believe decides who waits for whom, the fence alone decides who writes (law 6).
#[derive(Debug)]
pub(crate) struct Seat {
    pub replica: Replica,
    /// When to tell again that we live, and to see who else does.
    pub next: Instant,
    patience: Patience,
    /// Whether others live.
    shared: bool,
    leaving: bool,
}

/// A log that falls to us and that a living replica still holds is asked for this many times per heartbeat.
const ASKS: u32 = 10;
/// How long the last words about a log may hold up who takes it over.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl Seat {
    pub(crate) fn new(replica: Replica, lease_ttl: Duration) -> Self {
        Self { replica, next: Instant::now(), patience: Patience::new(lease_ttl), shared: false, leaving: false }
    }
}

impl Shard {
    /// Tells that this replica lives, if it is time, and changes nothing else: a turn may be long when writes are slow.
    pub(crate) async fn tell_in_time(&self) -> Result<(), ReadStoreError> {
        if self.seat.leaving || Instant::now() < self.seat.next {
            return Ok(());
        }
        self.store.heartbeat(&self.seat.replica).await
    }

    /// Every heartbeat: tells that this replica lives, gives up logs that fall to another, claims those that fall to it.
    pub(crate) async fn sit(&mut self) -> Result<(), ReadStoreError> {
        self.seat.next = Instant::now() + self.config.heartbeat_interval;
        if self.seat.leaving {
            return Ok(());
        }
        let outcome = self.share().await;
        if outcome.is_err() {
            self.seat.patience.unanswered();
        }
        outcome
    }

    async fn share(&mut self) -> Result<(), ReadStoreError> {
        let me = self.seat.replica.id.as_str();
        self.store.heartbeat(&self.seat.replica).await?;
        let members = self.store.members(self.config.lease_ttl).await?;
        let patience = self.seat.patience.answered(Instant::now().into_std());
        let live: Vec<_> = members.live.iter().map(|replica| replica.id.as_str()).collect();
        self.seat.shared = live.iter().any(|id| *id != me);
        let holding = |(log, progress): (&LogId, &Progress)| match progress.held {
            Held::Us(_) => (*log, Holding::Yes),
            Held::Others if members.holders.get(log).is_some_and(|holder| holder == me) => (*log, Holding::Named),
            Held::Others => (*log, Holding::No),
        };
        let share = Share::of(me, &live, self.logs.iter().map(holding));
        self.give_up(&share.foreign).await?;
        let claimed = self.claim(&share.wanted, patience).await?;
        if claimed < share.wanted.len() {
            self.seat.next = Instant::now() + self.config.heartbeat_interval / ASKS;
        }
        self.meters.partitions.set(self.held_logs().len() as f64);
        self.count_parked().await
    }

    /// Events set aside are counted in the checkpoints, their entities in the database.
    async fn count_parked(&self) -> Result<(), ReadStoreError> {
        const MOST: usize = 10_000;
        let holds_any = |progress: &Progress| progress.checkpoint.is_some_and(|checkpoint| checkpoint.parked > 0);
        let logs: Vec<_> = self.logs.iter().filter(|(_, progress)| holds_any(progress)).map(|(log, _)| *log).collect();
        let parked = match logs.as_slice() {
            [] => 0,
            logs => self.store.parked_entities(ParkedQuery::all(logs, MOST)).await?.len(),
        };
        self.meters.parked_entities.set(parked as f64);
        Ok(())
    }

    async fn claim(&mut self, logs: &[LogId], patience: Duration) -> Result<usize, ReadStoreError> {
        if logs.is_empty() {
            return Ok(0);
        }
        let claimed = self.store.claim(logs, &self.seat.replica.id, patience, now()).await?;
        for checkpoint in &claimed {
            if let Some(progress) = self.logs.get_mut(&checkpoint.log) {
                progress.held = Held::Us(checkpoint.fence);
                self.unsynced.insert(checkpoint.log);
            }
        }
        if !claimed.is_empty() {
            self.meters.claims.increment(claimed.len() as u64);
            tracing::info!(database = self.database, logs = claimed.len(), "logs claimed");
        }
        Ok(claimed.len())
    }

    /// Between two batches: lets go of logs, says what was still to be said about them, and gives them up.
    async fn give_up(&mut self, logs: &[LogId]) -> Result<(), ReadStoreError> {
        if logs.is_empty() {
            return Ok(());
        }
        logs.iter().for_each(|log| self.let_go(*log));
        self.ports.changes.flush(LAST_WORDS).await;
        self.store.release(logs, &self.seat.replica.id).await?;
        tracing::info!(database = self.database, logs = logs.len(), "logs given up to others");
        Ok(())
    }

    /// Everything, at the end.
    pub(crate) async fn give_up_all(&mut self) -> Result<(), ReadStoreError> {
        let logs = self.held_logs();
        self.give_up(&logs).await
    }

    /// Lives no longer for the others, who then take our logs without waiting for us; whether there are any.
    pub(crate) async fn leave(&mut self) -> bool {
        self.seat.leaving = true;
        match self.store.leave(&self.seat.replica.id).await {
            Ok(()) => self.seat.shared,
            Err(error) => {
                tracing::warn!(database = self.database, %error, "the others do not know that we leave");
                false
            }
        }
    }

    /// Whether the others have everything that was ours.
    pub(crate) fn has_left(&self) -> bool {
        self.seat.leaving && self.held_logs().is_empty()
    }

    /// The log is not ours any more; whether it should be is found out at once.
    pub(crate) fn lose(&mut self, log: LogId) {
        tracing::info!(%log, "the log was taken over");
        counter!("souk_projector_taken_over_total").increment(1);
        self.let_go(log);
        self.seat.next = Instant::now();
    }

    fn let_go(&mut self, log: LogId) {
        self.folder.forget(log);
        self.unsynced.remove(&log);
        if let Some(progress) = self.logs.get_mut(&log) {
            progress.stop_reading();
            progress.generation += 1;
            (progress.held, progress.checkpoint, progress.halted) = (Held::Others, None, None);
        }
        self.ports.board.forget(log);
    }

    pub(crate) fn held_logs(&self) -> Vec<LogId> {
        let held = self.logs.iter().filter(|(_, progress)| progress.held != Held::Others);
        held.map(|(log, _)| *log).collect()
    }
}
