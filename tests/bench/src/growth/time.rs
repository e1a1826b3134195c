use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use souk_devstack::Service;
use souk_proto::catalog::v1::GetProductRequest;
use souk_tests::{System, until};

use super::Table;
use crate::{
    effort::Effort,
    fill,
    machine::require_room,
    record::progress,
    sources::{DESCRIPTION, product_id, update},
    stage::{APPLIED, PATIENCE, Stage, WRITTEN, recommended, sum},
};

/// Bytes of a text where only the number of events matters: ten million of them take 10 GB instead of 32.
const LITTLE: usize = 40;
/// What such an event takes with its command, its indexes and its share of WAL.
const LITTLE_EVENT_BYTES: u64 = 1_200;
const ALL: [Service; 4] = [Service::Query, Service::Projector, Service::Saga, Service::Command];

/// A store that was filled past the services, which do not run.
async fn at_rest(products: u64, each: u64, bytes: usize) -> Result<Stage> {
    let mut stage = Stage { system: System::start(recommended).await?, products };
    for service in ALL {
        stage.system.stop(service).await?;
    }
    fill::with_products(&stage.system, products, each, bytes).await?;
    Ok(stage)
}

/// How long a command takes whose entity is not in memory.
async fn change(stage: &Stage, text: &str) -> Result<Duration> {
    let session = stage.system.session()?;
    // Connections are open and statements prepared.
    session.command(update(2, text.to_owned())).await?;
    let began = Instant::now();
    session.command(update(1, text.to_owned())).await?;
    Ok(began.elapsed())
}

pub(super) async fn streams(effort: Effort) -> Result<Table> {
    const COLUMNS: &[&str] = &["events of the entity", "first command, without a snapshot, ms", "with a snapshot, ms"];
    let mut table = Table::new("Loading an entity that is not in memory", COLUMNS);
    for events in effort.of(vec![10, 1_000, 100_000], vec![10, 1_000, 100_000], vec![10]) {
        progress(&format!("a stream of {events} events"));
        // The first command makes the event at which a snapshot is due.
        let mut stage = at_rest(2, events - 1, DESCRIPTION).await?;
        for service in [Service::Command, Service::Projector, Service::Query] {
            stage.system.start_again(service).await?;
        }
        let cold = change(&stage, "the first").await?;
        // Snapshots are kept behind the reply; the draining service waits for what is under way.
        stage.system.stop(Service::Command).await?;
        stage.system.start_again(Service::Command).await?;
        let warm = change(&stage, "the second").await?;
        stage.audit().await?;
        let millis = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        table.row(vec![events.to_string(), millis(cold), millis(warm)]);
    }
    Ok(table)
}

/// Events of the stores that services are started on.
fn sizes(effort: Effort) -> Vec<u64> {
    effort.of(vec![10, 1_000_000, 10_000_000], vec![10, 1_000_000], vec![10, 2_000])
}

/// Refuses what the disk has no room for.
pub(super) fn check_room(effort: Effort) -> Result<()> {
    let most = sizes(effort).into_iter().max().unwrap_or_default();
    require_room(most * LITTLE_EVENT_BYTES).with_context(|| format!("services are started on {most} events"))
}

pub(super) async fn starts(effort: Effort) -> Result<Table> {
    let mut table = Table::new(
        "From starting a service to its first reply, events of 0.1 KB",
        &["events stored", "command service, s", "query service, s"],
    );
    for events in sizes(effort) {
        progress(&format!("starting on {events} events"));
        let mut stage = at_rest(events / 10, 10, LITTLE).await?;
        let mut times = Vec::new();
        for service in [Service::Command, Service::Query] {
            let began = Instant::now();
            stage.system.start_again(service).await?;
            let session = stage.system.session()?;
            match service {
                Service::Command => drop(session.command(update(1, "new".to_owned())).await?),
                _ => drop(session.query(GetProductRequest { product_id: product_id(1), ..Default::default() }).await?),
            }
            times.push(format!("{:.2}", began.elapsed().as_secs_f64()));
        }
        table.row([vec![events.to_string()], times].concat());
    }
    Ok(table)
}

pub(super) async fn rebuild(effort: Effort) -> Result<Table> {
    let mut table = Table::new("Folding all views anew", &["events, all of products", "s", "s per million events"]);
    let events = effort.of(1_000_000, 200_000, 2_000);
    progress(&format!("folding {events} events anew"));
    let mut stage = at_rest(events / 10, 10, DESCRIPTION).await?;
    let (write, read) = (stage.system.write_pools().await?, stage.system.read_pools().await?);
    for pool in &read {
        let back = "truncate product_view; update read_checkpoint set epoch = 0, position = 0, hash = decode(repeat('00', 16), 'hex'), revision = 0";
        sqlx::raw_sql(back).execute(pool).await?;
    }
    stage.system.start_again(Service::Command).await?;
    stage.relayed().await?;
    let began = Instant::now();
    stage.system.stack.start_replica(Service::Projector)?;
    until("the views are there again", PATIENCE, || async {
        Ok((sum(&read, APPLIED).await? >= sum(&write, WRITTEN).await?).then_some(()))
    })
    .await?;
    let took = began.elapsed().as_secs_f64();
    stage.audit().await?;
    table.row(vec![events.to_string(), format!("{took:.1}"), format!("{:.1}", took * 1e6 / events as f64)]);
    Ok(table)
}
