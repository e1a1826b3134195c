//! `souk drill --regions`: the ways between three regions get slow, break and heal under load, and a fourth region joins. What it
//! measures on the way is printed, and in the end the audit compares all of them.

mod traffic;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use souk_client::{Endpoints, Session, Souk};
use souk_devstack::Regions;
use tokio::{process::Command, time::sleep};

use crate::paint::{bold, dim, green, say, thousands, yellow};
use traffic::{Pace, Traffic, open_shops, travel};

const NAMES: [&str; 3] = ["eu", "us", "ap"];
/// The region that is cut off, and the one that joins.
const AWAY: &str = "ap";
const NEW: &str = "sa";
const READY_PATIENCE: Duration = Duration::from_secs(240);
/// Each way.
const LATENCY: Duration = Duration::from_millis(80);
/// How long each state before and after the cut is looked at.
const WHILE: Duration = Duration::from_secs(15);
const CATCH_UP: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Regions that run, and where `souk` commands find them.
struct Drill {
    regions: Regions,
    run_file: PathBuf,
}

/// What `souk status` says of one region as a copy of another.
#[derive(Debug, Deserialize)]
struct Pair {
    region: String,
    of: String,
    copied: u64,
    head: u64,
    lag_events: u64,
    lag_seconds: f64,
}

#[derive(Deserialize)]
struct Pairs {
    pairs: Vec<Pair>,
}

/// # Errors
/// When a region does not start, a caller got an error, or the audit found differences.
pub(super) async fn run(cut: Duration) -> Result<()> {
    say(bold("Three regions, and the ways between them fail"));
    say(dim("Each has Postgres, NATS and all services of its own. All on this machine, and gone afterwards."));
    let mut drill = Drill::start().await?;
    let clients = drill.clients(&NAMES)?;
    open_shops(&clients).await?;
    drill.slow(&clients).await?;
    let traffic = Traffic::start(&clients);
    drill.cut_off(&traffic, cut).await?;
    let told = traffic.stop().await?;
    say(told);
    drill.join().await?;
    drill.audit().await?;
    say(format_args!("\n{}", green(bold("Nothing lost, and every region shows the same."))));
    Ok(())
}

impl Drill {
    async fn start() -> Result<Self> {
        let mut regions = Regions::temporary(&NAMES, &[NEW], |_, _| {}).await?;
        regions.start_services(READY_PATIENCE).await?;
        let run_file = regions.data().join("run.json");
        let drill = Self { regions, run_file };
        drill.write_run_file()?;
        say(dim(format!("To look into it meanwhile: SOUK_RUN_FILE={} souk status --watch", drill.run_file.display())));
        Ok(drill)
    }

    fn write_run_file(&self) -> Result<()> {
        self.regions.run_file()?.write(&self.run_file)
    }

    fn client(&self, region: &str) -> Result<Souk> {
        let stack = self.regions.stack(region)?;
        Ok(Souk::connect(&Endpoints::new(stack.urls("command"), stack.urls("query")))?)
    }

    fn clients(&self, names: &[&'static str]) -> Result<Vec<(&'static str, Souk)>> {
        names.iter().map(|name| Ok((*name, self.client(name)?))).collect()
    }

    /// Slow links: how long after its answer a command is seen in another region.
    async fn slow(&self, clients: &[(&'static str, Souk)]) -> Result<()> {
        say(format_args!("\n{}", yellow(format!("All links take {} ms each way", LATENCY.as_millis()))));
        for link in self.regions.links().all() {
            link.set_latency(LATENCY).await;
        }
        sleep(Duration::from_secs(2)).await;
        let (seen, lags) = tokio::try_join!(travel(clients, WHILE), self.lags(WHILE))?;
        say(format_args!(
            "  written here, read there   p50 {} p99 {} after the answer, over {} writes between all pairs: {:.2} and {:.2} times the link",
            shown(seen.at(0.5)),
            shown(seen.at(0.99)),
            thousands(seen.count() as u64),
            seen.at(0.5).as_secs_f64() / LATENCY.as_secs_f64(),
            seen.at(0.99).as_secs_f64() / LATENCY.as_secs_f64(),
        ));
        say(format_args!("  copies behind their logs   {lags}"));
        self.regions.links().heal_all().await
    }

    /// How far copies are behind, by the status of their replicators, over some time.
    async fn lags(&self, time: Duration) -> Result<String> {
        let (began, mut events, mut seconds) = (Instant::now(), Vec::new(), Vec::new());
        while began.elapsed() < time {
            for pair in self.pairs().await? {
                events.push(pair.lag_events);
                seconds.push(pair.lag_seconds);
            }
            sleep(LOOK_EVERY * 10).await;
        }
        events.sort_unstable();
        seconds.sort_unstable_by(f64::total_cmp);
        let (middle, last) = (events.len() / 2, events.len() * 99 / 100);
        let [p50, p99] =
            [middle, last].map(|at| (events.get(at).copied().unwrap_or_default(), seconds.get(at).copied().unwrap_or_default()));
        Ok(format!("p50 {} events, {:.2} s; p99 {} events, {:.2} s", p50.0, p50.1, p99.0, p99.1))
    }

    /// One region cut off from all others: what it reads and writes of its own goes on, and in the end all have everything again.
    async fn cut_off(&self, traffic: &Traffic, cut: Duration) -> Result<()> {
        let before = traffic.paces(WHILE).await;
        say(format_args!("\n{}", yellow(format!("{AWAY} is cut off for {} s", cut.as_secs()))));
        self.regions.links().cut_off(AWAY).await;
        let during = traffic.paces(cut).await;
        for (before, during) in before.iter().zip(&during) {
            say(format_args!("  {}: reads of all regions' views {}", before.region, change(&before.reads, &during.reads)));
            say(format_args!("      commands at home {}", change(&before.writes, &during.writes)));
        }
        let behind: u64 =
            self.pairs().await?.iter().filter(|pair| pair.region == AWAY || pair.of == AWAY).map(|pair| pair.lag_events).sum();
        say(format_args!("\n{}", yellow("The links heal")));
        let healed = Instant::now();
        self.regions.links().heal_all().await?;
        let tokens = traffic.tokens();
        for (region, souk) in traffic.clients() {
            let session = souk.session().deadline(CATCH_UP);
            tokens.iter().for_each(|token| session.merge_token(token));
            all_seen(&session).await.with_context(|| format!("{region} has not everything"))?;
        }
        say(format_args!("  {} events were missing; every region showed all of them after {}", thousands(behind), shown(healed.elapsed())));
        Ok(())
    }

    /// An empty region is added to those that run.
    async fn join(&mut self) -> Result<()> {
        say(format_args!("\n{}", yellow(format!("{NEW} joins, empty"))));
        self.regions.add(NEW, READY_PATIENCE).await?;
        self.write_run_file()?;
        let (began, first) = (Instant::now(), self.copied_by(NEW).await?);
        let (mut copied, wanted) = first;
        let already = copied;
        while copied < wanted {
            ensure!(began.elapsed() < CATCH_UP, "{NEW} has {copied} of {wanted} events");
            sleep(LOOK_EVERY).await;
            copied = self.copied_by(NEW).await?.0;
        }
        let (took, rest) = (began.elapsed(), wanted - already);
        let rate = if rest == 0 { String::new() } else { format!(", {} events/s", thousands((rest as f64 / took.as_secs_f64()) as u64)) };
        say(format_args!(
            "  it had {} of {} events when it was ready, and all of them {} later{rate}",
            thousands(already),
            thousands(wanted),
            shown(took),
        ));
        Ok(())
    }

    /// Events that a region has copied, and all there are of the others.
    async fn copied_by(&self, region: &str) -> Result<(u64, u64)> {
        let pairs = self.pairs().await?;
        let of_it = pairs.iter().filter(|pair| pair.region == region);
        Ok(of_it.fold((0, 0), |(copied, head), pair| (copied + pair.copied, head + pair.head)))
    }

    async fn pairs(&self) -> Result<Vec<Pair>> {
        let output = souk(&self.run_file, &["status", "--json"])?.stdout(Stdio::piped()).output().await?;
        let Pairs { pairs } = serde_json::from_slice(&output.stdout).context("souk status")?;
        Ok(pairs)
    }

    async fn audit(&self) -> Result<()> {
        say("");
        self.write_run_file()?;
        let audit = souk(&self.run_file, &["audit", "--all-regions"])?.status().await?;
        ensure!(audit.success(), "the audit found differences");
        Ok(())
    }
}

/// Reads everything that was written, as new as the session's tokens ask for.
async fn all_seen(session: &Session) -> Result<()> {
    for region in NAMES {
        for number in 0..traffic::PRODUCTS {
            traffic::look(session, region, number).await?;
        }
    }
    Ok(())
}

/// This program, as anybody would run it.
fn souk(run_file: &Path, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(args).env("SOUK_RUN_FILE", run_file).env_remove("SOUK_REGION").stdin(Stdio::null());
    Ok(command)
}

fn change(before: &Pace, during: &Pace) -> String {
    format!(
        "{:.1}/s, {:.2} of what it was; p99 {}, before {}",
        during.per_second,
        during.per_second / before.per_second,
        shown(during.p99),
        shown(before.p99)
    )
}

fn shown(time: Duration) -> String {
    if time < Duration::from_secs(2) { format!("{:.0} ms", time.as_secs_f64() * 1e3) } else { format!("{:.1} s", time.as_secs_f64()) }
}
