use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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
use tokio::{task::JoinSet, time::sleep};

/// Of each region.
pub(super) const PRODUCTS: u32 = 16;
/// Callers of each kind in each region: as many as leave the machine room to breathe.
const CALLERS: usize = 2;
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
    times.sort_unstable();
    Ok(Times(times))
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
    reads: AtomicUsize,
    writes: AtomicUsize,
    longest: Mutex<Duration>,
    /// All that was written.
    writer: Session,
}

/// Calls of a region per second.
pub(super) struct Rates {
    pub region: &'static str,
    pub reads: f64,
    pub writes: f64,
}

impl Traffic {
    pub fn start(clients: &[(&'static str, Souk)]) -> Self {
        let (stop, mut callers, mut regions) = (Arc::<AtomicBool>::default(), JoinSet::new(), Vec::new());
        let names: Arc<[_]> = clients.iter().map(|(name, _)| *name).collect();
        for (name, souk) in clients {
            let writer = souk.session().caller("souk-drill").deadline(NEVER_INTERRUPTED);
            let region = Region { name, reads: AtomicUsize::new(0), writes: AtomicUsize::new(0), longest: Mutex::default(), writer };
            let region = Arc::new(region);
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

    /// Calls per second over some time.
    ///
    /// # Errors
    /// When a caller has got an error meanwhile.
    pub async fn rates(&self, time: Duration) -> Result<Vec<Rates>> {
        let counts = || self.regions.iter().map(|region| [&region.reads, &region.writes].map(|count| count.load(Ordering::Relaxed)));
        let (began, before): (_, Vec<_>) = (Instant::now(), counts().collect());
        sleep(time).await;
        let seconds = began.elapsed().as_secs_f64();
        let rate = |now: usize, before: usize| (now - before) as f64 / seconds;
        let rates = self.regions.iter().zip(counts()).zip(before);
        Ok(rates
            .map(|((region, [reads, writes]), before)| Rates {
                region: region.name,
                reads: rate(reads, before[0]),
                writes: rate(writes, before[1]),
            })
            .collect())
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
        let longest = self.regions.iter().map(|region| *region.longest.lock().unwrap_or_else(PoisonError::into_inner)).max();
        Ok(format!(
            "  no caller got an error; the longest wait for a local call was {:.0} ms",
            longest.unwrap_or_default().as_secs_f64() * 1e3
        ))
    }
}

impl Region {
    async fn write(self: Arc<Self>, stop: Arc<AtomicBool>, caller: usize) -> Result<()> {
        let mut number = caller as u32;
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            receive(&self.writer, &product(self.name, number % PRODUCTS)).await.with_context(|| format!("a command in {}", self.name))?;
            self.waited(began.elapsed());
            self.writes.fetch_add(1, Ordering::Relaxed);
            number += 1;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Looks at products of all regions; none may get older.
    async fn read(self: Arc<Self>, stop: Arc<AtomicBool>, reader: Session, names: Arc<[&'static str]>) -> Result<()> {
        let mut seen = std::collections::HashMap::new();
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let (began, home) = (Instant::now(), names[number as usize % names.len()]);
            let version = look(&reader, home, number % PRODUCTS).await.with_context(|| format!("a read in {}", self.name))?;
            self.waited(began.elapsed());
            let before = seen.insert((home, number % PRODUCTS), version).unwrap_or_default();
            ensure!(version >= before, "{}: {home}.p-{} went from version {before} back to {version}", self.name, number % PRODUCTS);
            self.reads.fetch_add(1, Ordering::Relaxed);
            sleep(PAUSE).await;
        }
        Ok(())
    }

    fn waited(&self, time: Duration) {
        let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = time.max(*longest);
    }
}
