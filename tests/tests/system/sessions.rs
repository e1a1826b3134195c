use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use souk_client::{Session, Souk};
use souk_devstack::Service;
use souk_event_sourcing::HeldToken;
use souk_proto::stock::v1::{GetAvailabilityRequest, ReceiveStockRequest};
use souk_tests::{Shop, System, seed, until};
use tokio::{task::JoinSet, time::Instant};

const PRODUCTS: usize = 50;
const PAIRS: usize = 10_000;
const CALLERS: usize = 32;

/// Each caller writes to a product of its own and reads it back with the token: it must see its own write, whatever the
/// caches held before.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_writes_are_read_back_and_none_is_stale() -> Result<()> {
    let system = Arc::new(System::start(|_| {}).await?);
    let shop = Shop(system.session()?);
    for product in 0..PRODUCTS {
        shop.sell(&format!("p-{product}"), 100, 0).await?;
    }
    let souk = system.client()?;
    stream::iter(0..CALLERS)
        .map(|caller| {
            let souk = souk.clone();
            async move {
                for round in 0..PAIRS.div_ceil(CALLERS) {
                    // A fresh session: nothing but this write's own token is known to it.
                    let shop = Shop(souk.session().caller("test"));
                    let product = format!("p-{}", (caller * 7 + round) % PRODUCTS);
                    let written =
                        shop.0.command(ReceiveStockRequest { product_id: product.clone(), quantity: 1, ..Default::default() }).await?;
                    let seen = shop.stock(&product).await?;
                    ensure!(seen.version >= written.version, "{product}: wrote version {}, read {}", written.version, seen.version);
                }
                Ok(())
            }
        })
        .buffer_unordered(CALLERS)
        .try_collect::<Vec<_>>()
        .await?;
    system.audit_clean().await?;
    Ok(())
}

/// Sessions of the second test, and keys that several of them write.
const SESSIONS: usize = 128;
const KEYS: usize = 16;
const OPERATIONS: usize = 100_000;
/// Of a hundred operations.
const WRITES: u32 = 4;
const HOPS: u32 = 10;
/// An attempt at one replica, before the session turns to the other.
const ATTEMPT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// One user who is sent to another query replica now and then, and always when the present one does not answer. Nothing goes along
/// but the token.
struct Hopping {
    replicas: [Session; 2],
    at: usize,
    /// By key, the version it must see at least: of what it wrote and of what it saw.
    least: [u64; KEYS],
    /// What it holds, read by itself.
    token: HeldToken,
    counts: Arc<Counts>,
    random: SmallRng,
}

#[derive(Default)]
struct Counts {
    reads: AtomicUsize,
    writes: AtomicUsize,
    hops: AtomicUsize,
    flights: AtomicUsize,
}

impl Counts {
    fn operations(&self) -> usize {
        self.reads.load(Ordering::Relaxed) + self.writes.load(Ordering::Relaxed)
    }
}

fn product(key: usize) -> String {
    format!("p-{key}")
}

impl Hopping {
    async fn run(mut self, operations: usize) -> Result<()> {
        for _ in 0..operations {
            if self.random.random_ratio(HOPS, 100) {
                self.hop();
                self.counts.hops.fetch_add(1, Ordering::Relaxed);
            }
            let key = self.random.random_range(0..KEYS);
            if self.random.random_ratio(WRITES, 100) { self.write(key).await? } else { self.read(key).await? }
        }
        Ok(())
    }

    fn hop(&mut self) {
        let token = self.replicas[self.at].token();
        self.at = 1 - self.at;
        self.replicas[self.at].forget();
        self.replicas[self.at].merge_token(&token);
    }

    async fn write(&mut self, key: usize) -> Result<()> {
        let command = ReceiveStockRequest { product_id: product(key), quantity: 1, ..Default::default() };
        let written = self.replicas[self.at].clone().deadline(PATIENCE).command(command).await?;
        ensure!(written.version > self.least[key], "p-{key}: wrote version {} after {}", written.version, self.least[key]);
        self.least[key] = written.version;
        self.token.merge(&written.token)?;
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn read(&mut self, key: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let seen = loop {
            let query = GetAvailabilityRequest { product_id: product(key), ..Default::default() };
            match self.replicas[self.at].query(query).await {
                Ok(seen) => break seen,
                Err(error) if error.outcome_is_unknown() && Instant::now() < deadline => {
                    self.hop();
                    self.counts.flights.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return Err(error.into()),
            }
        };
        let version = seen.availability.unwrap_or_default().version;
        ensure!(version >= self.least[key], "p-{key}: read version {version} after {}", self.least[key]);
        self.least[key] = version;
        let text = seen.as_of.unwrap_or_default().token;
        let mut told = HeldToken::default();
        told.merge(&text)?;
        for now in told.positions() {
            let before = self.token.positions().find(|held| held.log == now.log);
            let covered = before.is_none_or(|held| (held.epoch, held.position) <= (now.epoch, now.position));
            ensure!(covered, "p-{key}: read as of {now:?} with a token of {before:?}");
        }
        self.token.merge(&text)?;
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Kills and restarts the replicas in turn, each time after a while of work, until all is done; how often.
async fn kill_in_turn(system: &mut System, counts: &Counts) -> Result<u16> {
    let mut kills = 0;
    let works_on = || async {
        let goal = (counts.operations() + OPERATIONS / 20).min(OPERATIONS);
        until("sessions go on", PATIENCE, || async { Ok((counts.operations() >= goal).then_some(())) }).await
    };
    while counts.operations() < OPERATIONS {
        let replica = (Service::Query, 1 + kills % 2);
        works_on().await?;
        system.kill(replica).await?;
        kills += 1;
        works_on().await?;
        system.start_again(replica).await?;
    }
    Ok(kills)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_hop_between_replicas_never_read_below_their_token_while_replicas_die() -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed());
    let mut system = System::start(|options| {
        options.replicas(Service::Query, 2);
    })
    .await?;
    let shop = Shop(system.session()?);
    for key in 0..KEYS {
        shop.sell(&product(key), 100, 1).await?;
    }
    let (replicas, counts) = ([system.client_of(1, 1)?, system.client_of(1, 2)?], Arc::<Counts>::default());
    let mut sessions = JoinSet::new();
    for _ in 0..SESSIONS {
        // Nothing is known but that the products are there.
        let mut token = HeldToken::default();
        token.merge(&shop.0.token())?;
        let at_replica = |souk: &Souk| {
            let session = souk.session().caller("test").deadline(ATTEMPT);
            session.merge_token(&token.text());
            session
        };
        let session = Hopping {
            replicas: replicas.each_ref().map(at_replica),
            at: random.random_range(0..2),
            least: [0; KEYS],
            token,
            counts: counts.clone(),
            random: SmallRng::from_rng(&mut random),
        };
        sessions.spawn(session.run(OPERATIONS.div_ceil(SESSIONS)));
    }
    let started = Instant::now();
    let all = async {
        while let Some(done) = sessions.join_next().await {
            done??;
        }
        Ok(started.elapsed())
    };
    let (time, kills) = tokio::try_join!(all, kill_in_turn(&mut system, &counts))?;
    let [reads, writes, hops, flights] =
        [&counts.reads, &counts.writes, &counts.hops, &counts.flights].map(|count| count.load(Ordering::Relaxed));
    println!("{reads} reads and {writes} writes of {SESSIONS} sessions in {:.1} s", time.as_secs_f64());
    println!("{hops} hops, {flights} more from a replica that did not answer; {kills} kills; no read below its token");
    ensure!(reads + writes >= OPERATIONS && kills >= 4 && flights > 0, "too little happened");
    system.audit_clean().await.map(drop)
}
