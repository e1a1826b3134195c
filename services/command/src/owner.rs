use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use souk_bus::JetStreamBus;
use souk_bus_publisher::JetStreamPublisher;
use souk_event_sourcing::{Epoch, LogId, Partition, Position, RecordedEvent, UnixMillis};
use souk_event_store::{Belief, PostgresStore, Retention, StoreError, Taken};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    committer::{Outlet, Work},
    gateway::Lanes,
    relay::{self, OwnedLog, RelayHandle, Relays, Ring},
};

/// The logs this process owns, each with its relay.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<HashMap<LogId, Holding>>>);

/// An owned log.
pub struct Holding {
    pub epoch: Epoch,
    pub relay: RelayHandle,
    stop: CancellationToken,
}

impl Held {
    /// Another replica took the log over: its relay must stop.
    pub fn lost(&self, log: LogId) {
        if let Some(holding) = self.lock().remove(&log) {
            holding.stop.cancel();
        }
    }

    /// Looks at every owned log.
    pub fn each<T>(&self, look: impl Fn(LogId, &Holding) -> T) -> Vec<T> {
        self.lock().iter().map(|(log, holding)| look(*log, holding)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LogId, Holding>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes logs over and keeps them.
pub struct Owner {
    pub store: Arc<PostgresStore>,
    pub replica: String,
    /// Where this replica takes forwarded calls.
    pub address: String,
    pub lanes: Lanes,
    pub held: Held,
    pub relays: Arc<Relays<PostgresStore, JetStreamPublisher, JetStreamBus>>,
    pub lease_ttl: Duration,
    pub retention: Retention,
}

impl Owner {
    /// Beats, and takes every log that is free and not held. Called at start and once per heartbeat.
    ///
    /// # Errors
    /// When a database cannot be reached.
    pub async fn beat(&self) -> Result<(), StoreError> {
        let ownership = self.store.ownership(&self.replica);
        ownership.heartbeat(&self.address).await?;
        for database in self.store.databases() {
            let missing: Vec<Partition> = {
                let held = self.held.lock();
                let region = self.store.region();
                let free = |partition: &Partition| !held.contains_key(&LogId { region, partition: *partition });
                self.store.partitions_of(database).into_iter().filter(free).collect()
            };
            if missing.is_empty() {
                continue;
            }
            let taken = ownership.take(database, &missing, self.lease_ttl).await?;
            let heads: Vec<_> = taken.iter().map(|taken| (taken.log, taken.belief.position)).collect();
            self.store.prepare(&heads, self.retention, UnixMillis::now()).await?;
            if !taken.is_empty() {
                info!(database, logs = taken.len(), "logs taken over");
            }
            for taken in taken {
                self.own(taken).await;
            }
        }
        Ok(())
    }

    /// Children of partitioned tables ahead of every held log; drops what the ledger may forget.
    ///
    /// # Errors
    /// When a database cannot be reached or a lock was not granted; the next call makes up for it.
    pub async fn upkeep(&self) -> Result<(), StoreError> {
        let logs = self.held.each(|log, _| log);
        let mut heads: Vec<(LogId, Position)> = Vec::with_capacity(logs.len());
        for log in logs {
            heads.push((log, souk_event_store::EventLog::head(&*self.store, log).await?.position));
        }
        let now = UnixMillis::now();
        self.store.prepare(&heads, self.retention, now).await?;
        self.store.forget(self.retention, now).await
    }

    /// Gives everything up, so that a successor need not wait: lets the lanes end, the relays publish what they left,
    /// then drops the leases.
    pub async fn retire(mut self, lanes: &mut JoinSet<()>) -> Self {
        self.lanes.clear();
        while let Some(ended) = lanes.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a lane ended by a panic");
            }
        }
        let holdings: Vec<_> = self.held.lock().drain().collect();
        holdings.iter().for_each(|(_, holding)| holding.stop.cancel());
        for (_, holding) in holdings {
            holding.relay.stopped().await;
        }
        if let Err(error) = self.store.ownership(&self.replica).release().await {
            warn!(%error, "leases could not be released; they expire");
        }
        self
    }

    async fn own(&self, taken: Taken) {
        let (log, epoch) = (taken.log, taken.belief.epoch);
        let stop = CancellationToken::new();
        let relay = self.relays.spawn(log, epoch, relay::Head { position: taken.belief.position, hash: taken.belief.hash }, stop.clone());
        let outlet = Box::new(relay.ring.clone());
        self.held.lock().insert(log, Holding { epoch, relay, stop });
        let Some(lane) = self.lanes.get(&log) else { return };
        if lane.send(Work::Own { taken, outlet }).await.is_err() {
            self.held.lost(log);
        }
    }
}

#[async_trait::async_trait]
impl OwnedLog for PostgresStore {
    async fn still_owner(&self, log: LogId, epoch: Epoch) -> Result<bool, StoreError> {
        Self::still_owner(self, log, epoch).await
    }
}

impl Outlet for Arc<Ring> {
    fn push(&self, event: Arc<RecordedEvent>) {
        Ring::push(self, event);
    }

    fn ends_at(&self, head: &Belief) {
        Ring::ends_at(self, relay::Head { position: head.position, hash: head.hash });
    }
}
