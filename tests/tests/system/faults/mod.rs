//! Everything that can go wrong goes wrong under load, one thing after the other. After each: every acknowledged command
//! exactly once by SQL, audit clean; in the end no order stuck. `SOUK_FAULT_SECONDS` says how long each is kept up.

mod load;
mod streams;

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use souk_devstack::{Replica, Service, StackOptions};
use souk_tests::{Network, System, fault_time, seed};
use tokio::time::{sleep, sleep_until};

pub(super) use load::{Load, loaded_system};
use streams::Damage;

const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than leases are valid.
const PAST_THE_LEASE: Duration = Duration::from_secs(8);
const A_WHILE: Duration = Duration::from_secs(2);

/// Two or three of everything.
fn many(options: &mut StackOptions) {
    options.replicas(Service::Command, 3).replicas(Service::Query, 2).replicas(Service::Projector, 2).replicas(Service::Saga, 2);
    (options.write_shards, options.read_shards, options.read_replicas) = (Some(2), Some(2), Some(1));
}

/// A system in trouble again and again, and how long it took to heal each time.
struct Trouble {
    system: System,
    load: Load,
    random: SmallRng,
    healed: Vec<Duration>,
    from: usize,
}

impl Trouble {
    async fn start() -> Result<Self> {
        let (system, load) = loaded_system(many).await?;
        Ok(Self::of(system, load))
    }

    fn of(system: System, load: Load) -> Self {
        let from = load.acknowledged();
        Self { system, load, random: SmallRng::seed_from_u64(seed()), healed: Vec::new(), from }
    }

    /// Some replica of a service.
    fn one_of(&mut self, service: Service) -> Replica {
        let replicas: Vec<_> = self.system.stack.replicas_of(service).collect();
        replicas[self.random.random_range(0..replicas.len())]
    }

    /// The trouble is over, or cannot be ended from outside: measures the time until every caller is served again.
    async fn heal(&mut self) -> Result<()> {
        self.healed.push(self.load.all_answered().await?);
        Ok(())
    }

    /// After one kind of trouble: proves what was acknowledged, and says what it took.
    async fn prove(&mut self, what: &str) -> Result<()> {
        self.load.check(&self.system).await?;
        self.healed.sort();
        let (times, most) = (self.healed.len(), self.healed.last().copied().unwrap_or_default());
        let median = self.healed.get(times / 2).copied().unwrap_or_default();
        let acknowledged = self.load.acknowledged() - self.from;
        println!(
            "{what}: {times} times, healed in {median:.1?} (median) to {most:.1?}; {acknowledged} acknowledged, each exactly once, audit clean"
        );
        (self.healed, self.from) = (Vec::new(), self.load.acknowledged());
        Ok(())
    }

    async fn settle(self) -> Result<()> {
        self.load.settle(&self.system).await.map(drop)
    }
}

/// Whether there is time for more of the same.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now() + fault_time())
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_paused_services_lose_and_double_nothing() -> Result<()> {
    let mut trouble = Trouble::start().await?;
    for service in [Service::Command, Service::Projector, Service::Query, Service::Saga] {
        let clock = Clock::start();
        while clock.goes_on() {
            let replica = trouble.one_of(service);
            trouble.system.kill(replica).await?;
            trouble.heal().await?;
            trouble.system.start_again(replica).await?;
        }
        trouble.prove(&format!("{} killed", service.name())).await?;
        let clock = Clock::start();
        while clock.goes_on() {
            let replica = trouble.one_of(service);
            trouble.system.pause(replica)?;
            let past_the_lease = Instant::now() + PAST_THE_LEASE;
            // Others take over meanwhile, and the one that wakes finds itself fenced.
            trouble.heal().await?;
            sleep_until(past_the_lease.into()).await;
            trouble.system.resume(replica)?;
            trouble.load.all_answered().await?;
        }
        trouble.prove(&format!("{} paused past its lease", service.name())).await?;
    }
    trouble.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_paused_servers_lose_and_double_nothing() -> Result<()> {
    let mut trouble = Trouble::start().await?;
    let clock = Clock::start();
    while clock.goes_on() {
        trouble.system.stack.postgres.kill9().await?;
        trouble.system.stack.postgres.start_again().await?;
        trouble.heal().await?;
    }
    trouble.prove("postgres killed").await?;
    let clock = Clock::start();
    while clock.goes_on() {
        trouble.system.stack.postgres.pause()?;
        sleep(PAST_THE_LEASE).await;
        trouble.system.stack.postgres.resume()?;
        trouble.heal().await?;
    }
    trouble.prove("postgres paused past all leases").await?;
    let clock = Clock::start();
    while clock.goes_on() {
        trouble.system.stack.nats.kill9().await?;
        // Commands do not need it.
        trouble.load.progress("nats killed").await?;
        trouble.system.stack.nats.start_again().await?;
        trouble.heal().await?;
    }
    trouble.prove("nats killed").await?;
    let clock = Clock::start();
    while clock.goes_on() {
        trouble.system.stack.nats.pause()?;
        trouble.load.progress("nats paused").await?;
        sleep(PAST_THE_LEASE).await;
        trouble.system.stack.nats.resume()?;
        trouble.heal().await?;
    }
    trouble.prove("nats paused").await?;
    let clock = Clock::start();
    while clock.goes_on() {
        trouble.system.stack.standbys[0].pause_replay().await?;
        sleep(A_WHILE).await;
        // What is written is read back all the while, with its token, and none of it from this standby.
        trouble.heal().await?;
        trouble.system.stack.standbys[0].resume_replay().await?;
    }
    trouble.prove("replay of the standby paused").await?;
    trouble.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_streams_lose_and_double_nothing() -> Result<()> {
    let mut trouble = Trouble::start().await?;
    for damage in Damage::ALL {
        let clock = Clock::start();
        while clock.goes_on() {
            damage.inflict(&mut trouble.system.stack, &mut trouble.random).await?;
            trouble.heal().await?;
        }
        trouble.prove(&format!("streams {damage:?}").to_lowercase()).await?;
    }
    trouble.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_networks_lose_and_double_nothing() -> Result<()> {
    let (system, network) = System::start_over_network(|options| {
        options.set("command.payment_window", "3s");
        many(options);
    })
    .await?;
    let load = load::loaded(&system).await?;
    let mut trouble = Trouble::of(system, load);
    for to_postgres in [true, false] {
        let (way, name) = way(&network, to_postgres);
        let clock = Clock::start();
        way.set_latency(Duration::from_millis(20));
        while clock.goes_on() {
            trouble.heal().await?;
        }
        way.heal().await?;
        trouble.prove(&format!("20 ms each way to {name}")).await?;
        let clock = Clock::start();
        while clock.goes_on() {
            way.reset_all();
            trouble.heal().await?;
            way.cut().await;
            sleep(A_WHILE).await;
            way.heal().await?;
            trouble.heal().await?;
        }
        trouble.prove(&format!("connections to {name} reset and refused")).await?;
        let clock = Clock::start();
        while clock.goes_on() {
            // Half-open: nobody hears from the other side, and what was sent arrives late.
            way.stall();
            sleep(PAST_THE_LEASE).await;
            way.heal().await?;
            trouble.heal().await?;
        }
        trouble.prove(&format!("connections to {name} stalled")).await?;
    }
    trouble.settle().await
}

fn way(network: &Network, to_postgres: bool) -> (&souk_devstack::FaultProxy, &'static str) {
    if to_postgres { (&network.postgres, "postgres") } else { (&network.nats, "nats") }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_clocks_lose_and_double_nothing() -> Result<()> {
    let mut trouble = Trouble::start().await?;
    for shift_ms in ["20000", "-20000"] {
        let wrong = [Service::Command, Service::Projector, Service::Saga, Service::Query].map(|service| trouble.one_of(service));
        for replica in wrong {
            trouble.system.stack.set_for(replica, "process.clock_shift_ms", shift_ms)?;
            trouble.system.kill_and_restart(replica).await?;
        }
        let clock = Clock::start();
        while clock.goes_on() {
            // Logs change between owners whose clocks differ.
            let other = trouble.one_of(Service::Command);
            trouble.system.kill_and_restart(other).await?;
            trouble.heal().await?;
        }
        trouble.prove(&format!("clock of one replica of each service off by {shift_ms} ms")).await?;
        for replica in wrong {
            trouble.system.stack.set_for(replica, "process.clock_shift_ms", "0")?;
        }
    }
    trouble.settle().await
}
