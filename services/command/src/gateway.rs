use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use souk_domain::{Catalog, Command, Entity, OrderId, OrderStatus, ProductId};
use souk_event_sourcing::{Etag, LogId, Region, RequestId, StreamId, TokenKey, UnixMillis, Version, partition_of};
use souk_event_store::{Fingerprint, Retention};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::{
    commerce::{Commerce, refusal},
    committer::{Answer, CommandError, Job, Request, Seen, Watchers, Work},
};

/// Brings commands to the lane of their log and answers back to their callers.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    region: Region,
    partitions: u16,
    retention: Retention,
    payment_window: Duration,
    token_key: TokenKey,
    lanes: Lanes,
    watchers: Arc<Watchers>,
}

/// The queue of each log's lane.
pub type Lanes = HashMap<LogId, mpsc::Sender<Work<Commerce>>>;

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
    pub partitions: u16,
    pub retention: Retention,
    pub payment_window: Duration,
    pub token_key: TokenKey,
}

impl Gateway {
    pub fn new(site: Site, lanes: Lanes, watchers: Arc<Watchers>) -> Self {
        let Site { region, partitions, retention, payment_window, token_key } = site;
        Self(Arc::new(Inner { region, partitions, retention, payment_window, token_key, lanes, watchers }))
    }

    pub fn region(&self) -> Region {
        self.0.region
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

    /// Carries a command out: durable when this returns, or a repeat of one that is.
    ///
    /// # Errors
    /// As [`CommandError`] says.
    pub async fn execute(
        &self,
        call: Call,
        command: Command,
        respond: impl Fn(&[(&Entity, Version)]) -> Bytes + Send + Sync + 'static,
    ) -> Result<Answer, CommandError> {
        let log = self.log(command.routing_hash());
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
                span: Span::current(),
            },
            decide: Box::new(move |entities| command.decide(entities).map_err(refusal)),
            respond: Box::new(respond),
            answer,
        };
        self.submit(log, Work::Command(Box::new(job)))?;
        answered.await.unwrap_or(Err(CommandError::Unavailable))
    }

    /// The entities of streams of one log as of now.
    ///
    /// # Errors
    /// As [`CommandError`] says.
    pub async fn read(&self, routing_hash: u32, streams: Vec<StreamId>) -> Result<Seen<Commerce>, CommandError> {
        let log = self.log(routing_hash);
        let (reply, replied) = oneshot::channel();
        self.submit(log, Work::Read { log, streams, reply })?;
        replied.await.unwrap_or(Err(CommandError::Unavailable))
    }

    /// Facts of products from their owners, one question per log.
    ///
    /// # Errors
    /// As [`CommandError`] says.
    pub async fn look_up(&self, products: impl IntoIterator<Item = ProductId>) -> Result<Catalog, CommandError> {
        let mut by_log: BTreeMap<LogId, Vec<ProductId>> = BTreeMap::new();
        for product in products {
            by_log.entry(self.log(product.routing_hash())).or_default().push(product);
        }
        let asked = by_log.into_values().map(|products| async move {
            let streams = products.iter().map(ProductId::stream).collect();
            let seen = self.read(products[0].routing_hash(), streams).await?;
            Ok::<_, CommandError>(products.into_iter().zip(seen.entities).map(|(product, (entity, version))| {
                let facts = entity.as_product().and_then(|state| state.facts(version));
                (product, facts)
            }))
        });
        let answers = futures::future::try_join_all(asked).await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Waits until an order has left `Reserving`, at most for `patience`; then its state so far.
    ///
    /// # Errors
    /// As [`CommandError`] says.
    pub async fn outcome(&self, order: OrderId, patience: Duration) -> Result<Seen<Commerce>, CommandError> {
        let stream = order.stream();
        let changed = self.0.watchers.watch(&stream);
        let until = tokio::time::Instant::now() + patience;
        loop {
            let change = changed.notified();
            tokio::pin!(change);
            // Registered before the entity is read, so that no change falls between.
            change.as_mut().enable();
            let seen = self.read(order.routing_hash(), vec![stream.clone()]).await?;
            let open = seen.entities[0].0.as_order().is_some_and(|order| order.status == OrderStatus::Reserving);
            if !open || tokio::time::timeout_at(until, change).await.is_err() {
                return Ok(seen);
            }
        }
    }

    fn log(&self, routing_hash: u32) -> LogId {
        LogId { region: self.0.region, partition: partition_of(routing_hash, self.0.partitions) }
    }

    fn submit(&self, log: LogId, work: Work<Commerce>) -> Result<(), CommandError> {
        let lane = self.0.lanes.get(&log).ok_or(CommandError::NotOwner(log))?;
        lane.try_send(work).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommandError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => CommandError::Unavailable,
        })
    }
}
