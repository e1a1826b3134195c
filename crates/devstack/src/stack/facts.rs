//! What `run.json` says of a stack.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::Stack;
use crate::identity::ProcessIdentity;
use crate::postgres::Postgres;
use crate::replica::ReplicaPorts;
use crate::run_file::{Addresses, RunFile, Server};

impl Stack {
    /// What `run.json` says of this stack. Services that are not processes of their own run in this one, whose ops port is the command
    /// service's.
    ///
    /// # Errors
    /// If Postgres or NATS does not run.
    pub fn run_file(&self) -> Result<RunFile> {
        let souk = ProcessIdentity::current();
        let server = |port: u16, process: Option<&ProcessIdentity>| {
            let process = process.context("the server does not run")?.clone();
            anyhow::Ok(Server { address: address(port), process })
        };
        let common_ops = (!self.apart).then(|| self.port("command_ops"));
        let everywhere = |port: &dyn Fn(&ReplicaPorts) -> u16| -> BTreeMap<String, String> {
            self.replicas.iter().map(|(replica, slot)| (replica.to_string(), address(port(&slot.ports)))).collect()
        };
        Ok(RunFile {
            region: self.installation.region.clone(),
            region_number: self.installation.region_number,
            partitions: self.installation.partitions,
            addresses: Addresses {
                command: self.addresses("command"),
                query: self.addresses("query"),
                internal: everywhere(&|ports| ports.internal),
                ops: everywhere(&|ports| common_ops.unwrap_or(ports.ops)),
            },
            postgres: server(self.postgres.port(), self.postgres.identity())?,
            standbys: self.running_standbys(),
            nats: server(self.nats.port(), self.nats.identity())?,
            write_databases: self.write_databases(),
            read_databases: self.read_databases(),
            services: self.service_processes(&souk),
            settings: self.settings.clone(),
            data: fs::canonicalize(&self.data)?,
            logs: fs::canonicalize(&self.logs)?,
            souk,
            others: Vec::new(),
            control: None,
        })
    }

    fn addresses(&self, name: &str) -> String {
        self.ports_named(name).map(address).collect::<Vec<_>>().join(",")
    }

    fn running_standbys(&self) -> Vec<Server> {
        let server = |server: &Postgres| Some(Server { address: address(server.port()), process: server.identity()?.clone() });
        self.standbys.iter().filter_map(|standby| server(&standby.server)).collect()
    }

    fn service_processes(&self, souk: &ProcessIdentity) -> BTreeMap<String, ProcessIdentity> {
        if !self.apart {
            return self.replicas.keys().map(|replica| (replica.to_string(), souk.clone())).collect();
        }
        self.processes().map(|process| (process.replica().to_string(), process.identity().clone())).collect()
    }
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
