//! Postgres, NATS and services together.

mod facts;
mod services;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

use crate::folder::{FolderLock, TemporaryFolder};
use crate::installation::{Installation, Wanted, set, write_secret};
use crate::nats::{Nats, NatsOptions};
use crate::options::{StackOptions, StackPorts};
use crate::pooler::Pooler;
use crate::ports::Port;
use crate::postgres::{Postgres, PostgresOptions};
use crate::replica::Replica;
use crate::run_file::DatabaseUrl;
use crate::service::Service;
use crate::standby::{self, Standby, StandbyOptions};
use services::Slot;

/// Something that can end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The database server.
    Postgres,
    /// A standby of it, counted from 1.
    Standby(u16),
    /// The broker.
    Nats,
    /// A service that is a process of its own.
    Service(Replica),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres => f.write_str("Postgres"),
            Self::Standby(index) => write!(f, "standby {index}"),
            Self::Nats => f.write_str("NATS"),
            Self::Service(replica) => replica.fmt(f),
        }
    }
}

/// A running Postgres and NATS with the settings file for services over them, and the services started by [`Stack::start_replica`].
#[derive(Debug)]
pub struct Stack {
    // Dropped in this order: services, then what they need, then the folder.
    replicas: BTreeMap<Replica, Slot>,
    /// Before the database server, if that is wanted.
    pooler: Option<Pooler>,
    /// Whether services are processes of their own, not tasks of this one.
    apart: bool,
    /// The broker; tests kill it and start it again.
    pub nats: Nats,
    /// The standbys of the database server, in the order of their numbers.
    pub standbys: Vec<Standby>,
    /// The database server; tests kill it and start it again.
    pub postgres: Postgres,
    /// The server of all databases but the first write database, if that has one to itself.
    pub second_postgres: Option<Postgres>,
    installation: Installation,
    ports: StackPorts,
    own_settings: Vec<(String, Value)>,
    settings: PathBuf,
    data: PathBuf,
    logs: PathBuf,
    _lock: Option<FolderLock>,
    _temporary: Option<TemporaryFolder>,
}

impl Stack {
    /// Starts Postgres and NATS, creates the databases, writes the settings file.
    ///
    /// # Errors
    /// If the folder is in use, a port is taken, a program is missing or does not start.
    pub async fn start(options: StackOptions) -> Result<Self> {
        let lock = FolderLock::take(&options.data)?;
        if options.fresh {
            Postgres::remove(&options.data.join("postgres"))?;
            standby::remove_folders_beyond(0, &options.data)?;
            Nats::remove(&options.data.join("nats"))?;
            Installation::remove(&options.data)?;
        }
        Self::start_locked(options, Some(lock), None).await
    }

    /// The same in a new temporary folder, which is removed with everything in it when the stack is dropped.
    ///
    /// # Errors
    /// If a program is missing or does not start.
    pub async fn temporary(change: impl FnOnce(&mut StackOptions)) -> Result<Self> {
        let folder = TemporaryFolder::create()?;
        let mut options = StackOptions::new(folder.path(), folder.path().join("logs"));
        options.postgres_settings = [("max_wal_size", "1GB"), ("shared_buffers", "128MB")].map(|(k, v)| (k.into(), v.into())).into();
        change(&mut options);
        Self::start_locked(options, None, Some(folder)).await
    }

    async fn start_locked(options: StackOptions, lock: Option<FolderLock>, temporary: Option<TemporaryFolder>) -> Result<Self> {
        let replicas = services::plan(&options)?;
        let StackOptions { data, logs, ports, region, partitions, write_shards, read_shards, read_replicas, .. } = options;
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let installation = Installation::open(&data, Wanted { region, partitions, write_shards, read_shards, read_replicas })?;
        let databases = [("write", installation.write_shards), ("read", installation.read_shards)];
        let databases =
            databases.into_iter().flat_map(|(side, shards)| Installation::databases(side, shards)).map(|(_, database)| database);
        let mut databases: Vec<_> = databases.collect();
        // The first write database is the first of all.
        let others = if options.first_write_apart { databases.split_off(1) } else { Vec::new() };
        let server = |name: &str, port, databases| {
            let (folder, log, settings) = (data.join(name), logs.join(format!("{name}.log")), options.postgres_settings.clone());
            Postgres::start(PostgresOptions { folder, log, port, databases, settings })
        };
        let second = async {
            match others.is_empty() {
                true => Ok(None),
                false => server("postgres-2", Port::Free, others).await.map(Some),
            }
        };
        let nats = Nats::start(NatsOptions { folder: data.join("nats"), log: logs.join("nats.log"), port: ports.nats });
        let (postgres, second, nats) = tokio::join!(server("postgres", ports.postgres, databases), second, nats);
        let (postgres, second_postgres, nats) = (postgres?, second?, nats?);
        standby::remove_beyond(installation.read_replicas, &data, &postgres).await?;
        let standbys = (1..=installation.read_replicas).map(|index| {
            let port = ports.postgres.choose_for(index + 1);
            let (data, logs, settings) = (data.clone(), logs.clone(), options.postgres_settings.clone());
            let postgres = &postgres;
            async move { Standby::start(postgres, StandbyOptions { index, data, logs, port: Port::Fixed(port?), settings }).await }
        });
        let standbys = futures::future::try_join_all(standbys).await?;
        let pooler = match options.pooler {
            true => Some(Pooler::start(&postgres, &data.join("pooler"), &logs.join("pgbouncer.log")).await?),
            false => None,
        };
        let mut stack = Self {
            replicas,
            pooler,
            apart: false,
            nats,
            standbys,
            postgres,
            second_postgres,
            installation,
            ports,
            own_settings: options.settings,
            settings: data.join("souk.toml"),
            data,
            logs,
            _lock: lock,
            _temporary: temporary,
        };
        stack.write_settings()?;
        stack.settings = fs::canonicalize(&stack.settings)?;
        Ok(stack)
    }

    /// Writes the settings file. Processes that run already know the replicas of the moment they started.
    fn write_settings(&self) -> Result<()> {
        let mut table = self.addresses_as_settings();
        for (key, value) in &self.own_settings {
            set(&mut table, key, value.clone());
        }
        write_secret(&self.settings, &toml::to_string(&table)?)
    }

    /// A setting of the services, known to whoever starts from now on.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<()> {
        self.own_settings.push((key.to_owned(), value.into()));
        self.write_settings()
    }

    /// Leads the services that start from now on to the databases of a side by other ways than the straight one.
    ///
    /// # Errors
    /// If the settings file cannot be written.
    pub fn lead_to(&mut self, side: &str, databases: impl IntoIterator<Item = DatabaseUrl>) -> Result<()> {
        self.set(&format!("{side}.databases"), as_setting(databases, |url| Ways { url, pooled: None }))
    }

    /// Read databases are reached through the pooler alone, write databases on both ways.
    fn pooled(&self, side: &str, url: String) -> Ways {
        match (&self.pooler, side) {
            (Some(pooler), "read") => Ways { url: pooler.url(&url), pooled: None },
            (Some(pooler), _) => Ways { pooled: Some(pooler.url(&url)), url },
            (None, _) => Ways { url, pooled: None },
        }
    }

    fn addresses_as_settings(&self) -> Table {
        let mut table = Table::new();
        let Installation { region, region_number, partitions, write_shards, read_shards, read_replicas: _, token_key } = &self.installation;
        set(&mut table, "installation.region", region.as_str());
        set(&mut table, "installation.region_number", i64::from(*region_number));
        set(&mut table, "installation.partitions", i64::from(*partitions));
        set(&mut table, "installation.token_key", token_key.as_str());
        for (side, shards) in [("write", *write_shards), ("read", *read_shards)] {
            let databases = self.database_urls(side, shards);
            set(&mut table, &format!("{side}.databases"), as_setting(databases, |url| self.pooled(side, url)));
        }
        // Started again under its old name, a process need not wait for its own leases to end. Further replicas have names of their own.
        set(&mut table, "process.replica", "1");
        set(&mut table, "process.threads", threads());
        set(&mut table, "nats.url", self.nats.url());
        for (first, slot) in self.replicas.iter().filter(|(replica, _)| replica.index == 1) {
            for (door, port) in first.doors(&slot.ports) {
                set(&mut table, &format!("listen.{door}"), format!("127.0.0.1:{port}"));
                if !door.ends_with("_ops") {
                    set(&mut table, &format!("peers.{door}"), self.urls(&door));
                }
            }
        }
        table
    }

    fn database_urls(&self, side: &str, shards: u16) -> Vec<DatabaseUrl> {
        let databases = Installation::databases(side, shards).into_iter();
        let replicas = |database: &str| match (side, &self.second_postgres) {
            ("read", None) => self.standbys.iter().map(|standby| standby.server.url(database)).collect(),
            _ => Vec::new(),
        };
        let server = |name: &str| self.second_postgres.as_ref().filter(|_| name != "write-1").unwrap_or(&self.postgres);
        databases.map(|(name, database)| DatabaseUrl { url: server(&name).url(&database), replicas: replicas(&database), name }).collect()
    }

    /// What its ids are named by, where there are several regions.
    pub fn region(&self) -> &str {
        &self.installation.region
    }

    /// What its keys are told apart by.
    pub fn region_number(&self) -> u16 {
        self.installation.region_number
    }

    pub(crate) fn partitions(&self) -> u16 {
        self.installation.partitions
    }

    pub(crate) fn token_key(&self) -> &str {
        &self.installation.token_key
    }

    /// The settings file of all services.
    pub fn settings_file(&self) -> &Path {
        &self.settings
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder of the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The write databases, with user and password.
    pub fn write_databases(&self) -> Vec<DatabaseUrl> {
        self.database_urls("write", self.installation.write_shards)
    }

    /// The read databases, with user and password.
    pub fn read_databases(&self) -> Vec<DatabaseUrl> {
        self.database_urls("read", self.installation.read_shards)
    }

    fn standby_mut(&mut self, index: u16) -> Result<&mut Standby> {
        self.standbys.iter_mut().find(|standby| standby.index() == index).with_context(|| format!("there is no standby {index}"))
    }

    /// Promotes a standby and gives it the address of the database server, which must not run any more: services reach it as if the old one
    /// were back. What the standby had not received is gone.
    ///
    /// # Errors
    /// If there is no such standby, the server runs still, or the standby cannot be promoted.
    pub async fn fail_over_to(&mut self, index: u16) -> Result<()> {
        ensure!(!self.postgres.is_running(), "the database server runs");
        let place = self.standbys.iter().position(|standby| standby.index() == index);
        let standby = self.standbys.remove(place.with_context(|| format!("there is no standby {index}"))?);
        standby.promote().await?;
        let mut promoted = standby.server;
        promoted.stop().await?;
        promoted.move_to(self.postgres.port());
        promoted.start_again().await?;
        self.postgres = promoted;
        self.write_settings()
    }

    /// Waits until something ends by itself, and tells of it with the last lines of its log.
    pub async fn first_death(&self) -> (Part, anyhow::Error) {
        type Death<'a> = Pin<Box<dyn Future<Output = anyhow::Error> + Send + 'a>>;
        let mut parts = vec![Part::Postgres, Part::Nats];
        let mut deaths: Vec<Death<'_>> = vec![Box::pin(self.postgres.died()), Box::pin(self.nats.died())];
        for standby in &self.standbys {
            parts.push(Part::Standby(standby.index()));
            deaths.push(Box::pin(standby.server.died()));
        }
        for process in self.processes() {
            parts.push(Part::Service(process.replica()));
            deaths.push(Box::pin(process.died()));
        }
        let (death, index, _) = futures::future::select_all(deaths).await;
        (parts[index], death)
    }

    /// Starts something again that ended: same data, same port.
    ///
    /// # Errors
    /// If it does not start. A service that starts is ready some time later.
    pub async fn start_again(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Postgres => self.postgres.start_again().await,
            Part::Standby(index) => self.standby_mut(index)?.server.start_again().await,
            Part::Nats => self.nats.start_again().await,
            Part::Service(replica) => self.start_replica(replica),
        }
    }

    /// Lets the services drain, in order, then stops NATS, standbys and Postgres.
    ///
    /// # Errors
    /// If something cannot be stopped.
    pub async fn stop(&mut self) -> Result<()> {
        for service in Service::STOP_ORDER {
            let replicas: Vec<_> = self.replicas_of(service).collect();
            for replica in replicas {
                self.stop_replica(replica).await?;
            }
        }
        self.nats.stop().await?;
        for standby in &mut self.standbys {
            standby.server.stop().await?;
        }
        if let Some(second) = &mut self.second_postgres {
            second.stop().await?;
        }
        self.postgres.stop().await
    }
}

/// How a database is reached.
struct Ways {
    url: String,
    /// For ordinary queries, where these may not all go the same way.
    pooled: Option<String>,
}

fn as_setting(databases: impl IntoIterator<Item = DatabaseUrl>, ways: impl Fn(String) -> Ways) -> Value {
    let entry = |database: DatabaseUrl| {
        let (mut entry, ways) = (Table::new(), ways(database.url));
        set(&mut entry, "name", database.name);
        set(&mut entry, "url", ways.url);
        if let Some(pooled) = ways.pooled {
            set(&mut entry, "pooled_url", pooled);
        }
        if !database.replicas.is_empty() {
            set(&mut entry, "replicas", database.replicas);
        }
        Value::Table(entry)
    };
    Value::Array(databases.into_iter().map(entry).collect())
}

/// Threads of each service: many of them share this machine with two servers and whoever calls.
fn threads() -> i64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 4).max(1) as i64
}
