use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use souk_bus::JetStreamBus;
use souk_bus_publisher::JetStreamPublisher;
use souk_event_sourcing::{Epoch, LogId, Partition, RecordedEvent, UnixMillis, rendezvous};
use souk_event_store::{Addresses, Belief, PostgresStore, Replica, Retention, StoreError, Survey, Taken};
use souk_relay::{self as relay, Relays, Ring};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Directory, Held, Holding, Peers};
use crate::{
    committer::{LostOwnership, Outlet, Work},
    gateway::Lanes,
};

/// Longest time a relay may take to publish the rest of a log that is handed over; the next owner's does what is left.
const LAST_PUBLISHES: Duration = Duration::from_secs(1);
/// Longest time for handing everything over; leases expire where a database does not answer.
const LEAVING: Duration = Duration::from_secs(5);
/// A replica gets logs from others when it was seen alive this often in a row.
const SETTLED: u32 = 2;

/// Takes over the logs that fall to this replica, and hands over those that fall to others.
pub struct Owner {
    pub store: Arc<PostgresStore>,
    pub replica: String,
    pub addresses: Addresses,
    pub lanes: Lanes,
    pub held: Held,
    pub directory: Directory,
    pub peers: Peers,
    pub relays: Arc<Relays<PostgresStore, JetStreamPublisher, JetStreamBus>>,
    pub lease_ttl: Duration,
    /// A database that has not taken a heartbeat for so long is away.
    pub heartbeat_patience: Duration,
    /// A suspect is dead when it was silent for so long.
    pub suspect_ttl: Duration,
    pub retention: Retention,
    /// How often in a row each other replica was seen alive, per database.
    pub seen: HashMap<(String, String), u32>,
    /// The highest epoch this replica ever owned a log under. A restored database may not know of it.
    pub highest: Epoch,
}

impl Owner {
    /// Beats, takes every log that falls to this replica and is free, and hands over what falls to others. Called at
    /// start, once per heartbeat, and when somebody asks.
    ///
    /// # Errors
    /// When a database cannot be reached; the others were looked after all the same.
    pub async fn beat(&mut self) -> Result<(), StoreError> {
        let suspects = self.directory.take_suspects();
        let mut outcome = Ok(());
        for (database, beaten) in self.heartbeats().await {
            let looked_after = match beaten {
                Ok(()) => self.look_after(&database, &suspects).await,
                Err(error) => Err(error),
            };
            if let Err(error) = looked_after {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// Beats on all databases at once. One that does not answer must not make this replica look dead on the others.
    async fn heartbeats(&self) -> Vec<(String, Result<(), StoreError>)> {
        let beats = self.store.databases().map(async |database| (database.to_owned(), self.heartbeat(database, false).await));
        futures::future::join_all(beats).await
    }

    async fn heartbeat(&self, database: &str, leaving: bool) -> Result<(), StoreError> {
        let ownership = self.store.ownership(&self.replica);
        let beaten = timeout(self.heartbeat_patience, ownership.heartbeat(database, &self.addresses, leaving)).await;
        beaten.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer to a heartbeat".into())))
    }

    async fn look_after(&mut self, database: &str, suspects: &[String]) -> Result<(), StoreError> {
        let (store, name) = (self.store.clone(), self.replica.clone());
        let ownership = store.ownership(&name).suspecting(suspects, self.suspect_ttl).above(self.highest);
        // Before the heads are read: only a log that went back is behind it then.
        let known = self.known();
        let survey = ownership.survey(database).await?;
        let logs = self.logs_of(database);
        self.directory.learn(logs.iter().copied(), &survey);
        self.release_lost(&survey, known).await;

        let live = self.live(database, &survey, suspects);
        let heir = |log: LogId| rendezvous(log, live.iter().map(|replica| replica.id.as_str()));
        let wanted: Vec<Partition> =
            (logs.iter()).filter(|log| heir(**log) == Some(&self.replica) && !self.held.contains(**log)).map(|log| log.partition).collect();
        if !wanted.is_empty() {
            let taken = ownership.take(database, &wanted, self.lease_ttl).await?;
            self.own_all(database, taken).await?;
        }
        self.record_restored().await?;

        // Held here, or leased to this replica's name and not held: both fall to others.
        let leased = survey.leases.iter().filter(|lease| lease.owner == self.replica).map(|lease| lease.log);
        let mine: HashSet<LogId> = logs.iter().copied().filter(|log| self.held.contains(*log)).chain(leased).collect();
        let heirs: Vec<_> = live.iter().filter(|replica| replica.id == name || self.settled(database, &replica.id)).collect();
        self.hand_over_all(database, mine, |log| heir(log).filter(|heir| heirs.iter().any(|replica| replica.id == **heir)), &live).await
    }

    /// Gives everything to the replicas it falls to, so that no caller need wait: called while the doors are open still.
    pub async fn leave(&mut self) {
        let databases: Vec<String> = self.store.databases().map(str::to_owned).collect();
        let handing_over = async {
            for database in databases {
                if let Err(error) = self.leave_database(&database).await {
                    warn!(database, %error, "logs could not be handed over; their leases expire");
                }
            }
        };
        if timeout(LEAVING, handing_over).await.is_err() {
            warn!("not all logs were handed over in time; their leases expire");
        }
    }

    async fn leave_database(&mut self, database: &str) -> Result<(), StoreError> {
        let (store, name) = (self.store.clone(), self.replica.clone());
        let ownership = store.ownership(&name);
        self.heartbeat(database, true).await?;
        let survey = ownership.survey(database).await?;
        let live: Vec<_> = self.live(database, &survey, &[]).into_iter().filter(|replica| replica.id != self.replica).collect();
        let held = self.logs_of(database).into_iter().filter(|log| self.held.contains(*log));
        self.hand_over_all(database, held, |log| rendezvous(log, live.iter().map(|replica| replica.id.as_str())), &live).await?;
        self.directory.learn(self.logs_of(database), &ownership.survey(database).await?);
        Ok(())
    }

    /// Ends everything: lets the lanes end, the relays publish what they left, then drops the leases.
    pub async fn retire(mut self, lanes: &mut JoinSet<()>) -> Self {
        self.lanes.clear();
        while let Some(ended) = lanes.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a lane ended by a panic");
            }
        }
        let logs = self.held.each(|log, holding| {
            holding.stop.cancel();
            log
        });
        for holding in logs.into_iter().filter_map(|log| self.held.remove(log)) {
            holding.relay.stopped().await;
        }
        if let Err(error) = self.store.ownership(&self.replica).release().await {
            warn!(%error, "leases could not be released; they expire");
        }
        self
    }

    fn logs_of(&self, database: &str) -> Vec<LogId> {
        let region = self.store.region();
        self.store.partitions_of(database).into_iter().map(|partition| LogId { region, partition }).collect()
    }

    /// Who may own logs now; counts how long each was seen.
    fn live(&mut self, database: &str, survey: &Survey, suspects: &[String]) -> Vec<Replica> {
        let alive = |replica: &&Replica| {
            let patience = if suspects.contains(&replica.id) { self.suspect_ttl.min(self.lease_ttl) } else { self.lease_ttl };
            !replica.leaving && (replica.id == self.replica || replica.silence < patience)
        };
        let live: Vec<Replica> = survey.replicas.iter().filter(alive).cloned().collect();
        self.seen.retain(|(of, id), _| of != database || live.iter().any(|replica| replica.id == *id));
        for replica in &live {
            let count = self.seen.entry((database.to_owned(), replica.id.clone())).or_default();
            *count = count.saturating_add(1);
        }
        live
    }

    fn settled(&self, database: &str, replica: &str) -> bool {
        self.seen.get(&(database.to_owned(), replica.to_owned())).is_some_and(|count| *count >= SETTLED)
    }

    /// What is known of the logs held here. Batches are not: a log that went back by answers alone is noticed by its lane.
    fn known(&self) -> Vec<(LogId, Belief, Arc<Ring>)> {
        self.held.each(|log, holding| {
            let relay::Head { position, hash } = holding.relay.ring.head();
            (log, Belief { epoch: holding.epoch, batch: 0, position, hash }, holding.relay.ring.clone())
        })
    }

    /// Stops work on logs that another replica has taken, or that went back, before a command meets the fence.
    async fn release_lost(&self, survey: &Survey, known: Vec<(LogId, Belief, Arc<Ring>)>) {
        let mut lost = Vec::new();
        for (log, known, ring) in known {
            let Some(stored) = survey.heads.get(&log) else { continue };
            let went_back = stored.went_back_from(&known);
            if went_back {
                warn!(%log, known = %known.position, stored = %stored.position, "the log went back");
                // Nothing of the lost part must reach the bus any more.
                Outlet::ends_at(&ring, stored);
            } else if stored.epoch != known.epoch {
                warn!(%log, "another replica took this log over");
                metrics::counter!("souk_leases_lost_total").increment(1);
            } else {
                continue;
            }
            self.held.lost(LostOwnership { log, epoch: known.epoch, went_back_from: went_back.then_some(known.position) });
            lost.push(log);
        }
        self.release(lost).await;
    }

    /// Writes down how far the logs reached that went back, as soon as somebody owns them again.
    async fn record_restored(&self) -> Result<(), StoreError> {
        for (log, known) in self.held.take_went_back() {
            metrics::counter!("souk_logs_restored_total").increment(1);
            if let Err(error) = self.store.record_restored(log, known, &format!("owner {}", self.replica)).await {
                self.held.still_went_back(log, known);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn own_all(&mut self, database: &str, taken: Vec<Taken>) -> Result<(), StoreError> {
        if taken.is_empty() {
            return Ok(());
        }
        let heads: Vec<_> = taken.iter().map(|taken| (taken.log, taken.belief.position)).collect();
        self.store.prepare(database, &heads, self.retention, UnixMillis::now()).await?;
        info!(database, logs = taken.len(), "logs taken over");
        metrics::counter!("souk_leases_taken_total", "database" => database.to_owned()).increment(taken.len() as u64);
        self.highest = taken.iter().map(|taken| taken.belief.epoch).fold(self.highest, Epoch::max);
        for taken in taken {
            self.own(taken).await;
        }
        let survey = self.store.ownership(&self.replica).survey(database).await?;
        self.directory.learn(self.logs_of(database), &survey);
        Ok(())
    }

    async fn own(&self, taken: Taken) {
        let (log, epoch) = (taken.log, taken.belief.epoch);
        let stop = CancellationToken::new();
        let head = relay::Head { position: taken.belief.position, hash: taken.belief.hash };
        let relay = self.relays.spawn(log, epoch, head, stop.clone());
        let outlet = Box::new(relay.ring.clone());
        let Some(lane) = self.lanes.get(&log) else { return stop.cancel() };
        // The lane first: whoever finds the log held may send it commands.
        if lane.queue.send(Work::Own { taken, outlet }).await.is_err() {
            return stop.cancel();
        }
        self.held.insert(log, Holding { epoch, relay, stop });
    }

    /// Hands every log over whose heir is another replica.
    async fn hand_over_all<'a>(
        &self,
        database: &str,
        logs: impl IntoIterator<Item = LogId>,
        heir: impl Fn(LogId) -> Option<&'a str>,
        live: &[Replica],
    ) -> Result<(), StoreError> {
        let mut departing: BTreeMap<&str, Vec<LogId>> = BTreeMap::new();
        for log in logs {
            if let Some(heir) = heir(log).filter(|heir| *heir != self.replica) {
                departing.entry(heir).or_default().push(log);
            }
        }
        for (heir, logs) in departing {
            let addresses = live.iter().find(|replica| replica.id == heir).map(|replica| replica.addresses.clone());
            self.hand_over(database, heir, &addresses.unwrap_or_default(), logs).await?;
        }
        Ok(())
    }

    /// Finish the batch → publish the rest → leave the lease to the heir → tell it.
    async fn hand_over(&self, database: &str, heir: &str, addresses: &Addresses, logs: Vec<LogId>) -> Result<(), StoreError> {
        info!(database, logs = logs.len(), heir, "handing logs over");
        let holdings: Vec<_> = logs.iter().filter_map(|log| self.held.remove(*log)).collect();
        self.release(logs.clone()).await;
        holdings.iter().for_each(|holding| holding.stop.cancel());
        let published = futures::future::join_all(holdings.into_iter().map(|holding| holding.relay.stopped()));
        if timeout(LAST_PUBLISHES, published).await.is_err() {
            info!(heir, "not all events are published yet; the heir publishes them");
        }
        let partitions: Vec<_> = logs.iter().map(|log| log.partition).collect();
        let ownership = self.store.ownership(&self.replica);
        ownership.offer(database, &partitions, heir).await?;
        self.peers.nudge(&addresses.internal).await;
        metrics::counter!("souk_leases_handed_over_total").increment(logs.len() as u64);
        self.directory.learn(self.logs_of(database), &ownership.survey(database).await?);
        Ok(())
    }

    /// Waits until the lanes have finished what they had begun on these logs.
    async fn release(&self, logs: Vec<LogId>) {
        let mut finished = Vec::new();
        for log in logs {
            let (done, released) = oneshot::channel();
            let Some(lane) = self.lanes.get(&log) else { continue };
            if lane.queue.send(Work::Release { log, done }).await.is_ok() {
                finished.push(released);
            }
        }
        // A lane that ends meanwhile has finished, too.
        futures::future::join_all(finished).await;
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
