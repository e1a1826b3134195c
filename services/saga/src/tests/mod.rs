//! The process manager against the real rules, a real log in Postgres and gRPC, from the event to the outbox and back.

mod hanging;
mod server;
mod sharing;
mod shop;

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use shop::{PARTITIONS, REGION, Shop, log};
use souk_devstack::{Postgres, PostgresOptions, TemporaryFolder};
use souk_domain::{
    Command, Money, OrderId, OrderStatus, PaymentReference, Price, ProductFacts, ProductId, ProductStatus, Quantity, Receipt, Title, cart,
    order, product, stock,
};
use souk_event_sourcing::{LogHash, Partition, Position, RequestId, UnixMillis, Version};
use souk_runtime::Health;
use sqlx::{Connection, PgConnection};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, LocalSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    backoff::Backoff,
    board::Board,
    commands::GrpcCommands,
    reader::Sources,
    shard::{Config, Shard},
    store::SagaStore,
    truth::GrpcTruth,
    worker::Worker,
};

/// One database with its shop and the processes that manage it.
struct World {
    shop: Arc<Shop>,
    url: String,
    address: String,
    /// How many consumers to come are never there, nor refused.
    hangs: Arc<AtomicUsize>,
    lease_ttl: Duration,
    watchdog_after: Duration,
}

const HEARTBEAT: Duration = Duration::from_millis(100);

/// A running process manager.
struct Process {
    shutdown: CancellationToken,
    board: Board,
    tasks: JoinSet<()>,
}

impl Process {
    /// The partitions it holds.
    fn holds(&self) -> BTreeSet<u16> {
        let all = self.board.all().into_iter();
        all.filter(|(_, progress)| progress.epoch.0 > 0).map(|(log, _)| log.partition.0).collect()
    }

    /// As by `kill -9`: nothing is finished, no log given up.
    fn kill(mut self) {
        self.tasks.abort_all();
    }

    async fn drain(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl World {
    async fn open(url: String) -> Self {
        let shop = Shop::open(&url).await;
        SagaStore::migrate(&url).await.unwrap();
        let tables = SagaStore::connect(&url, REGION).unwrap();
        tables.seed(&partitions()).await.unwrap();
        let address = server::serve(shop.clone()).await;
        let (lease_ttl, watchdog_after) = (Duration::from_millis(900), Duration::from_secs(30));
        Self { shop, url, address, hangs: Arc::default(), lease_ttl, watchdog_after }
    }

    fn start(&self) -> Process {
        self.start_as("saga-1", &self.url)
    }

    fn start_as(&self, replica: &str, url: &str) -> Process {
        let backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));
        let door = || souk_runtime::Peer::connect(&self.address).unwrap();
        let commands = Arc::new(GrpcCommands::new(door(), door(), Duration::from_secs(5)));
        let board = Board::default();
        let bus = Arc::new(hanging::Bus { bus: self.shop.bus.clone(), hangs: self.hangs.clone() });
        let sources = Sources { bus, truth: Arc::new(GrpcTruth::new(door())), board: board.clone(), backoff: backoff.clone() };
        let shutdown = CancellationToken::new();
        let shard = Shard {
            database: "w1".into(),
            region: REGION,
            partitions: partitions(),
            store: SagaStore::connect(url, REGION).unwrap(),
            replica: replica.to_owned(),
            sources,
            worker: Worker { commands, permits: Arc::new(Semaphore::new(16)) },
            config: Config {
                batch_events: 16,
                step_deadline: Duration::from_secs(5),
                backoff,
                timer_interval: Duration::from_millis(20),
                lease_ttl: self.lease_ttl,
                heartbeat_interval: HEARTBEAT,
                watchdog_after: self.watchdog_after,
            },
            ready: Health::new().component("database w1"),
            shutdown: shutdown.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::new(shard).run());
        Process { shutdown, board, tasks }
    }

    async fn product(&self, name: &str, units: i64) -> ProductId {
        let product: ProductId = name.parse().unwrap();
        let details = product::Details { title: Title::new(name).unwrap(), ..Default::default() };
        self.shop.must(Command::CreateProduct { product: product.clone(), details, price: Some(Price::new(eur(5)).unwrap()) }).await;
        self.shop.must(Command::PublishProduct { product: product.clone() }).await;
        self.shop.must(Command::ReceiveStock { product: product.clone(), quantity: Receipt::new(units).unwrap() }).await;
        product
    }

    /// Places an order of one customer; `lines` are products and units.
    async fn place(&self, customer: &str, lines: &[(&ProductId, i64)], pay_within_ms: i64) -> OrderId {
        let request_id = RequestId(Uuid::now_v7());
        let customer = customer.parse().unwrap();
        let order = OrderId::mint(request_id, "test", &customer, "PlaceOrder", REGION);
        let facts = ProductFacts { status: ProductStatus::Published, price: Some(eur(5)), version: Version(2) };
        let catalog = lines.iter().map(|(product, _)| ((*product).clone(), Some(facts))).collect();
        let line =
            |(product, units): &(&ProductId, i64)| cart::Line { product: (*product).clone(), quantity: Quantity::new(*units).unwrap() };
        let lines = order::OrderLines::new(lines.iter().map(line).collect()).unwrap();
        let payment_deadline = UnixMillis::now().plus_ms(pay_within_ms);
        let terms = order::Terms { customer, catalog, expected_total: None, payment_deadline };
        self.shop.execute(request_id, Command::PlaceOrder { order, lines, terms }).await.unwrap();
        order
    }

    async fn pay(&self, order: OrderId) {
        let amount = self.shop.order(order).await.total().unwrap();
        self.shop.must(Command::RecordPayment { order, reference: PaymentReference::new("p").unwrap(), amount }).await;
    }

    async fn count(&self, sql: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
    }

    /// As the relay does, tells a process where the logs end.
    async fn announce(&self, process: &Process) {
        for partition in partitions() {
            let head = souk_event_store::EventLog::head(&self.shop.store, log(partition)).await.unwrap();
            process.board.announce(log(partition), head.position);
        }
    }

    /// Everything that was due is done.
    async fn settled(&self) {
        until("the outbox is empty", async || self.count("select count(*) from saga_step").await == 0).await;
        let behind = "select count(*) from saga_checkpoint c join partition_head h using (region, partition) where c.position < h.position";
        until("all logs are applied", async || self.count(behind).await == 0).await;
        until("the outbox is empty again", async || self.count("select count(*) from saga_step").await == 0).await;
    }

    async fn becomes(&self, order: OrderId, status: OrderStatus) {
        until(&format!("order {order} is {status}"), async || self.shop.status(order).await == status).await;
    }
}

fn partitions() -> Vec<Partition> {
    (0..PARTITIONS).map(Partition).collect()
}

fn eur(minor: i64) -> Money {
    Money::new("EUR".parse().unwrap(), minor)
}

/// Waits for a condition, for long enough on any machine.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < give_up, "gave up waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const DAY_MS: i64 = 86_400_000;

async fn an_order_is_reserved_paid_and_shipped(world: World) {
    let process = world.start();
    let (lamp, shade) = (world.product("lamp", 10).await, world.product("shade", 10).await);
    let order = world.place("c-1", &[(&lamp, 2), (&shade, 1)], DAY_MS).await;
    world.becomes(order, OrderStatus::AwaitingPayment).await;
    assert_eq!((world.shop.stock(&lamp).await.available(), world.shop.stock(&shade).await.available()), (8, 9));
    let hold = *world.shop.stock(&lamp).await.hold(&order.into()).unwrap();
    let deadline = world.shop.order(order).await.placed.unwrap().payment_deadline;
    assert_eq!((hold.valid_until, hold.expires), (deadline, deadline.plus_ms(DAY_MS)));
    world.settled().await;
    assert_eq!(world.count("select count(*) from saga_timer").await, 3);
    world.pay(order).await;
    world.shop.must(Command::RecordShipment { order, shipment: Default::default() }).await;
    until("the units have left", async || world.shop.stock(&shade).await.figures().shipped == 1).await;
    world.settled().await;
    assert_eq!(world.shop.stock(&lamp).await.figures().shipped, 2);
    assert_eq!(world.count("select count(*) from saga_timer").await + world.count("select count(*) from saga_order").await, 0);
    process.drain().await;
}

async fn a_refused_line_rejects_the_order_and_releases_every_line(world: World) {
    let process = world.start();
    let (lamp, shade) = (world.product("lamp", 10).await, world.product("shade", 1).await);
    let order = world.place("c-1", &[(&lamp, 2), (&shade, 3)], DAY_MS).await;
    world.becomes(order, OrderStatus::Rejected).await;
    until("the lines are free", async || world.shop.stock(&lamp).await.available() == 10).await;
    world.settled().await;
    let tombstones = |state: &stock::State| state.tombstones().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(tombstones(&world.shop.stock(&lamp).await), [order.into()]);
    assert_eq!(tombstones(&world.shop.stock(&shade).await), [order.into()], "a refused line is released, too");
    process.drain().await;
}

async fn an_order_nobody_pays_is_cancelled_at_its_deadline(world: World) {
    let process = world.start();
    let lamp = world.product("lamp", 10).await;
    let unpaid = world.place("c-1", &[(&lamp, 2)], 400).await;
    let late = world.place("c-1", &[(&lamp, 2)], -1).await;
    world.becomes(unpaid, OrderStatus::Cancelled).await;
    world.becomes(late, OrderStatus::Rejected).await;
    until("the units are free", async || world.shop.stock(&lamp).await.available() == 10).await;
    world.settled().await;
    process.drain().await;
}

async fn a_cancelled_order_gives_its_units_back(world: World) {
    let process = world.start();
    let lamp = world.product("lamp", 10).await;
    let early = world.place("c-1", &[(&lamp, 2)], DAY_MS).await;
    world.shop.must(Command::CancelOrder { order: early, reason: Default::default() }).await;
    let paid = world.place("c-1", &[(&lamp, 3)], DAY_MS).await;
    world.becomes(paid, OrderStatus::AwaitingPayment).await;
    world.pay(paid).await;
    world.shop.must(Command::CancelOrder { order: paid, reason: Default::default() }).await;
    until("the units are free", async || world.shop.stock(&lamp).await.available() == 10).await;
    world.settled().await;
    assert_eq!(world.shop.stock(&lamp).await.available(), 10);
    process.drain().await;
}

async fn a_hold_nobody_ended_expires_and_one_still_needed_is_kept(world: World) {
    let process = world.start();
    let lamp = world.product("lamp", 10).await;
    let order = world.place("c-1", &[(&lamp, 2)], DAY_MS).await;
    world.becomes(order, OrderStatus::AwaitingPayment).await;
    let reserve = |reservation: souk_domain::ReservationId, expires_ms| {
        let now = UnixMillis::now();
        let hold = stock::Hold { quantity: Quantity::new(1).unwrap(), valid_until: now.plus_ms(100), expires: now.plus_ms(expires_ms) };
        Command::ReserveStock { product: lamp.clone(), reservation, hold, now }
    };
    world.shop.must(reserve("somebody".parse().unwrap(), 200)).await;
    until("the hold is gone", async || world.shop.stock(&lamp).await.hold(&"somebody".parse().unwrap()).is_none()).await;
    // As if the far expiry of an open order's hold had come.
    let mut connection = PgConnection::connect(&world.url).await.unwrap();
    sqlx::query("update saga_timer set due_ms = 0 where kind = 5").execute(&mut connection).await.unwrap();
    let put_off = "select count(*) from saga_timer where kind = 5 and due_ms > 1000 and attempt = 2";
    until("the timer was put off", async || world.count(put_off).await == 1).await;
    assert_eq!(world.shop.stock(&lamp).await.reserved(), 2);
    process.drain().await;
}

/// Faults in half the calls, a third of the events missing on the bus, and processes that die one after the other.
async fn every_order_ends_whatever_fails_and_nothing_is_sent_under_a_second_id(world: World) {
    const ORDERS: usize = 60;
    world.shop.flaky.store(true, Ordering::Relaxed);
    world.shop.lossy.store(true, Ordering::Relaxed);
    let (lamp, shade) = (world.product("lamp", 100).await, world.product("shade", 30).await);
    let mut orders = Vec::new();
    let mut process = world.start();
    for round in 0..ORDERS {
        orders.push(world.place(&format!("c-{}", round % 7), &[(&lamp, 1), (&shade, 1)], DAY_MS).await);
        if round % 10 == 9 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            process.kill();
            process = world.start();
        }
    }
    // The bus does not tell of the last events; the announced heads do.
    let statuses = async || {
        let mut statuses = Vec::new();
        for order in &orders {
            statuses.push(world.shop.status(*order).await);
        }
        statuses
    };
    let ended = async || {
        world.announce(&process).await;
        statuses().await.iter().all(|status| matches!(status, OrderStatus::AwaitingPayment | OrderStatus::Rejected))
    };
    until("every order is reserved or rejected", ended).await;
    until("refused orders have released their lamps", async || {
        world.announce(&process).await;
        world.shop.stock(&lamp).await.reserved() == 30
    })
    .await;
    let reserved = statuses().await.iter().filter(|status| **status == OrderStatus::AwaitingPayment).count();
    assert_eq!((reserved, world.shop.stock(&shade).await.reserved()), (30, 30));
    world.shop.flaky.store(false, Ordering::Relaxed);
    until("the outbox is empty", async || {
        world.announce(&process).await;
        world.count("select count(*) from saga_step").await == 0
    })
    .await;
    let ids = world.shop.ids.lock().unwrap().clone();
    assert!(ids.len() >= ORDERS * 3, "{}", ids.len());
    for (about, ids) in &ids {
        assert_eq!(ids.len(), 1, "{about}");
    }
    process.drain().await;
}

async fn the_bus_alone_decides_nothing(world: World) {
    let lamp = world.product("lamp", 10).await;
    let process = world.start();
    let order = world.place("c-1", &[(&lamp, 1)], DAY_MS).await;
    world.becomes(order, OrderStatus::AwaitingPayment).await;
    world.settled().await;
    // A cancellation that the log does not hold, as after the log went back: it continues the chain all the same.
    let partition = souk_event_sourcing::partition_of(order.key().hash(), PARTITIONS);
    let head = souk_event_store::EventLog::head(&world.shop.store, log(partition)).await.unwrap();
    let last = souk_event_store::EventLog::read(&world.shop.store, log(partition), head.position, 1).await.unwrap().remove(0);
    let cancelled = order::Event::OrderCancelled { cause: order::CancelCause::Caller, reason: Default::default(), refund_due: false };
    let new = souk_codec::encode(&order.stream(), &souk_domain::Event::Order(cancelled));
    let mut forged = last.clone();
    forged.position = last.position.next();
    forged.stream = new.stream;
    forged.kind = new.kind.into();
    forged.payload = new.payload;
    forged.hash = LogHash::EMPTY;
    forged.hash = last.hash.after(&forged);
    let position = forged.position;
    let before = world.count("select max(epoch) from saga_checkpoint").await;
    world.shop.bus.put(forged);
    // After a refused write the log is claimed anew.
    until("the write was refused", async || world.count("select max(epoch) from saga_checkpoint").await > before).await;
    assert_eq!(world.count("select count(*) from saga_step").await, 0);
    assert_eq!(world.shop.stock(&lamp).await.reserved(), 1);
    // The log goes on differently, and so does the bus once its relay has mended it.
    world.shop.bus.change(log(partition), |stream| stream.events.remove(&position));
    world.pay(order).await;
    world.settled().await;
    assert_eq!(world.shop.status(order).await, OrderStatus::Paid);
    process.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_keeps_its_word() {
    LocalSet::new().run_until(all_scenarios()).await;
}

async fn all_scenarios() {
    let folder = TemporaryFolder::create().unwrap();
    let postgres = Postgres::start(PostgresOptions::new(folder.path().join("postgres"))).await.unwrap();
    let mut scenarios = JoinSet::new();
    let mut names = BTreeSet::new();
    macro_rules! scenario {
        ($($name:path),+ $(,)?) => {$(
            names.insert(stringify!($name));
            let database = format!("saga_{}", names.len());
            postgres.create_database(&database).await.unwrap();
            let url = postgres.url(&database);
            scenarios.spawn_local(named(stringify!($name), async move { $name(World::open(url).await).await }));
        )+};
    }
    scenario!(
        an_order_is_reserved_paid_and_shipped,
        a_refused_line_rejects_the_order_and_releases_every_line,
        an_order_nobody_pays_is_cancelled_at_its_deadline,
        a_cancelled_order_gives_its_units_back,
        a_hold_nobody_ended_expires_and_one_still_needed_is_kept,
        every_order_ends_whatever_fails_and_nothing_is_sent_under_a_second_id,
        the_bus_alone_decides_nothing,
        hanging::a_reader_that_hangs_is_started_anew,
        hanging::a_call_that_hangs_is_broken_off,
        sharing::a_write_under_another_epoch_or_position_changes_nothing,
        sharing::who_lives_keeps_its_logs_and_who_left_or_is_silent_loses_them,
        sharing::replicas_share_logs_and_who_leaves_gives_them_up_at_once,
        sharing::who_dies_is_replaced_when_its_heartbeat_is_old,
        sharing::who_was_cut_off_is_fenced_and_takes_its_share_again,
        sharing::nobody_is_dead_to_a_replica_that_was_away_itself,
        sharing::a_crash_that_takes_a_release_back_leaves_no_log_behind,
    );
    while let Some(ended) = scenarios.join_next().await {
        names.remove(ended.expect("a scenario failed; its name stands above"));
    }
    assert!(names.is_empty());
}

/// Tells which scenario a panic belongs to.
async fn named(name: &'static str, scenario: impl Future<Output = ()>) -> &'static str {
    struct Tell(&'static str);
    impl Drop for Tell {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("scenario failed: {}", self.0);
            }
        }
    }
    let _tell = Tell(name);
    let started = Instant::now();
    scenario.await;
    println!("{:>6.1?} {name}", started.elapsed());
    name
}
