use anyhow::{Result, ensure};
use souk_devstack::Service;
use souk_tests::until;

use super::{Table, filled};
use crate::{
    effort::Effort,
    places::{EachCommand, Places},
    record::progress,
    sources::random_id,
    stage::{PATIENCE, Stage, WRITTEN, sum},
};

/// Over which the hour's worth of writes is spread: the clock goes on by a day between two of them.
const DAYS: u64 = 10;
const DAY_MS: u64 = 86_400_000;
/// The least that a stream may be held to.
const STREAM_BYTES: i64 = 1 << 20;
/// Of which there is one for each partition.
const STREAMS: i64 = 64;
/// Days whose replies are kept at most when they are remembered for one: its own two, and one that is about to go.
const KEPT: u64 = 3;

/// Events grow with what is written; streams and ledger end at their bounds.
pub(super) async fn table(effort: Effort) -> Result<Table> {
    const COLUMNS: &[&str] = &["day", "events so far", "events, MB", "JetStream, MB (bound 67)", "replies in the ledger", "ledger, MB"];
    let mut table =
        Table::new("An hour of 100 commands a second, spread over ten days; streams of 1 MiB, replies remembered for a day", COLUMNS);
    progress("an hour's worth of writes with small bounds");
    let mut stage = filled(effort, 0, |options| {
        options.set("nats.stream_max_bytes", STREAM_BYTES).set("command.ledger_retention", "1day").set("command.upkeep_interval", "1s");
    })
    .await?;
    let a_day = effort.of(36_000, 3_600, 100);
    for day in 1..=DAYS {
        let behind = (DAYS - day) * DAY_MS;
        stage.system.stop(Service::Command).await?;
        stage.system.stack.set_for(Service::Command, "process.clock_shift_ms", &format!("-{behind}"))?;
        stage.system.start_again(Service::Command).await?;
        stage.create_with((day - 1) * a_day + 1, a_day, random_id).await?;
        stage.caught_up().await?;
        stage.relayed().await?;
        let pools = stage.system.write_pools().await?;
        let replies = until("the ledger is at its bound", PATIENCE, || async {
            let replies = sum(&pools, "select count(*) from ledger").await?;
            Ok((replies as u64 <= KEPT * a_day).then_some(replies))
        })
        .await?;
        let places = Places::of(&stage).await?;
        ensure!(places.jetstream <= STREAMS * STREAM_BYTES, "{} bytes in JetStream", places.jetstream);
        let megabytes = |bytes: i64| format!("{:.1}", bytes as f64 / 1e6);
        let events = sum(&pools, WRITTEN).await?;
        let sizes = [megabytes(places.events), megabytes(places.jetstream)].into_iter();
        table.row(
            [day.to_string(), events.to_string()].into_iter().chain(sizes).chain([replies.to_string(), megabytes(places.ledger)]).collect(),
        );
    }
    stage.audit().await?;
    Ok(table)
}

/// Where a command leaves how much.
pub(super) async fn bytes(effort: Effort) -> Result<Table> {
    let mut table = Table::new("Bytes that a command of 1 KB leaves", &["place", "bytes", "÷ the event's payload"]);
    let products = effort.of(10_000, 10_000, 200);
    let mut stage: Stage = filled(effort, products, |_| {}).await?;
    let each = EachCommand::measure(&mut stage, products + 1, effort.of(100_000, 40_000, 1_000)).await?;
    for (place, bytes) in each.places.iter().chain([&("write database, without WAL", each.stored)]) {
        table.row(vec![place.replace('_', " "), format!("{bytes:.0}"), format!("{:.2}", bytes / each.payload)]);
    }
    stage.audit().await?;
    Ok(table)
}
