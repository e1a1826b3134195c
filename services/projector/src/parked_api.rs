use std::time::Duration;

use prost_types::Timestamp;
use souk_event_sourcing::{LogId, Partition, Position, Region, StreamId, UnixMillis};
use souk_proto::internal::v1::{
    DropParkedEntityRequest, DropParkedEntityResponse, ListParkedEntitiesRequest, ListParkedEntitiesResponse, ListParkedEventsRequest,
    ListParkedEventsResponse, ParkedEntity, ParkedEvent, ReplayParkedEntityRequest, ReplayParkedEntityResponse,
    parked_entity_service_server::ParkedEntityService,
};
use souk_read_store::{ParkedQuery, ReadStoreError};
use souk_runtime::Failure;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::parking::{Done, Errands, Refused, Wish, unpark};

/// What `souk parked` speaks to.
#[derive(Clone)]
pub(crate) struct ParkedEntities {
    /// Of every shard; empty until the read databases are open.
    pub shards: watch::Receiver<Vec<Errands>>,
    pub lease_ttl: Duration,
}

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
const RETRY_AFTER: Duration = Duration::from_millis(500);

impl ParkedEntities {
    fn shards(&self) -> Result<Vec<Errands>, Failure> {
        let shards = self.shards.borrow().clone();
        if shards.is_empty() {
            return Err(Failure::unavailable("STARTING", "the read databases are not open yet", RETRY_AFTER));
        }
        Ok(shards)
    }

    /// The log in which something of `stream` is set aside, and the shard that writes it.
    async fn find(&self, stream: &StreamId) -> Result<(LogId, Errands), Failure> {
        for shard in self.shards()? {
            let query = ParkedQuery { stream: Some(stream), ..ParkedQuery::all(&shard.logs, 1) };
            if let Some(entity) = shard.store.parked_entities(query).await.map_err(store_failure)?.first() {
                return Ok((entity.log, shard));
            }
        }
        Err(Refused::NotParked(stream.clone()).into())
    }

    async fn run(&self, stream: &str, wish: Wish) -> Result<Done, Failure> {
        let stream = parse_stream(stream)?;
        let (log, shard) = self.find(&stream).await?;
        match shard.run(log, stream, wish).await {
            Err(Refused::NotHeld(log)) => Err(self.held_by(log, &shard).await),
            done => Ok(done?),
        }
    }

    /// Says who writes a log, if anybody does.
    async fn held_by(&self, log: LogId, shard: &Errands) -> Failure {
        let failure = Failure::from(Refused::NotHeld(log));
        let Ok(members) = shard.store.members(self.lease_ttl).await else { return failure };
        let holder = members.holders.get(&log).and_then(|holder| members.live.into_iter().find(|replica| replica.id == *holder));
        match holder {
            Some(replica) => failure.with("holder", replica.id).with("address", replica.address),
            None => failure,
        }
    }

    async fn entities(&self, request: ListParkedEntitiesRequest) -> Result<ListParkedEntitiesResponse, Failure> {
        let limit = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(parse_cursor(token).ok_or_else(invalid_page_token)?),
        };
        let mut entities = Vec::new();
        for shard in self.shards()? {
            let after = after.as_ref().map(|(log, stream)| (*log, stream));
            let query = ParkedQuery { after, ..ParkedQuery::all(&shard.logs, limit + 1) };
            entities.extend(shard.store.parked_entities(query).await.map_err(store_failure)?);
        }
        entities.sort_by(|a, b| (a.log, &a.stream).cmp(&(b.log, &b.stream)));
        let more = entities.len() > limit;
        entities.truncate(limit);
        let next_page_token = entities.last().filter(|_| more).map(|last| format!("{}/{}", last.log, last.stream)).unwrap_or_default();
        let entities = entities.into_iter().map(|entity| ParkedEntity {
            region: entity.log.region.0.into(),
            partition: entity.log.partition.0.into(),
            stream: entity.stream.to_string(),
            event_count: entity.events,
            parked_at: entity.parked.at.0,
            stale_since: Some(timestamp(entity.parked.since)),
            reason: entity.reason,
        });
        Ok(ListParkedEntitiesResponse { entities: entities.collect(), next_page_token })
    }

    async fn events(&self, request: ListParkedEventsRequest) -> Result<ListParkedEventsResponse, Failure> {
        let limit = page_size(request.page_size)?;
        let stream = parse_stream(&request.stream)?;
        let after = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| invalid_page_token())?,
        };
        let (log, shard) = self.find(&stream).await?;
        let mut events = shard.store.parked_events(log, &stream, Position(after), limit + 1).await.map_err(store_failure)?;
        let more = events.len() > limit;
        events.truncate(limit);
        let next_page_token = events.last().filter(|_| more).map(|last| last.position.to_string()).unwrap_or_default();
        Ok(ListParkedEventsResponse { events: events.iter().map(event).collect(), next_page_token })
    }
}

#[tonic::async_trait]
impl ParkedEntityService for ParkedEntities {
    async fn list_parked_entities(
        &self,
        request: Request<ListParkedEntitiesRequest>,
    ) -> Result<Response<ListParkedEntitiesResponse>, Status> {
        Ok(Response::new(self.entities(request.into_inner()).await?))
    }

    async fn list_parked_events(&self, request: Request<ListParkedEventsRequest>) -> Result<Response<ListParkedEventsResponse>, Status> {
        Ok(Response::new(self.events(request.into_inner()).await?))
    }

    async fn replay_parked_entity(
        &self,
        request: Request<ReplayParkedEntityRequest>,
    ) -> Result<Response<ReplayParkedEntityResponse>, Status> {
        let ReplayParkedEntityRequest { stream, validate_only } = request.into_inner();
        let done = self.run(&stream, if validate_only { Wish::Try } else { Wish::Replay }).await?;
        Ok(Response::new(ReplayParkedEntityResponse { event_count: done.events, failure: done.failure.unwrap_or_default() }))
    }

    async fn drop_parked_entity(&self, request: Request<DropParkedEntityRequest>) -> Result<Response<DropParkedEntityResponse>, Status> {
        let done = self.run(&request.into_inner().stream, Wish::Drop).await?;
        match done.failure {
            None => Ok(Response::new(DropParkedEntityResponse { event_count: done.events })),
            Some(failure) => Err(Failure::internal("DROP_FAILED", failure).into()),
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::NotHeld(log) => Self::refused("PARTITION_NOT_HELD", text).with("region", log.region).with("partition", log.partition),
            Refused::NotParked(stream) => Self::not_found("ENTITY_NOT_PARKED", text).with("stream", stream),
            Refused::Store(error) => store_failure(error),
        }
    }
}

fn store_failure(error: ReadStoreError) -> Failure {
    if error.retryable() {
        return Failure::unavailable("STORE_UNAVAILABLE", error.to_string(), RETRY_AFTER);
    }
    tracing::error!(%error, "parked events cannot be read");
    Failure::internal("STORE_DAMAGED", "the read store cannot be read")
}

fn parse_stream(text: &str) -> Result<StreamId, Failure> {
    text.parse().map_err(|error| Failure::invalid("INVALID_STREAM", format!("{error}")).field("stream", "want category-id"))
}

fn invalid_page_token() -> Failure {
    Failure::invalid("INVALID_PAGE_TOKEN", "not a page token of this list").field("page_token", "want one of this list")
}

fn page_size(asked: i32) -> Result<usize, Failure> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) => Ok(size.min(MAX_PAGE)),
        Err(_) => Err(Failure::invalid("INVALID_PAGE_SIZE", "a page has no negative size").field("page_size", "want 0 or more")),
    }
}

/// region/partition/stream
fn parse_cursor(token: &str) -> Option<(LogId, StreamId)> {
    let mut parts = token.splitn(3, '/');
    let (region, partition) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((LogId { region: Region(region), partition: Partition(partition) }, parts.next()?.parse().ok()?))
}

fn event(parked: &souk_read_store::ParkedEvent) -> ParkedEvent {
    let at = ParkedEvent {
        region: parked.log.region.0.into(),
        partition: parked.log.partition.0.into(),
        position: parked.position.0,
        reason: parked.reason.clone(),
        parked_time: Some(timestamp(parked.since)),
        ..ParkedEvent::default()
    };
    // An envelope that cannot be read is a reason to look, not to answer nothing.
    let Ok(event) = unpark(parked) else { return at };
    ParkedEvent {
        version: event.version.0,
        r#type: event.kind,
        schema_version: event.schema_version,
        payload_bytes: event.payload.len() as u64,
        actor: event.actor,
        event_time: Some(timestamp(event.hlc.time())),
        ..at
    }
}

fn timestamp(time: UnixMillis) -> Timestamp {
    Timestamp { seconds: time.0.div_euclid(1000), nanos: (time.0.rem_euclid(1000) * 1_000_000) as i32 }
}
