use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use souk_event_sourcing::{LogId, Partition, Patience, Region, Topology, rendezvous};
use souk_event_store::{PostgresStore, Retention, StoreError};
use souk_runtime::{Component, Peer, settings::PeerSettings};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    board::Board,
    copier::{Copier, Pauses},
    origin::Origin,
    relaying::{CopyRelays, Relaying},
};

/// Streams of one connection are bounded; each of these many logs of a region has one open.
const LOGS_PER_CONNECTION: u16 = 100;

/// The copies this process makes: those of all other regions' logs that fall to it among the replicators that live. Two that
/// make the same copy for a while do no harm: each batch is fenced by the copy's head.
pub struct Membership {
    pub me: String,
    pub store: Arc<PostgresStore>,
    pub topology: watch::Receiver<Arc<Topology>>,
    pub relays: Arc<CopyRelays>,
    pub board: Board,
    pub retention: Retention,
    pub pauses: Pauses,
    pub lease_ttl: Duration,
    pub heartbeat_interval: Duration,
    pub ready: Component,
    pub ways: PeerSettings,
    pub copying: HashMap<LogId, Copying>,
}

/// A copier at work.
pub struct Copying {
    /// Where it reads from: another one takes another copier.
    endpoints: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Membership {
    /// Copies until `shutdown`, then leaves to the others what falls to them.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut beats = interval(self.heartbeat_interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = Patience::new(self.lease_ttl);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = beats.tick() => {}
                Ok(()) = self.topology.changed() => {}
            }
            match self.share(&mut patience).await {
                Ok(()) => self.ready.ready(),
                Err(error) => {
                    // Copies go on as they were shared.
                    patience.unanswered();
                    debug!(%error, "no heartbeat");
                    self.ready.not_ready(&error.to_string());
                }
            }
        }
        if let Err(error) = self.store.forget_replicator(&self.me).await {
            warn!(%error, "the others do not know that we leave");
        }
        let all: Vec<_> = self.copying.keys().copied().collect();
        self.end(&all).await;
    }

    async fn share(&mut self, patience: &mut Patience) -> Result<(), StoreError> {
        let live = self.store.replicators(&self.me, patience.answered(tokio::time::Instant::now().into_std())).await?;
        let topology = self.topology.borrow_and_update().clone();
        let mine: HashSet<LogId> = foreign(&topology, self.store.region())
            .filter(|log| rendezvous(*log, live.iter().map(String::as_str)) == Some(self.me.as_str()))
            .collect();
        let ways = self.ways.clone();
        let reads = |log: &LogId| topology.site(log.region).map(|site| ways.ways_to(site).join(","));
        let stays = |log: &LogId, copying: &Copying| {
            mine.contains(log) && !copying.task.is_finished() && reads(log).is_some_and(|endpoints| endpoints == copying.endpoints)
        };
        let ending: Vec<_> = self.copying.iter().filter(|(log, copying)| !stays(log, copying)).map(|(log, _)| *log).collect();
        self.end(&ending).await;
        let mut peers = HashMap::new();
        let beginning: Vec<_> = mine.into_iter().filter(|log| !self.copying.contains_key(log)).collect();
        for log in &beginning {
            let Some(endpoints) = reads(log) else { continue };
            let shared = peers.entry((log.region, log.partition.0 / LOGS_PER_CONNECTION));
            let peer = match shared.or_insert_with(|| Peer::connect(&endpoints)) {
                Ok(peer) => peer.clone(),
                Err(error) => {
                    warn!(%log, %error, "an endpoint of the topology is no url");
                    continue;
                }
            };
            self.begin(*log, endpoints, peer);
        }
        if !beginning.is_empty() || !ending.is_empty() {
            info!(copying = self.copying.len(), replicators = live.len(), "copies shared");
        }
        Ok(())
    }

    fn begin(&mut self, log: LogId, endpoints: String, peer: Peer) {
        let copier = Copier {
            log,
            store: self.store.clone(),
            origin: Origin::new(log, peer),
            relaying: Relaying::new(self.relays.clone(), log),
            board: self.board.clone(),
            retention: self.retention,
            pauses: self.pauses,
            prepared: None,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(copier.run(stop.clone()));
        self.copying.insert(log, Copying { endpoints, stop, task });
    }

    async fn end(&mut self, logs: &[LogId]) {
        let ending: Vec<_> = logs.iter().filter_map(|log| self.copying.remove(log)).collect();
        ending.iter().for_each(|copying| copying.stop.cancel());
        for copying in ending {
            if let Err(error) = copying.task.await {
                tracing::error!(%error, "a copier ended by a panic");
            }
        }
    }
}

/// The logs of all regions but `home`.
fn foreign(topology: &Topology, home: Region) -> impl Iterator<Item = LogId> + '_ {
    let partitions = || (0..topology.partitions()).map(Partition);
    let regions = topology.regions().filter(move |region| *region != home);
    regions.flat_map(move |region| partitions().map(move |partition| LogId { region, partition }))
}
