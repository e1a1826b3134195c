//! Services as processes of their own, as they are deployed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::child::{Child, Launch};
use crate::identity::ProcessIdentity;

/// One of the deployed services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Takes commands, appends events, relays them.
    Command,
    /// Folds events into views.
    Projector,
    /// Answers queries.
    Query,
    /// Drives orders to their end.
    Saga,
}

impl Service {
    /// All of them, each behind those it calls.
    pub const ALL: [Self; 4] = [Self::Command, Self::Projector, Self::Query, Self::Saga];

    /// The order to stop them in: who gives commands first, then who takes them, then who reads what came of them.
    pub const STOP_ORDER: [Self; 4] = [Self::Saga, Self::Command, Self::Projector, Self::Query];

    /// The name in commands, settings and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Projector => "projector",
            Self::Query => "query",
            Self::Saga => "saga",
        }
    }
}

/// A service running as `souk serve NAME --config FILE`. Dropping it kills it.
#[derive(Debug)]
pub struct ServiceProcess {
    service: Service,
    ops_port: u16,
    log: PathBuf,
    child: Child,
}

impl ServiceProcess {
    /// Starts the service; it is ready some time later, see [`ServiceProcess::wait_until_ready`].
    ///
    /// # Errors
    /// If the `souk` program is not found or does not start.
    pub fn start(service: Service, settings: &Path, ops_port: u16, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{}.log", service.name()));
        let mut command = Command::new(souk_program()?);
        command.args(["serve", service.name(), "--config"]).arg(settings);
        let child = Child::start(Launch {
            name: service.name().to_owned(),
            command,
            log: log.clone(),
            account: None,
            at_parent_death: Signal::SIGKILL,
            record: None,
        })?;
        Ok(Self { service, ops_port, log, child })
    }

    /// Which service it is.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Its process.
    pub fn identity(&self) -> &ProcessIdentity {
        self.child.identity()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.child.exit_status().is_none()
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// If the process ends, or is not ready in time; with the reasons it gives, or the last lines of its log.
    pub async fn wait_until_ready(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            if !self.is_running() {
                return Err(self.child.died());
            }
            let lacks = match readiness(self.ops_port).await {
                Ok(None) => return Ok(()),
                Ok(Some(lacks)) => lacks,
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                bail!("{} is not ready after {} s: {lacks}", self.service.name(), patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for its end, and tells of it with the last lines of its log.
    pub async fn died(&self) -> anyhow::Error {
        self.child.death().await
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn kill9(&self) -> Result<()> {
        self.child.kill9().await.map(drop)
    }

    /// Lets it drain and end, and kills it after `grace`.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.child.stop(Signal::SIGTERM, grace).await.map(drop)
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        self.child.stop_now(Signal::SIGKILL, Duration::ZERO);
    }
}

/// Asks `/readyz` on this port of 127.0.0.1; `None` if ready, else what is lacking.
///
/// # Errors
/// If nothing answers there.
pub async fn readiness(ops_port: u16) -> Result<Option<String>> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", ops_port)).await?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(64 << 10).read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), ask).await.context("no answer from the ops port")??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let ready = head.split_whitespace().nth(1) == Some("200");
    Ok((!ready).then(|| body.lines().collect::<Vec<_>>().join("; ")))
}

/// The `souk` program: this one, or the one built into the same `target` folder.
fn souk_program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SOUK_PROGRAM") {
        return Ok(path.into());
    }
    let this = env::current_exe().context("this program does not know its own place")?;
    // A program rebuilt while it runs shows up as "… (deleted)"; its successor has the same name.
    if this.file_name().is_some_and(|name| name.to_string_lossy().starts_with("souk (deleted)") || name == "souk") {
        return Ok(this.with_file_name("souk"));
    }
    // target/debug/deps/test-… → target/debug/souk
    let candidates = this.ancestors().skip(1).take(3).map(|folder| folder.join("souk"));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("no `souk` program beside {}; build it first: cargo build -p souk", this.display()))
}
