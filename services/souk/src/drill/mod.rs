//! `souk drill`: sixty seconds in which a shop sells out while its machines fail. A system of its own, in a temporary folder: nothing
//! that runs is touched.

mod figures;
mod regions;
mod sale;

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use souk_client::{Endpoints, Souk};
use souk_devstack::{Replica, Service, Stack, StackOptions};
use tokio::{process::Command, time::sleep_until};

use crate::paint::{bold, dim, green, say, thousands};
use figures::Figures;
use sale::{CUSTOMERS, PER_SECOND, Sale, UNITS};

const READY_PATIENCE: Duration = Duration::from_secs(120);
const KILLED: (Service, u16) = (Service::Command, 2);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Three regions instead: links get slow, break and heal, and a fourth region joins
    #[arg(long)]
    regions: bool,
    /// How long a region is cut off from the others
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "60s", requires = "regions")]
    cut: Duration,
}

/// What happens to the machines, and when after the doors open.
#[derive(Clone, Copy)]
enum Mishap {
    KillCommand,
    StartCommand,
    WipeJetStream,
    PauseReplay,
    ResumeReplay,
}

const MISHAPS: [(u64, Mishap); 5] = [
    (8, Mishap::KillCommand),
    (14, Mishap::StartCommand),
    (20, Mishap::WipeJetStream),
    (28, Mishap::PauseReplay),
    (38, Mishap::ResumeReplay),
];

pub async fn run(args: Args) -> Result<()> {
    if args.regions { regions::run(args.cut).await } else { flash_sale().await }
}

async fn flash_sale() -> Result<()> {
    say(bold("A flash sale, and everything fails"));
    say(dim(format!(
        "{} customers want {} lamps, {PER_SECOND} of them a second. Two replicas of every service, one Postgres with a standby, one NATS, all on \
         this machine and gone afterwards.",
        thousands(CUSTOMERS as u64),
        thousands(UNITS as u64),
    )));
    let mut stack = Stack::temporary(many).await?;
    stack.start_services(READY_PATIENCE).await?;
    let run_file = stack.data().join("run.json");
    stack.run_file()?.write(&run_file)?;
    say(dim(format!("To look into it meanwhile: SOUK_RUN_FILE={} souk status --watch", run_file.display())));
    let souk = Souk::connect(&Endpoints::new(stack.urls("command"), stack.urls("query")).connections(2))?;
    let figures = Figures::new();
    let sale = Sale::open(souk, figures.clone()).await?;
    say(dim("\n      t   orders/s  queries/s  p99 order  p99 query  order → view    sold"));
    let doors_open = Instant::now();
    let mut mishaps = MISHAPS.iter();
    let mut next = mishaps.next();
    let mut second = 1;
    while sale.goes_on() {
        sleep_until((doors_open + Duration::from_secs(second)).into()).await;
        figures.show(doors_open.elapsed(), sale.sold());
        while let Some((_, mishap)) = next.filter(|(at, _)| *at <= second) {
            let told = mishap.happen(&mut stack).await?;
            figures.tell(doors_open.elapsed(), told);
            next = mishaps.next();
        }
        second += 1;
    }
    let told = sale.close().await?;
    say(format_args!("\n{}", bold("After the sale")));
    say(told);
    audit(&stack, &run_file).await?;
    say(format_args!(
        "\n{}",
        green(bold(format!("{} of {} sold, none lost, none sold twice.", thousands(UNITS as u64), thousands(UNITS as u64))))
    ));
    Ok(())
}

fn many(options: &mut StackOptions) {
    for service in Service::ALONE {
        options.replicas(service, 2);
    }
    options.read_replicas = Some(1);
}

impl Mishap {
    async fn happen(self, stack: &mut Stack) -> Result<&'static str> {
        let standby = || stack.standbys.first().context("no standby");
        Ok(match self {
            Self::KillCommand => {
                stack.kill_replica(KILLED).await?;
                "one of two command services killed (kill -9)"
            }
            Self::StartCommand => {
                stack.start_replica(Replica::from(KILLED))?;
                "it is started again"
            }
            Self::WipeJetStream => {
                stack.nats.kill9().await?;
                stack.nats.wipe()?;
                stack.nats.start_again().await?;
                "NATS killed, JetStream wiped, started empty"
            }
            Self::PauseReplay => {
                standby()?.pause_replay().await?;
                "the standby stops following its primary"
            }
            Self::ResumeReplay => {
                standby()?.resume_replay().await?;
                "the standby follows again"
            }
        })
    }
}

/// Runs the audit as anybody would, over what is left of the system.
async fn audit(stack: &Stack, run_file: &Path) -> Result<()> {
    stack.run_file()?.write(run_file)?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let audit = Command::new(program).arg("audit").env("SOUK_RUN_FILE", run_file).stdin(Stdio::null()).status().await?;
    ensure!(audit.success(), "the audit found differences");
    Ok(())
}
