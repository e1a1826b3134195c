use std::sync::Arc;

use anyhow::{Result, ensure};
use souk_devstack::Service;
use souk_load::{Code, Report, Rpc};

use super::Bench;
use crate::{
    database::Bare,
    loader::{Press, all_ok},
    pairs::median_of,
    record::{Entry, Goal, progress},
    sources::{RECEIVE_STOCK, UPDATE_PRODUCT, receipts, updates},
    stage::{Part, WRITERS},
};

const WRITE_SIDE: [Part; 2] = [Part::Service(Service::Command), Part::Postgres];

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
            self.twice_the_load().await?;
        }
        if self.wants("B4") {
            self.durable(&bare).await?;
        }
        Ok(())
    }

    pub(super) async fn update(&self, press: Press) -> Result<Report> {
        let keys = self.stage.uniform();
        let source = move |rpcs: Vec<Arc<Rpc>>| updates(rpcs[0].clone(), keys);
        self.stage.commands().run(&[(0, UPDATE_PRODUCT)], source, press).await
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
        let mut cpu = Vec::new();
        let alone = self
            .effort
            .pairs(
                || async {
                    let before = self.stage.cpu(&WRITE_SIDE)?;
                    let report = all_ok(self.update(press.clone()).await?)?;
                    let cpu = (self.stage.cpu(&WRITE_SIDE)? - before).as_secs_f64() / report.answered() as f64;
                    Ok((report.rate(), cpu))
                },
                || async { Ok((bare.pgbench(clients, time).await?, 0.0)) },
                |(rate, _), (inserts, _)| rate / inserts,
            )
            .await?;
        cpu.extend(alone.iter().map(|((_, cpu), _)| *cpu));
        self.stage.system.stack.nats.start_again().await?;
        for service in [Service::Projector, Service::Saga, Service::Query] {
            self.stage.system.start_again(service).await?;
        }
        self.stage.caught_up().await?;
        let ratios = alone.iter().map(|((rate, _), (inserts, _))| rate / inserts).collect();
        let together = median_of(everything.iter().map(|(commands, inserts)| commands / inserts));
        let entry = Entry::new("B4", ratios, Goal::AtLeast(1.0), "durable commands/s ÷ the best single-row inserts/s of pgbench")
            .figure("commands_per_second", median_of(alone.iter().map(|((rate, _), _)| *rate)))
            .figure("inserts_per_second", median_of(alone.iter().map(|(_, (inserts, _))| *inserts)))
            .figure("pgbench_clients", clients as f64)
            .figure("command_and_postgres_cpu_us", median_of(cpu) * 1e6)
            .figure("commands_per_second_with_everything", median_of(everything.iter().map(|(commands, _)| *commands)))
            .figure("ratio_with_everything", together);
        self.record(entry);
        Ok(())
    }

    async fn rate(&self, press: Press) -> Result<f64> {
        Ok(all_ok(self.update(press).await?)?.rate())
    }

    /// Everybody wants the same thing.
    async fn hot_entity(&mut self) -> Result<()> {
        let spread = self.effort.of(10_000, 10_000, 100);
        progress("B7: one stock item, and ten thousand of them");
        let press = Press::Callers(WRITERS, self.effort.time);
        let receive = |spread: u64| {
            let (press, loader) = (press.clone(), self.stage.commands());
            async move {
                let source = move |rpcs: Vec<Arc<Rpc>>| receipts(rpcs[0].clone(), move |number| number % spread + 1);
                Ok(all_ok(loader.run(&[(0, RECEIVE_STOCK)], source, press).await?)?.rate())
            }
        };
        let pairs = self.effort.pairs(|| receive(1), || receive(spread), |hot, spread| hot / spread).await?;
        let ratios = pairs.iter().map(|(hot, spread)| hot / spread).collect();
        let entry = Entry::new("B7", ratios, Goal::AtLeast(0.8), "commands/s on one stock item ÷ over 10,000 items")
            .figure("hot_per_second", median_of(pairs.iter().map(|(hot, _)| *hot)))
            .figure("spread_per_second", median_of(pairs.iter().map(|(_, spread)| *spread)));
        self.record(entry);
        Ok(())
    }

    /// What is left of the capacity when twice of it is asked for.
    async fn twice_the_load(&mut self) -> Result<()> {
        progress("B13: twice the capacity");
        let time = self.effort.time;
        let mut refused = (0, 0);
        let measure = async || {
            let mut pairs = Vec::new();
            refused = (0, 0);
            for _ in 0..self.effort.pairs {
                let capacity = all_ok(self.update(Press::Callers(WRITERS, time)).await?)?.rate();
                let report = self.update(Press::Rate(capacity * 2.0, time, 8192)).await?;
                let shed = report.count(Code::ResourceExhausted);
                ensure!(report.failed() == shed, "other refusals: {:?}", report.errors);
                refused = (refused.0 + shed, refused.1 + report.unsent);
                pairs.push((report.goodput(), capacity));
                // What was let in last is still under way.
                self.stage.caught_up().await?;
            }
            Ok(pairs)
        };
        let pairs = self.effort.steady(measure, |(goodput, capacity)| goodput / capacity).await?;
        let ratios = pairs.iter().map(|(goodput, capacity)| goodput / capacity).collect();
        let entry = Entry::new("B13", ratios, Goal::AtLeast(0.9), "goodput at twice the capacity ÷ capacity, commands")
            .figure("capacity_per_second", median_of(pairs.iter().map(|(_, capacity)| *capacity)))
            .figure("refused", refused.0 as f64)
            .figure("not_sent_by_the_loader", refused.1 as f64);
        self.record(entry);
        Ok(())
    }
}
