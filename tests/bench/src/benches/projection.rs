use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use souk_devstack::Service;
use souk_load::Rpc;

use super::Bench;
use crate::{
    database::BareViews,
    pairs::median_of,
    record::{Entry, Goal, progress},
    sources::{Keys, UPDATE_PRODUCT, updates},
    stage::{APPLIED, FILLERS, PATIENCE, WRITTEN, sum},
};

/// Between two looks at the checkpoints.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(5);
/// Products of a turn are numbered from a multiple of this on.
const APART: u64 = 10_000_000;

/// Rates of one turn, per second.
struct Turn {
    unique: f64,
    zipf: f64,
    copied: f64,
}

impl Bench {
    /// The projector over events that wait for it, against COPY of the rows it makes of them.
    pub(super) async fn projection(&mut self) -> Result<()> {
        if !self.wants("B9") {
            return Ok(());
        }
        let views = BareViews::create(&self.stage.system.stack.postgres).await?;
        // Indexes of the same size on both sides.
        views.copy_products(self.product_rows("true").await?).await?;
        let effort = self.effort;
        let (mut number, events) = (0, effort.of(100_000, 40_000, 3_000));
        let measure = async || {
            let (mut turns, of) = (Vec::new(), effort.pairs);
            for turn in 1..=of {
                progress(&format!("B9: {events} new products projected and copied, {events} updates projected; {turn} of {of}"));
                number += 1;
                turns.push(self.turn(&views, number * APART, events).await?);
            }
            Ok(turns)
        };
        let turns = effort.steady(measure, |turn| turn.unique / turn.copied).await?;
        let zipf = median_of(turns.iter().map(|turn| turn.zipf / turn.copied));
        let ratios = turns.iter().map(|turn| turn.unique / turn.copied).collect();
        let entry = Entry::new(
            "B9",
            ratios,
            Goal::AtLeast(0.5),
            "events/s projected, each of another product ÷ rows/s of COPY into the same table",
        )
        .figure("unique_per_second", median_of(turns.iter().map(|turn| turn.unique)))
        .figure("zipf_per_second", median_of(turns.iter().map(|turn| turn.zipf)))
        .figure("copied_per_second", median_of(turns.iter().map(|turn| turn.copied)))
        .figure("zipf_ratio", zipf)
        .figure("events", events as f64)
        .also(format!("Zipf keys: at least 1.5 ({zipf:.2})"), zipf >= 1.5);
        self.record(entry);
        Ok(())
    }

    /// New products from `first` on, projected and copied; then as many updates of old ones.
    async fn turn(&mut self, views: &BareViews, first: u64, events: u64) -> Result<Turn> {
        self.stage.system.stop(Service::Projector).await?;
        self.stage.create(first, events).await?;
        let unique = self.projected().await?;
        let of_turn = format!("substr(key, 3)::bigint between {first} and {}", first + events - 1);
        let copied = views.copy_products(self.product_rows(&of_turn).await?).await?;
        self.stage.system.stop(Service::Projector).await?;
        let keys = Keys::zipf(self.stage.products);
        let source = move |rpc: &Arc<Rpc>| updates(rpc.clone(), keys.clone());
        self.stage.commands().fill(UPDATE_PRODUCT, source, FILLERS, events).await?;
        Ok(Turn { unique, zipf: self.projected().await?, copied })
    }

    /// Starts the projector once JetStream has what it lacks: events per second from its first checkpoint to its last.
    async fn projected(&mut self) -> Result<f64> {
        self.stage.relayed().await?;
        self.stage.until_none(Service::Saga, "souk_saga_lag_events").await?;
        let (write, read) = (self.stage.system.write_pools().await?, self.stage.system.read_pools().await?);
        let (goal, before) = (sum(&write, WRITTEN).await?, sum(&read, APPLIED).await?);
        ensure!(goal > before, "nothing to project");
        self.stage.system.stack.start_replica(Service::Projector)?;
        let began = Instant::now();
        let mut looked = (began, before);
        let mut first = None;
        let rate = loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = (Instant::now(), sum(&read, APPLIED).await?);
            if now.1 > before && first.is_none() {
                // So few that one transaction has them all count from when there were none.
                first = Some(if now.1 < goal { now } else { looked });
            }
            if let Some((since, from)) = first.filter(|_| now.1 >= goal) {
                break (goal - from) as f64 / (now.0 - since).as_secs_f64();
            }
            ensure!(began.elapsed() < PATIENCE, "the projector does not come on");
            looked = now;
        };
        self.stage.system.stack.wait_until_ready(PATIENCE).await?;
        Ok(rate)
    }

    /// Rows of products as the projector wrote them, for COPY.
    async fn product_rows(&self, which: &str) -> Result<Vec<Bytes>> {
        let pools = self.stage.system.read_pools().await?;
        let mut connection = pools.first().context("no read database")?.acquire().await?;
        let rows = connection.copy_out_raw(&format!("copy (select * from product_view where {which}) to stdout (format binary)")).await?;
        Ok(rows.try_collect().await?)
    }
}
