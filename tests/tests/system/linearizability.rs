use std::{
    collections::BTreeMap,
    error::Error as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use souk_client::Door;
use souk_devstack::Service;
use souk_proto::stock::v1::{
    AdjustStockRequest, CommitReservationRequest, ReceiveStockRequest, ReleaseReservationRequest, ReserveStockRequest,
    command_service_client::CommandServiceClient,
};
use souk_tests::{
    Shop, System, fault_time,
    linearizability::{self, Model},
    seed, until,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::command_replicas::{owned, shared_by};

const KEYS: usize = 6;
const CALLERS_PER_KEY: usize = 4;
const UNITS: i64 = 100;
/// Between two operations of a caller, at most.
const THINKING: Duration = Duration::from_millis(20);
const ATTEMPT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers between two faults: each fault hits a system that works.
const BETWEEN: usize = 200;
/// More than there ever are: an adjustment by it is refused with the figures, which makes it a read.
const TOO_MANY: i64 = 1_000_000_000;

/// The stock of one product, as the replies to its commands tell of it.
#[derive(Debug)]
struct Stock;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    version: u64,
    on_hand: i64,
    holds: BTreeMap<u64, i64>,
}

#[derive(Debug, Clone)]
enum Ask {
    Receive(i64),
    Adjust {
        delta: i64,
        at: Option<u64>,
    },
    Reserve {
        order: u64,
        quantity: i64,
    },
    /// Of an order that was held and is ended once.
    Release {
        order: u64,
    },
    Commit {
        order: u64,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Told {
    Version(u64),
    Insufficient { available: i64 },
    BelowReserved { on_hand: i64, reserved: i64 },
    Stale { current: u64 },
    NotHeld,
}

type Operation = linearizability::Operation<Ask, Told>;

impl Model for Stock {
    type State = State;
    type Input = Ask;
    type Output = Told;

    fn apply(state: &State, ask: &Ask) -> (State, Told) {
        let mut next = state.clone();
        let reserved: i64 = state.holds.values().sum();
        let (on_hand, available, current) = (state.on_hand, state.on_hand - reserved, state.version);
        let refusal = match *ask {
            Ask::Adjust { at: Some(version), .. } if version != current => Some(Told::Stale { current }),
            Ask::Adjust { delta, .. } if on_hand + delta < reserved => Some(Told::BelowReserved { on_hand, reserved }),
            Ask::Reserve { quantity, .. } if available < quantity => Some(Told::Insufficient { available }),
            Ask::Release { order } | Ask::Commit { order } if !state.holds.contains_key(&order) => Some(Told::NotHeld),
            Ask::Receive(units) | Ask::Adjust { delta: units, .. } => {
                next.on_hand += units;
                None
            }
            Ask::Reserve { order, quantity } => {
                next.holds.insert(order, quantity);
                None
            }
            Ask::Release { order } => {
                next.holds.remove(&order);
                None
            }
            Ask::Commit { order } => {
                next.on_hand -= next.holds.remove(&order).unwrap_or_default();
                None
            }
        };
        if let Some(told) = refusal {
            return (next, told);
        }
        next.version += 1;
        let told = Told::Version(next.version);
        (next, told)
    }

    fn is_past(state: &State, told: &Told) -> bool {
        match told {
            Told::Version(version) => *version <= state.version,
            Told::Stale { current } => *current < state.version,
            _ => false,
        }
    }
}

/// What all callers share.
struct Load {
    /// Of each replica.
    channels: Vec<Channel>,
    began: Instant,
    stop: AtomicBool,
    answered: AtomicUsize,
    attempts: AtomicUsize,
    unanswered: AtomicUsize,
    repeats: AtomicUsize,
}

/// One caller of one product.
struct Caller {
    load: Arc<Load>,
    random: SmallRng,
    product: String,
    /// The version it heard of last.
    version: u64,
    /// Orders it holds units for.
    held: Vec<u64>,
    history: Vec<Operation>,
}

impl Caller {
    async fn run(mut self) -> Result<Vec<Operation>> {
        while !self.load.stop.load(Ordering::Relaxed) {
            let ask = self.choose();
            let patient = self.random.random_bool(0.7);
            self.operate(ask, patient).await?;
            sleep(self.random.random_range(Duration::ZERO..THINKING)).await;
        }
        Ok(self.history)
    }

    fn choose(&mut self) -> Ask {
        let random = &mut self.random;
        if !self.held.is_empty() && random.random_bool(0.4) {
            let order = self.held.swap_remove(random.random_range(0..self.held.len()));
            return if random.random_bool(0.5) { Ask::Release { order } } else { Ask::Commit { order } };
        }
        match random.random_range(0..100) {
            0..25 => Ask::Adjust { delta: -TOO_MANY, at: None },
            25..45 => Ask::Receive(random.random_range(1..40)),
            45..60 => Ask::Adjust { delta: random.random_range(-40..0), at: None },
            60..75 => Ask::Adjust { delta: random.random_range(1..20), at: Some(self.version) },
            _ => Ask::Reserve { order: random.random_range(0..1 << 48), quantity: random.random_range(1..60) },
        }
    }

    /// Carries out one operation, under one request id: it begins with its first attempt and ends with its answer, however many
    /// attempts that takes. A caller without patience leaves it open after an attempt that may have reached the service.
    async fn operate(&mut self, ask: Ask, patient: bool) -> Result<()> {
        let (id, sent) = (Uuid::now_v7(), self.load.now());
        let deadline = Instant::now() + PATIENCE;
        let told = loop {
            match self.attempt(id, &ask).await {
                Ok(told) => break Some(told),
                Err(status) if is_refused_connection(&status) => {}
                Err(_) if !patient => break None,
                Err(status) => ensure!(Instant::now() < deadline, "{ask:?} of {}: {status}", self.product),
            }
            sleep(THINKING).await;
        };
        let at = self.load.now();
        if let Some(told) = &told {
            self.learn(&ask, told);
            self.load.answered.fetch_add(1, Ordering::Relaxed);
            // A stale etag is no outcome that is remembered.
            if !matches!(told, Told::Stale { .. }) && self.random.random_bool(0.05) {
                self.repeat(id, &ask, told).await?;
            }
        }
        self.history.push(Operation { input: ask, sent, answer: told.map(|told| (at, told)) });
        Ok(())
    }

    fn learn(&mut self, ask: &Ask, told: &Told) {
        if let Told::Version(version) | Told::Stale { current: version } = told {
            self.version = *version;
        }
        if let (Ask::Reserve { order, .. }, Told::Version(_)) = (ask, told) {
            self.held.push(*order);
        }
    }

    /// The same again under the same id is told the same, if it is told anything.
    async fn repeat(&mut self, id: Uuid, ask: &Ask, told: &Told) -> Result<()> {
        if let Ok(again) = self.attempt(id, ask).await {
            ensure!(again == *told, "{ask:?} of {} was told {told:?}, and when repeated {again:?}", self.product);
            self.load.repeats.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// One call to any of the replicas.
    ///
    /// # Errors
    /// When there is no answer; whether it took effect is unknown then.
    async fn attempt(&mut self, id: Uuid, ask: &Ask) -> Result<Told, Status> {
        let channel = self.load.channels[self.random.random_range(0..self.load.channels.len())].clone();
        self.load.attempts.fetch_add(1, Ordering::Relaxed);
        let late = |_| Err(Status::deadline_exceeded("no answer to this attempt"));
        let outcome = timeout(ATTEMPT, send(channel, id, &self.product, ask)).await.unwrap_or_else(late);
        let told = outcome.map(Told::Version).or_else(|status| refusal(&status).ok_or(status));
        if let Err(status) = &told {
            assert!(is_unanswered(status), "{ask:?} of {}: {status}", self.product);
            self.load.unanswered.fetch_add(1, Ordering::Relaxed);
        }
        told
    }
}

/// Sends a command once; the version it led to.
async fn send(channel: Channel, id: Uuid, product: &str, ask: &Ask) -> Result<u64, Status> {
    let mut stock = CommandServiceClient::new(channel);
    let (request_id, product_id) = (id.to_string(), product.to_owned());
    match *ask {
        Ask::Receive(quantity) => {
            let command = ReceiveStockRequest { request_id, product_id, quantity };
            stock.receive_stock(command).await.map(|reply| reply.into_inner().version)
        }
        Ask::Adjust { delta, at } => {
            let etag = at.map(|version| format!("1-{version}")).unwrap_or_default();
            let command = AdjustStockRequest { request_id, product_id, delta, etag, ..Default::default() };
            stock.adjust_stock(command).await.map(|reply| reply.into_inner().version)
        }
        Ask::Reserve { order, quantity } => {
            let command = ReserveStockRequest { request_id, product_id, order_id: format!("o-{order}"), quantity, ..Default::default() };
            stock.reserve_stock(command).await.map(|reply| reply.into_inner().version)
        }
        Ask::Release { order } => {
            let command = ReleaseReservationRequest { request_id, product_id, order_id: format!("o-{order}"), ..Default::default() };
            stock.release_reservation(command).await.map(|reply| reply.into_inner().version)
        }
        Ask::Commit { order } => {
            let command = CommitReservationRequest { request_id, product_id, order_id: format!("o-{order}") };
            stock.commit_reservation(command).await.map(|reply| reply.into_inner().version)
        }
    }
}

/// A refusal that tells of the stock; `None` for anything else that went wrong.
fn refusal(status: &Status) -> Option<Told> {
    let info = status.get_details_error_info()?;
    let figure = |name: &str| info.metadata.get(name)?.parse::<i64>().ok();
    match info.reason.as_str() {
        "INSUFFICIENT_STOCK" => Some(Told::Insufficient { available: figure("available")? }),
        "BELOW_RESERVED" => Some(Told::BelowReserved { on_hand: figure("on_hand")?, reserved: figure("reserved")? }),
        "STALE_ETAG" => Some(Told::Stale { current: figure("current_version")?.cast_unsigned() }),
        "RESERVATION_NOT_FOUND" => Some(Told::NotHeld),
        _ => None,
    }
}

/// Whether a failure leaves open what became of the command: the connection broke, or the service asks to repeat it.
fn is_unanswered(status: &Status) -> bool {
    let asked_again = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted);
    asked_again || status.source().is_some()
}

/// Nothing was sent over a connection that did not come about.
fn is_refused_connection(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        source = error.source();
    }
    false
}

impl Load {
    /// Nanoseconds on the clock of all callers.
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Waits until some more operations were answered.
    async fn progress(&self, fault: &str) -> Result<()> {
        let goal = self.answered.load(Ordering::Relaxed) + BETWEEN;
        until(&format!("progress after: {fault}"), PATIENCE, || async {
            Ok((self.answered.load(Ordering::Relaxed) >= goal).then_some(()))
        })
        .await?;
        let [answered, unanswered] = [&self.answered, &self.unanswered].map(|count| count.load(Ordering::Relaxed));
        println!("{:5.1} s {fault}: {answered} answered, {unanswered} attempts unanswered", self.began.elapsed().as_secs_f64());
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill(u16),
    /// Past its lease, so that it wakes up as an owner that is none.
    Pause(u16),
    KillPostgres,
}

impl Fault {
    async fn strike(self, system: &mut System, load: &Load) -> Result<()> {
        let end = Instant::now() + fault_time();
        match self {
            Self::Kill(index) => {
                system.kill((Service::Command, index)).await?;
                load.progress(&format!("replica {index} killed")).await?;
                sleep_until(end).await;
                system.start_again((Service::Command, index)).await?;
            }
            Self::Pause(index) => {
                system.pause((Service::Command, index))?;
                until("the other owns all", PATIENCE, || async {
                    Ok(owned(system, Service::Command).await?.iter().any(|(_, count)| *count == 64).then_some(()))
                })
                .await?;
                load.progress(&format!("replica {index} paused")).await?;
                sleep_until(end).await;
                system.resume((Service::Command, index))?;
                load.progress(&format!("replica {index} resumed")).await?;
            }
            Self::KillPostgres => {
                system.stack.postgres.kill9().await?;
                system.stack.postgres.start_again().await?;
                load.progress("Postgres killed").await?;
                sleep_until(end).await;
            }
        }
        shared_by(system, Service::Command, 2).await?;
        load.progress("whole again").await
    }
}

/// A product with some units, and its stock as the model has it.
async fn begin(shop: &Shop, product: &str) -> Result<State> {
    shop.sell(product, 100, 0).await?;
    let received = shop.0.command(ReceiveStockRequest { product_id: product.into(), quantity: UNITS, ..Default::default() }).await?;
    Ok(State { version: received.version, on_hand: UNITS, holds: BTreeMap::new() })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_on_a_product_have_one_order_whatever_dies_or_sleeps() -> Result<()> {
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut system = System::start(|options| {
        options.replicas(Service::Command, 2);
    })
    .await?;
    shared_by(&system, Service::Command, 2).await?;
    let shop = Shop(system.session()?);
    let channels = [1, 2].map(|index| system.client_of(index, 1)?.channel(Door::Command).context("a public door"));
    let load = Arc::new(Load {
        channels: channels.into_iter().collect::<Result<_>>()?,
        began: Instant::now(),
        stop: AtomicBool::default(),
        answered: AtomicUsize::default(),
        attempts: AtomicUsize::default(),
        unanswered: AtomicUsize::default(),
        repeats: AtomicUsize::default(),
    });
    let caller = |key: usize, version: u64, random: &mut SmallRng| Caller {
        load: load.clone(),
        random: SmallRng::from_rng(random),
        product: format!("p-{key}"),
        version,
        held: Vec::new(),
        history: Vec::new(),
    };
    let (mut begun, mut callers) = (Vec::new(), JoinSet::new());
    for key in 0..KEYS {
        let state = begin(&shop, &format!("p-{key}")).await?;
        for _ in 0..CALLERS_PER_KEY {
            let caller = caller(key, state.version, &mut random);
            callers.spawn(async move { caller.run().await.map(|history| (key, history)) });
        }
        begun.push(state);
    }
    load.progress("begun").await?;
    let mut faults = [Fault::Kill(1), Fault::Kill(2), Fault::Pause(random.random_range(1..=2)), Fault::KillPostgres];
    faults.shuffle(&mut random);
    for fault in faults {
        fault.strike(&mut system, &load).await.with_context(|| format!("{fault:?}"))?;
    }
    load.stop.store(true, Ordering::Relaxed);
    let mut histories = vec![Vec::new(); KEYS];
    while let Some(done) = callers.join_next().await {
        let (key, history) = done??;
        histories[key].extend(history);
    }
    // At last everything acknowledged must be there.
    for (key, history) in histories.iter_mut().enumerate() {
        let mut last = caller(key, 0, &mut random);
        last.operate(Ask::Adjust { delta: -TOO_MANY, at: None }, true).await?;
        history.append(&mut last.history);
    }
    explain(begun, histories, &load)?;
    system.audit_clean().await.map(drop)
}

/// Fails unless each history has an order.
fn explain(begun: Vec<State>, histories: Vec<Vec<Operation>>, load: &Load) -> Result<()> {
    let (mut operations, mut unknown) = (0, 0);
    for (key, (state, history)) in begun.into_iter().zip(histories).enumerate() {
        let (count, open) = (history.len(), history.iter().filter(|operation| operation.answer.is_none()).count());
        // The search would have noticed a lost change.
        let mut without = history.clone();
        without.sort_by_key(|operation| operation.sent);
        let first = without.iter().position(|operation| matches!(operation.answer, Some((_, Told::Version(_))))).context("no change")?;
        without.remove(first);
        ensure!(linearizability::check::<Stock>(state.clone(), without).is_err(), "p-{key} is explained without a change it had");
        let Ok(configurations) = linearizability::check::<Stock>(state, history).map_err(|wrong| println!("p-{key}: {wrong}")) else {
            bail!("the history of p-{key} has no explanation");
        };
        println!("p-{key}: {count} operations, {open} of unknown outcome, {configurations} configurations searched");
        (operations, unknown) = (operations + count, unknown + open);
    }
    let [attempts, unanswered, repeats] = [&load.attempts, &load.unanswered, &load.repeats].map(|count| count.load(Ordering::Relaxed));
    println!("{operations} operations on {KEYS} keys linearizable, {unknown} of unknown outcome");
    println!("{attempts} attempts, {unanswered} of them unanswered; {repeats} repeats after an answer, each told the same");
    ensure!(unanswered > 0 && unknown > 0, "no fault was felt");
    Ok(())
}
