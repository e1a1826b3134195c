use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use futures::{TryStreamExt, future::join_all};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use souk_client::Session;
use souk_devstack::{Service, StackOptions};
use souk_proto::{
    orders::v1::{ListOrdersRequest, OrderState, PlaceOrderLine, PlaceOrderRequest},
    stock::v1::ReceiveStockRequest,
};
use souk_tests::{Acknowledged, Shop, System, until};
use tokio::task::JoinHandle;
use uuid::Uuid;

const CALLERS: usize = 48;
const PRODUCTS: u32 = 40;
const KILLS: usize = 10;
/// Acknowledged commands between two faults: each fault hits a system that works.
const BETWEEN: usize = 350;
const PATIENCE: Duration = Duration::from_secs(120);

/// Callers who send commands, repeat them by request id until they are answered, and remember what was acknowledged.
pub(super) struct Load {
    acknowledged: Arc<Acknowledged>,
    undecided: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    pub fn start(system: &System) -> Result<Self> {
        let (acknowledged, undecided, stop) = (Arc::<Acknowledged>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let mut callers = Vec::new();
        for seed in 0..CALLERS {
            let (session, acknowledged, undecided, stop) = (system.session()?, acknowledged.clone(), undecided.clone(), stop.clone());
            callers.push(tokio::spawn(async move {
                let mut random = SmallRng::seed_from_u64(seed as u64);
                while !stop.load(Ordering::Relaxed) {
                    let id = Uuid::now_v7();
                    match send(&session, id, &mut random).await {
                        Ok(()) => acknowledged.add(id),
                        // No answer in a minute of repeating: it may or may not stand, and nobody was told that it does.
                        Err(error) if error.outcome_is_unknown() => drop(undecided.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(())
            }));
        }
        Ok(Self { acknowledged, undecided, stop, callers })
    }

    /// Waits until the system has acknowledged some more.
    pub async fn progress(&self, fault: &str) -> Result<()> {
        let goal = self.acknowledged.count() + BETWEEN;
        let started = Instant::now();
        until(&format!("progress after {fault}"), PATIENCE, || async { Ok((self.acknowledged.count() >= goal).then_some(())) }).await?;
        println!("{fault}: {} acknowledged, {BETWEEN} more within {:.1} s", self.acknowledged.count(), started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Commands whose callers were not answered for a minute of repeating.
    pub fn never_answered(&self) -> usize {
        self.undecided.load(Ordering::Relaxed)
    }

    /// Ends the load and proves what it was told.
    pub async fn settle(self, system: &System) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in join_all(self.callers).await {
            caller??;
        }
        let shop = Shop(system.session()?);
        for state in [OrderState::Reserving, OrderState::AwaitingPayment] {
            until(&format!("no order left {state:?}"), PATIENCE, || async {
                let listed = shop.0.query(ListOrdersRequest { state: state.into(), page_size: 1, ..Default::default() }).await?;
                Ok(listed.orders.is_empty().then_some(()))
            })
            .await?;
        }
        self.acknowledged.stand_once(&system.write_pools().await?).await?;
        system.audit_clean().await?;
        let (count, undecided) = (self.acknowledged.count(), self.undecided.load(Ordering::Relaxed));
        println!("{count} acknowledged commands, each exactly once; {undecided} never answered");
        Ok(count)
    }
}

async fn send(session: &Session, id: Uuid, random: &mut SmallRng) -> Result<(), souk_client::Error> {
    let product_id = format!("p-{}", random.random_range(0..PRODUCTS));
    if random.random_bool(0.15) {
        let lines = vec![PlaceOrderLine { product_id, quantity: random.random_range(1..5) }];
        let customer_id = format!("c-{}", random.random_range(0..500));
        session.command(PlaceOrderRequest { request_id: id.to_string(), customer_id, lines, ..Default::default() }).await.map(drop)
    } else {
        session.command(ReceiveStockRequest { request_id: id.to_string(), product_id, quantity: 1 }).await.map(drop)
    }
}

pub(super) async fn loaded_system(change: impl FnOnce(&mut StackOptions)) -> Result<(System, Load)> {
    let system = System::start(|options| {
        options.set("command.payment_window", "3s");
        change(options);
    })
    .await?;
    let shop = Shop(system.session()?);
    for product in 0..PRODUCTS {
        shop.sell(&format!("p-{product}"), 100, 50).await?;
    }
    let load = Load::start(&system)?;
    load.progress("start").await?;
    Ok((system, load))
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_each_service_loses_and_doubles_nothing() -> Result<()> {
    let (mut system, load) = loaded_system(|_| {}).await?;
    for service in [Service::Command, Service::Projector, Service::Query, Service::Saga] {
        for kill in 1..=KILLS {
            system.kill_and_restart(service).await?;
            load.progress(&format!("kill {kill} of {}", service.name())).await?;
        }
    }
    let count = load.settle(&system).await?;
    ensure!(count >= 40 * BETWEEN);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_postgres_loses_and_doubles_nothing() -> Result<()> {
    let (mut system, load) = loaded_system(|_| {}).await?;
    for kill in 1..=KILLS {
        system.stack.postgres.kill9().await?;
        system.stack.postgres.start_again().await?;
        load.progress(&format!("kill {kill} of postgres")).await?;
    }
    load.settle(&system).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_nats_and_taking_its_streams_loses_and_doubles_nothing() -> Result<()> {
    let (mut system, load) = loaded_system(|_| {}).await?;
    for kill in 1..=KILLS {
        system.stack.nats.kill9().await?;
        // Commands do not need it.
        load.progress(&format!("kill {kill} of nats")).await?;
        system.stack.nats.start_again().await?;
        load.progress(&format!("restart {kill} of nats")).await?;
    }
    system.stack.nats.kill9().await?;
    system.stack.nats.wipe()?;
    system.stack.nats.start_again().await?;
    load.progress("jetstream wiped").await?;
    let context = jetstream::new(async_nats::connect(system.stack.nats.url()).await?);
    let names = until("streams are back", PATIENCE, || async {
        let infos: Vec<_> = context.streams().try_collect().await?;
        let filled: Vec<_> = infos.into_iter().filter(|info| info.state.messages > 3).map(|info| info.config.name).collect();
        Ok((filled.len() > 1).then_some(filled))
    })
    .await?;
    let [first, second, ..] = names.as_slice() else { anyhow::bail!("streams: {names:?}") };
    context.delete_stream(first).await?;
    load.progress("one stream deleted").await?;
    truncate(&context, second).await?;
    load.progress("one stream truncated").await?;
    load.settle(&system).await.map(drop)
}

/// Makes a stream anew with the first half of its messages, as a server that lost its last blocks.
async fn truncate(context: &jetstream::Context, name: &str) -> Result<()> {
    let stream = context.get_stream(name).await?;
    let (config, state) = (stream.cached_info().config.clone(), stream.cached_info().state.clone());
    let keep = state.first_sequence..=state.first_sequence + (state.last_sequence - state.first_sequence) / 2;
    let mut messages = Vec::new();
    for sequence in keep {
        messages.push(stream.get_raw_message(sequence).await?);
    }
    let subject = config.subjects.first().context("no subject")?.clone();
    context.delete_stream(name).await?;
    // The relay may make it first: then the fault is a deletion.
    if context.create_stream(jetstream::stream::Config { first_sequence: Some(state.first_sequence), ..config }).await.is_ok() {
        for message in messages {
            if context.publish(subject.clone(), message.payload).await?.await.is_err() {
                break;
            }
        }
    }
    Ok(())
}
