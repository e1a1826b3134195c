use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use souk_devstack::Service;
use souk_load::Rpc;

use super::Bench;
use crate::{
    database::BareViews,
    pairs::{Ratios, Side, median_of},
    record::{Entry, Goal, progress},
    sources::{Keys, UPDATE_PRODUCT, updates},
    stage::{APPLIED, FILLERS, PATIENCE, Part, WRITTEN, sum},
};

/// Between two looks at the checkpoints.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Products of a turn are numbered from a multiple of this on.
const APART: u64 = 10_000_000;

/// Of the views that a new product leads to, one row each.
const VIEWS: [&str; 2] = ["product_view", "availability_view"];
/// Whom projecting costs CPU besides the projector.
const READ_SIDE: [Part; 2] = [Part::Postgres, Part::Nats];

/// What one turn came to.
struct Turn {
    unique: Side,
    /// Rows of all views into which new products went.
    copied: Side,
    zipf: Side,
    /// Rows of products alone, the only ones that updates go to.
    products_copied: Side,
}

/// What one COPY came to.
struct Copied {
    rows: u64,
    took: Duration,
    cpu: Duration,
}

impl Bench {
    /// The projector over events that wait for it, against COPY of the rows it makes of them.
    pub(super) async fn projection(&mut self) -> Result<()> {
        if !self.wants("B9") {
            return Ok(());
        }
        let views = BareViews::create(&self.stage.system.stack.postgres).await?;
        // Indexes of the same size on both sides.
        for view in VIEWS {
            views.copy(view, self.rows(view, "true").await?).await?;
        }
        let effort = self.effort;
        let (mut number, products) = (0, effort.of(100_000, 40_000, 3_000));
        let measure = async || {
            let (mut turns, of) = (Vec::new(), effort.pairs);
            for turn in 1..=of {
                progress(&format!("B9: {products} new products projected and copied, {products} updates projected; {turn} of {of}"));
                number += 1;
                turns.push(self.turn(&views, number * APART, products).await?);
            }
            Ok(turns)
        };
        let turns = effort.steady(measure, |turn| turn.unique.ratio(&turn.copied)).await?;
        let (unique, zipf): (Vec<_>, Vec<_>) =
            turns.iter().map(|turn| ((turn.unique, turn.copied), (turn.zipf, turn.products_copied))).unzip();
        let ratios = |pairs: &[(Side, Side)]| Ratios::of(pairs.iter().map(|(projected, copied)| projected.ratio(copied)).collect());
        let by_zipf = ratios(&zipf);
        let note = "events/s projected, each of another row ÷ rows/s of COPY into the same tables";
        let entry = Entry::new("B9", ratios(&unique).all, Goal::AtLeast(0.5), note)
            .sides(["unique", "copied"], &unique)
            .sides(["zipf", "products_copied"], &zipf)
            .figure("zipf_ratio", by_zipf.median)
            .figure("zipf_ratio_min", by_zipf.min)
            .figure("zipf_ratio_max", by_zipf.max)
            .figure("products", products as f64)
            .figure("products_per_second", median_of(unique.iter().map(|(projected, _)| projected.rate / VIEWS.len() as f64)))
            .also(format!("Zipf keys: at least 1.5 ({:.2})", by_zipf.median), by_zipf.median >= 1.5);
        self.record(entry);
        Ok(())
    }

    /// New products from `first` on, projected and copied; then as many updates of old ones.
    async fn turn(&mut self, views: &BareViews, first: u64, products: u64) -> Result<Turn> {
        self.stage.system.stop(Service::Projector).await?;
        self.stage.create(first, products).await?;
        let unique = self.projected().await?;
        let of_turn = format!("substr(key, 3)::bigint between {first} and {}", first + products - 1);
        let (products_copied, availability_copied) =
            (self.copied(views, VIEWS[0], &of_turn).await?, self.copied(views, VIEWS[1], &of_turn).await?);
        let (rows, copied) = (products_copied.rows + availability_copied.rows, products_copied.took + availability_copied.took);
        ensure!(rows == 2 * products, "{products} new products made {rows} rows");
        let copied = Side::of(rows, copied, products_copied.cpu + availability_copied.cpu);
        let products_copied = Side::of(products_copied.rows, products_copied.took, products_copied.cpu);
        self.stage.system.stop(Service::Projector).await?;
        let keys = Keys::zipf(self.stage.products);
        let source = move |rpc: &Arc<Rpc>| updates(rpc.clone(), keys.clone());
        self.stage.commands().fill(UPDATE_PRODUCT, source, FILLERS, products).await?;
        Ok(Turn { unique, copied, zipf: self.projected().await?, products_copied })
    }

    /// Starts the projector once JetStream has what it lacks: events from its first checkpoint to its last, and the CPU of all it takes
    /// until then, its start included.
    async fn projected(&mut self) -> Result<Side> {
        self.stage.relayed().await?;
        self.stage.until_none(Service::Saga, "souk_saga_lag_events").await?;
        // What it did on account of them.
        self.stage.relayed().await?;
        let (write, read) = (self.stage.system.write_pools().await?, self.stage.system.read_pools().await?);
        let (goal, before) = (sum(&write, WRITTEN).await?, sum(&read, APPLIED).await?);
        ensure!(goal > before, "nothing to project");
        let cpu = self.stage.cpu(&READ_SIDE)?;
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
                let cpu = self.stage.cpu_since(&READ_SIDE, cpu)? + self.stage.cpu(&[Part::Service(Service::Projector)])?;
                let rate = (goal - from) as f64 / (now.0 - since).as_secs_f64();
                break Side::new(rate, (goal - before) as u64, cpu);
            }
            ensure!(began.elapsed() < PATIENCE, "the projector does not come on");
            looked = now;
        };
        self.stage.system.stack.wait_until_ready(PATIENCE).await?;
        Ok(rate)
    }

    /// Puts rows of a view into the same view without Souk.
    async fn copied(&self, views: &BareViews, view: &str, which: &str) -> Result<Copied> {
        let (rows, cpu) = (self.rows(view, which).await?, self.stage.cpu(&[Part::Postgres])?);
        let (rows, took) = views.copy(view, rows).await?;
        Ok(Copied { rows, took, cpu: self.stage.cpu_since(&[Part::Postgres], cpu)? })
    }

    /// Rows of a view as the projector wrote them, for COPY.
    async fn rows(&self, view: &str, which: &str) -> Result<Vec<Bytes>> {
        let pools = self.stage.system.read_pools().await?;
        let mut connection = pools.first().context("no read database")?.acquire().await?;
        let rows = connection.copy_out_raw(&format!("copy (select * from {view} where {which}) to stdout (format binary)")).await?;
        Ok(rows.try_collect().await?)
    }
}
