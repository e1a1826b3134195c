//! `souk serve`: one service in a process of its own, as its own program would.

use std::path::PathBuf;
use std::process::ExitCode;

use souk_runtime::{ServiceKind, run_service};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which service
    service: Service,
    /// Settings (TOML); the environment (SOUK_section__key=value) goes over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Service {
    Command,
    Query,
    Projector,
    Saga,
    Replicator,
}

/// Runs until SIGTERM or SIGINT, on a runtime of its own.
pub fn run(args: Args) -> ExitCode {
    let file = args.config.as_deref();
    match args.service {
        Service::Command => run_service(ServiceKind::Command, file, souk_command::run),
        Service::Query => run_service(ServiceKind::Query, file, souk_query::run),
        Service::Projector => run_service(ServiceKind::Projector, file, souk_projector::run),
        Service::Saga => run_service(ServiceKind::Saga, file, souk_saga::run),
        Service::Replicator => run_service(ServiceKind::Replicator, file, souk_replicator::run),
    }
}
