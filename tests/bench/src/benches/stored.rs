//! Commands when much is stored already. What differs is the store alone: the commands are about the same products.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use souk_devstack::{Service, StackOptions};
use souk_load::Rpc;
use souk_tests::System;
use tonic::Code;

use crate::{
    effort::Effort,
    fill,
    loader::{Press, side_of},
    machine::require_room,
    pairs::Side,
    record::{Entry, Goal, progress},
    sources::{DESCRIPTION, UPDATE_PRODUCT, updates},
    stage::{Part, Stage, WRITERS, recommended, settle},
};

pub const NAME: &str = "B12";
/// Events of each product.
const EACH: u64 = 10;
/// What an event takes with its command, its indexes and its share of WAL and JetStream, and what there must be besides.
const EVENT_BYTES: u64 = 3_200;
const BESIDES: u64 = 12 << 30;

/// Events stored at first, on the small and on the large installation.
fn sizes(effort: Effort) -> (u64, u64) {
    effort.of((100_000, 10_000_000), (100_000, 1_000_000), (1_000, 4_000))
}

/// Refuses what the disk has no room for.
///
/// # Errors
/// When there is too little.
pub fn check_room(effort: Effort) -> Result<()> {
    let (small, large) = sizes(effort);
    let wanted = (small + large) * EVENT_BYTES + if effort.judges() { BESIDES } else { 0 };
    require_room(wanted).with_context(|| format!("{NAME} fills a store with {large} events; leave it out by naming others"))
}

/// Commands per second on a full store against those on one that is nearly empty.
///
/// # Errors
/// When something cannot be started, filled or measured, or an audit is not clean.
pub async fn measure(effort: Effort) -> Result<Entry> {
    let (few, many) = sizes(effort);
    let products = few / EACH;
    progress(&format!("{NAME}: an installation with {few} events, and one with {many}"));
    let settings = |options: &mut StackOptions| {
        recommended(options);
        effort.adapt(options);
    };
    let mut small = Stage { system: System::start(settings).await?, products };
    let mut large = Stage { system: small.system.start_beside(settings).await?, products };
    fill_up(&mut small, few).await?;
    let took = fill_up(&mut large, many).await?;
    progress(&format!("{NAME}: filled in {:.0} s; commands by turns", took.as_secs_f64()));
    let press = Press::Callers(WRITERS, effort.time);
    for stage in [&small, &large] {
        rate(stage, press.clone()).await?;
    }
    let turns = (|| rate(&large, press.clone()), || rate(&small, press.clone()));
    let pairs = effort.pairs(turns.0, turns.1, |large, small| large.0.ratio(&small.0)).await?;
    for stage in [&mut small, &mut large] {
        stage.system.stack.nats.start_again().await?;
        for service in [Service::Projector, Service::Query] {
            stage.system.start_again(service).await?;
        }
        stage.audit().await?;
    }
    let refused: u64 = pairs.iter().map(|(large, small)| large.1 + small.1).sum();
    let pairs: Vec<_> = pairs.iter().map(|(large, small)| (large.0, small.0)).collect();
    let ratios = pairs.iter().map(|(large, small)| large.ratio(small)).collect();
    let entry = Entry::new(NAME, ratios, Goal::AtLeast(0.95), format!("commands/s with {many} events stored ÷ with {few}"))
        .sides(["commands_full", "commands_nearly_empty"], &pairs)
        .figure("refused", refused as f64)
        .figure("fill_seconds", took.as_secs_f64())
        .figure("filled_events_per_second", many as f64 / took.as_secs_f64());
    println!("{}", entry.line());
    Ok(entry)
}

/// Fills an installation that has just begun, and leaves its command service and Postgres running alone.
async fn fill_up(stage: &mut Stage, events: u64) -> Result<Duration> {
    let system = &mut stage.system;
    for service in [Service::Query, Service::Projector, Service::Saga, Service::Command] {
        system.stop(service).await?;
    }
    let took = fill::with_products(system, events / EACH, EACH, DESCRIPTION).await?;
    system.start_again(Service::Command).await?;
    // The streams are made anew, and filled with the latest events.
    stage.relayed().await?;
    stage.system.stack.nats.stop().await?;
    settle(&mut stage.system.stack.postgres.connect("postgres").await?).await?;
    Ok(took)
}

/// Commands done per second, and how many were refused because too many waited: a full store's checkpoints may hold a disk up for
/// longer than anybody may wait.
async fn rate(stage: &Stage, press: Press) -> Result<(Side, u64)> {
    let keys = stage.uniform();
    let source = move |rpcs: Vec<Arc<Rpc>>| updates(rpcs[0].clone(), keys);
    let cpu = stage.cpu(&Part::WRITE_SIDE)?;
    let report = stage.commands().run(&[(0, UPDATE_PRODUCT)], source, press).await?;
    let cpu = stage.cpu_since(&Part::WRITE_SIDE, cpu)?;
    let refused = report.count(Code::ResourceExhausted);
    ensure!(report.failed() + report.unsent == refused, "calls failed: {:?}", report.errors);
    Ok((side_of(&report, cpu), refused))
}
