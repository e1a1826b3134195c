use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use souk_load::{Report, Rpc};

use super::{Bench, visible::percentile};
use crate::{
    echo::EchoProcess,
    loader::{Loader, Press, all_ok, side_of},
    pairs::{Side, median_of},
    record::{Entry, Goal, progress},
    sources::{GET_PRODUCT, Gets, Keys, Mix, UPDATE_PRODUCT, updates},
    stage::{CONNECTIONS, Part},
};

/// Nearly all of them wait for a command at any time, and with four times as many the command service would have as much in its queue
/// as it lets wait.
const CALLERS: usize = 256;

impl Bench {
    pub(super) async fn together(&mut self) -> Result<()> {
        if self.wants_any(&["B11", "B15"]) {
            self.stage.warm_up().await?;
        }
        if self.wants("B11") {
            self.mixed().await?;
        }
        if self.wants("B15") {
            self.headline().await?;
        }
        Ok(())
    }

    fn both(&self) -> Loader {
        self.stage.queries().and(self.stage.system.stack.urls("command"), CONNECTIONS)
    }

    async fn mix(&self, press: Press) -> Result<Report> {
        let (keys, products) = (Keys::zipf(self.stage.products), self.stage.products);
        let source = move |rpcs: Vec<Arc<Rpc>>| Mix::new(rpcs[0].clone(), rpcs[1].clone(), keys, products);
        self.both().run(&[(0, GET_PRODUCT), (1, UPDATE_PRODUCT)], source, press).await
    }

    /// Commands and queries together against what each does alone.
    async fn mixed(&mut self) -> Result<()> {
        progress("B11: a tenth of commands, and each alone");
        let press = Press::Callers(CALLERS, self.effort.time);
        let products = self.stage.products;
        let solo = || async {
            let keys = Keys::zipf(products);
            let gets = move |rpcs: Vec<Arc<Rpc>>| Gets::new(rpcs[0].clone(), keys, products);
            let cpu = self.stage.cpu(&Part::ALL)?;
            let queries = all_ok(self.stage.queries().run(&[(0, GET_PRODUCT)], gets, press.clone()).await?)?;
            let queries = side_of(&queries, self.stage.cpu_since(&Part::ALL, cpu)?);
            let keys = Keys::zipf(products);
            let source = move |rpcs: Vec<Arc<Rpc>>| updates(rpcs[0].clone(), keys);
            let cpu = self.stage.cpu(&Part::ALL)?;
            let commands = all_ok(self.stage.commands().run(&[(0, UPDATE_PRODUCT)], source, press.clone()).await?)?;
            self.stage.caught_up().await?;
            Ok([queries, side_of(&commands, self.stage.cpu_since(&Part::ALL, cpu)?)])
        };
        let mixed = || async {
            let cpu = self.stage.cpu(&Part::ALL)?;
            let mixed = all_ok(self.mix(press.clone()).await?)?;
            self.stage.caught_up().await?;
            // One side, in the shape of the other's two.
            Ok([side_of(&mixed, self.stage.cpu_since(&Part::ALL, cpu)?); 2])
        };
        let ideal = |[queries, commands]: &[Side; 2]| Side {
            rate: 1.0 / (0.9 / queries.rate + 0.1 / commands.rate),
            cpu_us: 0.9 * queries.cpu_us + 0.1 * commands.cpu_us,
        };
        let pairs = self.effort.pairs(mixed, solo, |[mixed, _], solo| mixed.ratio(&ideal(solo))).await?;
        let against: Vec<_> = pairs.iter().map(|([mixed, _], solo)| (*mixed, ideal(solo))).collect();
        let ratios = against.iter().map(|(mixed, ideal)| mixed.ratio(ideal)).collect();
        let entry = Entry::new("B11", ratios, Goal::AtLeast(0.9), "a tenth of commands ÷ the ideal from each alone, calls/s")
            .sides(["mixed", "ideal"], &against)
            .figure("queries_per_second_alone", median_of(pairs.iter().map(|(_, [queries, _])| queries.rate)))
            .figure("commands_per_second_alone", median_of(pairs.iter().map(|(_, [_, commands])| commands.rate)));
        self.record(entry);
        Ok(())
    }

    /// How long echoes take at the rate of the headline's queries when nothing else is done: what the machine itself makes callers wait.
    async fn echoes_alone(&self, rate: f64, time: Duration) -> Result<Report> {
        progress("B15: echoes alone, as many as there will be queries");
        let settings = self.stage.system.stack.settings_file().to_path_buf();
        let echo = EchoProcess::start(self.reply_bytes().await?, Some(settings)).await?;
        let (loader, products) = (Loader::new(echo.url.clone(), CONNECTIONS), self.stage.products);
        let run = |press| {
            let keys = Keys::zipf(products);
            loader.run(&[(0, GET_PRODUCT)], move |rpcs: Vec<Arc<Rpc>>| Gets::new(rpcs[0].clone(), keys, products), press)
        };
        // As warm as the query service.
        all_ok(run(Press::Callers(CALLERS, self.effort.time / 4)).await?)?;
        let report = run(Press::Rate(rate * 0.9, time, 8192)).await?;
        // A machine that stands still for a second, so that calls are not even sent, is what this is to show.
        ensure!(report.failed() == 0, "calls failed: {:?}", report.errors);
        Ok(report)
    }

    /// The textbook load of a million users on this machine.
    async fn headline(&mut self) -> Result<()> {
        let rate = self.effort.of(10_000.0, 10_000.0, 200.0);
        let (times, seconds) = self.effort.of((3, 60), (1, 30), (1, 2));
        let time = Duration::from_secs(seconds);
        let alone = self.echoes_alone(rate, time / 2).await?.latency();
        let mut best: Option<(Report, f64, Duration)> = None;
        for turn in 1..=times {
            progress(&format!("B15: 1,000 commands and 9,000 queries a second, run {turn} of {times}"));
            let before = self.stage.cpu(&Part::ALL)?;
            let watching = self.visible(time, Duration::from_millis(50));
            let (report, visible) = tokio::join!(self.mix(Press::Rate(rate, time, 8192)), watching);
            let (report, visible) = (report?, percentile(&visible?, 99));
            let cpu = self.stage.cpu_since(&Part::ALL, before)?.as_secs_f64() / time.as_secs_f64();
            let p99 = report.kinds[Mix::QUERIES].ok.quantile(0.99);
            if best.as_ref().is_none_or(|(other, ..)| p99 < other.kinds[Mix::QUERIES].ok.quantile(0.99)) {
                best = Some((report, cpu, visible));
            }
        }
        let (report, cpu, visible) = best.expect("at least one run");
        let p99 = |kind: usize| report.kinds[kind].ok.quantile(0.99);
        let (queries, commands) = (p99(Mix::QUERIES), p99(Mix::COMMANDS));
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let errors = report.failed() + report.unsent;
        let entry = Entry::new("B15", vec![report.rate() / rate], Goal::AtLeast(0.999), "the load of a million users: achieved ÷ intended")
            .figure("echo_alone_p99_ms", millis(alone.quantile(0.99)))
            .figure("query_p50_ms", millis(report.kinds[Mix::QUERIES].ok.quantile(0.5)))
            .figure("query_p99_ms", millis(queries))
            .figure("query_p999_ms", millis(report.kinds[Mix::QUERIES].ok.quantile(0.999)))
            .figure("command_p50_ms", millis(report.kinds[Mix::COMMANDS].ok.quantile(0.5)))
            .figure("command_p99_ms", millis(commands))
            .figure("visible_p99_ms", millis(visible))
            .figure("errors", errors as f64)
            .figure("cores_used_by_the_system", cpu)
            .figure("cores_used_by_the_loader", report.cpu.as_secs_f64() / time.as_secs_f64())
            .latencies("queries", &report.kinds[Mix::QUERIES].ok)
            .latencies("commands", &report.kinds[Mix::COMMANDS].ok)
            .over_time(&report.seconds)
            .also("no errors", errors == 0)
            .also(format!("p99 of queries at most 10 ms ({:.1})", millis(queries)), queries <= Duration::from_millis(10))
            .also(format!("p99 of commands at most 50 ms ({:.1})", millis(commands)), commands <= Duration::from_millis(50))
            .also(format!("visible within 100 ms, p99 ({:.1})", millis(visible)), visible <= Duration::from_millis(100));
        self.record(entry);
        Ok(())
    }
}
