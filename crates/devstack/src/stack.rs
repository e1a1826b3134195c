//! Postgres, NATS and services together.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::folder::{FolderLock, TemporaryFolder};
use crate::identity::ProcessIdentity;
use crate::installation::{Installation, Wanted, set, write_secret};
use crate::nats::{Nats, NatsOptions};
use crate::ports::Port;
use crate::postgres::{Postgres, PostgresOptions};
use crate::run_file::{Addresses, DatabaseUrl, RunFile, Server};
use crate::service::{Service, ServiceProcess};

/// Where everything listens, on 127.0.0.1.
#[derive(Clone, Copy, Debug, Default)]
pub struct StackPorts {
    /// The database server.
    pub postgres: Port,
    /// The broker.
    pub nats: Port,
    /// Public gRPC.
    pub command: Port,
    /// Public gRPC.
    pub query: Port,
    /// Internal gRPC.
    pub command_internal: Port,
    /// Internal gRPC.
    pub query_internal: Port,
    /// Internal gRPC.
    pub projector_internal: Port,
    /// Internal gRPC.
    pub saga_internal: Port,
    /// HTTP for operators.
    pub command_ops: Port,
    /// HTTP for operators.
    pub query_ops: Port,
    /// HTTP for operators.
    pub projector_ops: Port,
    /// HTTP for operators.
    pub saga_ops: Port,
}

/// Something that can end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The database server.
    Postgres,
    /// The broker.
    Nats,
    /// A service that is a process of its own.
    Service(Service),
}

impl Part {
    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "Postgres",
            Self::Nats => "NATS",
            Self::Service(service) => service.name(),
        }
    }
}

/// How a stack is started.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// Where everything that must be kept lives.
    pub data: PathBuf,
    /// Where the logs go.
    pub logs: PathBuf,
    /// Whether what the data folder holds is removed first.
    pub fresh: bool,
    /// Where everything listens.
    pub ports: StackPorts,
    /// Partitions per region: `None` takes what the data has, or 64.
    pub partitions: Option<u16>,
    /// Number of write databases: `None` takes what the data has, or 1.
    pub write_shards: Option<u16>,
    /// Number of read databases: `None` takes what the data has, or 1.
    pub read_shards: Option<u16>,
    /// Settings of the services beside addresses, by dotted key.
    pub settings: Vec<(String, Value)>,
    /// Settings of Postgres on top of the recommended ones.
    pub postgres_settings: Vec<(String, String)>,
}

impl StackOptions {
    /// Data and logs in these folders, free ports, one write and one read database.
    pub fn new(data: impl Into<PathBuf>, logs: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            logs: logs.into(),
            fresh: false,
            ports: StackPorts::default(),
            partitions: None,
            write_shards: None,
            read_shards: None,
            settings: Vec::new(),
            postgres_settings: Vec::new(),
        }
    }

    /// A setting of the services: `set("command.payment_window", "2s")`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.settings.push((key.to_owned(), value.into()));
        self
    }
}

/// A running Postgres and NATS with the settings file for services over them, and the services started by [`Stack::start_service`].
#[derive(Debug)]
pub struct Stack {
    // Dropped in this order: services, then what they need, then the folder.
    services: BTreeMap<Service, ServiceProcess>,
    /// The broker; tests kill it and start it again.
    pub nats: Nats,
    /// The database server; tests kill it and start it again.
    pub postgres: Postgres,
    installation: Installation,
    ports: BTreeMap<&'static str, u16>,
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
        let StackOptions { data, logs, ports, partitions, write_shards, read_shards, settings: own, postgres_settings, fresh: _ } = options;
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let installation = Installation::open(&data, Wanted { partitions, write_shards, read_shards })?;
        let databases = [("write", installation.write_shards), ("read", installation.read_shards)];
        let databases =
            databases.into_iter().flat_map(|(side, shards)| Installation::databases(side, shards)).map(|(_, database)| database);
        let postgres = Postgres::start(PostgresOptions {
            folder: data.join("postgres"),
            log: logs.join("postgres.log"),
            port: ports.postgres,
            databases: databases.collect(),
            settings: postgres_settings,
        });
        let nats = Nats::start(NatsOptions { folder: data.join("nats"), log: logs.join("nats.log"), port: ports.nats });
        let (postgres, nats) = tokio::join!(postgres, nats);
        let (postgres, nats) = (postgres?, nats?);
        let mut stack = Self {
            services: BTreeMap::new(),
            nats,
            postgres,
            installation,
            ports: service_ports(ports)?,
            settings: data.join("souk.toml"),
            data,
            logs,
            _lock: lock,
            _temporary: temporary,
        };
        let mut table = stack.addresses_as_settings();
        for (key, value) in own {
            set(&mut table, &key, value);
        }
        write_secret(&stack.settings, &toml::to_string(&table)?)?;
        stack.settings = fs::canonicalize(&stack.settings)?;
        Ok(stack)
    }

    fn addresses_as_settings(&self) -> Table {
        let mut table = Table::new();
        let Installation { region, region_number, partitions, write_shards, read_shards, token_key } = &self.installation;
        set(&mut table, "installation.region", region.as_str());
        set(&mut table, "installation.region_number", i64::from(*region_number));
        set(&mut table, "installation.partitions", i64::from(*partitions));
        set(&mut table, "installation.token_key", token_key.as_str());
        for (side, shards) in [("write", *write_shards), ("read", *read_shards)] {
            let entries = self.database_urls(side, shards).into_iter().map(|database| {
                let entry = [("name".to_owned(), Value::from(database.name)), ("url".to_owned(), Value::from(database.url))];
                Value::Table(entry.into_iter().collect())
            });
            set(&mut table, &format!("{side}.databases"), Value::Array(entries.collect()));
        }
        // One process of each service: started again under its old name, it need not wait for its own leases to end.
        set(&mut table, "process.replica", "1");
        set(&mut table, "nats.url", self.nats.url());
        for (name, port) in &self.ports {
            set(&mut table, &format!("listen.{name}"), format!("127.0.0.1:{port}"));
            if !name.ends_with("_ops") {
                set(&mut table, &format!("peers.{name}"), format!("http://127.0.0.1:{port}"));
            }
        }
        table
    }

    fn database_urls(&self, side: &str, shards: u16) -> Vec<DatabaseUrl> {
        let databases = Installation::databases(side, shards).into_iter();
        databases.map(|(name, database)| DatabaseUrl { name, url: self.postgres.url(&database) }).collect()
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

    /// A port by its name in the section `listen` of the settings, for instance `command` or `query_ops`.
    ///
    /// # Panics
    /// If there is no such name.
    pub fn port(&self, name: &str) -> u16 {
        self.ports[name]
    }

    /// `http://…` of a gRPC port by its name in the section `listen` of the settings.
    ///
    /// # Panics
    /// If there is no such name.
    pub fn endpoint(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.port(name))
    }

    /// The write databases, with user and password.
    pub fn write_databases(&self) -> Vec<DatabaseUrl> {
        self.database_urls("write", self.installation.write_shards)
    }

    /// The read databases, with user and password.
    pub fn read_databases(&self) -> Vec<DatabaseUrl> {
        self.database_urls("read", self.installation.read_shards)
    }

    /// Starts a service as a process of its own. It is ready some time later: see [`Stack::wait_until_ready`].
    ///
    /// # Errors
    /// If it runs already, or the `souk` program is missing.
    pub fn start_service(&mut self, service: Service) -> Result<()> {
        anyhow::ensure!(!self.services.get(&service).is_some_and(ServiceProcess::is_running), "{} is running", service.name());
        let ops = self.port(&format!("{}_ops", service.name()));
        self.services.insert(service, ServiceProcess::start(service, &self.settings, ops, &self.logs)?);
        Ok(())
    }

    /// Starts all services and waits until they are ready.
    ///
    /// # Errors
    /// If one does not start, or is not ready in time.
    pub async fn start_services(&mut self, patience: Duration) -> Result<()> {
        for service in Service::ALL {
            self.start_service(service)?;
        }
        self.wait_until_ready(patience).await
    }

    /// Waits until every service that was started is ready.
    ///
    /// # Errors
    /// If one ends, or is not ready in time.
    pub async fn wait_until_ready(&self, patience: Duration) -> Result<()> {
        futures::future::try_join_all(self.services.values().map(|process| process.wait_until_ready(patience))).await.map(drop)
    }

    /// A service that was started.
    ///
    /// # Errors
    /// If it was not.
    pub fn service(&self, service: Service) -> Result<&ServiceProcess> {
        self.services.get(&service).with_context(|| format!("{} was not started", service.name()))
    }

    /// Kills a service with SIGKILL.
    ///
    /// # Errors
    /// If it was not started.
    pub async fn kill_service(&mut self, service: Service) -> Result<()> {
        self.service(service)?.kill9().await
    }

    /// Waits until something ends by itself, and tells of it with the last lines of its log.
    pub async fn first_death(&self) -> (Part, anyhow::Error) {
        type Death<'a> = Pin<Box<dyn Future<Output = anyhow::Error> + Send + 'a>>;
        let mut parts = vec![Part::Postgres, Part::Nats];
        let mut deaths: Vec<Death<'_>> = vec![Box::pin(self.postgres.died()), Box::pin(self.nats.died())];
        for process in self.services.values() {
            parts.push(Part::Service(process.service()));
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
            Part::Nats => self.nats.start_again().await,
            Part::Service(service) => self.start_service(service),
        }
    }

    /// Lets the services drain, in order, then stops NATS and Postgres.
    ///
    /// # Errors
    /// If something cannot be stopped.
    pub async fn stop(&mut self) -> Result<()> {
        for service in Service::STOP_ORDER {
            if let Some(process) = self.services.remove(&service) {
                process.stop(Duration::from_secs(30)).await?;
            }
        }
        self.nats.stop().await?;
        self.postgres.stop().await
    }

    /// What `run.json` says of this stack. Services that are not processes of their own run in this one, whose ops port is the command
    /// service's.
    ///
    /// # Errors
    /// If Postgres or NATS does not run.
    pub fn run_file(&self) -> Result<RunFile> {
        let souk = ProcessIdentity::current();
        let address = |name: &str| format!("127.0.0.1:{}", self.port(name));
        let ops = |service: Service| if self.services.is_empty() { "command_ops".to_owned() } else { format!("{}_ops", service.name()) };
        let by_name = |value: &dyn Fn(Service) -> String| Service::ALL.map(|service| (service.name().to_owned(), value(service))).into();
        let process = |service| self.services.get(&service).map_or(&souk, ServiceProcess::identity).clone();
        let services = Service::ALL.map(|service| (service.name().to_owned(), process(service))).into();
        let server = |port: u16, process: Option<&ProcessIdentity>| {
            let process = process.context("the server does not run")?.clone();
            anyhow::Ok(Server { address: format!("127.0.0.1:{port}"), process })
        };
        Ok(RunFile {
            region: self.installation.region.clone(),
            region_number: self.installation.region_number,
            partitions: self.installation.partitions,
            addresses: Addresses {
                command: address("command"),
                query: address("query"),
                internal: by_name(&|service| address(&format!("{}_internal", service.name()))),
                ops: by_name(&|service| address(&ops(service))),
            },
            postgres: server(self.postgres.port(), self.postgres.identity())?,
            nats: server(self.nats.port(), self.nats.identity())?,
            write_databases: self.write_databases(),
            read_databases: self.read_databases(),
            services,
            settings: self.settings.clone(),
            data: fs::canonicalize(&self.data)?,
            logs: fs::canonicalize(&self.logs)?,
            souk,
        })
    }
}

/// Numbers for the names of the section `listen`.
fn service_ports(ports: StackPorts) -> Result<BTreeMap<&'static str, u16>> {
    let names = [
        ("command", ports.command),
        ("query", ports.query),
        ("command_internal", ports.command_internal),
        ("query_internal", ports.query_internal),
        ("projector_internal", ports.projector_internal),
        ("saga_internal", ports.saga_internal),
        ("command_ops", ports.command_ops),
        ("query_ops", ports.query_ops),
        ("projector_ops", ports.projector_ops),
        ("saga_ops", ports.saga_ops),
    ];
    names.into_iter().map(|(name, port)| Ok((name, port.choose()?))).collect()
}
