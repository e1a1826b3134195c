//! Everything in one write database: its logs that fall to this replica are read, folded and checkpointed here, their steps
//! sent from here. One task, so that nothing is decided twice.

use std::{sync::Arc, time::Duration};

use souk_event_sourcing::{LogId, Partition, Region};
use souk_event_store::StoreError;
use souk_runtime::Component;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    membership::Seat,
    reader::Sources,
    session::{End, Session},
    store::SagaStore,
    worker::Worker,
};

/// How a shard works.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Events folded in one transaction.
    pub batch_events: usize,
    pub step_deadline: Duration,
    /// Pauses between attempts at a step, and at the database.
    pub backoff: Backoff,
    pub timer_interval: Duration,
    /// How long logs stay a replica's without a sign of life. Safety is the epoch alone.
    pub lease_ttl: Duration,
    pub heartbeat_interval: Duration,
    pub watchdog_after: Duration,
}

/// One write database and what works on it.
pub(crate) struct Shard {
    pub database: String,
    pub region: Region,
    pub partitions: Vec<Partition>,
    pub store: SagaStore,
    /// Name of this process among its replicas, its alone while it runs.
    pub replica: String,
    pub sources: Sources,
    pub worker: Worker,
    pub config: Config,
    pub ready: Component,
    pub shutdown: CancellationToken,
}

impl Shard {
    /// Works until shutdown. Whatever goes wrong, the answer is to begin anew from what is stored.
    pub async fn run(self: Arc<Self>) {
        let mut backoff = self.config.backoff.clone();
        let mut seat = Seat::new(self.config.lease_ttl);
        while !self.shutdown.is_cancelled() {
            match self.session(&mut seat, &mut backoff).await {
                Ok(End::Shutdown) => break,
                Ok(End::Hung) => self.ready.impaired("the write database does not answer"),
                Ok(End::Panicked) => tracing::error!(database = self.database, "a step panicked; reading anew"),
                Err(error) => {
                    tracing::warn!(database = self.database, %error, "the write database failed; beginning anew from what it holds");
                    self.ready.impaired("the write database does not answer");
                    seat.patience.unanswered();
                }
            }
            tokio::select! {
                () = sleep(backoff.pause()) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
        if let Err(error) = self.give_all_up().await {
            tracing::warn!(database = self.database, %error, "logs were not given up; others take them when we count as dead");
        }
        self.store.close().await;
    }

    async fn session(&self, seat: &mut Seat, backoff: &mut Backoff) -> Result<End, StoreError> {
        let mut session = Session::new(self, seat);
        let ended = session.run(backoff).await;
        session.logs().for_each(|log| self.sources.board.lose(log));
        ended
    }

    async fn give_all_up(&self) -> Result<(), StoreError> {
        self.store.leave(&self.replica).await?;
        self.store.release(&self.partitions, &self.replica).await
    }

    pub fn log(&self, partition: Partition) -> LogId {
        LogId { region: self.region, partition }
    }
}
