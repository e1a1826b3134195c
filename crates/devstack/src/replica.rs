//! Which process of a service, and where it listens.

use std::fmt;

use anyhow::{Result, ensure};

use crate::service::Service;

/// The most processes of one service.
pub(crate) const MOST: u16 = 16;

/// One process of a service, counted from 1. Called `command-2` in names of leases, logs and `run.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica {
    /// What it runs.
    pub service: Service,
    /// Which one of them; 1 is there always.
    pub index: u16,
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.service.name(), self.index)
    }
}

impl From<Service> for Replica {
    /// The first.
    fn from(service: Service) -> Self {
        Self { service, index: 1 }
    }
}

impl From<(Service, u16)> for Replica {
    fn from((service, index): (Service, u16)) -> Self {
        Self { service, index }
    }
}

impl Replica {
    /// The replicas of a service of which there are so many.
    pub(crate) fn all(service: Service, count: u16) -> Result<impl Iterator<Item = Self>> {
        ensure!((1..=MOST).contains(&count), "{count} replicas of {}: want 1 to {MOST}", service.name());
        Ok((1..=count).map(move |index| Self { service, index }))
    }

    /// What its service's settings call the doors it has, with the port of each.
    pub(crate) fn doors(self, ports: &ReplicaPorts) -> impl Iterator<Item = (String, u16)> {
        let name = self.service.name();
        let public = ports.public.map(|port| (name.to_owned(), port));
        public.into_iter().chain([(format!("{name}_internal"), ports.internal), (format!("{name}_ops"), ports.ops)])
    }
}

/// Where one replica listens, on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaPorts {
    /// Gives gRPC to callers; projector, saga and replicator have none.
    pub public: Option<u16>,
    /// Gives gRPC to our own processes.
    pub internal: u16,
    /// Gives HTTP to operators.
    pub ops: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_at_least_one_replica() {
        assert!(Replica::all(Service::Saga, 0).is_err());
        let names: Vec<_> = Replica::all(Service::Saga, 2).unwrap().map(|replica| replica.to_string()).collect();
        assert_eq!(names, ["saga-1", "saga-2"]);
    }
}
