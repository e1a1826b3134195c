//! A Postgres server for development and tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::account::{Account, make_room, remove_room};
use crate::backup::BaseBackup;
use crate::child::{Child, Launch};
use crate::cluster::{self, Cluster};
use crate::folder::TemporaryFolder;
use crate::identity::ProcessIdentity;
use crate::ports::Port;
use crate::tools::PostgresTools;

/// How the server is run where nothing else is said. What an installation of this size should have, too; durability is never traded away.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "15min"),
    ("shared_buffers", "256MB"),
    ("max_connections", "300"),
    // For standbys; what one misses while it is away is kept up to this size.
    ("wal_level", "replica"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_slot_wal_keep_size", "8GB"),
    ("random_page_cost", "1.1"),
    // The statements are short, and compiling one takes longer than running it.
    ("jit", "off"),
    // A transaction left open slows every append.
    ("idle_in_transaction_session_timeout", "60s"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %a "),
    ("log_checkpoints", "off"),
];

/// How long a server may take to start; after a crash it first replays up to `max_wal_size`.
const START_PATIENCE: Duration = Duration::from_secs(300);

/// How a server is started.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Where its data lives. Kept when the server stops.
    pub folder: PathBuf,
    /// Where its log is appended.
    pub log: PathBuf,
    /// Where it listens, on 127.0.0.1.
    pub port: Port,
    /// Databases that are created if missing.
    pub databases: Vec<String>,
    /// Settings of `postgresql.conf` on top of the recommended ones.
    pub settings: Vec<(String, String)>,
}

impl PostgresOptions {
    /// Data and log in `folder`, any free port, no database of its own.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        let log = folder.join("log");
        Self { folder, log, port: Port::Free, databases: Vec::new(), settings: Vec::new() }
    }
}

/// A running (or killed, or stopped) server. Dropping it stops it at once; the data stays.
#[derive(Debug)]
pub struct Postgres {
    options: PostgresOptions,
    cluster: Cluster,
    port: u16,
    child: Option<Child>,
}

impl Postgres {
    /// Finds the programs, creates the data folder if there is none, cleans up after a killed server, starts and waits until a connection
    /// succeeds and the databases exist.
    ///
    /// # Errors
    /// If no suitable Postgres is found, the port is taken, or the server does not start; with the last lines of its log.
    pub async fn start(options: PostgresOptions) -> Result<Self> {
        let account = Account::for_postgres(&options.folder)?;
        let room = make_room(&options.folder, account.as_ref())?;
        let version = cluster::version(&room);
        let tools = PostgresTools::find(version, account.as_ref())?;
        let for_tests = TemporaryFolder::holds(&options.folder);
        let cluster = tokio::task::spawn_blocking(move || Cluster::open(room, tools, account, for_tests)).await??;
        let port = options.port.choose()?;
        let mut postgres = Self { options, cluster, port, child: None };
        if let Err(error) = postgres.start_again().await {
            // A port that was free when it was chosen may be gone by now.
            if postgres.options.port != Port::Free || crate::ports::is_free(postgres.port) {
                return Err(error);
            }
            postgres.port = crate::ports::free_port()?;
            postgres.start_again().await?;
        }
        postgres.compress_wal().await?;
        for database in postgres.options.databases.clone() {
            postgres.create_database(&database).await?;
        }
        Ok(postgres)
    }

    /// Starts the server again after [`Postgres::stop`] or [`Postgres::kill9`]: same data, same port.
    ///
    /// # Errors
    /// If it is running, or does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "Postgres is running");
        self.cluster.clean_up()?;
        ensure!(crate::ports::is_free(self.port), "port {} is taken", self.port);
        let mut command = self.cluster.server();
        let port = self.port.to_string();
        let own = self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in SETTINGS.iter().copied().chain(own).chain([("port", port.as_str())]) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let child = Child::start(Launch {
            name: self.options.folder.file_name().map_or_else(|| "postgres".into(), |name| name.to_string_lossy().into_owned()),
            command,
            log: self.options.log.clone(),
            account: self.cluster.account().cloned(),
            // Immediate shutdown: the postmaster takes its children along.
            at_parent_death: Signal::SIGQUIT,
            record: Some(self.cluster.record()),
        })?;
        self.child = Some(child);
        self.wait_until_ready().await
    }

    /// Has images of pages compressed in the WAL: by lz4 if the server was built with it, which takes an eighth of the time of what every
    /// server has. Kept beside the data, so that a restart and a copy find it.
    async fn compress_wal(&self) -> Result<()> {
        let mut connection = self.connect("postgres").await?;
        let built_with_lz4 = "select 'lz4' = any(enumvals) from pg_settings where name = 'wal_compression'";
        let method = if sqlx::query_scalar(built_with_lz4).fetch_one(&mut connection).await? { "lz4" } else { "on" };
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("alter system set wal_compression = {method}"))).execute(&mut connection).await?;
        sqlx::raw_sql("select pg_reload_conf()").execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let child = self.child.as_ref().context("Postgres was not started")?;
            if child.exit_status().is_some() {
                return Err(child.died());
            }
            match tokio::time::timeout(Duration::from_secs(2), self.connect("postgres")).await {
                Ok(Ok(connection)) => return Ok(connection.close().await?),
                _ if Instant::now() > deadline => return Err(child.died()),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Where clients connect, with user and password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{}:{}@127.0.0.1:{}/{database}?sslmode=disable", cluster::USER, self.cluster.password(), self.port)
    }

    /// One connection to a database, as superuser.
    ///
    /// # Errors
    /// If the server refuses it or is not there.
    pub async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnectOptions::from_str(&self.url(database))?.application_name("devstack").disable_statement_logging().connect().await
    }

    /// Creates a database unless it exists.
    ///
    /// # Errors
    /// If the name is no plain identifier, or the server is not there.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        ensure!(plain, "`{name}` is no name for a database: lower-case letters, digits and _ only");
        let mut connection = self.connect("postgres").await?;
        let exists: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)").bind(name).fetch_one(&mut connection).await?;
        if !exists {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create database {name}"))).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The port it listens on, the same after every restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The major version of the server.
    pub fn major_version(&self) -> u32 {
        self.cluster.major_version()
    }

    /// Where the data really is.
    pub fn data_folder(&self) -> &Path {
        self.cluster.folder()
    }

    /// The name of the user the server runs as, if it is not this one.
    pub fn runs_as(&self) -> Option<&str> {
        self.cluster.account().map(|account| account.name.as_str())
    }

    /// The postmaster, while it runs.
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

    /// Whether the postmaster runs.
    pub fn is_running(&self) -> bool {
        self.identity().is_some()
    }

    /// Kills postmaster and backends with SIGKILL, as a power cut would. What was committed is there again after
    /// [`Postgres::start_again`].
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill9(&mut self) -> Result<()> {
        let Some(child) = self.child.take() else { bail!("Postgres is not running") };
        child.kill9().await?;
        self.cluster.kill_what_is_left()
    }

    /// Holds postmaster and backends where they are: connections stay open, and nobody is answered.
    ///
    /// # Errors
    /// If one cannot be signalled.
    pub fn pause(&self) -> Result<()> {
        self.cluster.signal_all(Signal::SIGSTOP)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// If one cannot be signalled.
    pub fn resume(&self) -> Result<()> {
        self.cluster.signal_all(Signal::SIGCONT)
    }

    /// Copies the running server, all its databases, as they are when this returns, into a new folder.
    ///
    /// # Errors
    /// If it does not run, or the folder holds something.
    pub async fn back_up(&self, folder: &Path) -> Result<()> {
        BaseBackup::of(self).take_to(folder).await.map(drop)
    }

    /// Puts a server that does not run back to a copy made by [`Postgres::back_up`], which is used up by that. What was committed since is
    /// gone after [`Postgres::start_again`].
    ///
    /// # Errors
    /// If it runs, or the files cannot be moved.
    pub fn restore(&mut self, backup: &Path) -> Result<()> {
        ensure!(!self.is_running(), "Postgres is running");
        self.cluster.clean_up()?;
        let (data, copy) = (self.cluster.folder().join("cluster"), fs::canonicalize(backup)?.join("cluster"));
        fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
        fs::rename(&copy, &data).with_context(|| format!("cannot put {} in place", copy.display()))
    }

    /// Lets the server listen at another port from the next start on.
    pub(crate) fn move_to(&mut self, port: u16) {
        self.port = port;
        self.options.port = Port::Fixed(port);
    }

    /// Stops the server in order: open transactions are rolled back, a checkpoint is written.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(child) = self.child.take() {
            child.stop(Signal::SIGINT, Duration::from_secs(60)).await?;
            self.cluster.clean_up()?;
        }
        Ok(())
    }

    /// Removes the data of a server that does not run.
    ///
    /// # Errors
    /// If the files cannot be removed.
    pub fn remove(folder: &Path) -> Result<()> {
        if folder.exists() {
            Cluster::clean_up_in(&fs::canonicalize(folder)?)?;
        }
        remove_room(folder)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.stop_now(Signal::SIGQUIT, Duration::from_secs(10));
        }
    }
}
