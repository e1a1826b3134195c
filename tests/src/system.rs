use std::{future::Future, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use souk_client::{Endpoints, Session, Souk};
use souk_devstack::{Replica, Service, Stack, StackOptions, souk_program};
use sqlx::PgPool;
use tokio::{
    process::Command,
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep},
};

use crate::Network;

const READY_PATIENCE: Duration = Duration::from_secs(90);

/// Systems are heavy and measure time: one at a time in a test binary.
static TURN: Mutex<()> = Mutex::const_new(());

pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Postgres, NATS and the four services as processes, in a folder of their own; gone when dropped.
pub struct System {
    pub stack: Stack,
    run_file: PathBuf,
    /// `None` beside another system, which holds it.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl System {
    /// Starts with settings changed by `change`, and waits until all is ready.
    ///
    /// # Errors
    /// When something does not start; the message has the ends of the logs.
    pub async fn start(change: impl FnOnce(&mut StackOptions)) -> Result<Self> {
        let turn = turn().await;
        Self::start_services(Some(turn), Stack::temporary(change).await?).await
    }

    /// Another installation beside this one, on servers of its own.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_beside(&self, change: impl FnOnce(&mut StackOptions)) -> Result<Self> {
        Self::start_services(None, Stack::temporary(change).await?).await
    }

    /// The same with services that reach Postgres and NATS by ways that can be slow, stall and break.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start_over_network(change: impl FnOnce(&mut StackOptions)) -> Result<(Self, Network)> {
        let turn = turn().await;
        let mut stack = Stack::temporary(change).await?;
        let network = Network::before(&mut stack).await?;
        Ok((Self::start_services(Some(turn), stack).await?, network))
    }

    async fn start_services(turn: Option<MutexGuard<'static, ()>>, mut stack: Stack) -> Result<Self> {
        stack.start_services(READY_PATIENCE).await?;
        let run_file = stack.data().join("run.json");
        let system = Self { stack, run_file, _turn: turn };
        system.write_run_file()?;
        Ok(system)
    }

    /// For tests that start their processes themselves: held, no system runs beside them.
    pub async fn turn() -> MutexGuard<'static, ()> {
        TURN.lock().await
    }

    /// A client of its own, with its own connections, to all replicas.
    ///
    /// # Errors
    /// When the endpoints are malformed.
    pub fn client(&self) -> Result<Souk> {
        let (command, query) = (self.stack.urls("command"), self.stack.urls("query"));
        Ok(Souk::connect(&Endpoints::new(command, query))?)
    }

    /// A client of one replica of the command service and one of the query service alone.
    ///
    /// # Errors
    /// When there is no such replica.
    pub fn client_of(&self, command: u16, query: u16) -> Result<Souk> {
        Ok(Souk::connect(&Endpoints::new(self.public_url((Service::Command, command))?, self.public_url((Service::Query, query))?))?)
    }

    fn public_url(&self, replica: impl Into<Replica>) -> Result<String> {
        let port = self.stack.ports_of(replica)?.public.context("this service has no public port")?;
        Ok(format!("http://127.0.0.1:{port}"))
    }

    /// A session with patience for faults.
    ///
    /// # Errors
    /// When the endpoints are malformed.
    pub fn session(&self) -> Result<Session> {
        Ok(patient(&self.client()?))
    }

    /// Kills a replica (the first of a service, if only that is named) as `kill -9` does and starts it again.
    ///
    /// # Errors
    /// When it does not become ready again.
    pub async fn kill_and_restart(&mut self, replica: impl Into<Replica>) -> Result<()> {
        let replica = replica.into();
        self.kill(replica).await?;
        self.start_again(replica).await
    }

    /// Kills a replica as `kill -9` does. It stays away until it is started again.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self, replica: impl Into<Replica>) -> Result<()> {
        self.stack.kill_replica(replica).await?;
        self.write_run_file()
    }

    /// Stops a replica in order, as a rollout does: it drains and gives up what it holds.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn stop(&mut self, replica: impl Into<Replica>) -> Result<()> {
        self.stack.stop_replica(replica).await?;
        self.write_run_file()
    }

    /// Starts a replica that was killed or stopped, and waits until all that runs is ready.
    ///
    /// # Errors
    /// When it runs, or does not become ready.
    pub async fn start_again(&mut self, replica: impl Into<Replica>) -> Result<()> {
        self.stack.start_replica(replica)?;
        self.stack.wait_until_ready(READY_PATIENCE).await?;
        self.write_run_file()
    }

    /// Scales a service out by one replica and waits until all that runs is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn add_replica(&mut self, service: Service) -> Result<Replica> {
        let replica = self.stack.add_replica(service)?;
        self.stack.wait_until_ready(READY_PATIENCE).await?;
        self.write_run_file()?;
        Ok(replica)
    }

    /// Scales a service in: the replica drains, ends and is forgotten.
    ///
    /// # Errors
    /// When there is no such replica, or it is the first.
    pub async fn remove_replica(&mut self, replica: impl Into<Replica>) -> Result<()> {
        self.stack.remove_replica(replica).await?;
        self.write_run_file()
    }

    /// Holds a replica where it is (SIGSTOP): its connections stay open and nobody is answered.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, replica: impl Into<Replica>) -> Result<()> {
        self.stack.pause_replica(replica)
    }

    /// Lets a paused replica go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, replica: impl Into<Replica>) -> Result<()> {
        self.stack.resume_replica(replica)
    }

    /// Resident memory of a replica, in bytes.
    ///
    /// # Errors
    /// When it does not run, or the machine does not say.
    pub fn memory(&self, replica: impl Into<Replica>) -> Result<u64> {
        let pid = self.stack.service(replica)?.identity().pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }

    /// Runs a `souk` command against this system.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn souk(&self, args: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new(souk_program()?);
        command.args(args).env("SOUK_RUN_FILE", &self.run_file).stdin(Stdio::null()).kill_on_drop(true);
        Ok(command.output().await?)
    }

    /// What `souk audit` finds, clean or not.
    ///
    /// # Errors
    /// When it could not look.
    pub async fn audit(&self) -> Result<Value> {
        self.write_run_file()?;
        let output = self.souk(&["audit", "--json"]).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("audit said {text:?} {:?}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Fails unless log, streams and views agree.
    ///
    /// # Errors
    /// With the differences.
    pub async fn audit_clean(&self) -> Result<Value> {
        let findings = self.audit().await?;
        if findings["wrong"].as_object().is_some_and(serde_json::Map::is_empty) { Ok(findings) } else { bail!("audit: {findings:#}") }
    }

    /// A pool on each write database.
    ///
    /// # Errors
    /// When one cannot be reached.
    pub async fn write_pools(&self) -> Result<Vec<PgPool>> {
        let mut pools = Vec::new();
        for database in self.stack.write_databases() {
            pools.push(PgPool::connect(&database.url).await?);
        }
        Ok(pools)
    }

    /// A pool on each read database.
    ///
    /// # Errors
    /// When one cannot be reached.
    pub async fn read_pools(&self) -> Result<Vec<PgPool>> {
        let mut pools = Vec::new();
        for database in self.stack.read_databases() {
            pools.push(PgPool::connect(&database.url).await?);
        }
        Ok(pools)
    }

    fn write_run_file(&self) -> Result<()> {
        self.stack.run_file()?.write(&self.run_file)
    }
}

/// A session that repeats what fails for a minute.
pub fn patient(client: &Souk) -> Session {
    client.session().caller("test").deadline(Duration::from_secs(60))
}

/// Asks until the answer is `Some`, at most for `patience`.
///
/// # Errors
/// When the time is over, or `ask` fails.
pub async fn until<T, F: Future<Output = Result<Option<T>>>>(what: &str, patience: Duration, mut ask: impl FnMut() -> F) -> Result<T> {
    const PAUSE: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {patience:?}");
        }
        sleep(PAUSE).await;
    }
}
