use std::time::Duration;

use anyhow::{Context, Result};
use souk_load::Histogram;

use super::Bench;
use crate::{
    database::Bare,
    echo::EchoProcess,
    loader::{Loader, Press, all_ok},
    pairs::median_of,
    record::{Entry, Goal, progress},
    sources::{GET_PRODUCT, Gets, Keys},
};

/// Between two calls: whatever the one before set off has ended by then.
const PAUSE: Duration = Duration::from_millis(10);

/// One call at a time of each kind.
struct Single {
    command: Histogram,
    echo: Histogram,
    insert: Duration,
}

impl Single {
    fn command(&self) -> f64 {
        micros(self.command.quantile(0.5))
    }

    fn echo(&self) -> f64 {
        micros(self.echo.quantile(0.5))
    }

    fn ratio(&self) -> f64 {
        self.command() / (self.echo() + micros(self.insert))
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl Bench {
    /// One command at a time against an echo and an insert, one at a time.
    ///
    /// Relay, projector and query service work on a command after its reply: they are only out of the way of the next one if that
    /// comes later. Back to back it meets them, and an echo and an insert meet nobody; that is told beside it.
    pub(super) async fn unloaded(&mut self, bare: &Bare) -> Result<()> {
        let settings = self.stage.system.stack.settings_file().to_path_buf();
        let echo = EchoProcess::start(1024, Some(settings)).await?;
        let (time, pairs) = (self.effort.time, self.effort.pairs);
        progress("B6: one command every 10 ms");
        let measure = async || {
            let mut paced = Vec::new();
            for turn in 0..pairs {
                paced.push(self.single(&echo, bare, Press::Rate(1.0 / PAUSE.as_secs_f64(), time, 64), Some(PAUSE), turn % 2 == 1).await?);
            }
            Ok(paced)
        };
        let paced = self.effort.steady(measure, Single::ratio).await?;
        progress("B6: one command after another");
        let mut closed = Vec::new();
        for turn in 0..pairs {
            closed.push(self.single(&echo, bare, Press::Callers(1, time / 2), None, turn % 2 == 1).await?);
        }
        let last = paced.last().context("no pair")?;
        let ratios = paced.iter().map(Single::ratio).collect();
        let entry =
            Entry::new("B6", ratios, Goal::AtMost(1.3), "p50 of a command ÷ (p50 of an echo + p50 of a durable insert), each every 10 ms")
                .figure("command_p50_us", median_of(paced.iter().map(Single::command)))
                .figure("echo_p50_us", median_of(paced.iter().map(Single::echo)))
                .figure("insert_p50_us", median_of(paced.iter().map(|single| micros(single.insert))))
                .figure("back_to_back_ratio", median_of(closed.iter().map(Single::ratio)))
                .figure("back_to_back_command_p50_us", median_of(closed.iter().map(Single::command)))
                .figure("back_to_back_echo_p50_us", median_of(closed.iter().map(Single::echo)))
                .figure("back_to_back_insert_p50_us", median_of(closed.iter().map(|single| micros(single.insert))))
                .latencies("commands", &last.command)
                .latencies("echoes", &last.echo);
        self.record(entry);
        Ok(())
    }

    async fn single(&self, echo: &EchoProcess, bare: &Bare, press: Press, pause: Option<Duration>, echo_first: bool) -> Result<Single> {
        let (time, once) = (self.effort.time / 2, press.clone());
        // Over one connection each.
        let loader = Loader::new(self.stage.system.stack.urls("command"), 1);
        let command = async || Ok::<_, anyhow::Error>(all_ok(self.update(&loader, once).await?)?.latency());
        let others = async || {
            let gets = |rpcs: Vec<std::sync::Arc<souk_load::Rpc>>| Gets::new(rpcs[0].clone(), Keys::only(1), 1);
            let echoed = all_ok(Loader::new(echo.url.clone(), 1).run(&[(0, GET_PRODUCT)], gets, press).await?)?;
            Ok::<_, anyhow::Error>((echoed.latency(), bare.insert_p50(time, pause).await?))
        };
        let (command, (echo, insert)) = if echo_first {
            let others = others().await?;
            (command().await?, others)
        } else {
            (command().await?, others().await?)
        };
        Ok(Single { command, echo, insert })
    }
}
