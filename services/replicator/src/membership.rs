use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use metrics::counter;
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
    lenders::Lenders,
    relaying::{CopyRelays, Relaying},
    source::Source,
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

/// Where a copier reads from: the origin's endpoints, and those of the regions that may lend.
#[derive(Debug, PartialEq, Eq)]
struct Ways {
    origin: String,
    lenders: Vec<(Region, String)>,
}

/// Connections by who is asked and for which logs: those of one region, so many at a time.
type Peers = HashMap<(Region, Region, u16), Peer>;

/// A copier at work.
pub struct Copying {
    /// Others take another copier.
    ways: Ways,
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
        let stays = |log: &LogId, copying: &Copying| {
            mine.contains(log) && !copying.task.is_finished() && self.ways_of(&topology, *log).is_some_and(|ways| ways == copying.ways)
        };
        let ending: Vec<_> = self.copying.iter().filter(|(log, copying)| !stays(log, copying)).map(|(log, _)| *log).collect();
        self.end(&ending).await;
        let mut peers = Peers::new();
        let beginning: Vec<_> = mine.into_iter().filter(|log| !self.copying.contains_key(log)).collect();
        for log in &beginning {
            let Some(ways) = self.ways_of(&topology, *log) else { continue };
            self.begin(*log, ways, &mut peers);
        }
        if !beginning.is_empty() || !ending.is_empty() {
            info!(copying = self.copying.len(), replicators = live.len(), "copies shared");
        }
        Ok(())
    }

    fn ways_of(&self, topology: &Topology, log: LogId) -> Option<Ways> {
        let to = |site| self.ways.ways_to(site).join(",");
        let third = topology.sites().iter().filter(|site| site.number != log.region && site.number != self.store.region());
        Some(Ways { origin: to(topology.site(log.region)?), lenders: third.map(|site| (site.number, to(site))).collect() })
    }

    fn begin(&mut self, log: LogId, ways: Ways, peers: &mut Peers) {
        let mut source = |region, endpoints: &str| {
            let shared = peers.entry((region, log.region, log.partition.0 / LOGS_PER_CONNECTION));
            let peer = match shared {
                Entry::Occupied(peer) => peer.get().clone(),
                Entry::Vacant(none) => match Peer::connect(endpoints) {
                    Ok(peer) => none.insert(peer).clone(),
                    Err(error) => {
                        warn!(%region, %error, "an endpoint of the topology is no url");
                        return None;
                    }
                },
            };
            Some(Source::new(region, log, peer))
        };
        let Some(origin) = source(log.region, &ways.origin) else { return };
        let lenders = Lenders::new(ways.lenders.iter().filter_map(|(region, endpoints)| source(*region, endpoints)));
        let copier = Copier {
            log,
            store: self.store.clone(),
            origin,
            lenders,
            relaying: Relaying::new(self.relays.clone(), log),
            board: self.board.clone(),
            retention: self.retention,
            pauses: self.pauses,
            prepared: None,
            told: None,
        };
        start_at_zero_for(log.region, &ways);
        let stop = CancellationToken::new();
        let task = tokio::spawn(copier.run(stop.clone()));
        self.copying.insert(log, Copying { ways, stop, task });
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

/// A rise is seen only of a counter that is there before.
fn start_at_zero_for(origin: Region, ways: &Ways) {
    for name in ["souk_replicator_events_total", "souk_replicator_lent_total"] {
        counter!(name, "region" => origin.to_string()).increment(0);
    }
    for region in ways.lenders.iter().map(|(region, _)| *region).chain([origin]) {
        counter!("souk_replicator_refused_total", "region" => region.to_string()).increment(0);
    }
}

/// The logs of all regions but `home`.
fn foreign(topology: &Topology, home: Region) -> impl Iterator<Item = LogId> + '_ {
    let partitions = || (0..topology.partitions()).map(Partition);
    let regions = topology.regions().filter(move |region| *region != home);
    regions.flat_map(move |region| partitions().map(move |partition| LogId { region, partition }))
}
