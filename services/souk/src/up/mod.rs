//! `souk up`: Postgres, NATS and all services on this machine, of one region or of several.

mod machines;
mod one_process;
mod ports;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use souk_devstack::{RunFile, Service, StackOptions, souk_folder};
use souk_runtime::{Settings, Telemetry, termination};
use tokio::signal::unix::{SignalKind, signal};

use machines::{Dead, Machines};
use one_process::OneProcess;
use report::Report;

/// How long services may take until they are ready: they migrate their databases, and may wait for each other.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// The same of each further region: all start at once.
const REGION_PATIENCE: Duration = Duration::from_secs(60);
/// What ends more often than this within the period is not started again.
const DEATHS: usize = 5;
const PERIOD: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Start empty: removes the data of earlier runs first
    #[arg(long)]
    fresh: bool,
    /// Run each service as its own process, as deployed; else they share one
    #[arg(long)]
    processes: bool,
    /// Processes of each service, in each region, as command=2,query=2,projector=2,saga=2; implies --processes [default: 1 of each]
    #[arg(long, value_name = "SERVICE=N", value_delimiter = ',', value_parser = replicas)]
    replicas: Vec<(Service, u16)>,
    /// Regions to start, each with servers and processes of its own, as eu,us,ap; the first is home of ids that name none. Over the
    /// same data new ones come behind those there were [default: one that knows of no other]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    regions: Vec<String>,
    /// When ready, print one JSON object with every address and process id, and nothing else on stdout
    #[arg(long)]
    json: bool,
    /// Where the data lives [default: .souk/data, or .souk/regions]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Databases the events are spread over by the first start; one added later stays empty [default: 1, or what the data has]
    #[arg(long, value_name = "N")]
    write_shards: Option<u16>,
    /// Databases the views are spread over by the first start; one added later stays empty [default: 1, or what the data has]
    #[arg(long, value_name = "N")]
    read_shards: Option<u16>,
    /// Streaming standbys of the database server, for reads [default: none, or what the last start had]
    #[arg(long, value_name = "N")]
    read_replicas: Option<u16>,
    /// Put PgBouncer before the databases, in transaction mode (`just setup-tests` gets it)
    #[arg(long)]
    pooler: bool,
    /// Partitions of the log, fixed with the first start [default: 64, or what the data has]
    #[arg(long, value_name = "N")]
    partitions: Option<u16>,
    /// A setting of the services, as command.payment_window=2s
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, toml::Value)>,
    #[command(flatten)]
    ports: ports::Flags,
}

impl Args {
    fn apart(&self) -> bool {
        self.processes || !self.replicas.is_empty() || !self.regions.is_empty()
    }

    fn patience(&self) -> Duration {
        READY_PATIENCE + REGION_PATIENCE * self.regions.len().saturating_sub(1) as u32
    }

    /// What was asked for, of each region.
    fn apply_to(&self, options: &mut StackOptions) {
        options.fresh = self.fresh;
        (options.partitions, options.write_shards, options.read_shards) = (self.partitions, self.write_shards, self.read_shards);
        options.read_replicas = self.read_replicas;
        options.pooler = self.pooler;
        options.replicas = self.replicas.iter().copied().collect();
        options.settings.clone_from(&self.settings);
    }
}

pub async fn run(args: Args) -> Result<()> {
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupted = std::pin::pin!(async move {
        tokio::select! {
            signal = termination() => signal,
            _ = hang_up.recv() => "SIGHUP",
        }
    });
    let run_file = RunFile::path();
    let report = Report::new(args.json, souk_folder().join("logs/souk.log"))?;
    // What has been started by then ends as it is dropped.
    let mut system = tokio::select! {
        started = System::start(args, &report) => started?,
        signal = &mut interrupted => bail!("{signal}: given up before all was ready"),
    };
    let outcome = async {
        system.announce(&run_file, &report)?;
        system.keep_running(interrupted, &run_file, &report).await
    };
    let outcome = outcome.await;
    let stopped = tokio::select! {
        stopped = system.stop(&report) => stopped,
        signal = interrupted_again() => Err(anyhow!("{signal} again: ended at once")),
    };
    fs::remove_file(&run_file).ok();
    outcome.and(stopped)
}

/// A second signal, sent on purpose: one Ctrl-C may reach a process twice, from the terminal and from its parent.
async fn interrupted_again() -> &'static str {
    tokio::time::sleep(Duration::from_secs(1)).await;
    termination().await
}

/// A setting as `key=value`; the value as in TOML, or else a text.
fn setting(text: &str) -> Result<(String, toml::Value), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| key.contains('.')).ok_or("want section.key=value")?;
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
    Ok((key.to_owned(), parsed.unwrap_or_else(|| value.into())))
}

/// How many processes of which service, as `query=2`.
fn replicas(text: &str) -> Result<(Service, u16), String> {
    let wanted = || "want command=N, query=N, projector=N, saga=N or replicator=N".to_owned();
    let (name, count) = text.split_once('=').ok_or_else(wanted)?;
    let service = Service::ALL.into_iter().find(|service| service.name() == name).ok_or_else(wanted)?;
    Ok((service, count.parse().map_err(|_| wanted())?))
}

struct System {
    // The services are dropped before what they need.
    in_this_process: Option<OneProcess>,
    machines: Machines,
    telemetry: Telemetry,
}

impl System {
    async fn start(args: Args, report: &Report) -> Result<Self> {
        end_what_is_left(report)?;
        let (apart, patience) = (args.apart(), args.patience());
        let ports = args.ports.check(apart, args.regions.len())?;
        let mut machines = Machines::start(args, ports, report).await?;
        let settings = Settings::load(Some(machines.first().settings_file()))?;
        let telemetry = Telemetry::init(&settings.telemetry, "up", "up")?;
        report.progress(if apart { "starting the processes of the services" } else { "starting the services in this process" });
        let in_this_process = if apart {
            machines.start_services(patience).await?;
            None
        } else {
            let mut services = OneProcess::start(settings).await?;
            services.wait_until_ready(patience).await?;
            Some(services)
        };
        Ok(Self { in_this_process, machines, telemetry })
    }

    fn announce(&self, run_file: &Path, report: &Report) -> Result<()> {
        let facts = self.machines.run_file()?;
        facts.write(run_file)?;
        report.ready(&facts, run_file)
    }

    /// Runs until a signal comes. What ends by itself or is killed meanwhile is started again, as it would be where it is deployed; data
    /// and addresses stay the same.
    async fn keep_running(
        &mut self,
        mut interrupted: impl Future<Output = &'static str> + Unpin,
        run_file: &Path,
        report: &Report,
    ) -> Result<()> {
        let mut deaths: Vec<(Dead, Instant)> = Vec::new();
        loop {
            let (dead, death) = tokio::select! {
                signal = &mut interrupted => {
                    report.progress(&format!("{signal}: stopping"));
                    return Ok(());
                }
                failure = one_process::failure(&mut self.in_this_process) => return Err(failure),
                death = self.machines.first_death() => death,
            };
            deaths.retain(|(_, at)| at.elapsed() < PERIOD);
            deaths.push((dead.clone(), Instant::now()));
            if deaths.iter().filter(|(earlier, _)| *earlier == dead).count() > DEATHS {
                return Err(death.context(format!("{dead} ended more than {DEATHS} times within {} s", PERIOD.as_secs())));
            }
            tracing::error!(part = %dead, error = format!("{death:#}"), "ended; starting it again");
            report.progress(&format!("{dead} ended; starting it again"));
            tokio::select! {
                started = self.machines.start_again(&dead) => started.with_context(|| format!("{dead} does not come back"))?,
                signal = &mut interrupted => {
                    report.progress(&format!("{signal}: stopping"));
                    return Ok(());
                }
            }
            self.machines.run_file()?.write(run_file)?;
        }
    }

    async fn stop(mut self, report: &Report) -> Result<()> {
        if let Some(services) = self.in_this_process.take() {
            services.stop(report).await?;
        }
        self.machines.stop().await?;
        self.telemetry.flush().await;
        report.progress("stopped");
        Ok(())
    }
}

/// One system at a time per run file. What a killed `souk up` left behind is ended; Postgres and NATS are found by their data.
fn end_what_is_left(report: &Report) -> Result<()> {
    let path = RunFile::path();
    let earlier = match RunFile::read(&path) {
        Ok(Some(earlier)) => earlier,
        Ok(None) => return Ok(()),
        Err(error) => {
            report.progress(&format!("passing over {error:#}"));
            return Ok(());
        }
    };
    if earlier.souk.is_alive() {
        bail!(
            "souk is up already (process {}, {}); stop it first, or set SOUK_RUN_FILE, --data and --free-ports for a second one",
            earlier.souk.pid,
            path.display()
        );
    }
    report.progress(&format!("cleaning up after a killed souk (process {})", earlier.souk.pid));
    earlier.end_left_over()?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_a_section_a_key_and_a_value() {
        assert_eq!(setting("saga.batch_events=7"), Ok(("saga.batch_events".into(), toml::Value::Integer(7))));
        assert_eq!(setting("command.payment_window=2s"), Ok(("command.payment_window".into(), "2s".into())));
        assert!(setting("payment_window=2s").is_err());
        assert!(setting("command.payment_window").is_err());
    }

    #[test]
    fn replicas_are_counted_per_service() {
        assert_eq!(replicas("projector=3"), Ok((Service::Projector, 3)));
        for refused in ["projector", "edge=2", "saga=many", "saga=-1"] {
            assert!(replicas(refused).is_err(), "{refused}");
        }
    }
}
