use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use souk_domain::{Command, Entity, OrderId, OrderStatus};
use souk_event_sourcing::{Etag, LogId, Region, RequestId, RoutingKey, StreamId, TokenKey, Topology, UnixMillis, UnknownRegion, Version};
use souk_event_store::{Fingerprint, PostgresStore, Retention};
use souk_runtime::{Place, Queue, TooLong, settings::PeerSettings};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tonic::{Response, metadata::AsciiMetadataValue};

use crate::{
    commerce::{Commerce, refusal},
    committer::{Answer, CommandError, Job, Model, Request, Seen, Watchers, Work, folded},
    ownership::{Directory, Held, Home, Peers},
    topology::InForce,
};

/// Brings commands to the lane of their log and answers back to their callers.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    region: Region,
    topology: InForce,
    peer_settings: PeerSettings,
    copies: Arc<PostgresStore>,
    retention: Retention,
    payment_window: Duration,
    token_key: TokenKey,
    takeover_wait: Duration,
    lanes: Lanes,
    /// Of all lanes, each once.
    queues: Vec<Arc<Queue>>,
    watchers: Arc<Watchers>,
    replica: String,
    public_address: AsciiMetadataValue,
    held: Held,
    directory: Directory,
    peers: Peers,
}

/// The lane of each log.
pub type Lanes = HashMap<LogId, LaneDoor>;

/// Where work for a lane is put.
#[derive(Clone)]
pub struct LaneDoor {
    pub queue: mpsc::Sender<Work<Commerce>>,
    /// Who waits in it, but for the lane's own housekeeping.
    pub waiting: Arc<Queue>,
}

/// A parsed call, ready to be decided.
pub struct Call {
    pub request_id: RequestId,
    pub method: &'static str,
    /// The caller's request in canonical encoding, without what does not belong to its meaning.
    pub body: Bytes,
    pub caller: String,
    pub traceparent: String,
    pub etag: Option<Etag>,
    pub received: UnixMillis,
}

/// What the gateway must know of the installation.
pub struct Site {
    pub region: Region,
    pub topology: InForce,
    /// How other regions are reached.
    pub peers: PeerSettings,
    /// Where copies of other regions' logs are read.
    pub copies: Arc<PostgresStore>,
    pub retention: Retention,
    pub payment_window: Duration,
    pub token_key: TokenKey,
    /// Longest wait of a call for a log without an owner.
    pub takeover_wait: Duration,
}

/// What the gateway must know of this replica and the others.
pub struct Replicas {
    pub name: String,
    /// Where callers reach this replica, told with every reply.
    pub public_address: AsciiMetadataValue,
    pub held: Held,
    pub directory: Directory,
    pub peers: Peers,
}

impl Gateway {
    pub fn new(site: Site, lanes: Lanes, watchers: Arc<Watchers>, replicas: Replicas) -> Self {
        let Site { region, topology, peers: peer_settings, copies, retention, payment_window, token_key, takeover_wait } = site;
        let Replicas { name: replica, public_address, held, directory, peers } = replicas;
        let mut queues: Vec<_> = lanes.values().map(|door| door.waiting.clone()).collect();
        queues.sort_by_key(Arc::as_ptr);
        queues.dedup_by(|a, b| Arc::ptr_eq(a, b));
        Self(Arc::new(Inner {
            region,
            topology,
            peer_settings,
            copies,
            retention,
            payment_window,
            token_key,
            takeover_wait,
            lanes,
            queues,
            watchers,
            replica,
            public_address,
            held,
            directory,
            peers,
        }))
    }

    pub fn region(&self) -> Region {
        self.0.region
    }

    /// Urls of another region's command service; none of a region that is not there.
    pub fn ways_to(&self, region: Region) -> Vec<String> {
        let topology = self.topology();
        let site = topology.site(region);
        site.map(|site| self.0.peer_settings.ways_to(site).into_iter().map(str::to_owned).collect()).unwrap_or_default()
    }

    pub fn topology(&self) -> Arc<Topology> {
        self.0.topology.get()
    }

    pub fn retention(&self) -> Retention {
        self.0.retention
    }

    pub fn payment_window(&self) -> Duration {
        self.0.payment_window
    }

    pub fn token_key(&self) -> &TokenKey {
        &self.0.token_key
    }

    pub fn takeover_wait(&self) -> Duration {
        self.0.takeover_wait
    }

    pub fn directory(&self) -> &Directory {
        &self.0.directory
    }

    pub fn peers(&self) -> &Peers {
        &self.0.peers
    }

    /// Whether this replica takes itself for the owner of a log; the append alone knows.
    pub fn owns(&self, log: LogId) -> bool {
        self.0.held.contains(log)
    }

    /// Where else a log is owned.
    pub fn home(&self, log: LogId) -> Option<Home> {
        self.0.directory.home(log).filter(|home| home.owner != self.0.replica)
    }

    /// Whether a command may be taken in before it is known which: not while every lane has too long a queue, and this replica
    /// owns all logs there are. Else it may be one to be sent elsewhere.
    ///
    /// # Errors
    /// What it would be refused with by the shortest.
    pub fn room(&self) -> Result<(), TooLong> {
        let alone = self.0.held.count() == self.0.lanes.len() && self.topology().sites().len() == 1;
        if alone { Queue::refuse_all(&self.0.queues) } else { Ok(()) }
    }

    /// Names this replica in a reply, so that a client that listens sends the next command straight here.
    pub fn signed<R>(&self, log: LogId, mut response: Response<R>) -> Response<R> {
        let partition = format!("{}/{}", log.partition, self.topology().partitions());
        let metadata = response.metadata_mut();
        metadata.insert("souk-owner", self.0.public_address.clone());
        if let Ok(partition) = partition.parse() {
            metadata.insert("souk-partition", partition);
        }
        response
    }

    /// Carries a command on a log out: durable when this returns, or a repeat of one that is.
    ///
    /// # Errors
    /// As [`CommandError`] says.
    pub async fn execute(
        &self,
        log: LogId,
        call: Call,
        command: Command,
        respond: impl Fn(&[(&Entity, Version)]) -> Bytes + Send + Sync + 'static,
    ) -> Result<Answer, CommandError> {
        let (answer, answered) = oneshot::channel();
        let digest = blake3::hash(&[call.method.as_bytes(), &[0], &call.body].concat());
        let mut short = [0; 16];
        short.copy_from_slice(&digest.as_bytes()[..16]);
        let job = Job {
            log,
            streams: command.streams(),
            etag: call.etag,
            request: Request {
                id: call.request_id,
                method: call.method,
                body: call.body,
                fingerprint: Fingerprint::new(short),
                actor: call.caller,
                received: call.received,
                traceparent: call.traceparent,
                causation_id: None,
                correlation_id: None,
            },
            decide: Box::new(move |entities| command.decide(entities).map_err(refusal)),
            respond: Box::new(respond),
            answer,
        };
        self.submit(log, |place| Work::Command(Box::new(job), place))?;
        answered.await.unwrap_or(Err(CommandError::Unavailable))
    }

    /// The entities of streams of one log as of now.
    ///
    /// # Errors
    /// As [`CommandError`] says.
    pub async fn read(&self, log: LogId, streams: Vec<StreamId>) -> Result<Seen<Commerce>, CommandError> {
        let (reply, replied) = oneshot::channel();
        self.submit(log, |place| Work::Read { log, streams, place, reply })?;
        replied.await.unwrap_or(Err(CommandError::Unavailable))
    }

    /// An entity of another region, as far as this one has copied its log; `None` when it has nothing of it.
    ///
    /// # Errors
    /// As [`CommandError`] says.
    pub async fn read_copy(&self, log: LogId, stream: StreamId) -> Result<Option<(Entity, Version)>, CommandError> {
        let stored = Box::pin(self.0.copies.load(log, std::slice::from_ref(&stream), Commerce::FOLD_VERSION)).await;
        let stored = stored.map_err(|error| {
            tracing::warn!(%log, %error, "a copy cannot be read");
            CommandError::Unavailable
        })?;
        let found = stored.into_iter().next().map(|stored| folded::<Commerce>(&stream, stored)).transpose()?;
        Ok(found.filter(|(_, version)| *version > Version(0)))
    }

    /// Waits until an order has left `Reserving`, at most until `patience` ends; then its state so far.
    ///
    /// # Errors
    /// As [`CommandError`] says; NotOwner as soon as the log is given up, because the outcome is written elsewhere then.
    pub async fn outcome(&self, order: OrderId, patience: Instant) -> Result<Seen<Commerce>, CommandError> {
        let (log, stream) = (self.log(order.key())?, order.stream());
        let changed = self.0.watchers.watch(&stream);
        loop {
            let change = changed.notified();
            tokio::pin!(change);
            // Registered before the entity is read, so that no change falls between.
            change.as_mut().enable();
            let seen = self.read(log, vec![stream.clone()]).await?;
            let open = seen.entities[0].0.as_order().is_some_and(|order| order.status == OrderStatus::Reserving);
            if !open || Instant::now() >= patience {
                return Ok(seen);
            }
            let _ = timeout_at(patience, change).await;
        }
    }

    /// The log of an entity.
    ///
    /// # Errors
    /// When its id names a region that is not there.
    pub fn log(&self, key: RoutingKey<'_>) -> Result<LogId, UnknownRegion> {
        self.topology().home(key)
    }

    fn submit(&self, log: LogId, work: impl FnOnce(Place) -> Work<Commerce>) -> Result<(), CommandError> {
        let lane = self.0.lanes.get(&log).ok_or(CommandError::NotOwner(log))?;
        let place = lane.waiting.enter()?;
        lane.queue.try_send(work(place)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommandError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => CommandError::Unavailable,
        })
    }
}
