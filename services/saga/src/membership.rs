use std::time::Duration;

use metrics::{counter, gauge};
use souk_event_sourcing::{Holding, LogId, Partition, Patience, Share};
use souk_event_store::StoreError;
use tokio::time::Instant;

use crate::{session::Session, store::Members};

/// A replica's place among those that share the logs of one database.
#[derive(Debug)]
pub(crate) struct Seat {
    /// When to tell again that we live, and to see who else does.
    pub next: Instant,
    pub patience: Patience,
}

/// A log that falls to us and that was lost, or is still held by a living replica, is asked for this many times per heartbeat.
const ASKS: u32 = 10;

impl Seat {
    pub fn new(lease_ttl: Duration) -> Self {
        Self { next: Instant::now(), patience: Patience::new(lease_ttl) }
    }
}

impl Session<'_> {
    /// Every heartbeat: tells that this replica lives, gives up logs that fall to another, claims those that fall to it.
    pub(crate) async fn sit(&mut self) -> Result<(), StoreError> {
        let shard = self.shard;
        self.seat.next = Instant::now() + shard.config.heartbeat_interval;
        shard.store.heartbeat(&shard.replica).await?;
        let members = shard.store.members(shard.config.lease_ttl).await?;
        let patience = self.seat.patience.answered(Instant::now().into_std());
        self.drop_lost(&members);
        self.wake_readers();

        let live: Vec<_> = members.live.iter().map(String::as_str).collect();
        let logs = shard.partitions.iter().map(|partition| shard.log(*partition));
        let share = Share::of(&shard.replica, &live, logs.map(|log| (log, self.holding(log, &members))));
        self.give_up(&share.foreign).await?;
        if !share.wanted.is_empty() {
            let taken = shard.store.claim(&partitions(&share.wanted), &shard.replica, patience).await?;
            if taken.len() < share.wanted.len() {
                self.ask_again();
            }
            self.begin(taken).await?;
        }
        gauge!("souk_saga_partitions", "database" => shard.database.clone()).set(self.logs().count() as f64);
        self.report();
        Ok(())
    }

    fn holding(&self, log: LogId, members: &Members) -> Holding {
        match members.owners.get(&log) {
            _ if self.epoch(log).is_some() => Holding::Yes,
            Some(owner) if owner.id == self.shard.replica => Holding::Named,
            _ => Holding::No,
        }
    }

    /// Logs that another replica has taken, or a restored database given back, are not held any more.
    fn drop_lost(&mut self, members: &Members) {
        let stored = |log| members.owners.get(&log).map(|owner| owner.epoch);
        let lost: Vec<_> = self.logs().filter(|log| stored(*log) != self.epoch(*log)).collect();
        self.lose(&lost);
    }

    /// Writes to these logs were refused: another replica has taken them, or they lack an event that the bus delivered.
    pub(crate) fn lose(&mut self, logs: &[LogId]) {
        let Some(first) = logs.first() else { return };
        let (database, logs_lost) = (&self.shard.database, logs.len());
        tracing::warn!(database, logs_lost, %first, "others apply these logs, or the bus is ahead of them; reading anew what falls to us");
        counter!("souk_saga_fenced_total").increment(logs.len() as u64);
        logs.iter().for_each(|log| self.let_go(*log));
        self.ask_again();
    }

    /// Between two batches. What is under way is repeated by whoever takes the log over, under the same request ids.
    async fn give_up(&mut self, logs: &[LogId]) -> Result<(), StoreError> {
        if logs.is_empty() {
            return Ok(());
        }
        logs.iter().for_each(|log| self.let_go(*log));
        self.shard.store.release(&partitions(logs), &self.shard.replica).await?;
        tracing::info!(database = self.shard.database, logs = logs.len(), "logs given up to others");
        Ok(())
    }

    fn ask_again(&mut self) {
        self.seat.next = self.seat.next.min(Instant::now() + self.shard.config.heartbeat_interval / ASKS);
    }
}

fn partitions(logs: &[LogId]) -> Vec<Partition> {
    logs.iter().map(|log| log.partition).collect()
}
