//! `souk`: everything one does with Souk from a terminal.
//!
//! # Layout
//!
//! One module per command, each with its `Args` and a `run`:
//! - `up`: the whole system on this machine; `serve`: one service, as deployed; `migrate`: its databases
//! - `call`, `seed`, `load`, `demo`, `drill`: use it; `status`, `timeline`, `audit`: look into it; `parked`: mend what stands still in views
//! - `region`: the regions, and the links between them
//! - `plan`: how much of everything a load needs

mod audit;
mod call;
mod demo;
mod drill;
mod load;
mod migrate;
mod paint;
mod parked;
mod plan;
mod region;
mod seed;
mod serve;
mod status;
mod system;
mod timeline;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A commerce core: catalog, stock, carts and orders over gRPC.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Souk {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start Postgres, NATS and all services on this machine
    Up(up::Args),
    /// Run one service as a process of its own
    Serve(serve::Args),
    /// Bring all databases up to date, for services that are told not to
    Migrate(migrate::Args),
    /// Call any RPC of the running system
    Call(call::Args),
    /// Create products and customers for load tests
    Seed(seed::Args),
    /// Send load as ghz does, or a mix of calls, and measure it
    Load(Box<load::Args>),
    /// Tell the story of an order against the running system
    Demo(demo::Args),
    /// Sell out a shop in sixty seconds while its machines fail, on a system of its own
    Drill(drill::Args),
    /// Show partitions, positions, lag and caches
    Status(status::Args),
    /// Look at one order
    #[command(subcommand)]
    Order(OrderCommand),
    /// Prove that log, streams and views are equal
    Audit(audit::Args),
    /// See and mend entities whose events could not be applied to the views
    #[command(subcommand)]
    Parked(parked::Command),
    /// See regions, what they agree on, and the links between them
    #[command(subcommand)]
    Region(region::Command),
    /// Work out what a load needs, and what to do first as it grows
    Plan(plan::Args),
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    /// Show what happened to an order, and when
    Timeline(timeline::Args),
}

fn main() -> ExitCode {
    let command = match Souk::parse().command {
        Command::Serve(args) => return serve::run(args),
        other => other,
    };
    souk_runtime::install_tls_provider();
    match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(command)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("souk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Serve(_) => anyhow::bail!("a service runs on a runtime of its own"),
        Command::Migrate(args) => migrate::run(args).await,
        Command::Call(args) => call::run(args).await,
        Command::Seed(args) => seed::run(args).await,
        Command::Load(args) => load::run(*args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Drill(args) => drill::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Order(OrderCommand::Timeline(args)) => timeline::run(args).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Parked(command) => parked::run(command).await,
        Command::Region(command) => region::run(command).await,
        Command::Plan(args) => plan::run(&args),
    }
}
