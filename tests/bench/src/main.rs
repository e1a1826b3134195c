//! `just bench`: how fast Souk is, as ratios of two things measured by turns in one run.
//!
//! # Layout
//! - `stage`: the system under test, filled with products, its processes' CPU time; `figures`: what its parts say of themselves
//! - `machine`: cores, and what a process has used of them
//! - `loader`: load from a thread and core of its own; `sources`: what it sends
//! - `echo`: the servers that queries are held against
//! - `database`: what Postgres does without Souk; `rows`: rows for its binary COPY; `fill`: an installation full of events
//! - `places`: bytes by place
//! - `effort`: how long and how often; `pairs`: two sides by turns, their ratio, and whether it can be judged
//! - `record`: the table and `summary.json`; `report`: `report.html`
//! - `benches`: the benchmarks B1–B15; `growth`: tables of what things cost as the system grows

mod benches;
mod database;
mod echo;
mod effort;
mod figures;
mod fill;
mod growth;
mod loader;
mod machine;
mod pairs;
mod places;
mod record;
mod report;
mod rows;
mod sources;
mod stage;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use effort::{Effort, Size};

/// Benchmarks of Souk. Give it the machine to itself.
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of benchmarks, such as B1 B4; all if none is given
    numbers: Vec<String>,
    /// Half the pairs, half the time
    #[arg(long, global = true)]
    quick: bool,
    /// Everything once and hardly any of it: shows that it works, not how fast
    #[arg(long, global = true, hide = true, conflicts_with = "quick")]
    smoke: bool,
    /// Where summary.json and report.html go
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    into: PathBuf,
    #[command(subcommand)]
    instead: Option<Instead>,
}

/// What is done in place of the benchmarks.
#[derive(Debug, clap::Subcommand)]
enum Instead {
    /// Measure what things cost as the system grows, and write the tables of a file
    Growth {
        /// Tables; all if none is given
        #[arg(value_name = "TABLE")]
        wanted: Vec<growth::Growth>,
        /// Where they go; tests/load/README.md if not given, target/bench/growth.md with --quick
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// A server to be measured, started by the benchmarks
    #[command(hide = true)]
    Echo(echo::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Instead::Echo(args)) = args.instead {
        return echo::serve(args);
    }
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: Args) -> Result<ExitCode> {
    souk_runtime::install_tls_provider();
    let size = match args {
        Args { smoke: true, .. } => Size::Smoke,
        Args { quick: true, .. } => Size::Quick,
        _ => Size::Full,
    };
    let effort = Effort::new(size);
    match args.instead {
        Some(Instead::Growth { wanted, file }) => growth::run(&wanted, effort, file.as_deref()).await.map(|()| ExitCode::SUCCESS),
        _ => benches::run(&args.numbers, effort, &args.into).await,
    }
}
