//! # Layout
//! - `queries`: B1–B3; `misses`: B14
//! - `commands`: B4, B7, B13; `unloaded`: B6
//! - `append`: B5; `relay`: B8
//! - `projection`: B9; `visible`: B10
//! - `together`: B11, B15
//! - `stored`: B12, on installations of its own
//! - `on_record`: figures without a goal

mod append;
mod commands;
mod misses;
mod on_record;
mod projection;
mod queries;
mod relay;
mod stored;
mod together;
mod unloaded;
mod visible;

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};

use crate::{
    effort::Effort,
    machine::{Busy, cores},
    record::{Entry, write},
    stage::Stage,
};

/// Every number, in the order measured.
const ALL: [&str; 17] =
    ["B1", "B2", "B3", "B14", "B6", "B7", "B13", "B4", "B5", "B8", "B9", "B10", "B11", "B15", "forwarded", "bytes", "B12"];

/// Measures what `numbers` names, everything if it names nothing, and writes what came of it `into` a folder.
///
/// # Errors
/// When something could not be measured, or an audit after it is not clean. What was measured before that is written all the same.
pub async fn run(numbers: &[String], effort: Effort, into: &Path) -> Result<ExitCode> {
    let wanted: Vec<&str> = match numbers {
        [] => ALL.to_vec(),
        _ => ALL.into_iter().filter(|number| numbers.iter().any(|wanted| wanted.eq_ignore_ascii_case(number))).collect(),
    };
    if wanted.is_empty() || numbers.len() > wanted.len() {
        bail!("benchmarks are {}", ALL.join(" "));
    }
    println!(
        "{} cores; {} pairs of {:?} a side{}",
        cores(),
        effort.pairs,
        effort.time,
        if cores() < 2 { "; too few to hold servers and load apart" } else { "" }
    );
    let busy = Busy::now();
    let stored = wanted.contains(&stored::NAME);
    if stored {
        stored::check_room(effort)?;
    }
    let mut entries = Vec::new();
    if wanted.iter().any(|number| *number != stored::NAME) {
        let mut bench = Bench { stage: Stage::start(effort.products(), |options| effort.adapt(options)).await?, effort, wanted, entries };
        let measured = bench.measure().await;
        write(into, effort, &bench.entries)?;
        if let Err(error) = &measured {
            eprintln!("bench: {error:#}; {} has what was measured before", into.display());
        }
        // What broke off has written to the stores as well.
        bench.audit().await?;
        measured?;
        entries = bench.entries;
    }
    if stored {
        entries.push(stored::measure(effort).await?);
    }
    write(into, effort, &entries)?;
    println!("audit clean; {:.0} s of CPU in all", busy.elapsed().as_secs_f64());
    println!();
    entries.iter().for_each(|entry| println!("{}", entry.line()));
    let failed = effort.judges() && entries.iter().any(|entry| entry.met() == Some(false));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A run.
struct Bench {
    stage: Stage,
    effort: Effort,
    wanted: Vec<&'static str>,
    entries: Vec<Entry>,
}

impl Bench {
    async fn measure(&mut self) -> Result<()> {
        self.queries().await?;
        self.misses().await?;
        self.commands().await?;
        self.append().await?;
        self.relay().await?;
        self.projection().await?;
        self.reply_to_visible().await?;
        self.together().await?;
        self.forwarded().await?;
        self.bytes().await
    }

    async fn audit(&mut self) -> Result<()> {
        let audited = self.stage.audit().await?;
        self.record(Entry::on_record("audit", audited, "events/s of souk audit, its start included"));
        Ok(())
    }

    fn wants(&self, number: &str) -> bool {
        self.wanted.contains(&number)
    }

    fn wants_any(&self, numbers: &[&str]) -> bool {
        numbers.iter().any(|number| self.wants(number))
    }

    /// Shows and keeps an outcome that was asked for.
    fn record(&mut self, entry: Entry) {
        println!("{}", entry.line());
        for (name, value) in &entry.figures {
            println!("          {name} = {value}");
        }
        self.entries.push(entry);
    }
}
