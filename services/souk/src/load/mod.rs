//! `souk load`: load as ghz makes it, and mixes of calls, from one core.

mod args;
mod keys;
mod messages;
mod mix;
mod output;
mod plan;
mod progress;
mod settings;
mod template;
mod threshold;

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};
use souk_load::{Load, Report, Target};
use tokio::runtime::Builder;

use crate::paint::say;
pub use args::Args;
use mix::Mix;
use output::Output;
use plan::Plan;
use progress::Progress;
use settings::{Pace, Settings};

pub async fn run(args: Args) -> Result<()> {
    // The engine is fastest on a thread of its own.
    let run = tokio::task::spawn_blocking(move || Builder::new_current_thread().enable_all().build()?.block_on(measure(args)));
    run.await.context("the load broke off")?
}

async fn measure(args: Args) -> Result<()> {
    let settings = args.settings()?;
    let plan = Plan::new(&settings, &args).await?;
    let (report, end) = send(&settings, &plan.target, plan.mix).await?;
    let verdicts: Vec<_> = plan.thresholds.iter().map(|threshold| threshold.judge(&report)).collect();
    let output = Output { settings: &settings, hosts: &plan.hosts, end, report: &report, verdicts: &verdicts };
    let text = match settings.format.as_deref().unwrap_or("summary") {
        "summary" => output.summary()?,
        "json" => output.json().to_string(),
        "pretty" => serde_json::to_string_pretty(&output.json())?,
        other => bail!("the format is summary, json or pretty, not {other:?}"),
    };
    match settings.output.as_deref().filter(|file| !file.is_empty()) {
        Some(file) => fs::write(file, text).with_context(|| format!("cannot write {file}"))?,
        None => say(text),
    }
    threshold::all_kept(&verdicts)
}

/// The run, and how it ended: `normal` or `cancel`.
async fn send(settings: &Settings, target: &Target, mix: Mix) -> Result<(Report, &'static str)> {
    let (pace, broken, cancelled) = (settings.pace()?, mix.broken(), AtomicBool::new(false));
    let lasts = match &pace {
        Pace::Open(schedule) => Some(schedule.duration()),
        Pace::Closed(_) => Some(settings.duration.0).filter(|lasts| !lasts.is_zero()),
    };
    let mut progress = Progress::new(lasts);
    let load = Load::new(target, mix).on_second(|second| progress.tell(second)).stopped_by(async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => cancelled.store(true, Ordering::Relaxed),
            () = broken.told() => {}
        }
    });
    let report = match pace {
        Pace::Open(schedule) => load.open_loop(schedule, settings.outstanding()).await?,
        Pace::Closed(until) => load.closed_loop(settings.concurrency.unwrap_or(50), until).await?,
    };
    progress.finish();
    if let Some(reason) = broken.reason() {
        bail!("a request could not be made: {reason}");
    }
    Ok((report, if cancelled.into_inner() { "cancel" } else { "normal" }))
}
