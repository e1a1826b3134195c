//! How a stack is started.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use toml::Value;

use crate::ports::Port;
use crate::replica::{Replica, ReplicaPorts};
use crate::service::Service;

/// Where everything listens, on 127.0.0.1; of what there are several of, the first.
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
    /// Internal gRPC.
    pub replicator_internal: Port,
    /// HTTP for operators.
    pub command_ops: Port,
    /// HTTP for operators.
    pub query_ops: Port,
    /// HTTP for operators.
    pub projector_ops: Port,
    /// HTTP for operators.
    pub saga_ops: Port,
    /// HTTP for operators.
    pub replicator_ops: Port,
}

impl StackPorts {
    /// Numbers for one replica.
    pub(crate) fn choose(&self, replica: Replica) -> Result<ReplicaPorts> {
        let (public, internal, ops) = match replica.service {
            Service::Command => (Some(self.command), self.command_internal, self.command_ops),
            Service::Query => (Some(self.query), self.query_internal, self.query_ops),
            Service::Projector => (None, self.projector_internal, self.projector_ops),
            Service::Saga => (None, self.saga_internal, self.saga_ops),
            Service::Replicator => (None, self.replicator_internal, self.replicator_ops),
        };
        Ok(ReplicaPorts {
            public: public.map(|port| port.choose_for(replica.index)).transpose()?,
            internal: internal.choose_for(replica.index)?,
            ops: ops.choose_for(replica.index)?,
        })
    }
}

/// Which region a stack is among several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionIdentity {
    /// What ids name their home by.
    pub name: String,
    /// Stored in every key, and different in every region.
    pub number: u16,
    /// Signs tokens, the same in all regions: `None` draws one for new data.
    pub token_key: Option<String>,
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
    /// Which region it is; `None` stands for one that knows of no other and copies nothing.
    pub region: Option<RegionIdentity>,
    /// Partitions per region: `None` takes what the data has, or 64.
    pub partitions: Option<u16>,
    /// Number of write databases: `None` takes what the data has, or 1. Those beyond what the data has hold no partition.
    pub write_shards: Option<u16>,
    /// Number of read databases: `None` takes what the data has, or 1. Those beyond what the data has hold no partition.
    pub read_shards: Option<u16>,
    /// Number of streaming standbys of the database server: `None` takes what the last start had, or none.
    pub read_replicas: Option<u16>,
    /// Whether services reach their databases through a pooler in transaction mode, as far as they may.
    pub pooler: bool,
    /// Whether the first write database has a server to itself, so that it can be lost or restored alone; all others share a second server
    /// then.
    pub first_write_apart: bool,
    /// Processes of a service, where that is not one.
    pub replicas: BTreeMap<Service, u16>,
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
            region: None,
            partitions: None,
            write_shards: None,
            read_shards: None,
            read_replicas: None,
            pooler: false,
            first_write_apart: false,
            replicas: BTreeMap::new(),
            settings: Vec::new(),
            postgres_settings: Vec::new(),
        }
    }

    /// The services of a stack that is started so.
    pub(crate) fn services(&self) -> &'static [Service] {
        if self.region.is_some() { &Service::ALL } else { &Service::ALONE }
    }

    /// A setting of the services: `set("command.payment_window", "2s")`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.settings.push((key.to_owned(), value.into()));
        self
    }

    /// Processes of a service: `replicas(Service::Query, 2)`.
    pub fn replicas(&mut self, service: Service, count: u16) -> &mut Self {
        self.replicas.insert(service, count);
        self
    }
}
