//! The whole service on real Postgres and NATS, with an event log of the test's own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use prost::Message;
use souk_bus::{Feed, JetStreamBus, to_wire};
use souk_bus_publisher::{JetStreamPublisher, LogPublisher, StreamLimits};
use souk_devstack::{Nats, NatsOptions, Postgres, PostgresOptions, TemporaryFolder};
use souk_event_sourcing::{Epoch, EventId, Hlc, LogHash, LogId, Partition, Position, RecordedEvent, Region, StreamId, UnixMillis, Version};
use souk_proto::{
    cart::v1::{Cart, ItemAdded},
    internal::v1::{
        DropParkedEntityRequest, GetStatusRequest, GetStatusResponse, ListParkedEntitiesRequest, ListParkedEventsRequest,
        ReplayParkedEntityRequest, admin_service_client::AdminServiceClient, parked_entity_service_client::ParkedEntityServiceClient,
    },
    log::v1::{
        Event, GetHeadsRequest, GetHeadsResponse, Head, HeadAnnouncement, ReadRangeRequest, ReadRangeResponse, TailRequest, TailResponse,
        event_log_service_server::{EventLogService, EventLogServiceServer},
    },
};
use souk_read_store::{Access, DatabaseConfig, Demand, Installation, PostgresViews, ReadStore, ViewStore};
use souk_runtime::{GrpcServer, Health, Listeners, Process, ServiceKind, Settings};
use souk_views::{CART_VIEW, TABLES, comparable, fold_reference};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

const PARTITIONS: u16 = 4;

fn log(partition: u16) -> LogId {
    LogId { region: Region(1), partition: Partition(partition) }
}

/// Carts of a few customers, one item after the other.
fn history(partition: u16, count: u64) -> Vec<RecordedEvent> {
    let mut events: Vec<RecordedEvent> = Vec::new();
    let mut versions: HashMap<StreamId, Version> = HashMap::new();
    for number in 1..=count {
        let hash = events.last().map_or(LogHash::EMPTY, |last| last.hash);
        let stream: StreamId = format!("cart-c-{partition}-{}", number % 5).parse().unwrap();
        let version = versions.entry(stream.clone()).or_default();
        *version = version.next();
        let payload = ItemAdded { product_id: format!("p-{}", number % 7), quantity: 1 }.encode_to_vec().into();
        let mut event = RecordedEvent {
            log: log(partition),
            position: Position(number),
            epoch: Epoch(1),
            hash,
            stream,
            version: *version,
            kind: "ItemAdded".to_owned(),
            schema_version: 1,
            payload,
            event_id: EventId(Uuid::from_u128(u128::from(number))),
            request_id: None,
            causation_id: None,
            correlation_id: None,
            actor: "tester".to_owned(),
            hlc: Hlc::new(UnixMillis(1_700_000_000_000 + number as i64), 0),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = hash.after(&event);
        events.push(event);
    }
    events
}

/// EventLogService over what the test says the logs are.
#[derive(Clone, Default)]
struct EventLog(Arc<Mutex<HashMap<LogId, Vec<RecordedEvent>>>>);

#[tonic::async_trait]
impl EventLogService for EventLog {
    async fn read_range(&self, request: Request<ReadRangeRequest>) -> Result<Response<ReadRangeResponse>, Status> {
        let request = request.into_inner();
        let events = self.0.lock().unwrap().get(&log(request.partition as u16)).cloned().unwrap_or_default();
        if request.from_position > events.len() as u64 + 1 {
            return Err(Status::out_of_range("beyond the end"));
        }
        let page = events.iter().skip(request.from_position as usize - 1).take(request.limit as usize).map(to_wire);
        let head = Head { position: events.len() as u64, ..Head::default() };
        Ok(Response::new(ReadRangeResponse { events: page.collect(), head: Some(head) }))
    }

    type TailStream = futures::stream::BoxStream<'static, Result<TailResponse, Status>>;

    async fn tail(&self, _: Request<TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        Err(Status::unimplemented("a projector does not tail"))
    }

    async fn get_heads(&self, _: Request<GetHeadsRequest>) -> Result<Response<GetHeadsResponse>, Status> {
        Err(Status::unimplemented("a projector hears heads announced"))
    }
}

struct World {
    _folder: TemporaryFolder,
    postgres: Postgres,
    nats: Nats,
    event_log: EventLog,
    event_log_port: u16,
    bus: JetStreamBus,
    publisher: JetStreamPublisher,
}

impl World {
    async fn start() -> Self {
        let folder = TemporaryFolder::create().unwrap();
        let postgres = Postgres::start(PostgresOptions::new(folder.path().join("postgres"))).await.unwrap();
        for name in ["r0", "r1"] {
            postgres.create_database(name).await.unwrap();
        }
        let nats = Nats::start(NatsOptions::new(folder.path().join("nats"))).await.unwrap();
        let event_log = EventLog::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let event_log_port = listener.local_addr().unwrap().port();
        let settings = Settings::from_toml(&format!("[installation]\ntoken_key = \"{}\"\n", "01".repeat(32))).unwrap();
        let process = Process::new(Arc::new(settings), ServiceKind::Command, &Health::new(), CancellationToken::new());
        let server = GrpcServer::new("internal", &process).add(EventLogServiceServer::new(event_log.clone()));
        tokio::spawn(server.serve(listener));
        let bus = JetStreamBus::connect(&nats.url(), "souk", "test").await.unwrap();
        let limits = StreamLimits { max_age: Duration::from_secs(3600), max_bytes: 1 << 30, replicas: 1 };
        let publisher = JetStreamPublisher::new(bus.client().clone(), bus.subjects().clone(), limits, Uuid::from_u128(1));
        publisher.reachable().await;
        Self { _folder: folder, postgres, nats, event_log, event_log_port, bus, publisher }
    }

    fn databases(&self) -> Vec<DatabaseConfig> {
        let config = |name: &&str| DatabaseConfig::new(*name, self.postgres.url(name), 4);
        ["r0", "r1"].iter().map(config).collect()
    }

    fn settings(&self) -> Settings {
        self.settings_with("")
    }

    /// With more lines of the projector's section.
    fn settings_with(&self, more: &str) -> Settings {
        let database = |name: &str| format!("{{name = \"{name}\", url = \"{}\"}}", self.postgres.url(name));
        Settings::from_toml(&format!(
            "[installation]\npartitions = {PARTITIONS}\ntoken_key = \"{}\"\n[read]\ndatabases = [{}, {}]\n[nats]\nurl = \"{}\"\n\
             [peers]\ncommand_internal = \"http://127.0.0.1:{}\"\n[projector]\nfeed_interval = \"100ms\"\nbackfill_after = \"500ms\"\n\
             retry_backoff_max = \"1s\"\n{more}",
            "01".repeat(32),
            database("r0"),
            database("r1"),
            self.nats.url(),
            self.event_log_port,
        ))
        .unwrap()
    }

    /// The log's truth, without telling the bus.
    fn record(&self, events: &[RecordedEvent]) {
        self.event_log.0.lock().unwrap().insert(events[0].log, events.to_vec());
    }

    async fn publish(&self, events: &[RecordedEvent]) {
        for event in events {
            self.publisher.publish(event).await.unwrap().await.unwrap();
        }
    }

    async fn announce(&self, events: &[RecordedEvent]) {
        let last = events.last().unwrap();
        let head = HeadAnnouncement {
            region: 1,
            partition: last.log.partition.0.into(),
            epoch: last.epoch.0,
            position: last.position.0,
            hash: last.hash.0.to_vec().into(),
            ..Default::default()
        };
        self.bus.publish_head(head).await.unwrap();
    }
}

struct Projector {
    address: String,
    health: Health,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Projector {
    async fn start(settings: Settings) -> Self {
        let (health, shutdown) = (Health::new(), CancellationToken::new());
        let process = Process::new(Arc::new(settings), ServiceKind::Projector, &health, shutdown.clone());
        let internal = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", internal.local_addr().unwrap());
        let running = tokio::spawn(souk_projector::run(process, Listeners { public: None, internal }));
        Self { address, health, shutdown, running }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.expect("it drains").unwrap().unwrap();
    }

    async fn status(&self) -> GetStatusResponse {
        let mut admin = AdminServiceClient::connect(self.address.clone()).await.unwrap();
        let status = admin.get_status(GetStatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.service, "projector");
        status
    }
}

async fn wait<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Waits until the views stand at the end of these events, and compares every row of every table.
async fn reach(store: &ReadStore, events: &[RecordedEvent]) {
    let last = events.last().unwrap();
    wait("the views reach the log's end", || async {
        // The database may be on its way back.
        let checkpoint = store.checkpoint(last.log).await;
        checkpoint
            .is_ok_and(|checkpoint| (checkpoint.position, checkpoint.hash, checkpoint.rebuilding) == (last.position, last.hash, false))
    })
    .await;
    hold(store, events).await;
}

/// The rows are the fold of these events.
async fn hold(store: &ReadStore, events: &[RecordedEvent]) {
    let last = events.last().unwrap();
    let reference = fold_reference(events).unwrap();
    let views = PostgresViews::new(store.database_of(last.log).unwrap().clone(), TABLES);
    for table in TABLES.iter().copied() {
        let rows = views.scan(table, last.log, None, 10_000).await.unwrap().rows;
        let rows: Vec<_> = rows.into_iter().map(|row| comparable(table, row)).collect();
        assert_eq!(rows, reference.rows(table), "{}", table.name);
    }
}

/// An event that no code knows, as a newer command service might write, and what an operator does about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_entity_is_shown_replayed_and_dropped() {
    let world = World::start().await;
    let mut events = history(0, 12);
    "CartTeleported".clone_into(&mut events[6].kind);
    let mut hash = LogHash::EMPTY;
    for event in &mut events {
        event.hash = hash.after(event);
        hash = event.hash;
    }
    world.record(&events);
    world.publisher.create(log(0), Position(1)).await.unwrap();
    world.publish(&events).await;
    let projector = Projector::start(world.settings()).await;
    wait("the projector is ready", || async { projector.health.is_ready() }).await;
    let store =
        ReadStore::open(&world.databases(), Access::Write, Installation { region: Region(1), partitions: PARTITIONS }).await.unwrap();
    let checkpoint = || async { store.checkpoint(log(0)).await.unwrap() };
    wait("the checkpoint passes", || async { checkpoint().await.position == Position(12) }).await;
    let status = projector.status().await.partitions;
    assert_eq!(status.iter().map(|partition| partition.parked).collect::<Vec<_>>(), [2, 0, 0, 0]);
    let read = store.read_row(&CART_VIEW, log(0), "c-0-2", &Demand::default()).await.unwrap();
    assert_eq!((read.row.unwrap().version.0, read.parked.map(|parked| parked.at)), (1, Some(Position(7))));
    let other = store.read_row(&CART_VIEW, log(0), "c-0-1", &Demand::default()).await.unwrap();
    assert_eq!((other.row.unwrap().version.0, other.parked), (3, None));

    let mut parked = ParkedEntityServiceClient::connect(projector.address.clone()).await.unwrap();
    let list = parked.list_parked_entities(ListParkedEntitiesRequest::default()).await.unwrap().into_inner();
    let listed: Vec<_> = list.entities.iter().map(|entity| (entity.stream.as_str(), entity.event_count, entity.parked_at)).collect();
    assert_eq!((listed, list.next_page_token.as_str()), (vec![("cart-c-0-2", 2, 7)], ""));
    let stream = || "cart-c-0-2".to_owned();
    let events = parked.list_parked_events(ListParkedEventsRequest { stream: stream(), ..Default::default() }).await.unwrap().into_inner();
    let shown: Vec<_> = events.events.iter().map(|event| (event.position, event.version, event.r#type.as_str())).collect();
    assert_eq!(shown, [(7, 2, "CartTeleported"), (12, 3, "ItemAdded")]);
    assert!(events.events[1].reason.contains("stands behind event 7"));
    for validate_only in [true, false] {
        let replay = ReplayParkedEntityRequest { stream: stream(), validate_only };
        let reply = parked.replay_parked_entity(replay).await.unwrap().into_inner();
        assert_eq!((reply.event_count, reply.failure.contains("CartTeleported")), (0, true));
    }

    // As if the code had learned of it: what is set aside is an event that it knows.
    let views = PostgresViews::new(store.database_of(log(0)).unwrap().clone(), TABLES);
    let aside = views.parked_events(log(0), &stream().parse().unwrap(), Position(0), 10).await.unwrap();
    let known = Event { r#type: "ItemAdded".to_owned(), ..Event::decode(aside[0].envelope.clone()).unwrap() }.encode_to_vec();
    let taught = sqlx::query("update parked_event set envelope = $1 where position = 7").bind(known);
    taught.execute(store.database_of(log(0)).unwrap().pool()).await.unwrap();
    let replay = ReplayParkedEntityRequest { stream: stream(), validate_only: false };
    let reply = parked.replay_parked_entity(replay.clone()).await.unwrap().into_inner();
    assert_eq!((reply.event_count, reply.failure.as_str()), (2, ""));
    let read = store.read_row(&CART_VIEW, log(0), "c-0-2", &Demand::default()).await.unwrap();
    assert_eq!((read.row.unwrap().version.0, read.parked, checkpoint().await.parked), (3, None, 0));
    hold(&store, &history(0, 12)).await;
    let gone = parked.replay_parked_entity(replay).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    let gone = parked.drop_parked_entity(DropParkedEntityRequest { stream: stream() }).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    projector.stop().await;
    store.close().await;
}

/// Its port is open while it still asks a command service, which does not answer, for the regions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_is_not_ready_before_it_projects() {
    let mut world = World::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.event_log_port = silent.local_addr().unwrap().port();
    let projector = Projector::start(world.settings()).await;
    let reasons = || projector.health.reasons();
    wait("its port is open", || async { !reasons().iter().any(|reason| reason.contains("grpc")) }).await;
    assert_eq!(reasons(), ["projector/read databases: starting"]);
    wait("the projector is ready", || async { projector.health.is_ready() }).await;
    assert_eq!(projector.status().await.partitions.len(), usize::from(PARTITIONS));
    projector.stop().await;
}

/// A write that the database never answers, as long as somebody else holds its row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_hangs_is_broken_off_and_the_views_go_on() {
    let world = World::start().await;
    let projector = Projector::start(world.settings_with("watchdog_after = \"500ms\"")).await;
    wait("the projector is ready", || async { projector.health.is_ready() }).await;
    let store =
        ReadStore::open(&world.databases(), Access::Write, Installation { region: Region(1), partitions: PARTITIONS }).await.unwrap();
    let mut lock = store.database_of(log(0)).unwrap().pool().begin().await.unwrap();
    sqlx::query("select from read_checkpoint for update").execute(&mut *lock).await.unwrap();
    let logs = [history(0, 20), history(1, 20)];
    for events in &logs {
        world.record(events);
        world.announce(events).await;
    }
    let restarts = || async { projector.status().await.figures["watchdog_restarts"] };
    wait("the watchdog bites", || async { restarts().await >= 2.0 }).await;
    reach(&store, &logs[1]).await;
    lock.rollback().await.unwrap();
    reach(&store, &logs[0]).await;
    projector.stop().await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_become_rows_through_bus_and_event_log() {
    let mut world = World::start().await;
    let logs: Vec<_> = (0..PARTITIONS).map(|partition| history(partition, 40 + u64::from(partition))).collect();
    let mut feed = world.bus.subscribe_changes(Region(1)).await.unwrap();
    let projector = Projector::start(world.settings()).await;
    wait("the projector is ready", || async { projector.health.is_ready() }).await;
    let store =
        ReadStore::open(&world.databases(), Access::Write, Installation { region: Region(1), partitions: PARTITIONS }).await.unwrap();

    // Log 0: all on the bus. Log 1: the bus kept only the end. Log 2: the bus has nothing. Log 3: it lost the end.
    logs.iter().for_each(|events| world.record(events));
    for (partition, first) in [(0, 1), (1, 21), (3, 1)] {
        world.publisher.create(log(partition), Position(first)).await.unwrap();
    }
    world.publish(&logs[0]).await;
    world.publish(&logs[1][20..]).await;
    world.publish(&logs[3][..20]).await;
    world.announce(&logs[2]).await;
    world.announce(&logs[3]).await;
    for events in &logs {
        reach(&store, events).await;
    }
    let read = store.read_row(&CART_VIEW, log(0), "c-0-1", &Demand::default()).await.unwrap();
    let cart = Cart::decode(read.row.unwrap().body).unwrap();
    assert_eq!((cart.customer_id.as_str(), cart.version, read.as_of.position.position), ("c-0-1", 8, Position(40)));
    the_feed_tells_of_it(&mut feed).await;
    let status = projector.status().await.partitions;
    let seen: Vec<_> = status.iter().map(|partition| (partition.partition, partition.database.as_str(), partition.position)).collect();
    assert_eq!(seen, [(0, "r0", 40), (1, "r1", 41), (2, "r0", 42), (3, "r1", 43)]);
    assert!(status.iter().all(|partition| partition.head == partition.position && partition.lag_seconds == 0.0));

    // Postgres is killed: what was not on disk goes back, rows and checkpoint together, and is projected again.
    let longer = history(0, 60);
    world.record(&longer);
    world.publish(&longer[40..50]).await;
    world.postgres.kill9().await.unwrap();
    world.publish(&longer[50..]).await;
    wait("it notices", || async { !projector.health.impairments().is_empty() }).await;
    assert!(projector.health.is_ready(), "no other replica has the database, either");
    world.postgres.start_again().await.unwrap();
    reach(&store, &longer).await;
    reach(&store, &logs[1]).await;

    // Views of another revision are folded anew, and whole again.
    let other = "update read_checkpoint set revision = revision + 1 where partition = 0";
    sqlx::query(other).execute(store.database_of(log(0)).unwrap().pool()).await.unwrap();
    wait("they are of this one", || async { store.checkpoint(log(0)).await.unwrap().revision == souk_views::revision() }).await;
    reach(&store, &longer).await;

    // NATS is gone for good: the event log alone carries the views on.
    world.nats.kill9().await.unwrap();
    let longest = history(2, 55);
    world.record(&longest);
    reach(&store, &longest).await;
    projector.stop().await;
    store.close().await;
}

/// Somewhere in the feed each log is announced at its end, and the changed carts are there.
async fn the_feed_tells_of_it(feed: &mut futures::stream::BoxStream<'static, souk_proto::log::v1::ChangeFeed>) {
    let (mut ends, mut rows) = (HashMap::new(), 0);
    while ends.len() < usize::from(PARTITIONS) {
        let change = tokio::time::timeout(Duration::from_secs(10), feed.next()).await.unwrap().unwrap();
        rows += change.rows.iter().filter(|row| row.view == "cart_view" && row.row.is_some()).count();
        if change.position == 40 + u64::from(change.partition) {
            assert_eq!(change.epoch, 1);
            ends.insert(change.partition, change.position);
        }
    }
    assert!(rows >= 20, "five carts in each of four logs, at least once: {rows}");
}
