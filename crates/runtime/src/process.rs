use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{ConfigError, Health, Settings};

/// What a service is given to run in: one per service, also when several share an operating system process.
#[derive(Debug, Clone)]
pub struct Process {
    pub settings: Arc<Settings>,
    pub service: ServiceKind,
    /// Name of this process among the replicas of the service.
    pub replica: String,
    /// The service's own scope of health.
    pub health: Health,
    /// Cancelled when the service shall drain and return.
    pub shutdown: CancellationToken,
}

/// The doors of a service, bound before it starts.
#[derive(Debug)]
pub struct Listeners {
    /// For callers; projector, saga and replicator have none.
    pub public: Option<TcpListener>,
    /// For our own processes: event log, look-ups, forwarding, admin.
    pub internal: TcpListener,
}

/// Which service a process is: where it listens and what it cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    Command,
    Query,
    Projector,
    Saga,
    Replicator,
}

impl ServiceKind {
    pub const ALL: [Self; 5] = [Self::Command, Self::Query, Self::Projector, Self::Saga, Self::Replicator];

    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Query => "query",
            Self::Projector => "projector",
            Self::Saga => "saga",
            Self::Replicator => "replicator",
        }
    }

    /// Setting and address of the public door, if there is one.
    pub fn public(self, settings: &Settings) -> Option<(&'static str, SocketAddr)> {
        match self {
            Self::Command => Some(("listen.command", settings.listen.command)),
            Self::Query => Some(("listen.query", settings.listen.query)),
            Self::Projector | Self::Saga | Self::Replicator => None,
        }
    }

    pub fn internal(self, settings: &Settings) -> (&'static str, SocketAddr) {
        let listen = &settings.listen;
        match self {
            Self::Command => ("listen.command_internal", listen.command_internal),
            Self::Query => ("listen.query_internal", listen.query_internal),
            Self::Projector => ("listen.projector_internal", listen.projector_internal),
            Self::Saga => ("listen.saga_internal", listen.saga_internal),
            Self::Replicator => ("listen.replicator_internal", listen.replicator_internal),
        }
    }

    pub fn ops(self, settings: &Settings) -> (&'static str, SocketAddr) {
        let listen = &settings.listen;
        match self {
            Self::Command => ("listen.command_ops", listen.command_ops),
            Self::Query => ("listen.query_ops", listen.query_ops),
            Self::Projector => ("listen.projector_ops", listen.projector_ops),
            Self::Saga => ("listen.saga_ops", listen.saga_ops),
            Self::Replicator => ("listen.replicator_ops", listen.replicator_ops),
        }
    }

    /// Whether everything this service needs is set.
    pub fn check(self, settings: &Settings) -> Result<(), ConfigError> {
        let missing = |key: &str| Err(ConfigError::new(format!("{key} (or SOUK_{}): is missing", key.replace('.', "__"))));
        if matches!(self, Self::Command | Self::Saga | Self::Replicator) && settings.write.databases.is_empty() {
            return missing("write.databases");
        }
        if matches!(self, Self::Query | Self::Projector) && settings.read.databases.is_empty() {
            return missing("read.databases");
        }
        if settings.nats.url.is_empty() { missing("nats.url") } else { Ok(()) }
    }
}

impl Process {
    /// The process of `service`, its health being a scope of `health`.
    pub fn new(settings: Arc<Settings>, service: ServiceKind, health: &Health, shutdown: CancellationToken) -> Self {
        let replica = match settings.process.replica.as_str() {
            "" => format!("{}-{}", service.name(), std::process::id()),
            name => format!("{}-{name}", service.name()),
        };
        let health = health.scoped(service.name());
        // Without any component it would count as ready until the service has got as far as naming one.
        health.component("grpc internal");
        Self { settings, service, replica, health, shutdown }
    }
}

impl Process {
    /// Where other processes reach a door of this one: the host they are told of, or where it listens, with the door's port.
    ///
    /// # Errors
    /// When the door has no address any more.
    pub fn reached_at(&self, door: &TcpListener) -> std::io::Result<String> {
        let bound = door.local_addr()?;
        Ok(advertised(&self.settings.process.advertise_host, bound))
    }
}

/// An IPv6 address stands in brackets before a port.
fn advertised(host: &str, bound: SocketAddr) -> String {
    match (host, host.parse::<Ipv6Addr>()) {
        ("", _) => bound.to_string(),
        (_, Ok(address)) => SocketAddr::from((address, bound.port())).to_string(),
        (name, Err(_)) => format!("{name}:{}", bound.port()),
    }
}

impl Listeners {
    /// Binds the doors of `service`.
    ///
    /// # Errors
    /// One line naming the port and the setting when it is taken.
    pub async fn bind(service: ServiceKind, settings: &Settings) -> Result<Self, ConfigError> {
        let public = match service.public(settings) {
            Some((key, address)) => Some(bind(key, address).await?),
            None => None,
        };
        let (key, address) = service.internal(settings);
        Ok(Self { public, internal: bind(key, address).await? })
    }
}

/// Binds `address`, which the setting `key` asked for.
pub async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, ConfigError> {
    TcpListener::bind(address).await.map_err(|error| {
        let environment = format!("SOUK_{}", key.replace('.', "__"));
        let what = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!("port {} is taken", address.port()),
            _ => format!("cannot listen on {address}: {error}"),
        };
        ConfigError::new(format!("{key}: {what}; choose another with {environment}={}:PORT", address.ip()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_reached_at_its_address_of_either_family() {
        let bound = "0.0.0.0:50061".parse().unwrap();
        assert_eq!(advertised("", bound), "0.0.0.0:50061");
        assert_eq!(advertised("10.1.2.3", bound), "10.1.2.3:50061");
        assert_eq!(advertised("fd00:10::7", bound), "[fd00:10::7]:50061");
        assert_eq!(advertised("souk-command-0.souk-command", bound), "souk-command-0.souk-command:50061");
    }
}
