use std::{
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use souk_event_sourcing::UnixMillis;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{ConfigError, Health, Listeners, Process, ServiceKind, Settings, Telemetry, metrics, ops, process::bind};

/// Exit code of a process that never started: settings, arguments or ports.
const NOT_STARTED: u8 = 2;

/// The whole of a service's `main`: arguments, settings, telemetry, ports, run, drain on SIGTERM or SIGINT, flush.
///
/// Exit codes: 0 after an orderly drain, 1 when the service failed or the drain outlasted its grace, 2 when it never
/// started (one line on stderr says why). A second signal ends the process at once.
pub fn main_of<F, R>(service: ServiceKind, run: F) -> ExitCode
where
    F: FnOnce(Process, Listeners) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    match arguments(service) {
        Ok(Some(file)) => run_service(service, file.as_deref(), run),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => not_started(service, &error),
    }
}

/// The same for a program that reads its arguments by itself, as `souk serve` does.
pub fn run_service<F, R>(service: ServiceKind, file: Option<&Path>, run: F) -> ExitCode
where
    F: FnOnce(Process, Listeners) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let settings = match Settings::load(file).and_then(|settings| service.check(&settings).map(|()| settings)) {
        Ok(settings) => settings,
        Err(error) => return not_started(service, &error),
    };
    install_tls_provider();
    use_small_pages();
    UnixMillis::shift_clock(settings.process.clock_shift_ms);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if settings.process.threads > 0 {
        runtime.worker_threads(settings.process.threads);
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return not_started(service, &ConfigError::new(format!("no runtime: {error}"))),
    };
    runtime.block_on(async {
        match started(service, Arc::new(settings), run).await {
            Ok(code) => code,
            Err(error) => not_started(service, &error),
        }
    })
}

/// One provider for all of rustls; several crates bring features for another, so it must be named.
pub fn install_tls_provider() {
    // Fails only when it was installed before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Keeps this process, and whatever it starts, from transparent huge pages.
///
/// Most of an idle connection is buffers that its few frames never reach (HTTP/2's alone are 28 KB): in huge pages, which the
/// allocator asks for and some hosts give unasked, they are resident all the same.
pub fn use_small_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        eprintln!("huge pages stay allowed: {error}");
    }
}

async fn started<F, R>(service: ServiceKind, settings: Arc<Settings>, run: F) -> Result<ExitCode, ConfigError>
where
    F: FnOnce(Process, Listeners) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let health = Health::new();
    let shutdown = CancellationToken::new();
    let process = Process::new(settings.clone(), service, &health, shutdown.clone());
    let listeners = Listeners::bind(service, &settings).await?;
    let (key, address) = service.ops(&settings);
    let ops_listener = bind(key, address).await?;
    let telemetry = Telemetry::init(&settings.telemetry, service.name(), &process.replica)?;
    metrics::install();

    let ops_shutdown = CancellationToken::new();
    let ops = tokio::spawn(ops::serve(ops_listener, health.clone(), ops_shutdown.clone()));
    tracing::info!(service = service.name(), replica = process.replica, ops = %address, "starting");
    let code = until_drained(&settings, &health, &shutdown, run(process, listeners)).await;
    ops_shutdown.cancel();
    // It only answers probes: nothing is lost when it is cut off.
    ops.abort();
    telemetry.flush().await;
    Ok(code)
}

/// Runs the service; on a signal: not serving → pause → shutdown → drain within the grace.
async fn until_drained(
    settings: &Settings,
    health: &Health,
    shutdown: &CancellationToken,
    run: impl Future<Output = anyhow::Result<()>>,
) -> ExitCode {
    let mut run = std::pin::pin!(run);
    let signal = tokio::select! {
        ended = &mut run => {
            match ended {
                Ok(()) => tracing::error!("the service ended by itself"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "the service failed"),
            }
            return ExitCode::FAILURE;
        }
        signal = termination() => signal,
    };
    tracing::info!(signal, "draining");
    health.drain();
    let drained = async {
        tokio::select! {
            () = tokio::time::sleep(settings.process.shutdown_pause) => {}
            ended = &mut run => return ended,
        }
        shutdown.cancel();
        // Servers take the grace for themselves; what comes after them gets a little more.
        match tokio::time::timeout(settings.process.shutdown_grace + std::time::Duration::from_secs(5), &mut run).await {
            Ok(ended) => ended,
            Err(_) => Err(anyhow::anyhow!("not drained within the grace")),
        }
    };
    tokio::select! {
        ended = drained => match ended {
            Ok(()) => {
                tracing::info!("drained");
                ExitCode::SUCCESS
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the drain failed");
                ExitCode::FAILURE
            }
        },
        signal = termination() => {
            tracing::warn!(signal, "second signal: ending at once");
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGTERM or SIGINT and names it.
pub async fn termination() -> &'static str {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("no signal handlers: only a kill ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// The settings file, if one is named; `None` if there is nothing more to do.
fn arguments(service: ServiceKind) -> Result<Option<Option<PathBuf>>, ConfigError> {
    let usage = format!("usage: souk-{} [--config FILE]", service.name());
    let mut file: Option<PathBuf> = None;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--config") => match arguments.next() {
                Some(path) => file = Some(path.into()),
                None => return Err(ConfigError::new(format!("--config: want a file; {usage}"))),
            },
            Some("--help" | "-h") => {
                println!("{usage}\n\nSettings come from FILE (TOML) and from the environment (SOUK_section__key=value).");
                return Ok(None);
            }
            Some("--version" | "-V") => {
                println!("souk-{} {}", service.name(), env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            _ => return Err(ConfigError::new(format!("{}: unknown argument; {usage}", argument.to_string_lossy()))),
        }
    }
    Ok(Some(file))
}

fn not_started(service: ServiceKind, error: &ConfigError) -> ExitCode {
    eprintln!("souk-{}: {error}", service.name());
    ExitCode::from(NOT_STARTED)
}
