//! Everything in one write database: its logs are read, folded and checkpointed here, its steps sent from here. One task,
//! so that nothing is decided twice.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use souk_event_sourcing::{LogId, Partition, Region};
use souk_event_store::StoreError;
use souk_runtime::Component;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
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
    /// How long logs stay ours without a sign of life. Safety is the epoch alone.
    pub lease: Duration,
}

/// One write database and what works on it.
pub(crate) struct Shard {
    pub database: String,
    pub region: Region,
    pub partitions: Vec<Partition>,
    pub store: SagaStore,
    /// Name of this process among its replicas.
    pub owner: String,
    pub sources: Sources,
    pub worker: Worker,
    pub config: Config,
    pub ready: Component,
    pub shutdown: CancellationToken,
}

impl Shard {
    /// Works until shutdown. Whatever goes wrong, the answer is to begin anew from what is stored.
    pub async fn run(self: Arc<Self>) {
        // The newest process takes everything at once, also from one that was killed and left its leases; after that only
        // what nobody holds, so that two processes do not take from each other for ever.
        let mut forced = true;
        let mut backoff = self.config.backoff.clone();
        while !self.shutdown.is_cancelled() {
            match self.session(&mut forced, &mut backoff).await {
                Ok(End::Shutdown) => break,
                Ok(End::Free) => continue,
                Ok(End::Fenced) => {
                    counter!("souk_saga_fenced_total").increment(1);
                    tracing::warn!(
                        database = self.database,
                        "another process applies logs of this one, or the bus is ahead of a log; reading anew"
                    );
                }
                Ok(End::Panicked) => tracing::error!(database = self.database, "a step panicked; reading anew"),
                Err(error) => {
                    tracing::warn!(database = self.database, %error, "the write database failed; beginning anew from what it holds");
                    self.ready.not_ready("the write database does not answer");
                }
            }
            tokio::select! {
                () = sleep(backoff.pause()) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
        if let Err(error) = self.store.release(&self.owner).await {
            tracing::warn!(database = self.database, %error, "leases could not be released; they run out");
        }
        self.store.close().await;
    }

    async fn session(&self, forced: &mut bool, backoff: &mut Backoff) -> Result<End, StoreError> {
        let mut session = Session::start(self, *forced).await?;
        *forced = false;
        self.ready.ready();
        let ended = session.run(backoff).await;
        session.logs().for_each(|log| self.sources.board.lose(log));
        ended
    }

    pub fn log(&self, partition: Partition) -> LogId {
        LogId { region: self.region, partition }
    }
}
