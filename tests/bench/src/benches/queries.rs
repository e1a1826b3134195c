use std::time::Duration;

use anyhow::{Context, Result};
use prost::Message;
use souk_client::{Endpoints, Souk};
use souk_devstack::Service;
use souk_load::{Histogram, Report};
use souk_proto::catalog::v1::GetProductRequest;

use super::Bench;
use crate::{
    echo::EchoProcess,
    loader::{Loader, Press, all_ok},
    machine::{BOTH, LOADER, SERVER, cpu_of, pin_process},
    pairs::{by_turns, median_of},
    record::{Entry, Goal, progress},
    sources::{GET_PRODUCT, Gets, Keys, product_id},
    stage::{CONNECTIONS, Part},
};

const QUERY: Part = Part::Service(Service::Query);
/// Callers enough to fill one core of a server.
const READERS: usize = 128;

/// One side of a pair.
#[derive(Debug, Clone)]
struct Measured {
    rate: f64,
    /// Of the server, for one call.
    cpu: Duration,
    latency: Histogram,
}

impl Measured {
    fn of(report: &Report, cpu: Duration) -> Self {
        let calls = report.answered().max(1) as f64;
        Self { rate: report.rate(), cpu: Duration::from_secs_f64(cpu.as_secs_f64() / calls), latency: report.latency() }
    }

    fn p99(&self) -> f64 {
        self.latency.quantile(0.99).as_secs_f64() * 1e6
    }
}

impl Bench {
    /// Queries answered by the cache against echoes of the same size.
    pub(super) async fn queries(&mut self) -> Result<()> {
        if self.wants_any(&["B1", "B2", "B3"]) {
            self.stage.warm_up().await?;
            self.hits().await?;
            self.stage.pin(QUERY, &BOTH)?;
        }
        Ok(())
    }

    async fn hits(&mut self) -> Result<()> {
        let bytes = self.reply_bytes().await?;
        let settings = self.stage.system.stack.settings_file().to_path_buf();
        let layered = EchoProcess::start(bytes, Some(settings.clone())).await?;
        let bare = EchoProcess::start(bytes, None).await?;
        let empty = EchoProcess::start(0, Some(settings)).await?;
        for echo in [&layered, &bare, &empty] {
            pin_process(echo.pid()?, &SERVER)?;
        }
        self.stage.pin(QUERY, &SERVER)?;
        let (loader, time) = (self.stage.queries().on(&LOADER), self.effort.time);
        let press = Press::Callers(READERS, time);
        // Both sides warm: caches of code and of branches, too.
        let warm = Press::Callers(READERS, Duration::from_secs(1));
        let (all, one) = (self.stage.uniform(), Keys::only(1));
        self.hit(&loader, &all, warm.clone()).await?;
        for echo in [&layered, &bare, &empty] {
            self.echo(echo, warm.clone()).await?;
        }
        progress("B1, B2: queries answered by the cache, by turns with echoes");
        let (hit, echo) = (|| self.hit(&loader, &all, press.clone()), || self.echo(&layered, press.clone()));
        let pairs = self.effort.pairs(hit, echo, |hit, echo| hit.rate / echo.rate).await?;
        // Bare and tuned, and one that sends nothing.
        let hit = || async { Ok(vec![self.hit(&loader, &all, press.clone()).await?]) };
        let others = || async { Ok(vec![self.echo(&bare, press.clone()).await?, self.echo(&empty, press.clone()).await?]) };
        let besides = by_turns(self.effort.pairs, hit, others).await?;
        let (hit, echo) = (|| self.hit(&loader, &one, press.clone()), || self.echo(&layered, press.clone()));
        let near = by_turns(self.effort.pairs, hit, echo).await?;
        let of = |value: fn(&Measured) -> f64| pairs.iter().map(move |(hit, echo)| value(hit) / value(echo)).collect::<Vec<_>>();
        let rate = |side: &Measured| side.rate;
        let cpu = |side: &Measured| side.cpu.as_secs_f64();
        let middle = |value: fn(&Measured) -> f64| median_of(pairs.iter().map(|(hit, _)| value(hit)));
        let echo_rate = median_of(pairs.iter().map(|(_, echo)| echo.rate));
        let against_bare = median_of(besides.iter().map(|(hit, others)| hit[0].rate / others[0].rate));
        let against_empty = median_of(besides.iter().map(|(hit, others)| cpu(&hit[0]) / cpu(&others[1])));
        // All of its row lies in the processor's caches, as an echo's bytes do.
        let of_one = |value: fn(&Measured) -> f64| median_of(near.iter().map(|(hit, echo)| value(hit) / value(echo)));
        let entry = Entry::new("B1", of(rate), Goal::AtLeast(0.97), "queries from the cache ÷ echoes of the same size, calls/s")
            .figure("hits_per_second", middle(rate))
            .figure("echoes_per_second", echo_rate)
            .figure("ratio_to_bare_tonic_echo", against_bare)
            .figure("ratio_of_one_product_alone", of_one(rate))
            .figure("reply_bytes", bytes as f64)
            .also(format!("at least 0.9 of a bare tonic echo ({against_bare:.2})"), against_bare >= 0.9);
        self.keep("B1", entry);
        let entry = Entry::new("B2", of(cpu), Goal::AtMost(1.05), "the same, CPU of the server per call")
            .figure("hit_cpu_us", middle(cpu) * 1e6)
            .figure("echo_cpu_us", median_of(pairs.iter().map(|(_, echo)| cpu(echo))) * 1e6)
            .figure("ratio_to_empty_echo", against_empty)
            .figure("ratio_of_one_product_alone", of_one(cpu));
        self.keep("B2", entry);
        if self.wants("B3") {
            progress("B3: both at 70 % of the echo's most");
            let press = Press::Rate(echo_rate * 0.7, time, 4096);
            let (hit, echo) = (|| self.hit(&loader, &all, press.clone()), || self.echo(&layered, press.clone()));
            let pairs = self.effort.pairs(hit, echo, |hit, echo| hit.p99() / echo.p99()).await?;
            let ratios = pairs.iter().map(|(hit, echo)| hit.p99() / echo.p99()).collect();
            let (hits, echoes) = pairs.last().context("no pair")?;
            let entry = Entry::new("B3", ratios, Goal::AtMost(1.2), "p99 of hits ÷ p99 of echoes at 70 % of the echo's most")
                .figure("calls_per_second", echo_rate * 0.7)
                .figure("hit_p99_us", median_of(pairs.iter().map(|(hit, _)| hit.p99())))
                .figure("echo_p99_us", median_of(pairs.iter().map(|(_, echo)| echo.p99())))
                .latencies("hits", &hits.latency)
                .latencies("echoes", &echoes.latency);
            self.record(entry);
        }
        Ok(())
    }

    fn keep(&mut self, number: &str, entry: Entry) {
        if self.wants(number) {
            self.record(entry);
        }
    }

    async fn hit(&self, loader: &Loader, keys: &Keys, press: Press) -> Result<Measured> {
        let (keys, products) = (keys.clone(), self.stage.products);
        let before = self.stage.cpu(&[QUERY])?;
        let report = loader.run(&[(0, GET_PRODUCT)], move |rpcs| Gets::new(rpcs[0].clone(), keys, products), press).await?;
        let report = all_ok(report)?;
        Ok(Measured::of(&report, self.stage.cpu_since(&[QUERY], before)?))
    }

    async fn echo(&self, echo: &EchoProcess, press: Press) -> Result<Measured> {
        let (keys, products) = (Keys::uniform(self.stage.products), self.stage.products);
        let loader = Loader::new(echo.url.clone(), CONNECTIONS).on(&LOADER);
        let before = cpu_of(echo.pid()?);
        let report = loader.run(&[(0, GET_PRODUCT)], move |rpcs| Gets::new(rpcs[0].clone(), keys, products), press).await?;
        let report = all_ok(report)?;
        Ok(Measured::of(&report, cpu_of(echo.pid()?).saturating_sub(before)))
    }

    /// Bytes of a reply about one product.
    pub(super) async fn reply_bytes(&self) -> Result<usize> {
        let query = GetProductRequest { product_id: product_id(1), token: String::new() };
        Ok(self.client()?.session().query(query).await?.encoded_len())
    }

    pub(super) fn client(&self) -> Result<Souk> {
        let stack = &self.stage.system.stack;
        Ok(Souk::connect(&Endpoints::new(stack.urls("command"), stack.urls("query")).connections(8))?)
    }
}
