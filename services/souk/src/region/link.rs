use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use souk_devstack::{LinkChange, LinkOrder, RunFile};

use crate::{paint::say, status::link_state};

/// More is no link any more.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a flag the links are shown as they are. Services of FROM reach those of TO by this link; those of TO call \
                        FROM by the one back, which is changed with it unless --one-way is given."
)]
pub struct Args {
    /// Whose services call
    from: String,
    /// Whose services are called
    to: String,
    /// Delay each direction by so much, so that an answer takes twice as long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    latency: Option<Duration>,
    /// Reset connections and refuse new ones
    #[arg(long, conflicts_with = "up")]
    down: bool,
    /// Only this link, not the one back
    #[arg(long)]
    one_way: bool,
    /// End all faults, delay included unless --latency is given
    #[arg(long)]
    up: bool,
}

/// Changes a link, in the process of `souk up` that holds it.
///
/// # Errors
/// When no regions run, one of them is not there, or the process does not answer.
pub async fn run(args: Args) -> Result<()> {
    let run_file = RunFile::find()?;
    let Some(control) = &run_file.control else {
        bail!("region {} runs alone: start several with `souk up --regions eu,us`", run_file.region);
    };
    ensure!(args.latency.is_none_or(|latency| latency <= LONGEST), "want a latency of at most {} s", LONGEST.as_secs());
    for name in [&args.from, &args.to] {
        run_file.region(name)?;
    }
    let changes = args.down || args.up || args.latency.is_some();
    let order = match changes {
        true => LinkOrder::Change(args.change()),
        false => LinkOrder::Show,
    };
    let states = souk_devstack::order(control, &order).await?;
    let shown = [(&args.from, &args.to), (&args.to, &args.from)];
    for (from, to) in shown {
        let state = states.iter().find(|state| (&state.from, &state.to) == (from, to)).context("the link is gone")?;
        say(format_args!("{from} → {to}  {}", link_state(Some(state)).trim_end()));
    }
    Ok(())
}

impl Args {
    fn change(&self) -> LinkChange {
        LinkChange {
            from: self.from.clone(),
            to: self.to.clone(),
            one_way: self.one_way,
            up: self.up,
            latency_ms: self.latency.map(|latency| latency.as_millis() as u64),
            down: self.down,
        }
    }
}
