//! The document of all regions, stored in each of them, and followed by all their services.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use souk_proto::internal::v1::{
    ApplyTopologyRequest, GetStatusRequest, GetTopologyRequest, Region, Topology, admin_service_client::AdminServiceClient,
    topology_service_client::TopologyServiceClient,
};
use tonic::{Request, transport::Endpoint};

use crate::service::Service;
use crate::stack::Stack;

const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// Tells each of the regions of all of them: what each has stored, followed by the next document if something has changed.
///
/// The entities of all ids that name no region are at home in the first one, unless a region has it otherwise already.
pub(super) async fn apply(stacks: &[&Stack], patience: Duration) -> Result<()> {
    let mut stored = Vec::new();
    for stack in stacks {
        stored.push(get(stack).await?);
    }
    let newest = stored.iter().max_by_key(|topology| topology.version).cloned().unwrap_or_default();
    // Somebody was stopped on the way.
    for (stack, topology) in stacks.iter().zip(&stored) {
        if topology.version > 0 && topology.version < newest.version {
            put(stack, newest.clone()).await?;
        }
    }
    let mut wanted = wanted(stacks, &newest);
    if stored.iter().any(|topology| *topology != wanted) {
        wanted.version += 1;
        for stack in stacks {
            put(stack, wanted.clone()).await?;
        }
    }
    wait_until_followed(stacks, &wanted, patience).await
}

/// The newest document with the regions as they are now. Those that are not started stay in it.
fn wanted(stacks: &[&Stack], newest: &Topology) -> Topology {
    let region = |stack: &&Stack| Region {
        number: stack.region_number().into(),
        name: stack.region().to_owned(),
        command_internal: stack.urls("command_internal"),
    };
    let homes = match (newest.version, stacks.first()) {
        (0, Some(first)) => vec![first.region_number().into(); first.partitions().into()],
        _ => newest.homes.clone(),
    };
    let mut regions: Vec<_> = stacks.iter().map(region).collect();
    regions.extend(
        newest
            .regions
            .iter()
            .filter(|old| newest.version > 0 && regions.iter().all(|now| now.number != old.number))
            .cloned()
            .collect::<Vec<_>>(),
    );
    Topology { version: newest.version, regions, homes }
}

async fn get(stack: &Stack) -> Result<Topology> {
    let reply = client(stack)?.get_topology(timely(GetTopologyRequest {})).await;
    let reply = reply.with_context(|| format!("region {} does not tell its topology", stack.region()))?;
    Ok(reply.into_inner().topology.unwrap_or_default())
}

async fn put(stack: &Stack, topology: Topology) -> Result<()> {
    let request = ApplyTopologyRequest { topology: Some(topology) };
    let applied = client(stack)?.apply_topology(timely(request)).await;
    applied.with_context(|| format!("region {} does not take the topology", stack.region()))?;
    Ok(())
}

fn client(stack: &Stack) -> Result<TopologyServiceClient<tonic::transport::Channel>> {
    Ok(TopologyServiceClient::new(Endpoint::from_shared(stack.endpoint("command_internal"))?.connect_lazy()))
}

fn timely<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Waits until the services of each region work with the logs of all regions.
async fn wait_until_followed(stacks: &[&Stack], topology: &Topology, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let all: BTreeSet<u32> = topology.regions.iter().map(|region| region.number).collect();
    for stack in stacks {
        for service in [Service::Projector, Service::Query, Service::Replicator] {
            let mut wanted = all.clone();
            if service == Service::Replicator {
                wanted.remove(&u32::from(stack.region_number()));
            }
            while !wanted.is_subset(&regions_seen(stack, service).await) {
                if Instant::now() > deadline {
                    bail!("the {} of region {} does not take the other regions in", service.name(), stack.region());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}

/// The regions of which the replicas of a service hold logs, together.
async fn regions_seen(stack: &Stack, service: Service) -> BTreeSet<u32> {
    let mut seen = BTreeSet::new();
    for port in stack.ports_named(&format!("{}_internal", service.name())) {
        let Ok(endpoint) = Endpoint::from_shared(format!("http://127.0.0.1:{port}")) else { continue };
        // One that does not answer yet is asked again.
        if let Ok(reply) = AdminServiceClient::new(endpoint.connect_lazy()).get_status(timely(GetStatusRequest {})).await {
            seen.extend(reply.into_inner().partitions.iter().map(|partition| partition.region));
        }
    }
    seen
}
