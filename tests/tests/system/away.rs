//! Postgres or NATS is gone, or its disk is full: everybody is told plainly, what can go on goes on, and it heals unattended.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use souk_client::{Door, Error};
use souk_devstack::{Replica, Service, readiness};
use souk_proto::{
    catalog::v1::{GetProductRequest, GetProductResponse},
    stock::v1::{ReceiveStockRequest, command_service_client::CommandServiceClient},
};
use souk_tests::{Shop, SmallDisk, System, until};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

const PATIENCE: Duration = Duration::from_secs(60);
/// How old a cached answer may be (`query.unproven_after`), and what it takes to say so.
const FRESH_ENOUGH: Duration = Duration::from_millis(3_500);
/// What a process may grow by while it waits for NATS.
const GROWTH_KIB: u64 = 48 << 10;

fn receive(product: &str) -> ReceiveStockRequest {
    ReceiveStockRequest { product_id: product.into(), quantity: 1, ..Default::default() }
}

fn get(product: &str) -> GetProductRequest {
    GetProductRequest { product_id: product.into(), ..Default::default() }
}

/// How old an answer says it is.
fn age(reply: &GetProductResponse) -> Result<Duration> {
    let time = reply.as_of.as_ref().and_then(|as_of| as_of.time).context("an answer without a time")?;
    Ok(SystemTime::now().duration_since(SystemTime::try_from(time)?).unwrap_or_default())
}

/// Refused for the time being, with a time to come back.
fn told_to_come_back(error: &Error) -> Result<()> {
    ensure!(error.code() == Code::Unavailable && error.retry_after().is_some(), "{error:?}");
    Ok(())
}

/// One attempt, not repeated by the client for long.
fn hasty(system: &System) -> Result<Shop> {
    Ok(Shop(system.client()?.session().caller("test").deadline(Duration::from_secs(2))))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgres_commands_are_refused_with_a_time_to_come_back_and_what_is_cached_is_answered() -> Result<()> {
    let mut system = System::start(|_| {}).await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 5).await?;
    let hasty = hasty(&system)?;
    hasty.0.merge_token(&shop.0.token());
    hasty.0.query(get("p-1")).await?;
    system.stack.postgres.kill9().await?;
    let died = Instant::now();
    let mut cached = 0;
    let refused = loop {
        match hasty.0.query(get("p-1")).await {
            Ok(reply) => {
                let age = age(&reply)?;
                ensure!(age < FRESH_ENOUGH, "answered with what was true {age:?} ago");
                cached += 1;
            }
            Err(error) => break error,
        }
        ensure!(died.elapsed() < PATIENCE, "what was cached is answered for ever");
    };
    told_to_come_back(&refused)?;
    println!("{cached} answers from the cache, then refused {:.1?} after Postgres died", died.elapsed());
    ensure!(cached > 0, "what was cached and fresh enough was not answered");
    told_to_come_back(&hasty.0.command(receive("p-1")).await.err().context("a command without a database")?)?;
    // Nobody is taken out of service: what is shared is away for all of them.
    for service in [Service::Command, Service::Query, Service::Projector, Service::Saga] {
        let port = system.stack.ports_of(Replica::from(service))?.ops;
        until(&format!("{} serves and is impaired", service.name()), PATIENCE, || async {
            let said = readiness(port).await?.unwrap_or_default();
            ensure!(!said.starts_with("not ready"), "{}: {said}", service.name());
            Ok(said.starts_with("ready, and impaired").then_some(()))
        })
        .await?;
    }
    system.stack.postgres.start_again().await?;
    let back = Instant::now();
    shop.0.command(receive("p-1")).await?;
    ensure!(shop.stock("p-1").await?.on_hand == 6);
    println!("command and query {:.1?} after Postgres was back", back.elapsed());
    system.audit_clean().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_commands_go_on_views_age_and_nothing_grows_without_bound() -> Result<()> {
    const COMMANDS: usize = 6_000;
    let mut system = System::start(|options| {
        // Less than what comes, so that the rings of the relay overflow.
        options.set("command.ring_capacity", 64);
        options.partitions = Some(8);
    })
    .await?;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 5).await?;
    shop.0.query(get("p-1")).await?;
    system.stack.nats.kill9().await?;
    let before = Service::ALONE.map(|service| system.memory(service));
    let callers = (0..32).map(|_| {
        let session = system.client().map(|client| client.session().caller("test"));
        async move {
            let session = session?;
            for _ in 0..COMMANDS / 32 {
                session.command(receive("p-1")).await?;
            }
            anyhow::Ok(())
        }
    });
    let began = Instant::now();
    futures::future::try_join_all(callers).await?;
    println!("{} commands/s without NATS", (COMMANDS / 32 * 32) as u64 / began.elapsed().as_secs().max(1));
    for (service, before) in Service::ALONE.into_iter().zip(before) {
        let (before, now) = (before? >> 10, system.memory(service)? >> 10);
        println!("{}: {before} KiB before, {now} KiB after", service.name());
        ensure!(now < before + GROWTH_KIB, "{} grew from {before} KiB to {now} KiB", service.name());
    }
    // The views stand still and say so: without a token at once, with one after waiting in vain; until it is clear that nobody
    // announces anything, and the event log alone carries them on.
    let hasty = hasty(&system)?;
    let reply = until("views that say how old they are", PATIENCE, || async {
        let reply = hasty.0.query(get("p-1")).await?;
        Ok((age(&reply)? > Duration::from_secs(3)).then_some(reply))
    })
    .await?;
    println!("a view says it is {:.1?} old", age(&reply)?);
    hasty.0.merge_token(&shop.0.command(receive("p-1")).await?.token);
    let (wrote, mut in_vain) = (Instant::now(), 0);
    let seen = loop {
        match hasty.stock("p-1").await {
            Ok(seen) => break seen,
            Err(error) => {
                ensure!(error.reason() == "NOT_YET_VISIBLE", "{error:?}");
                told_to_come_back(&error)?;
                in_vain += 1;
            }
        }
        ensure!(wrote.elapsed() < PATIENCE, "views never go on without NATS");
    };
    ensure!(seen.on_hand as usize == 5 + COMMANDS / 32 * 32 + 1, "{seen:?}");
    println!("seen without NATS {:.1?} after it was written, {in_vain} times in vain before", wrote.elapsed());
    system.stack.nats.start_again().await?;
    let back = Instant::now();
    shop.0.command(receive("p-1")).await?;
    let seen = shop.stock("p-1").await?;
    ensure!(seen.on_hand as usize == 5 + COMMANDS / 32 * 32 + 2, "{seen:?}");
    println!("written and seen {:.1?} after NATS was back", back.elapsed());
    system.audit_clean().await.map(drop)
}

fn is_full(status: &Status) -> bool {
    status.get_error_details().error_info().is_some_and(|info| info.reason == "STORE_FULL")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_postgres_is_told_and_forgotten_when_there_is_room() -> Result<()> {
    let mut disk = None;
    let mut system = System::start(|options| {
        disk = Some(SmallDisk::mount(&options.data.join("postgres"), 512));
        options.postgres_settings.push(("max_wal_size".into(), "64MB".into()));
    })
    .await?;
    let disk = disk.context("no disk")??;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 0).await?;
    disk.fill()?;
    let mut once = CommandServiceClient::new(system.client()?.channel(Door::Command).context("a public door")?);
    let (mut acknowledged, mut unknown) = (0_i64, 0_i64);
    let filled = Instant::now();
    let refused = loop {
        let mut request = Request::new(ReceiveStockRequest { request_id: uuid::Uuid::now_v7().to_string(), ..receive("p-1") });
        request.set_timeout(Duration::from_secs(5));
        match once.receive_stock(request).await {
            // What was preallocated is used up first.
            Ok(_) => acknowledged += 1,
            // Told in so many words, it was not carried out.
            Err(status) if is_full(&status) => break status,
            Err(status) => {
                unknown += 1;
                // While Postgres recovers from a crash nobody may know within the caller's time.
                if status.code() != Code::DeadlineExceeded {
                    break status;
                }
            }
        }
        ensure!(filled.elapsed() < PATIENCE, "{acknowledged} commands on a full disk");
    };
    println!("refused after {acknowledged} commands and {:.1?}: {refused:?}", filled.elapsed());
    let told = refused.get_error_details();
    ensure!(refused.code() == Code::Unavailable && told.retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "{refused:?}");
    disk.free()?;
    let freed = Instant::now();
    if !system.stack.postgres.is_running() {
        // As its supervisor would.
        system.stack.postgres.start_again().await?;
    }
    let request = ReceiveStockRequest { request_id: uuid::Uuid::now_v7().to_string(), ..receive("p-1") };
    until("commands are taken again", PATIENCE, || async {
        if !system.stack.postgres.is_running() {
            bail!("Postgres has ended");
        }
        Ok(shop.0.command(request.clone()).await.ok())
    })
    .await?;
    println!("commands {:.1?} after there was room", freed.elapsed());
    let on_hand = shop.stock("p-1").await?.on_hand;
    // Those that were refused for another reason may have been carried out.
    let carried_out = acknowledged + 1..=acknowledged + 1 + unknown;
    ensure!(carried_out.contains(&on_hand), "{acknowledged} acknowledged, {unknown} refused, {on_hand} on hand");
    system.audit_clean().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_nats_holds_up_views_and_no_command() -> Result<()> {
    let mut disk = None;
    let mut system = System::start(|options| disk = Some(SmallDisk::mount(&options.data.join("nats"), 64))).await?;
    let disk = disk.context("no disk")??;
    let shop = Shop(system.session()?);
    shop.sell("p-1", 100, 0).await?;
    disk.fill()?;
    for _ in 0..2_000 {
        shop.0.command(receive("p-1")).await?;
    }
    disk.free()?;
    // As its supervisor would: nats-server gives JetStream up when it cannot write, and stays up without it.
    system.stack.nats.kill9().await?;
    system.stack.nats.start_again().await?;
    let freed = Instant::now();
    ensure!(shop.stock("p-1").await?.on_hand == 2_000);
    println!("views caught up {:.1?} after there was room", freed.elapsed());
    system.audit_clean().await.map(drop)
}
