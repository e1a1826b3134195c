//! A NATS server with JetStream for development and tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::child::{self, Child, Launch};
use crate::identity::ProcessIdentity;
use crate::ports::Port;
use crate::tools::NatsTools;

/// Headers count, and an oversized publish closes the connection: twice what the largest event with its envelope may take.
pub const MAX_PAYLOAD: usize = 2 << 20;

const START_PATIENCE: Duration = Duration::from_secs(60);

/// How a server is started.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// Where its configuration and the JetStream store live. Kept when the server stops.
    pub folder: PathBuf,
    /// Where its log is appended.
    pub log: PathBuf,
    /// Where it listens, on 127.0.0.1.
    pub port: Port,
}

impl NatsOptions {
    /// Store and log in `folder`, any free port.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        let log = folder.join("log");
        Self { folder, log, port: Port::Free }
    }
}

/// A running (or killed, or stopped) server. Dropping it kills it; the store stays.
#[derive(Debug)]
pub struct Nats {
    options: NatsOptions,
    tools: NatsTools,
    port: u16,
    child: Option<Child>,
}

impl Nats {
    /// Finds the program, writes the configuration, cleans up after a killed server, starts and waits until JetStream answers.
    ///
    /// # Errors
    /// If no suitable nats-server is found, the port is taken, or the server does not start; with the last lines of its log.
    pub async fn start(options: NatsOptions) -> Result<Self> {
        let tools = NatsTools::find()?;
        let port = options.port.choose()?;
        let mut nats = Self { options, tools, port, child: None };
        if let Err(error) = nats.start_again().await {
            // A port that was free when it was chosen may be gone by now.
            if nats.options.port != Port::Free || crate::ports::is_free(nats.port) {
                return Err(error);
            }
            nats.port = crate::ports::free_port()?;
            nats.start_again().await?;
        }
        Ok(nats)
    }

    /// Starts the server again after [`Nats::stop`] or [`Nats::kill9`]: same store, same port.
    ///
    /// # Errors
    /// If it is running, or does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "NATS is running");
        fs::create_dir_all(&self.options.folder).with_context(|| format!("cannot create {}", self.options.folder.display()))?;
        let folder = fs::canonicalize(&self.options.folder)?;
        child::clean_up(&folder.join("process.json"), Signal::SIGTERM, Duration::from_secs(10))?;
        ensure!(crate::ports::is_free(self.port), "port {} is taken", self.port);
        let configuration = folder.join("nats.conf");
        fs::write(&configuration, self.configuration(&folder)).with_context(|| format!("cannot write {}", configuration.display()))?;
        let mut command = self.tools.program();
        command.arg("-c").arg(&configuration).current_dir(&folder);
        let child = Child::start(Launch {
            name: "nats-server".to_owned(),
            command,
            log: self.options.log.clone(),
            account: None,
            // What it holds is a cache of the event log, so nothing is lost by haste.
            at_parent_death: Signal::SIGKILL,
            record: Some(folder.join("process.json")),
        })?;
        self.child = Some(child);
        self.wait_until_ready().await
    }

    /// The store's limit is no reservation: every stream brings its own limits, and their sum must fit.
    fn configuration(&self, folder: &Path) -> String {
        format!(
            "server_name: souk\nlisten: \"127.0.0.1:{}\"\nmax_payload: {MAX_PAYLOAD}\nmax_connections: 4096\nmax_pending: 268435456\n\
             jetstream {{\n  store_dir: {:?}\n  max_memory_store: 67108864\n  max_file_store: 8TB\n}}\n",
            self.port,
            folder.display().to_string()
        )
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let child = self.child.as_ref().context("NATS was not started")?;
            if child.exit_status().is_some() {
                return Err(child.died());
            }
            match tokio::time::timeout(Duration::from_secs(2), self.ask()).await {
                Ok(Ok(())) => return Ok(()),
                _ if Instant::now() > deadline => return Err(child.died()),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn ask(&self) -> Result<()> {
        let client = async_nats::connect(self.url()).await?;
        async_nats::jetstream::new(client).query_account().await?;
        Ok(())
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port it listens on, the same after every restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server, while it runs.
    pub fn identity(&self) -> Option<&ProcessIdentity> {
        self.child.as_ref().filter(|child| child.exit_status().is_none()).map(Child::identity)
    }

    /// Waits for its end, and tells of it with the last lines of its log. Waits for ever if it does not run.
    pub async fn died(&self) -> anyhow::Error {
        match &self.child {
            Some(child) => child.death().await,
            None => std::future::pending().await,
        }
    }

    /// Whether the server runs.
    pub fn is_running(&self) -> bool {
        self.identity().is_some()
    }

    /// Kills the server with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill9(&mut self) -> Result<()> {
        let Some(child) = self.child.take() else { bail!("NATS is not running") };
        child.kill9().await?;
        Ok(())
    }

    /// Holds the server where it is: connections stay open, and nobody is answered.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.child.as_ref().context("NATS is not running")?.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&self) -> Result<()> {
        self.child.as_ref().context("NATS is not running")?.signal(Signal::SIGCONT)
    }

    /// Stops the server in order.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(child) = self.child.take() {
            child.stop(Signal::SIGTERM, Duration::from_secs(15)).await?;
            child::clean_up(&self.options.folder.join("process.json"), Signal::SIGTERM, Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// Removes all streams of a server that does not run.
    ///
    /// # Errors
    /// If it runs, or the files cannot be removed.
    pub fn wipe(&self) -> Result<()> {
        ensure!(!self.is_running(), "NATS is running");
        let store = self.options.folder.join("jetstream");
        if store.exists() {
            fs::remove_dir_all(&store).with_context(|| format!("cannot remove {}", store.display()))?;
        }
        Ok(())
    }

    /// Removes everything of a server that does not run.
    ///
    /// # Errors
    /// If the files cannot be removed.
    pub fn remove(folder: &Path) -> Result<()> {
        child::clean_up(&folder.join("process.json"), Signal::SIGTERM, Duration::from_secs(10))?;
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        Ok(())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.stop_now(Signal::SIGKILL, Duration::ZERO);
        }
    }
}
