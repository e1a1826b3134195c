use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use souk_devstack::Service;
use souk_load::{Code, Report, Rpc};
use souk_proto::catalog::v1::command_service_client::CommandServiceClient;
use souk_tests::{Outcome, open_loop};

use super::Bench;
use crate::{
    database::{Bare, pgbench_seconds},
    loader::{Loader, Press, all_ok, side_of},
    machine::{BOTH, LOADER, SERVER},
    pairs::{Side, median_of},
    record::{Entry, Goal, progress},
    sources::{RECEIVE_STOCK, UPDATE_PRODUCT, description, receipts, update, updates},
    stage::{Part, WRITERS},
};

/// Calls per second whose refusals are looked at closely.
const PROBES: f64 = 50.0;
/// Connections of a load beyond the capacity, with 256 calls each: what waits for its answer must not keep the next from being sent.
/// The capacity is measured over as many.
const CROWD: usize = 32;

/// How often the rate is lowered, and to what share, until it is within the capacity.
const RATES: usize = 5;
const SLOWER: f64 = 0.95;

/// What came of calls that were sent at their times, whatever became of those before.
struct Offered {
    goodput: Side,
    done: u64,
    refused: u64,
    /// Of a few refusals all details were seen.
    seen: u64,
    /// By how much calls were sent too late, p99.
    late: Duration,
    /// Calls that the loader gave up sending.
    unsent: u64,
}

impl Offered {
    /// Whether the load is within the capacity: one call of a hundred was not carried out at most.
    fn hardly_refuses(&self) -> bool {
        (self.refused + self.unsent) * 100 <= self.done
    }
}

impl Bench {
    pub(super) async fn commands(&mut self) -> Result<()> {
        if !self.wants_any(&["B4", "B6", "B7", "B13"]) {
            return Ok(());
        }
        let bare = Bare::create(&self.stage.system.stack.postgres, self.stage.system.stack.logs()).await?;
        if self.wants("B6") {
            self.unloaded(&bare).await?;
        }
        if self.wants("B7") {
            self.hot_entity().await?;
        }
        if self.wants("B13") {
            // Twice the calls are twice the work for the loader, which must not come out of the system's share.
            self.pin_all(&SERVER)?;
            let measured = self.twice_the_load().await;
            self.pin_all(&BOTH)?;
            measured?;
        }
        if self.wants("B4") {
            self.durable(&bare).await?;
        }
        Ok(())
    }

    pub(super) async fn update(&self, loader: &Loader, press: Press) -> Result<Report> {
        let keys = self.stage.uniform();
        let source = move |rpcs: Vec<Arc<Rpc>>| updates(rpcs[0].clone(), keys);
        loader.run(&[(0, UPDATE_PRODUCT)], source, press).await
    }

    /// Commands per second against single-row inserts per second.
    async fn durable(&mut self, bare: &Bare) -> Result<()> {
        let time = self.effort.time;
        let press = Press::Callers(WRITERS, time);
        progress("B4: pgbench with 1, 8, 32 and 64 clients");
        let (clients, _) = bare.best_clients(time).await?;
        progress("B4: commands with everything running");
        let everything =
            self.effort.pairs(|| self.rate(press.clone()), || bare.pgbench(clients, time), |commands, inserts| commands / inserts).await?;
        self.stage.caught_up().await?;
        // The command service and Postgres alone.
        for service in [Service::Projector, Service::Saga, Service::Query] {
            self.stage.system.stop(service).await?;
        }
        self.stage.system.stack.nats.stop().await?;
        progress("B4: commands with command service and Postgres alone");
        let alone = self
            .effort
            .pairs(
                || async {
                    let cpu = self.stage.cpu(&Part::WRITE_SIDE)?;
                    let report = all_ok(self.update(&self.stage.commands(), press.clone()).await?)?;
                    Ok(side_of(&report, self.stage.cpu_since(&Part::WRITE_SIDE, cpu)?))
                },
                || async {
                    let cpu = self.stage.cpu(&[Part::Postgres])?;
                    let rate = bare.pgbench(clients, time).await?;
                    let inserts = (rate * pgbench_seconds(time)) as u64;
                    Ok(Side::new(rate, inserts, self.stage.cpu_since(&[Part::Postgres], cpu)?))
                },
                Side::ratio,
            )
            .await?;
        self.stage.system.stack.nats.start_again().await?;
        for service in [Service::Projector, Service::Saga, Service::Query] {
            self.stage.system.start_again(service).await?;
        }
        self.stage.caught_up().await?;
        let ratios = alone.iter().map(|(commands, inserts)| commands.ratio(inserts)).collect();
        let together = median_of(everything.iter().map(|(commands, inserts)| commands / inserts));
        let entry = Entry::new("B4", ratios, Goal::AtLeast(1.0), "durable commands/s ÷ the best single-row inserts/s of pgbench")
            .sides(["commands", "inserts"], &alone)
            .figure("pgbench_clients", clients as f64)
            .figure("commands_per_second_with_everything", median_of(everything.iter().map(|(commands, _)| *commands)))
            .figure("ratio_with_everything", together);
        self.record(entry);
        Ok(())
    }

    async fn rate(&self, press: Press) -> Result<f64> {
        Ok(all_ok(self.update(&self.stage.commands(), press).await?)?.rate())
    }

    fn pin_all(&self, cores: &[usize]) -> Result<()> {
        Part::ALL.into_iter().try_for_each(|part| self.stage.pin(part, cores))
    }

    fn crowd(&self) -> Loader {
        Loader::new(self.stage.system.stack.urls("command"), CROWD).on(&LOADER)
    }

    /// So many commands per second, whatever becomes of them.
    async fn offered(&self, rate: f64, time: Duration) -> Result<Offered> {
        let (loader, cpu) = (self.crowd(), self.stage.cpu(&Part::ALL)?);
        // A few calls more, by a client that sees the details of a refusal.
        let (report, probes) = tokio::join!(self.update(&loader, Press::Rate(rate, time, CROWD * 256)), self.probes(time));
        let (report, probes) = (report?, probes?);
        self.stage.caught_up().await?;
        let refused = report.count(Code::ResourceExhausted);
        ensure!(report.failed() == refused, "other refusals: {:?}", report.errors);
        ensure!(probes.failed.is_empty(), "a call failed, or was refused without a hint: {:?}", probes.failed.first());
        // What is done pays for what is refused.
        let done = report.count(Code::Ok) + probes.accepted.len() as u64;
        let goodput = Side::new(report.goodput(), done, self.stage.cpu_since(&Part::ALL, cpu)?);
        Ok(Offered { goodput, done, refused, seen: probes.shed as u64, late: report.lag.quantile(0.99), unsent: report.unsent })
    }

    /// A few commands a second through the generated client.
    async fn probes(&self, time: Duration) -> Result<Outcome> {
        let client = CommandServiceClient::connect(self.stage.system.stack.urls("command")).await?;
        let (products, round) = (self.stage.products, rand::random::<u64>());
        let call = move |number: u64| {
            let (mut client, product) = (client.clone(), number % products + 1);
            async move { client.update_product(update(product, description(number ^ round))).await.map(drop) }
        };
        Ok(open_loop(PROBES, time, call).await)
    }

    /// Everybody wants the same thing.
    async fn hot_entity(&mut self) -> Result<()> {
        let spread = self.effort.of(10_000, 10_000, 100);
        progress("B7: one stock item, and ten thousand of them");
        let press = Press::Callers(WRITERS, self.effort.time);
        let stage = &self.stage;
        let receive = |spread: u64| {
            let (press, loader) = (press.clone(), stage.commands());
            async move {
                let source = move |rpcs: Vec<Arc<Rpc>>| receipts(rpcs[0].clone(), move |number| number % spread + 1);
                let cpu = stage.cpu(&Part::ALL)?;
                let report = all_ok(loader.run(&[(0, RECEIVE_STOCK)], source, press).await?)?;
                stage.caught_up().await?;
                Ok(side_of(&report, stage.cpu_since(&Part::ALL, cpu)?))
            }
        };
        let pairs = self.effort.pairs(|| receive(1), || receive(spread), Side::ratio).await?;
        let ratios = pairs.iter().map(|(hot, spread)| hot.ratio(spread)).collect();
        let entry = Entry::new("B7", ratios, Goal::AtLeast(0.8), "commands/s on one stock item ÷ over 10,000 items")
            .sides(["hot", "spread"], &pairs);
        self.record(entry);
        Ok(())
    }

    /// What is left of the capacity when twice of it is asked for.
    async fn twice_the_load(&mut self) -> Result<()> {
        progress("B13: twice the capacity");
        let time = self.effort.time;
        let measure = async || {
            let mut pairs = Vec::new();
            for _ in 0..self.effort.pairs {
                // Callers that wait for their replies send in waves, which costs less: they tell what to begin with.
                let most = all_ok(self.update(&self.crowd(), Press::Callers(WRITERS, time)).await?)?.rate();
                self.stage.caught_up().await?;
                let (mut rate, mut capacity) = (most, self.offered(most, time).await?);
                for _ in 0..RATES {
                    if capacity.hardly_refuses() {
                        break;
                    }
                    rate *= SLOWER;
                    capacity = self.offered(rate, time).await?;
                }
                pairs.push((self.offered(rate * 2.0, time).await?, capacity, most));
            }
            Ok(pairs)
        };
        let pairs = self.effort.steady(measure, |(overload, capacity, _)| overload.goodput.ratio(&capacity.goodput)).await?;
        let sum = |of: fn(&Offered) -> u64| pairs.iter().map(|(overload, ..)| of(overload)).sum::<u64>();
        let at_capacity = pairs.iter().map(|(_, capacity, _)| capacity.refused + capacity.unsent).sum::<u64>();
        let (refused, seen, unsent) = (sum(|overload| overload.refused), sum(|overload| overload.seen), sum(|overload| overload.unsent));
        let late = median_of(pairs.iter().map(|(overload, ..)| overload.late.as_secs_f64() * 1e3));
        let sides: Vec<_> = pairs.iter().map(|(overload, capacity, _)| (overload.goodput, capacity.goodput)).collect();
        let ratios = sides.iter().map(|(goodput, capacity)| goodput.ratio(capacity)).collect();
        let entry = Entry::new("B13", ratios, Goal::AtLeast(0.9), "goodput at twice the capacity ÷ capacity, commands")
            .sides(["goodput", "capacity"], &sides)
            .figure("closed_loop_per_second", median_of(pairs.iter().map(|(.., most)| *most)))
            .figure("ratio_to_closed_loop", median_of(pairs.iter().map(|(overload, _, most)| overload.goodput.rate / most)))
            .figure("refused_or_not_sent_at_capacity", at_capacity as f64)
            .figure("refused", refused as f64)
            .figure("refused_with_a_hint_seen", seen as f64)
            .figure("sent_late_p99_ms", late)
            .figure("not_sent_by_the_loader", unsent as f64)
            .also("what is too much is refused and told when to come back", refused > 0 && seen > 0);
        self.record(entry);
        Ok(())
    }
}
