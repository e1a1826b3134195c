//! The running system, as every command finds it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
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
}

/// Where the system is.
#[derive(Clone, Debug)]
pub struct System {
    /// Urls of all replicas, separated by commas.
    pub command: String,
    /// Urls of all replicas, separated by commas.
    pub query: String,
    /// Internal ports by replica; empty when the system was named by its urls.
    pub internal: BTreeMap<String, String>,
    /// What `souk up` wrote, unless the system was named by its urls.
    pub run_file: Option<RunFile>,
}

impl Target {
    /// # Errors
    /// When no system runs, or only one of the two urls was given.
    pub fn find(&self) -> Result<System> {
        if let (Some(command), Some(query)) = (&self.command, &self.query) {
            return Ok(System { command: urls(command), query: urls(query), internal: BTreeMap::new(), run_file: None });
        }
        let run_file = RunFile::find()?;
        let addresses = &run_file.addresses;
        Ok(System {
            command: urls(self.command.as_ref().unwrap_or(&addresses.command)),
            query: urls(self.query.as_ref().unwrap_or(&addresses.query)),
            internal: addresses.internal.iter().map(|(replica, address)| (replica.clone(), urls(address))).collect(),
            run_file: Some(run_file),
        })
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

fn urls(addresses: &str) -> String {
    let url = |address: &str| if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    addresses.split(',').map(url).collect::<Vec<_>>().join(",")
}
