//! Services as processes of their own, as they are deployed.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::child::{Child, Launch};
use crate::identity::ProcessIdentity;
use crate::replica::{Replica, ReplicaPorts};

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
    /// Copies the logs of other regions.
    Replicator,
}

impl Service {
    /// All of them, each behind those it calls.
    pub const ALL: [Self; 5] = [Self::Command, Self::Projector, Self::Query, Self::Saga, Self::Replicator];

    /// Those of a region that knows of no other.
    pub const ALONE: [Self; 4] = [Self::Command, Self::Projector, Self::Query, Self::Saga];

    /// The order to stop them in: who gives commands first, then who takes or copies them, then who reads what came of them.
    pub const STOP_ORDER: [Self; 5] = [Self::Saga, Self::Command, Self::Replicator, Self::Projector, Self::Query];

    /// The name in commands, settings and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Projector => "projector",
            Self::Query => "query",
            Self::Saga => "saga",
            Self::Replicator => "replicator",
        }
    }
}

/// A service running as `souk serve NAME --config FILE`. Dropping it kills it.
#[derive(Debug)]
pub struct ServiceProcess {
    replica: Replica,
    ops_port: u16,
    log: PathBuf,
    child: Child,
}

impl ServiceProcess {
    /// Starts the service; it is ready some time later, see [`ServiceProcess::wait_until_ready`]. The settings say where the first replica
    /// listens; another one is told its name and its ports by the environment.
    ///
    /// # Errors
    /// If the `souk` program is not found or does not start.
    pub fn start(
        replica: Replica,
        ports: &ReplicaPorts,
        settings: &Path,
        logs: &Path,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut command = Command::new(souk_program()?);
        command.envs(environment);
        command.args(["serve", replica.service.name(), "--config"]).arg(settings);
        let mut name = replica.service.name().to_owned();
        if replica.index > 1 {
            name = replica.to_string();
            // In quotes, or it would be read as a number.
            command.env("SOUK_process__replica", format!("\"{}\"", replica.index));
            command.envs(replica.doors(ports).map(|(door, port)| (format!("SOUK_listen__{door}"), format!("127.0.0.1:{port}"))));
        }
        let log = logs.join(format!("{name}.log"));
        let child =
            Child::start(Launch { name, command, log: log.clone(), account: None, at_parent_death: Signal::SIGKILL, record: None })?;
        Ok(Self { replica, ops_port: ports.ops, log, child })
    }

    /// Which process of which service it is.
    pub fn replica(&self) -> Replica {
        self.replica
    }

    /// Its process.
    pub fn identity(&self) -> &ProcessIdentity {
        self.child.identity()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log, for messages.
    pub fn log_end(&self) -> String {
        self.child.log_end()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.child.exit_status().is_none()
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// If the process ends, or is not ready in time; with the reasons it gives and the last lines of its log.
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
                return Err(self.child.died().context(format!("{} is not ready after {} s: {lacks}", self.replica, patience.as_secs())));
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

    /// Holds it where it is, as a machine that swaps or a debugger would: it answers nobody and its connections stay open.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn pause(&self) -> Result<()> {
        self.child.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn resume(&self) -> Result<()> {
        self.child.signal(Signal::SIGCONT)
    }

    /// Lets it drain and end, and kills it after `grace`. One that is paused goes on first.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.resume()?;
        self.child.stop(Signal::SIGTERM, grace).await.map(drop)
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        self.child.stop_now(Signal::SIGKILL, Duration::ZERO);
    }
}

/// Asks `/readyz` on this port of 127.0.0.1; `None` if ready and not impaired, else what is lacking.
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
    let whole = head.split_whitespace().nth(1) == Some("200") && body.trim() == "ready";
    Ok((!whole).then(|| body.lines().collect::<Vec<_>>().join("; ")))
}

/// The `souk` program: what `SOUK_PROGRAM` says, else this one, else the one built into the same `target` folder.
///
/// # Errors
/// If there is none.
pub fn souk_program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SOUK_PROGRAM") {
        return Ok(path.into());
    }
    let this = env::current_exe().context("this program does not know its own place")?;
    // A program rebuilt while it runs shows up as "… (deleted)"; its successor has the same name.
    if this.file_name().is_some_and(|name| name.to_string_lossy().starts_with("souk (deleted)") || name == "souk") {
        return Ok(this.with_file_name("souk"));
    }
    // target/debug/deps/test-… → target/debug/souk
    let found = this.ancestors().skip(1).take(3).map(|folder| folder.join("souk")).find(|path| path.is_file());
    found.with_context(|| format!("no `souk` program beside {}; build it first: cargo build -p souk", this.display()))
}
