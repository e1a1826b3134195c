//! Callers in every region while regions, and the ways between them, are in trouble.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use souk_client::{Error, Session, Souk};
use souk_proto::{
    orders::v1::{PlaceOrderLine, PlaceOrderRequest},
    stock::v1::ReceiveStockRequest,
};
use souk_tests::{Acknowledged, Shop, World};
use tokio::{sync::RwLock, task::JoinHandle};
use tonic::Code;
use uuid::Uuid;

pub(super) const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// Callers of each kind in each region.
const CALLERS: usize = 3;
/// Of each region.
pub(super) const PRODUCTS: u32 = 8;
const CUSTOMERS: u32 = 50;
/// Longest that what needs no other region may take while nothing of its own region is in trouble.
const NEVER_INTERRUPTED: Duration = Duration::from_secs(5);
/// Patience of a caller whose command goes to another region.
const FAR: Duration = Duration::from_secs(10);
/// Patience of one who wants to know at once.
const IMPATIENT: Duration = Duration::from_millis(400);
/// How long a reader waits for what was written elsewhere.
const TRAVEL: Duration = Duration::from_secs(20);

/// The id of something of a region.
pub(super) fn product(home: &str, number: u32) -> String {
    format!("{home}.p-{number}")
}

/// What callers of all regions have seen. They go on until it is told to stop.
pub(super) struct Load {
    shared: Arc<Shared>,
    callers: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    /// By home region.
    acknowledged: BTreeMap<&'static str, Acknowledged>,
    /// Commands that nothing was written of, said HOME_REGION_AWAY.
    away: BTreeMap<&'static str, Mutex<Vec<Uuid>>>,
    /// How often something of their own began or ceased to ail regions: odd while it does.
    ailing: BTreeMap<&'static str, AtomicUsize>,
    /// Regions whose logs went back: views of these are folded anew everywhere, some time after.
    went_back: BTreeMap<&'static str, AtomicBool>,
    counts: Counts,
    stop: AtomicBool,
    /// Held by callers while they wait for an answer.
    road: RwLock<()>,
}

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    at_home: AtomicUsize,
    elsewhere: AtomicUsize,
    local_reads: AtomicUsize,
    reads_elsewhere: AtomicUsize,
    undecided: AtomicUsize,
}

impl Load {
    /// Callers of all kinds in all regions, whose choices follow from the seed.
    pub fn start(world: &World, seed: u64) -> Result<Self> {
        let mut shared = Shared::default();
        for region in REGIONS {
            shared.acknowledged.insert(region, Acknowledged::default());
            shared.away.insert(region, Mutex::default());
            shared.ailing.insert(region, AtomicUsize::default());
            shared.went_back.insert(region, AtomicBool::new(false));
        }
        let (shared, mut random, mut callers) = (Arc::new(shared), SmallRng::seed_from_u64(seed), Vec::new());
        let clients = REGIONS.map(|region| world.client(region)).into_iter().collect::<Result<Vec<_>>>()?;
        for (here, region) in REGIONS.into_iter().enumerate() {
            for _ in 0..CALLERS {
                let caller = |random: &mut SmallRng| Caller {
                    region,
                    clients: clients.clone(),
                    here,
                    shared: shared.clone(),
                    random: SmallRng::seed_from_u64(random.random()),
                };
                callers.push(tokio::spawn(caller(&mut random).write_at_home()));
                callers.push(tokio::spawn(caller(&mut random).write_elsewhere()));
                callers.push(tokio::spawn(caller(&mut random).read_here()));
            }
        }
        Ok(Self { shared, callers })
    }

    /// What the region does by itself may fail from now on, or not any more.
    pub fn ails(&self, region: &str, ailing: bool) {
        let turns = &self.shared.ailing[region];
        if ails(turns.load(Ordering::SeqCst)) != ailing {
            turns.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Commands acknowledged so far of what is at home in a region.
    pub fn acknowledged(&self, home: &str) -> usize {
        self.shared.acknowledged[home].count()
    }

    /// Restores the logs of `home` while nobody waits for an answer, and forgets its commands acknowledged after the first `kept`.
    pub async fn lose<T>(&self, home: &str, kept: usize, restore: impl Future<Output = Result<T>>) -> Result<T> {
        let _quiet = self.shared.road.write().await;
        self.shared.went_back[home].store(true, Ordering::SeqCst);
        let restored = restore.await?;
        self.shared.acknowledged[home].forget_after(kept);
        Ok(restored)
    }

    /// Ends the load, and proves by SQL what callers were told. Says what they did.
    pub async fn prove(self, world: &World) -> Result<String> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for caller in join_all(self.callers).await {
            caller??;
        }
        for home in REGIONS {
            let pool = world.write_pool(home).await?;
            self.shared.acknowledged[home].stand_once(std::slice::from_ref(&pool)).await?;
            let away = self.shared.away[home].lock().unwrap_or_else(PoisonError::into_inner).clone();
            let written: Vec<(Uuid,)> =
                sqlx::query_as("select request_id from ledger where request_id = any($1)").bind(&away).fetch_all(&pool).await?;
            ensure!(written.is_empty(), "{home} was away, and yet wrote {written:?}");
        }
        let Counts { at_home, elsewhere, local_reads, reads_elsewhere, undecided } = &self.shared.counts;
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let away: usize = self.shared.away.values().map(|away| away.lock().unwrap_or_else(PoisonError::into_inner).len()).sum();
        Ok(format!(
            "{} commands at home and {} elsewhere, {} reads here and {} of what was just written elsewhere; {away} refused as away, {} never answered",
            count(at_home),
            count(elsewhere),
            count(local_reads),
            count(reads_elsewhere),
            count(undecided)
        ))
    }
}

/// Somebody in one region.
struct Caller {
    region: &'static str,
    /// Of all regions.
    clients: Vec<Souk>,
    here: usize,
    shared: Arc<Shared>,
    random: SmallRng,
}

impl Caller {
    fn session(&self, region: usize, deadline: Duration) -> Session {
        self.clients[region].session().caller("test").deadline(deadline)
    }

    fn elsewhere(&mut self) -> usize {
        (self.here + self.random.random_range(1..REGIONS.len())) % REGIONS.len()
    }

    /// Names the time of peace that the region is in. What began and ended in the same one met no trouble between.
    fn calm(&self) -> Option<usize> {
        Some(self.shared.ailing[self.region].load(Ordering::SeqCst)).filter(|turns| !ails(*turns))
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    /// Commands on what is at home here, each read in another region with its token at times. No other region is needed.
    async fn write_at_home(mut self) -> Result<()> {
        let shared = self.shared.clone();
        while !self.stopped() {
            let _road = shared.road.read().await;
            let (calm, began) = (self.calm(), Instant::now());
            let (id, product_id) = (Uuid::now_v7(), product(self.region, self.random.random_range(0..PRODUCTS)));
            let patience = if calm.is_some() { NEVER_INTERRUPTED } else { FAR };
            let session = self.session(self.here, patience);
            let request = ReceiveStockRequest { request_id: id.to_string(), product_id: product_id.clone(), quantity: 1 };
            match session.command(request).await {
                Ok(reply) => {
                    shared.acknowledged[self.region].add(id);
                    shared.counts.at_home.fetch_add(1, Ordering::Relaxed);
                    if self.random.random_bool(0.2) {
                        self.read_elsewhere(&session.token(), &product_id, reply.version).await?;
                    }
                }
                Err(error) if calm.is_some() && self.calm() == calm => {
                    anyhow::bail!("{}: a command at home was interrupted for {:?}: {error}", self.region, began.elapsed())
                }
                Err(error) => self.undecided(error)?,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// What was written here is seen there by its token, or the caller is told that it cannot be seen yet: never less.
    async fn read_elsewhere(&mut self, token: &str, product_id: &str, version: u64) -> Result<()> {
        let there = self.elsewhere();
        let session = self.session(there, TRAVEL);
        session.merge_token(token);
        match Shop(session).stock(product_id).await {
            Ok(seen) => {
                ensure!(seen.version >= version, "{product_id}: wrote version {version}, read {} in {}", seen.version, REGIONS[there]);
                self.shared.counts.reads_elsewhere.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => self.undecided(error),
        }
    }

    /// Commands on what is at home in other regions: some by callers who insist, some by those who want to know at once.
    async fn write_elsewhere(mut self) -> Result<()> {
        let shared = self.shared.clone();
        while !self.stopped() {
            let _road = shared.road.read().await;
            let home = REGIONS[self.elsewhere()];
            let patience = if self.random.random_bool(0.5) { FAR } else { IMPATIENT };
            let (id, session) = (Uuid::now_v7(), self.session(self.here, patience));
            match self.send_to(&session, home, id).await {
                Ok(()) => {
                    shared.acknowledged[home].add(id);
                    shared.counts.elsewhere.fetch_add(1, Ordering::Relaxed);
                }
                // An earlier attempt may have been let through.
                Err(error) if error.reason() == "HOME_REGION_AWAY" && error.attempts() == 1 => {
                    ensure!(error.retry_after().is_some(), "no time to come back in: {error}");
                    shared.away[home].lock().unwrap_or_else(PoisonError::into_inner).push(id);
                }
                Err(error) => self.undecided(error)?,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn send_to(&mut self, session: &Session, home: &str, id: Uuid) -> Result<(), Error> {
        if self.random.random_bool(0.8) {
            let product_id = product(home, self.random.random_range(0..PRODUCTS));
            let request = ReceiveStockRequest { request_id: id.to_string(), product_id, quantity: 1 };
            return session.command(request).await.map(drop);
        }
        // Units of yet another region may be needed.
        let product_id = product(REGIONS[self.random.random_range(0..REGIONS.len())], self.random.random_range(0..PRODUCTS));
        let lines = vec![PlaceOrderLine { product_id, quantity: 1 }];
        let customer_id = format!("{home}.c-{}", self.random.random_range(0..CUSTOMERS));
        session.command(PlaceOrderRequest { request_id: id.to_string(), customer_id, lines, ..Default::default() }).await.map(drop)
    }

    /// Reads of entities of all regions from here, never interrupted by what becomes of the others, and never going backwards.
    /// Only what went back may be without an answer until it is folded anew, and is never said not to be there.
    async fn read_here(mut self) -> Result<()> {
        let shared = self.shared.clone();
        let (session, mut seen) = (self.session(self.here, NEVER_INTERRUPTED), BTreeMap::new());
        while !self.stopped() {
            let _road = shared.road.read().await;
            let (calm, began) = (self.calm(), Instant::now());
            let home = REGIONS[self.random.random_range(0..REGIONS.len())];
            let product_id = product(home, self.random.random_range(0..PRODUCTS));
            match Shop(session.clone()).stock(&product_id).await {
                Ok(stock) => {
                    let least = seen.insert(product_id.clone(), stock.version).unwrap_or_default();
                    ensure!(stock.version >= least, "{product_id} in {}: read version {least}, then {}", self.region, stock.version);
                    shared.counts.local_reads.fetch_add(1, Ordering::Relaxed);
                }
                // The session has forgotten what it had seen of a log that went back.
                Err(error) if error.reason() == "LOG_RESTORED" => seen.clear(),
                Err(error) if calm.is_some() && self.calm() == calm && !shared.went_back[home].load(Ordering::SeqCst) => {
                    anyhow::bail!("{}: a read of {product_id} was interrupted for {:?}: {error}", self.region, began.elapsed())
                }
                Err(error) if error.code() == Code::NotFound => anyhow::bail!("{}: {product_id}: {error}", self.region),
                Err(error) => self.undecided(error)?,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// No answer for as long as the caller had patience, or refused all the time by a queue that was too long: it may or may not
    /// stand, and nobody was told that it does.
    fn undecided(&self, error: Error) -> Result<()> {
        let refused = error.code() == Code::ResourceExhausted;
        ensure!(
            refused || error.outcome_is_unknown() || error.reason() == "LOG_RESTORED" || self.shared.is_troubled(),
            "{}: {error}",
            self.region
        );
        self.shared.counts.undecided.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Shared {
    /// Whether what is said of some region may be untrue for now.
    fn is_troubled(&self) -> bool {
        let went_back = self.went_back.values().any(|went_back| went_back.load(Ordering::SeqCst));
        went_back || self.ailing.values().any(|turns| ails(turns.load(Ordering::SeqCst)))
    }
}

fn ails(turns: usize) -> bool {
    turns % 2 == 1
}
