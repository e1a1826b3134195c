//! The running system, as every command finds it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use souk_client::{Endpoints, Session, Souk};
use souk_devstack::RunFile;

/// Which system to speak to; the one started by `souk up` unless told otherwise.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// Command service; several replicas separated by commas [default: from .souk/run.json]
    #[arg(long, value_name = "URL", env = "SOUK_COMMAND_URL")]
    command: Option<String>,
    /// Query service; several replicas separated by commas [default: from .souk/run.json]
    #[arg(long, value_name = "URL", env = "SOUK_QUERY_URL")]
    query: Option<String>,
    /// Internal port of each replica, separated by commas, its name beginning with its service: `projector-1=HOST:PORT` [default: from
    /// .souk/run.json]
    #[arg(long, value_name = "REPLICA=URL", env = "SOUK_INTERNAL_URLS", value_delimiter = ',', value_parser = replica_url)]
    internal: Vec<(String, String)>,
    /// Which region, where `souk up` has started several [default: the first]
    #[arg(long, value_name = "NAME", env = "SOUK_REGION")]
    region: Option<String>,
}

/// Where the system is.
#[derive(Clone, Debug)]
pub struct System {
    /// Urls of all replicas, separated by commas.
    pub command: String,
    /// Urls of all replicas, separated by commas.
    pub query: String,
    /// Internal ports by replica; empty when only the public ones were named.
    pub internal: BTreeMap<String, String>,
    /// What `souk up` wrote, unless the system was named by its urls.
    pub run_file: Option<RunFile>,
}

impl Target {
    /// # Errors
    /// When no system runs, only one of the two urls was given, or there is no such region.
    pub fn find(&self) -> Result<System> {
        match self.named() {
            Some(system) => Ok(system),
            None => Ok(self.running(&self.region_of(&RunFile::find()?)?)),
        }
    }

    /// All regions that run, or the one that was named.
    ///
    /// # Errors
    /// As [`Target::find`].
    pub fn find_all(&self) -> Result<Vec<System>> {
        if let Some(system) = self.named() {
            return Ok(vec![system]);
        }
        let run_file = RunFile::find()?;
        match &self.region {
            Some(_) => Ok(vec![self.running(&self.region_of(&run_file)?)]),
            None => Ok(run_file.regions().map(|region| self.running(region)).collect()),
        }
    }

    /// The same in a region of this name.
    pub fn in_region(&self, name: &str) -> Self {
        Self { region: Some(name.to_owned()), ..self.clone() }
    }

    /// What flags alone lead to.
    fn named(&self) -> Option<System> {
        let (command, query) = match (&self.command, &self.query) {
            (Some(command), Some(query)) => (urls(command), urls(query)),
            _ if !self.internal.is_empty() => (String::new(), String::new()),
            _ => return None,
        };
        Some(System { command, query, internal: self.internal(), run_file: None })
    }

    fn region_of(&self, run_file: &RunFile) -> Result<RunFile> {
        self.region.as_ref().map_or(Ok(run_file), |name| run_file.region(name)).cloned()
    }

    fn running(&self, run_file: &RunFile) -> System {
        let addresses = &run_file.addresses;
        System {
            command: urls(self.command.as_ref().unwrap_or(&addresses.command)),
            query: urls(self.query.as_ref().unwrap_or(&addresses.query)),
            internal: addresses.internal.iter().map(|(replica, address)| (replica.clone(), urls(address))).collect(),
            run_file: Some(run_file.clone()),
        }
    }

    fn internal(&self) -> BTreeMap<String, String> {
        self.internal.iter().cloned().collect()
    }

    /// A client of the system.
    pub fn connect(&self, connections: usize) -> Result<Souk> {
        let system = self.find()?;
        let endpoints = Endpoints::new(&system.command, &system.query).connections(connections);
        Souk::connect(&endpoints).with_context(|| format!("cannot reach {} and {}", system.command, system.query))
    }

    /// A session whose commands are told apart in events by the name of this program's command.
    pub fn session(&self, caller: &str) -> Result<Session> {
        Ok(self.connect(1)?.session().caller(caller))
    }
}

fn replica_url(text: &str) -> Result<(String, String)> {
    let (replica, address) = text.split_once('=').context("want REPLICA=URL")?;
    let services = ["command", "query", "projector", "saga", "replicator"];
    ensure!(services.iter().any(|service| replica.starts_with(service)), "want a name that begins with one of {services:?}");
    Ok((replica.to_owned(), urls(address)))
}

pub fn urls(addresses: &str) -> String {
    let url = |address: &str| if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    addresses.split(',').map(url).collect::<Vec<_>>().join(",")
}
