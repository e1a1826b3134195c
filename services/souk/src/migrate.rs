//! `souk migrate`: brings all databases up to date, for services that run with `process.migrate = false`.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use souk_runtime::Settings;
use tokio::time::{Instant, sleep, timeout_at};

const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Settings (TOML); the environment (SOUK_section__key=value) goes over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long to wait for databases that do not answer yet
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "1m")]
    patience: Duration,
}

/// Migrates the write databases, then the read databases. Running it twice, or two at once, does no harm.
pub async fn run(args: Args) -> Result<()> {
    let settings = Settings::load(args.config.as_deref())?;
    let databases = settings.write.databases.len() + settings.read.databases.len();
    ensure!(databases > 0, "write.databases and read.databases: there is none to migrate");
    let deadline = Instant::now() + args.patience;
    if !settings.write.databases.is_empty() {
        patiently("write databases", deadline, async || {
            souk_saga::migrate(&settings).await.map_err(|error| (error.retryable(), error.into()))
        })
        .await?;
    }
    if !settings.read.databases.is_empty() {
        let migrate = async || souk_projector::migrate(&settings).await.map_err(|error| (error.retryable(), error.into()));
        patiently("read databases", deadline, migrate).await?;
    }
    Ok(())
}

/// Tries again while a database is away, until `deadline`.
async fn patiently(what: &str, deadline: Instant, migrate: impl AsyncFn() -> Result<(), (bool, anyhow::Error)>) -> Result<()> {
    loop {
        let outcome = timeout_at(deadline, migrate()).await;
        match outcome {
            Ok(Ok(())) => {
                eprintln!("souk: {what}: up to date");
                return Ok(());
            }
            Ok(Err((true, error))) if Instant::now() + RETRY < deadline => eprintln!("souk: {what}: not there yet: {error:#}"),
            Ok(Err((_, error))) => return Err(error).with_context(|| what.to_owned()),
            Err(_) => bail!("{what}: no answer in time; another migration may be holding the lock"),
        }
        sleep(RETRY).await;
    }
}
