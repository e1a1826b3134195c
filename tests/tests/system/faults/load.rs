//! Callers at work while a system is in trouble, who remember what they were told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use souk_client::{Error, Session};
use souk_devstack::StackOptions;
use souk_proto::{
    orders::v1::{OrderState, PlaceOrderLine, PlaceOrderRequest},
    stock::v1::ReceiveStockRequest,
};
use souk_tests::{Acknowledged, Shop, System, patient, until};
use tokio::{
    sync::{RwLock, RwLockWriteGuard},
    task::JoinHandle,
};
use uuid::Uuid;

/// So many that a slow answer to some leaves the system busy with others.
const CALLERS: usize = 160;
/// Callers of one client share its connections.
const CLIENTS: usize = 16;
const PRODUCTS: u32 = 40;
/// Acknowledged commands between two faults: each fault hits a system that works.
const BETWEEN: usize = 350;
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a command is read back with its token.
const READ_BACK: f64 = 0.2;

/// Callers who send commands, repeat them by request id until they are answered, read some of them back, and remember
/// what was acknowledged.
pub(crate) struct Load {
    shared: Arc<Shared>,
    callers: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    acknowledged: Acknowledged,
    undecided: AtomicUsize,
    read_back: AtomicUsize,
    /// Times each caller was answered.
    answers: Vec<AtomicUsize>,
    stop: AtomicBool,
    /// Held by callers while they wait for an answer.
    road: RwLock<()>,
}

impl Load {
    pub fn start(system: &System) -> Result<Self> {
        let answers = (0..CALLERS).map(|_| AtomicUsize::new(0)).collect();
        let shared = Arc::new(Shared { answers, ..Shared::default() });
        let clients = (0..CLIENTS).map(|_| system.client()).collect::<Result<Vec<_>>>()?;
        let mut callers = Vec::new();
        for caller in 0..CALLERS {
            let (session, shared) = (patient(&clients[caller % CLIENTS]), shared.clone());
            callers.push(tokio::spawn(async move { shared.call(caller, &session).await }));
        }
        Ok(Self { shared, callers })
    }

    /// Commands acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.count()
    }

    /// Waits until the system has acknowledged some more.
    pub async fn progress(&self, fault: &str) -> Result<()> {
        let goal = self.acknowledged() + BETWEEN;
        let started = Instant::now();
        until(&format!("progress after {fault}"), PATIENCE, || async { Ok((self.acknowledged() >= goal).then_some(())) }).await?;
        println!("{fault}: {} acknowledged, {BETWEEN} more within {:.1} s", self.acknowledged(), started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Waits until every caller has been answered, and once more: the first answer may have been under way.
    pub async fn all_answered(&self) -> Result<Duration> {
        let counts = || self.shared.answers.iter().map(|answers| answers.load(Ordering::Relaxed));
        let (started, before): (_, Vec<_>) = (Instant::now(), counts().collect());
        let answered = || counts().zip(&before).all(|(now, before)| now >= before + 2);
        until("every caller answered twice", PATIENCE, || async { Ok(answered().then_some(())) }).await?;
        Ok(started.elapsed())
    }

    /// Commands whose callers were not answered for a minute of repeating.
    pub fn never_answered(&self) -> usize {
        self.shared.undecided.load(Ordering::Relaxed)
    }

    /// Holds the callers up and proves what they were told, and that log, streams and views agree.
    pub async fn check(&self, system: &System) -> Result<()> {
        let _quiet = self.quiet().await?;
        self.shared.acknowledged.stand_once(&system.write_pools().await?).await?;
        system.audit_clean().await.map(drop)
    }

    /// Nobody waits for an answer, and nobody sends anything, until this is dropped.
    async fn quiet(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        Ok(tokio::time::timeout(PATIENCE, self.shared.road.write()).await?)
    }

    /// Ends the load and proves what it was told.
    pub async fn settle(self, system: &System) -> Result<usize> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for caller in join_all(self.callers).await {
            caller??;
        }
        let shop = Shop(system.session()?);
        for state in [OrderState::Reserving, OrderState::AwaitingPayment] {
            shop.see_none_in(state, PATIENCE).await?;
        }
        self.shared.acknowledged.stand_once(&system.write_pools().await?).await?;
        system.audit_clean().await?;
        let [count, undecided, read] = [self.shared.acknowledged.count(), load(&self.shared.undecided), load(&self.shared.read_back)];
        println!("{count} acknowledged commands, each exactly once, {read} read back; {undecided} never answered");
        Ok(count)
    }
}

impl Shared {
    async fn call(&self, caller: usize, session: &Session) -> Result<()> {
        let mut random = SmallRng::seed_from_u64(caller as u64);
        while !self.stop.load(Ordering::Relaxed) {
            let _road = self.road.read().await;
            let id = Uuid::now_v7();
            match send(session, id, &mut random).await {
                Ok(written) => {
                    self.acknowledged.add(id);
                    if let Some((product_id, version)) = written.filter(|_| random.random_bool(READ_BACK)) {
                        self.read_back(session, &product_id, version).await?;
                    }
                    self.answers[caller].fetch_add(1, Ordering::Relaxed);
                }
                // No answer in a minute of repeating: it may or may not stand, and nobody was told that it does.
                Err(error) if error.outcome_is_unknown() => drop(self.undecided.fetch_add(1, Ordering::Relaxed)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The session carries the token of what it wrote: nothing older may be shown.
    async fn read_back(&self, session: &Session, product_id: &str, version: u64) -> Result<()> {
        match Shop(session.clone()).stock(product_id).await {
            Ok(seen) => {
                ensure!(seen.version >= version, "{product_id}: wrote version {version}, read {}", seen.version);
                self.read_back.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if error.outcome_is_unknown() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn load(count: &AtomicUsize) -> usize {
    count.load(Ordering::Relaxed)
}

/// What was written of a product's stock, if it was that.
async fn send(session: &Session, id: Uuid, random: &mut SmallRng) -> Result<Option<(String, u64)>, Error> {
    let product_id = format!("p-{}", random.random_range(0..PRODUCTS));
    if random.random_bool(0.15) {
        let lines = vec![PlaceOrderLine { product_id, quantity: random.random_range(1..5) }];
        let customer_id = format!("c-{}", random.random_range(0..500));
        session.command(PlaceOrderRequest { request_id: id.to_string(), customer_id, lines, ..Default::default() }).await?;
        return Ok(None);
    }
    let request = ReceiveStockRequest { request_id: id.to_string(), product_id: product_id.clone(), quantity: 1 };
    let reply = session.command(request).await?;
    Ok(Some((product_id, reply.version)))
}

pub(crate) async fn loaded_system(change: impl FnOnce(&mut StackOptions)) -> Result<(System, Load)> {
    let system = System::start(|options| {
        options.set("command.payment_window", "3s");
        change(options);
    })
    .await?;
    let load = loaded(&system).await?;
    Ok((system, load))
}

/// Fills the shop and sends callers.
pub(crate) async fn loaded(system: &System) -> Result<Load> {
    let shop = Shop(system.session()?);
    for product in 0..PRODUCTS {
        shop.sell(&format!("p-{product}"), 100, 50).await?;
    }
    let load = Load::start(system)?;
    load.progress("start").await?;
    Ok(load)
}
