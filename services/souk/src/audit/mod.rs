//! `souk audit`: proves that log, JetStream and views of the running system are equal, copies of other regions' logs included, or
//! names what is not.
//!
//! # Layout
//! - `walk`: one log event by event, and what it leads to
//! - `log`: heads and ledger against the walk
//! - `messages`: the JetStream stream against the log
//! - `views`: view rows against the fold
//! - `regions`: copies in all regions against their origins, views of all regions against each other
//! - `findings`: counts and differences
//! - `forever`: one audit after the other, shown as metrics
//! - `lost`: what was lost when logs went back

mod findings;
mod forever;
mod log;
mod lost;
mod messages;
mod regions;
mod views;
mod walk;

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use souk_bus::JetStreamBus;
use souk_bus_publisher::{JetStreamPublisher, LogPublisher, StreamLimits};
use souk_devstack::RunFile;
use souk_event_sourcing::{LogId, Partition, Position, Region, Topology};
use souk_event_store::{PostgresStore, Retention};
use souk_read_store::{Access, Installation, PostgresViews, ReadStore};
use souk_runtime::Settings;
use souk_views::TABLES;

use findings::Findings;

/// Events read at a time.
const PAGE: usize = 1000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// First position of each log to look at; later than 1, views and stock are left out: they need the whole log
    #[arg(long, default_value_t = 1, value_name = "POSITION")]
    from: u64,
    /// Look at no more than the last so many events of each log: what bounds an audit's memory. Logs that have no more are compared whole
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "from")]
    last: Option<u64>,
    /// Logs to look at at the same time
    #[arg(long, default_value = "8", value_name = "LOGS")]
    parallel: NonZeroUsize,
    /// How long streams and views may take to reach the end of the log
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    settle: Duration,
    /// Audit all regions, then hold copies against their origins and views of all regions against each other
    #[arg(long, conflicts_with_all = ["lost", "every"])]
    all_regions: bool,
    /// Which region, where `souk up` has started several [default: the first]
    #[arg(long, value_name = "NAME", env = "SOUK_REGION", conflicts_with = "all_regions")]
    region: Option<String>,
    /// Say what was lost when logs went back, by a restore or a failover, instead of comparing anything
    #[arg(long, conflicts_with_all = ["from", "last", "parallel", "settle"])]
    lost: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Settings (TOML) of the system, where `souk up` has not started it; with --all-regions those of each region
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Audit again and again, so often, until told to end
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "lost")]
    every: Option<Duration>,
    /// Where `--every` shows `/metrics`, `/livez` and `/readyz`
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090", requires = "every")]
    ops: SocketAddr,
}

/// The part of each log that is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// From this position on.
    From(Position),
    /// So many events at its end.
    Last(u64),
}

impl Part {
    /// The position that comes right before it, in a log that ends at `head`.
    fn before(self, head: Position) -> Position {
        match self {
            Self::From(first) => Position(first.0.saturating_sub(1)),
            Self::Last(events) => Position(head.0.saturating_sub(events)),
        }
    }
}

/// What is compared, and how patiently.
pub(crate) struct Sources {
    region: Region,
    partitions: u16,
    write: PostgresStore,
    publisher: JetStreamPublisher,
    bus: JetStreamBus,
    read: ReadStore,
    retention: Retention,
    settle: Duration,
    progress: Progress,
}

impl Args {
    fn part(&self) -> Part {
        self.last.map_or(Part::From(Position(self.from)), Part::Last)
    }

    /// The settings of the system, or of each of its regions.
    fn settings(&self) -> Result<Vec<Settings>> {
        let files = match self.config.as_slice() {
            [] => {
                let run_file = RunFile::find()?;
                match &self.region {
                    Some(name) => vec![run_file.region(name)?.settings.clone()],
                    None => run_file.regions().map(|region| region.settings.clone()).collect(),
                }
            }
            [_, _, ..] if !self.all_regions => bail!("one --config, or --all-regions"),
            files => files.to_vec(),
        };
        files.iter().map(|file| Ok(Settings::load(Some(file))?)).collect()
    }

    fn shows_progress(&self) -> bool {
        !self.json && self.every.is_none() && std::io::stderr().is_terminal()
    }
}

/// Events walked so far, shown on a terminal.
#[derive(Default)]
struct Progress {
    events: AtomicU64,
    shown: bool,
}

impl Progress {
    fn add(&self, events: u64) {
        let events = self.events.fetch_add(events, Ordering::Relaxed) + events;
        if self.shown {
            eprint!("\r{events} events");
            std::io::stderr().flush().ok();
        }
    }
}

/// Runs the audit.
///
/// # Errors
/// When something cannot be reached, or is not as it should be.
pub async fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let mut all = args.settings()?;
    if args.all_regions {
        let (findings, names) = regions::audit(&all, &args).await?;
        return conclude(&findings, started.elapsed(), &args, &names);
    }
    let settings = all.swap_remove(0);
    if args.lost {
        return lost::tell(&write_store(&settings).await?, args.json).await;
    }
    if let Some(every) = args.every {
        return forever::run(&settings, &args, every).await;
    }
    let findings = audit(&settings, &args).await?;
    conclude(&findings, started.elapsed(), &args, &[])
}

/// Tells what was found in these regions, if there are several, and fails unless it is nothing.
fn conclude(findings: &Findings, took: Duration, args: &Args, regions: &[String]) -> Result<()> {
    tell(findings, took, args, regions);
    if findings.is_clean() { Ok(()) } else { bail!("{} differences", findings.wrong.values().sum::<u64>()) }
}

async fn audit(settings: &Settings, args: &Args) -> Result<Findings> {
    let sources = Sources::open(settings, args.settle, args.shows_progress()).await?;
    let findings = one_region(&sources, args).await;
    sources.close().await;
    findings
}

/// The logs of a region and its copies of others'.
async fn one_region(sources: &Sources, args: &Args) -> Result<Findings> {
    let mut found = Findings::default();
    let logs = sources.logs(&mut found).await?;
    stream::iter(logs)
        .map(|log| log::audit(sources, log, args.part()))
        .buffer_unordered(args.parallel.get())
        .try_fold(found, |mut all, one| async move {
            all.add(one);
            Ok(all)
        })
        .await
}

fn tell(findings: &Findings, took: Duration, args: &Args, regions: &[String]) {
    if args.json {
        println!("{}", serde_json::to_string(findings).expect("names and numbers"));
    } else {
        report(findings, took, args.shows_progress(), regions);
    }
}

fn report(findings: &Findings, took: Duration, shown: bool, regions: &[String]) {
    if shown {
        eprint!("\r");
    }
    let counts: Vec<_> = findings.checked.iter().map(|(what, number)| format!("{number} {what}")).collect();
    println!("checked in {:.1} s: {}", took.as_secs_f64(), if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") });
    if findings.is_clean() {
        let regions = if regions.is_empty() { String::new() } else { format!(" in {}, and so do all copies", regions.join(", ")) };
        println!("clean: log, streams, views, ledger and stock agree{regions}");
    }
    for (kind, number) in &findings.wrong {
        println!("{number} × {kind}");
    }
    for parked in &findings.parked {
        println!("  log {} parked: {}", parked.log, parked.what);
    }
    for difference in &findings.differences {
        println!("  log {} {}: {}", difference.log, difference.kind, difference.what);
    }
}

async fn write_store(settings: &Settings) -> Result<PostgresStore> {
    let databases: Vec<_> = (settings.write.databases.iter())
        .map(|database| souk_event_store::DatabaseConfig::new(&database.name, &*database.url, 4))
        .collect();
    let region = Region(settings.installation.region_number);
    PostgresStore::connect(&databases, region, settings.installation.partitions).await.context("write store")
}

impl Sources {
    async fn open(settings: &Settings, settle: Duration, shown: bool) -> Result<Self> {
        let region = Region(settings.installation.region_number);
        let partitions = settings.installation.partitions;
        let write = write_store(settings).await?;
        let read: Vec<_> = (settings.read.databases.iter())
            .map(|database| souk_read_store::DatabaseConfig::new(&database.name, &*database.url, 4))
            .collect();
        let read = ReadStore::open(&read, Access::Write, Installation { region, partitions }).await.context("read store")?;
        let bus = JetStreamBus::connect(&settings.nats.url, &settings.nats.prefix, "souk-audit").await?;
        let limits = StreamLimits {
            max_age: settings.nats.stream_max_age,
            max_bytes: settings.nats.stream_max_bytes,
            replicas: settings.nats.stream_replicas,
        };
        let publisher = JetStreamPublisher::new(bus.client().clone(), bus.subjects().clone(), limits, write.installation());
        tokio::time::timeout(settle, publisher.reachable()).await.context("NATS does not answer")?;
        let progress = Progress { events: AtomicU64::new(0), shown };
        let retention = Retention::of(settings.command.ledger_retention);
        Ok(Self { region, partitions, write, publisher, bus, read, retention, settle, progress })
    }

    /// All logs that are kept here: this region's own, and the copies of others'.
    async fn logs(&self, found: &mut Findings) -> Result<Vec<LogId>> {
        let topology = self.write.topology().await.context("write store")?;
        let others = topology.iter().flat_map(Topology::regions).filter(|region| *region != self.region);
        let mut logs = Vec::new();
        for region in [self.region].into_iter().chain(others) {
            let of_region = (0..self.partitions).map(|partition| LogId { region, partition: Partition(partition) });
            // A region that was told of a moment ago has a place in the read store a moment later.
            match self.read.logs().any(|log| log.region == region) {
                true => logs.extend(of_region),
                false => found.differ(region, "view", "the read store has no place for the logs of this region"),
            }
        }
        Ok(logs)
    }

    async fn close(&self) {
        self.write.close().await;
        self.read.close().await;
    }

    fn views(&self, log: LogId) -> Result<PostgresViews> {
        Ok(PostgresViews::new(self.read.database_of(log)?.clone(), TABLES))
    }
}
