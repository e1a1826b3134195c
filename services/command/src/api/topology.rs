use std::{collections::BTreeSet, sync::Arc};

use souk_event_sourcing::{LogId, Partition, Topology};
use souk_event_store::{EventLog, PostgresStore, StoreError};
use souk_proto::internal::v1::{
    ApplyTopologyRequest, ApplyTopologyResponse, GetTopologyRequest, GetTopologyResponse, topology_service_server::TopologyService,
};
use souk_runtime::{Failure, topology};
use tonic::{Request, Response, Status};

use super::event_log::unavailable;
use crate::topology::InForce;

/// The document of all regions, read and replaced.
pub struct Topologies {
    pub store: Arc<PostgresStore>,
    pub in_force: InForce,
}

#[tonic::async_trait]
impl TopologyService for Topologies {
    async fn get_topology(&self, _: Request<GetTopologyRequest>) -> Result<Response<GetTopologyResponse>, Status> {
        let topology = Some(topology::to_wire(&self.in_force.get()));
        Ok(Response::new(GetTopologyResponse { topology, region: self.store.region().0.into() }))
    }

    async fn apply_topology(&self, request: Request<ApplyTopologyRequest>) -> Result<Response<ApplyTopologyResponse>, Status> {
        let invalid = |error: &dyn std::fmt::Display| Failure::invalid("INVALID_TOPOLOGY", error.to_string());
        let sent = request.into_inner().topology.unwrap_or_default();
        let offered = topology::from_wire(sent).map_err(|error| invalid(&error))?;
        self.in_force.refresh(&self.store).await.map_err(unavailable)?;
        let stored = self.in_force.get();
        if *stored == offered {
            return Ok(Response::new(ApplyTopologyResponse {}));
        }
        if offered.site(self.store.region()).is_none() {
            return Err(invalid(&format!("region {}, which was asked, is not in it", self.store.region())).into());
        }
        let begun = self.begun(&stored, &offered).await.map_err(unavailable)?;
        offered.may_follow(&stored, |partition| !begun.contains(&partition)).map_err(|error| invalid(&error))?;
        if !self.store.apply_topology(&offered).await.map_err(unavailable)? {
            return Err(Failure::aborted("TOPOLOGY_CHANGED", "another topology was stored meanwhile; read it").into());
        }
        self.in_force.learn(offered);
        Ok(Response::new(ApplyTopologyResponse {}))
    }
}

impl Topologies {
    /// Partitions that would get another home and have events here.
    async fn begun(&self, stored: &Topology, offered: &Topology) -> Result<BTreeSet<Partition>, StoreError> {
        let mut begun = BTreeSet::new();
        for (partition, _) in stored.homes().iter().zip(offered.homes()).enumerate().filter(|(_, (old, new))| old != new) {
            let log = LogId { region: self.store.region(), partition: Partition(partition as u16) };
            if self.store.head(log).await?.position.0 > 0 {
                begun.insert(log.partition);
            }
        }
        Ok(begun)
    }
}
