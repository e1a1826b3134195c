//! The file that lets every `souk` command find the running system.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::identity::ProcessIdentity;
use crate::installation::write_secret;
use crate::tools::souk_folder;

/// Everything about one running system. Holds passwords, so only its owner may read the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// The process of `souk up`.
    pub souk: ProcessIdentity,
    /// Label of the region.
    pub region: String,
    /// Number of the region.
    pub region_number: u16,
    /// Partitions per region.
    pub partitions: u16,
    /// Where the services listen.
    pub addresses: Addresses,
    /// The database server.
    pub postgres: Server,
    /// Standbys of the database server that run, in the order of their numbers.
    pub standbys: Vec<Server>,
    /// The broker.
    pub nats: Server,
    /// The write databases, in the order of their shards.
    pub write_databases: Vec<DatabaseUrl>,
    /// The read databases, in the order of their shards.
    pub read_databases: Vec<DatabaseUrl>,
    /// The process each replica of a service runs in, by its name (`command-1`), as far as it runs. All the same, if they share one.
    pub services: BTreeMap<String, ProcessIdentity>,
    /// The settings file of all services.
    pub settings: PathBuf,
    /// The data folder.
    pub data: PathBuf,
    /// The folder of the logs.
    pub logs: PathBuf,
    /// The other regions that the same process started, in the order of their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<RunFile>,
    /// The socket by which that process lets others change the links between the regions; none with one region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
}

/// Addresses as `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Public gRPC of the command service: all its replicas, separated by commas.
    pub command: String,
    /// Public gRPC of the query service: all its replicas, separated by commas.
    pub query: String,
    /// Internal gRPC, by the replica's name (`command-1`).
    pub internal: BTreeMap<String, String>,
    /// HTTP for operators (`/livez`, `/readyz`, `/metrics`), by the replica's name. All the same, if they share a process.
    pub ops: BTreeMap<String, String>,
}

/// A server the services use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// `host:port`.
    pub address: String,
    /// Its process.
    pub process: ProcessIdentity,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseUrl {
    /// Its name in the placement table.
    pub name: String,
    /// With user and password.
    pub url: String,
    /// The same on each standby, for reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<String>,
}

impl RunFile {
    /// Where it is: what `SOUK_RUN_FILE` says, else `.souk/run.json`.
    pub fn path() -> PathBuf {
        env::var_os("SOUK_RUN_FILE").map_or_else(|| souk_folder().join("run.json"), PathBuf::from)
    }

    /// The running system, found by [`RunFile::path`].
    ///
    /// # Errors
    /// If none runs.
    pub fn find() -> Result<Self> {
        Self::running(&Self::path())
    }

    /// All regions, this one first.
    pub fn regions(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// The region of this name.
    ///
    /// # Errors
    /// If there is none; with the names of those there are.
    pub fn region(&self, name: &str) -> Result<&Self> {
        let names = || self.regions().map(|file| file.region.as_str()).collect::<Vec<_>>().join(", ");
        self.regions().find(|file| file.region == name).with_context(|| format!("no region {name:?} runs here; there is {}", names()))
    }

    /// Ends the service processes of a system whose `souk up` is gone.
    ///
    /// # Errors
    /// If one cannot be ended.
    pub fn end_left_over(&self) -> Result<()> {
        self.regions()
            .flat_map(|region| region.services.values())
            .filter(|process| **process != self.souk)
            .try_for_each(|process| process.end(Signal::SIGTERM, Duration::from_secs(5)))
    }

    /// Reads the file of a system that runs.
    ///
    /// # Errors
    /// If there is none, or its system runs no more.
    pub fn running(path: &Path) -> Result<Self> {
        match Self::read(path)? {
            Some(file) if file.souk.is_alive() => Ok(file),
            _ => bail!("no running system found by {}; start one with `souk up` (`just up`)", path.display()),
        }
    }

    /// Reads the file, whether or not its system runs; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_secret(path, &format!("{}\n", serde_json::to_string_pretty(self)?))
    }
}
