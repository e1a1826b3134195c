//! What can go wrong between regions and within them goes wrong under load, as a seed has it. After each seed every acknowledged
//! command stands once in its home's log by SQL, copies and views of all regions are equal, and no order is stuck. Meanwhile what
//! a region reads, and what it writes of its own, goes on whatever becomes of the ways to the others.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use souk_devstack::{Link, Service};
use souk_proto::orders::v1::OrderState;
use souk_tests::{Shop, World, seeds};
use tokio::time::sleep;

use super::load::{Load, PRODUCTS, REGIONS, product};

const PATIENCE: Duration = Duration::from_secs(60);
const LATENCY: Duration = Duration::from_millis(80);
/// Of a link that comes and goes.
const FLAP: Duration = Duration::from_millis(150);

/// What befalls the ways between two regions.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Cut,
    OneWay,
    Flapping,
    Slow,
    Stalled,
    /// One region from all others.
    CutOff,
}

/// What befalls a region.
#[derive(Debug, Clone, Copy)]
enum Blow {
    None,
    ReplicatorKilled,
    ProjectorKilled,
    DatabaseKilled,
    StreamsWiped,
    /// To a backup made before.
    Restored,
}

const FAULTS: [Fault; 6] = [Fault::Cut, Fault::OneWay, Fault::Flapping, Fault::Slow, Fault::Stalled, Fault::CutOff];
const BLOWS: [Blow; 7] =
    [Blow::None, Blow::None, Blow::ReplicatorKilled, Blow::ProjectorKilled, Blow::DatabaseKilled, Blow::StreamsWiped, Blow::Restored];

/// One fault of the ways between regions, and what befalls one of them meanwhile.
#[derive(Debug)]
struct Trouble {
    fault: Fault,
    from: &'static str,
    to: &'static str,
    blow: Blow,
    on: &'static str,
    lasts: Duration,
}

impl Trouble {
    fn of(random: &mut SmallRng) -> Self {
        let ends: Vec<_> = REGIONS.choose_multiple(random, 2).copied().collect();
        Self {
            fault: *FAULTS.choose(random).expect("some"),
            from: ends[0],
            to: ends[1],
            blow: *BLOWS.choose(random).expect("some"),
            on: REGIONS.choose(random).expect("some"),
            lasts: Duration::from_millis(random.random_range(500..2_000)),
        }
    }

    async fn pass(&self, world: &mut World, load: &Load, label: &str) -> Result<()> {
        // A log can go back only to where it was.
        let kept = load.acknowledged(self.on);
        let backup = match self.blow {
            Blow::Restored => Some(world.regions.back_up(self.on, label).await?),
            _ => None,
        };
        let links = world.regions.links().clone();
        let [there, back] = links.between(self.from, self.to)?;
        match self.fault {
            Fault::Cut => {
                there.cut().await;
                back.cut().await;
            }
            Fault::OneWay => there.cut().await,
            Fault::Slow => {
                there.set_latency(LATENCY).await;
                back.set_latency(LATENCY).await;
            }
            Fault::Stalled => {
                there.stall().await;
                back.stall().await;
            }
            Fault::CutOff => links.cut_off(self.from).await,
            Fault::Flapping => {}
        }
        let flapping = matches!(self.fault, Fault::Flapping).then(|| tokio::spawn(flap(there)));
        let struck = self.strike(world, load, kept, backup.as_deref()).await;
        sleep(self.lasts).await;
        if let Some(flapping) = flapping {
            flapping.abort();
            // Aborted, it may have left the link half healed.
            let _ = flapping.await;
        }
        links.heal_all().await?;
        struck
    }

    async fn strike(&self, world: &mut World, load: &Load, kept: usize, backup: Option<&std::path::Path>) -> Result<()> {
        match self.blow {
            Blow::None => {}
            Blow::ReplicatorKilled => {
                world.regions.kill_replicators(self.on).await?;
                sleep(self.lasts).await;
                world.regions.start_replicators(self.on)?;
            }
            Blow::ProjectorKilled => {
                load.ails(self.on, true);
                let stack = world.regions.stack_mut(self.on)?;
                stack.kill_replica(Service::Projector).await?;
                stack.start_replica(Service::Projector)?;
            }
            Blow::StreamsWiped => {
                load.ails(self.on, true);
                world.regions.wipe_jetstream(self.on).await?;
            }
            Blow::DatabaseKilled => {
                load.ails(self.on, true);
                let postgres = &mut world.regions.stack_mut(self.on)?.postgres;
                postgres.kill9().await?;
                postgres.start_again().await?;
            }
            Blow::Restored => {
                load.ails(self.on, true);
                let backup = backup.context("a backup was made")?;
                load.lose(self.on, kept, world.regions.restore(self.on, backup)).await?;
            }
        }
        Ok(())
    }
}

async fn flap(link: std::sync::Arc<Link>) {
    loop {
        link.cut().await;
        sleep(FLAP).await;
        if link.heal().await.is_err() {
            return;
        }
        sleep(FLAP).await;
    }
}

/// What a seed has in store.
async fn pass(world: &mut World, seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let load = Load::start(world, random.random())?;
    sleep(Duration::from_millis(500)).await;
    for number in 0..2 {
        let trouble = Trouble::of(&mut random);
        println!("seed {seed}: {trouble:?}");
        trouble.pass(world, &load, &format!("{seed}-{number}")).await.with_context(|| format!("{trouble:?}"))?;
        world.regions.wait_until_ready(PATIENCE).await?;
        sleep(Duration::from_millis(500)).await;
        REGIONS.iter().for_each(|region| load.ails(region, false));
    }
    let told = load.prove(world).await?;
    for region in REGIONS {
        let shop = Shop(world.session(region)?);
        for state in [OrderState::Reserving, OrderState::AwaitingPayment] {
            shop.see_none_in(state, PATIENCE).await.with_context(|| format!("in {region}"))?;
        }
    }
    world.audit_clean().await?;
    println!("seed {seed}: {told}; logs, copies and views of all regions equal");
    Ok(())
}

fn everything() -> impl Iterator<Item = String> {
    REGIONS.iter().flat_map(|home| (0..PRODUCTS).map(|number| product(home, number)))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_befalls_regions_nothing_is_lost_and_nobody_waits_for_another() -> Result<()> {
    let mut world = World::start(&REGIONS, &[], |_, options| {
        options.set("command.payment_window", "3s");
    })
    .await?;
    let mut sellers = Vec::new();
    for region in REGIONS {
        let shop = Shop(world.session(region)?);
        for number in 0..PRODUCTS {
            shop.sell(&product(region, number), 100, 100).await?;
        }
        sellers.push(shop);
    }
    for region in REGIONS {
        let session = world.session(region)?;
        sellers.iter().for_each(|seller| session.merge_token(&seller.0.token()));
        for product in everything() {
            Shop(session.clone()).stock(&product).await.with_context(|| format!("{product} in {region}"))?;
        }
    }
    for seed in seeds(10) {
        pass(&mut world, seed).await.with_context(|| format!("seed {seed}; SOUK_SEED={seed} replays it"))?;
    }
    Ok(())
}
