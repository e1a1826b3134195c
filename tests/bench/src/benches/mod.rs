//! # Layout
//! - `queries`: B1–B3, B14
//! - `commands`: B4, B6, B7, B13
//! - `together`: B11, B15

mod commands;
mod queries;
mod together;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};

use crate::{
    machine::{Busy, cores},
    pairs::by_turns,
    record::{Entry, write},
    stage::Stage,
};

/// Every number, in the order measured.
const ALL: [&str; 10] = ["B1", "B2", "B3", "B14", "B6", "B4", "B7", "B13", "B11", "B15"];

/// How long and how often to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub pairs: usize,
    /// Of each side of a pair.
    pub time: Duration,
    pub quick: bool,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick { Self { pairs: 4, time: Duration::from_secs(2), quick } } else { Self { pairs: 7, time: Duration::from_secs(4), quick } }
    }

    /// Pairs of what the two sides came to.
    pub async fn pairs<T, A, B>(&self, a: impl FnMut() -> A, b: impl FnMut() -> B) -> Result<Vec<(T, T)>>
    where
        A: Future<Output = Result<T>>,
        B: Future<Output = Result<T>>,
    {
        by_turns(self.pairs, a, b).await
    }
}

/// Products of the headline, and of everything else.
const PRODUCTS: u64 = 100_000;

pub async fn run(numbers: &[String], quick: bool) -> Result<ExitCode> {
    let wanted: Vec<&str> = match numbers {
        [] => ALL.to_vec(),
        _ => ALL.into_iter().filter(|number| numbers.iter().any(|wanted| wanted.eq_ignore_ascii_case(number))).collect(),
    };
    if wanted.is_empty() || numbers.len() > wanted.len() {
        bail!("benchmarks are {}", ALL.join(" "));
    }
    let effort = Effort::new(quick);
    println!(
        "{} cores; {} pairs of {:?} a side{}",
        cores(),
        effort.pairs,
        effort.time,
        if cores() < 2 { "; too few to hold servers and load apart" } else { "" }
    );
    let mut bench = Bench { stage: Stage::start(PRODUCTS, |_| {}).await?, effort, wanted, entries: Vec::new() };
    let busy = Busy::now();
    bench.queries().await?;
    bench.commands().await?;
    bench.together().await?;
    bench.stage.audit().await?;
    println!("audit clean; {:.0} s of CPU in all", busy.elapsed().as_secs_f64());
    let entries = bench.entries;
    write(&PathBuf::from("target/bench"), &entries)?;
    println!();
    entries.iter().for_each(|entry| println!("{}", entry.line()));
    let failed = entries.iter().any(|entry| entry.met() == Some(false));
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
