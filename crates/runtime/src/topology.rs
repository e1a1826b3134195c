//! The topology as it travels between processes, and as a process follows it.

use std::{sync::Arc, time::Duration};

use souk_event_sourcing::{InvalidTopology, Region, Site, Topology};
use souk_proto::internal::v1::{
    GetTopologyRequest, Region as WireRegion, Topology as WireTopology, topology_service_client::TopologyServiceClient,
};
use tokio::sync::watch;
use tonic::{Request, Status};

use crate::Peer;

/// How often a process asks for the topology in force.
const ASK_EVERY: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// As it is sent.
pub fn to_wire(topology: &Topology) -> WireTopology {
    let region =
        |site: &Site| WireRegion { number: site.number.0.into(), name: site.name.clone(), command_internal: site.command_internal.clone() };
    WireTopology {
        version: topology.version(),
        regions: topology.sites().iter().map(region).collect(),
        homes: topology.homes().iter().map(|home| home.0.into()).collect(),
    }
}

/// What was sent, if it is a document.
///
/// # Errors
/// The first thing wrong with it; a number beyond those of regions counts as 0, which is none.
pub fn from_wire(sent: WireTopology) -> Result<Topology, InvalidTopology> {
    let number = |number: u32| Region(u16::try_from(number).unwrap_or_default());
    let site = |region: WireRegion| Site { number: number(region.number), name: region.name, command_internal: region.command_internal };
    let homes = sent.homes.into_iter().map(number).collect();
    Topology::new(sent.version, sent.regions.into_iter().map(site).collect(), homes)
}

/// The topology in force as the command service at `peer` has it; `None` when there is no document.
///
/// # Errors
/// When it does not answer, or answers what is no topology.
pub async fn ask(peer: &Peer) -> Result<Option<Topology>, Status> {
    let mut request = Request::new(GetTopologyRequest {});
    request.set_timeout(CALL_TIMEOUT);
    let mut client = TopologyServiceClient::new(peer.clone());
    let reply = tokio::time::timeout(CALL_TIMEOUT, client.get_topology(request)).await;
    let reply = reply.map_err(|_| Status::deadline_exceeded("no topology in time"))??.into_inner();
    match reply.topology {
        Some(sent) if sent.version > 0 => from_wire(sent).map(Some).map_err(|error| Status::internal(error.to_string())),
        _ => Ok(None),
    }
}

/// Follows the topology from `known` on, asking `peer` every second, until nobody watches. While it does not answer, what was
/// last known is in force.
pub fn follow(peer: Peer, known: Topology) -> watch::Receiver<Arc<Topology>> {
    let (sender, receiver) = watch::channel(Arc::new(known));
    tokio::spawn(async move {
        loop {
            match ask(&peer).await {
                Ok(Some(topology)) => {
                    sender.send_if_modified(|known| {
                        let newer = topology.version() > known.version();
                        if newer {
                            *known = Arc::new(topology);
                        }
                        newer
                    });
                }
                Ok(None) => {}
                Err(status) => tracing::debug!(%status, "the topology was not told"),
            }
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = sender.closed() => return,
            }
        }
    });
    receiver
}
