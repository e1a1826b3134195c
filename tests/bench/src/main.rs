//! `just bench`: how fast Souk is, as ratios of two things measured by turns in one run.
//!
//! # Layout
//! - `stage`: the system under test, filled with products, its processes' CPU time
//! - `machine`: cores, and what a process has used of them
//! - `loader`: load from a thread and core of its own; `sources`: what it sends
//! - `echo`: the servers that queries are held against
//! - `database`: what Postgres does without Souk
//! - `pairs`: two sides by turns, their ratio, and whether it can be judged
//! - `record`: the table and `target/bench/summary.json`
//! - `benches`: the benchmarks B1–B15

mod benches;
mod database;
mod echo;
mod loader;
mod machine;
mod pairs;
mod record;
mod sources;
mod stage;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Benchmarks of Souk. Give it the machine to itself.
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of benchmarks, such as B1 B4; all if none is given
    numbers: Vec<String>,
    /// Half the pairs, half the time
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    server: Option<Server>,
}

/// A server to be measured, started by the benchmarks.
#[derive(Debug, clap::Subcommand)]
enum Server {
    #[command(hide = true)]
    Echo(echo::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Server::Echo(args)) = args.server {
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
    benches::run(&args.numbers, args.quick).await
}
