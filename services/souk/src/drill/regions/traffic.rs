use std::{
    mem::take,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use souk_client::{Session, Souk};
use souk_proto::{
    catalog::v1::{CreateProductRequest, ProductDetails, PublishProductRequest},
    common::v1::Money,
    stock::v1::{GetAvailabilityRequest, ReceiveStockRequest},
};
use tokio::{
    task::JoinSet,
    time::{interval, sleep},
};

/// Of each region.
pub(super) const PRODUCTS: u32 = 16;
/// Callers of each kind in each region.
const CALLERS: usize = 2;
/// Callers call when it is time to, however long the call before took: a rate that the machine can carry is the same before and
/// during a cut, unless the cut takes something away. Those who wait for an answer would call more often with less to copy.
const READ_EVERY: Duration = Duration::from_millis(20);
const WRITE_EVERY: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(10);
/// A local call that takes longer was interrupted.
const NEVER_INTERRUPTED: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);

fn product(region: &str, number: u32) -> String {
    format!("{region}.p-{number}")
}

/// Puts products on sale in each region.
pub(super) async fn open_shops(clients: &[(&'static str, Souk)]) -> Result<()> {
    for (region, souk) in clients {
        let session = souk.session().caller("souk-drill").deadline(PATIENCE);
        for number in 0..PRODUCTS {
            let (product_id, details) =
                (product(region, number), Some(ProductDetails { title: "Brass lamp".into(), ..Default::default() }));
            let price = Some(Money { currency: "EUR".into(), minor_units: 5_900 });
            session.command(CreateProductRequest { product_id: product_id.clone(), details, price, ..Default::default() }).await?;
            session.command(PublishProductRequest { product_id: product_id.clone(), ..Default::default() }).await?;
            receive(&session, &product_id).await?;
        }
    }
    Ok(())
}

async fn receive(session: &Session, product_id: &str) -> Result<u64> {
    let reply = session.command(ReceiveStockRequest { product_id: product_id.into(), quantity: 1, ..Default::default() }).await?;
    Ok(reply.version)
}

/// The version of a product's stock that the session is shown.
pub(super) async fn look(session: &Session, region: &str, number: u32) -> Result<u64> {
    let reply = session.query(GetAvailabilityRequest { product_id: product(region, number), ..Default::default() }).await?;
    Ok(reply.availability.context("no stock")?.version)
}

/// Times, sorted.
pub(super) struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time that this share of them took at most.
    pub fn at(&self, share: f64) -> Duration {
        let index = (self.0.len() as f64 * share) as usize;
        self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Writes in each region and reads in each other one with the token: the times from the answer until what was written was shown.
pub(super) async fn travel(clients: &[(&'static str, Souk)], time: Duration) -> Result<Times> {
    let (began, mut travellers) = (Instant::now(), JoinSet::new());
    for (from, here) in clients {
        for (_, there) in clients.iter().filter(|(to, _)| to != from) {
            let (from, here, there) = (*from, here.clone(), there.clone());
            travellers.spawn(async move {
                let mut times = Vec::new();
                while began.elapsed() < time {
                    let (writer, reader) = (here.session().deadline(PATIENCE), there.session().deadline(PATIENCE));
                    let number = times.len() as u32 % PRODUCTS;
                    let version = receive(&writer, &product(from, number)).await?;
                    let answered = Instant::now();
                    reader.merge_token(&writer.token());
                    let shown = look(&reader, from, number).await?;
                    times.push(answered.elapsed());
                    ensure!(shown >= version, "wrote version {version}, read {shown}");
                    sleep(PAUSE).await;
                }
                anyhow::Ok(times)
            });
        }
    }
    let mut times = Vec::new();
    while let Some(seen) = travellers.join_next().await {
        times.extend(seen??);
    }
    Ok(Times::of(times))
}

/// Callers who write at home and read everything, in each region.
pub(super) struct Traffic {
    clients: Vec<(&'static str, Souk)>,
    regions: Vec<Arc<Region>>,
    stop: Arc<AtomicBool>,
    callers: JoinSet<Result<()>>,
}

/// What was done in one region.
struct Region {
    name: &'static str,
    reads: Calls,
    writes: Calls,
    /// All that was written.
    writer: Session,
}

/// How long calls took, from when it was time for them.
#[derive(Default)]
struct Calls {
    since_looked: Mutex<Vec<Duration>>,
    longest: Mutex<Duration>,
}

/// Calls of one kind in one region over some time.
pub(super) struct Pace {
    pub per_second: f64,
    pub p99: Duration,
}

pub(super) struct Paces {
    pub region: &'static str,
    pub reads: Pace,
    pub writes: Pace,
}

impl Traffic {
    pub fn start(clients: &[(&'static str, Souk)]) -> Self {
        let (stop, mut callers, mut regions) = (Arc::<AtomicBool>::default(), JoinSet::new(), Vec::new());
        let names: Arc<[_]> = clients.iter().map(|(name, _)| *name).collect();
        for (name, souk) in clients {
            let writer = souk.session().caller("souk-drill").deadline(NEVER_INTERRUPTED);
            let region = Arc::new(Region { name, reads: Calls::default(), writes: Calls::default(), writer });
            for caller in 0..CALLERS {
                callers.spawn(region.clone().write(stop.clone(), caller));
                let reader = souk.session().caller("souk-drill").deadline(NEVER_INTERRUPTED);
                callers.spawn(region.clone().read(stop.clone(), reader, names.clone()));
            }
            regions.push(region);
        }
        Self { clients: clients.to_vec(), regions, stop, callers }
    }

    pub fn clients(&self) -> &[(&'static str, Souk)] {
        &self.clients
    }

    /// Tokens of all that was written so far.
    pub fn tokens(&self) -> Vec<String> {
        self.regions.iter().map(|region| region.writer.token()).collect()
    }

    /// What callers do and wait over some time.
    pub async fn paces(&self, time: Duration) -> Vec<Paces> {
        for region in &self.regions {
            region.reads.look(time);
            region.writes.look(time);
        }
        sleep(time).await;
        self.regions
            .iter()
            .map(|region| Paces { region: region.name, reads: region.reads.look(time), writes: region.writes.look(time) })
            .collect()
    }

    /// Lets the callers go, and says what they saw.
    ///
    /// # Errors
    /// When one of them got an error.
    pub async fn stop(mut self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(caller) = self.callers.join_next().await {
            caller??;
        }
        let calls = self.regions.iter().flat_map(|region| [&region.reads, &region.writes]);
        let longest = calls.map(|calls| *lock(&calls.longest)).max();
        Ok(format!(
            "  no caller got an error; the longest wait for a local call was {:.0} ms",
            longest.unwrap_or_default().as_secs_f64() * 1e3
        ))
    }
}

impl Region {
    async fn write(self: Arc<Self>, stop: Arc<AtomicBool>, caller: usize) -> Result<()> {
        let (mut number, mut due) = (caller as u32, interval(WRITE_EVERY));
        while !stop.load(Ordering::Relaxed) {
            let due = due.tick().await;
            receive(&self.writer, &product(self.name, number % PRODUCTS)).await.with_context(|| format!("a command in {}", self.name))?;
            self.writes.took(due.elapsed());
            number += 1;
        }
        Ok(())
    }

    /// Looks at products of all regions; none may get older.
    async fn read(self: Arc<Self>, stop: Arc<AtomicBool>, reader: Session, names: Arc<[&'static str]>) -> Result<()> {
        let (mut seen, mut due) = (std::collections::HashMap::new(), interval(READ_EVERY));
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let (due, home) = (due.tick().await, names[number as usize % names.len()]);
            let version = look(&reader, home, number % PRODUCTS).await.with_context(|| format!("a read in {}", self.name))?;
            self.reads.took(due.elapsed());
            let before = seen.insert((home, number % PRODUCTS), version).unwrap_or_default();
            ensure!(version >= before, "{}: {home}.p-{} went from version {before} back to {version}", self.name, number % PRODUCTS);
        }
        Ok(())
    }
}

impl Calls {
    fn took(&self, time: Duration) {
        lock(&self.since_looked).push(time);
        let mut longest = lock(&self.longest);
        *longest = time.max(*longest);
    }

    /// What was done since this was asked last, `time` ago.
    fn look(&self, time: Duration) -> Pace {
        let times = Times::of(take(&mut *lock(&self.since_looked)));
        Pace { per_second: times.count() as f64 / time.as_secs_f64(), p99: times.at(0.99) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
