use std::{collections::BTreeSet, pin::Pin};

use futures::{Stream, stream};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health as HealthRpc, HealthServer},
};

use crate::{Failure, Health};

/// gRPC health over our own [`Health`]: the empty name and every service of the server say the same, always.
/// (tonic-health keeps a status per name, and the empty one begins as serving.)
pub(super) fn server(health: Health, services: &[&str]) -> HealthServer<impl HealthRpc> {
    let names = services.iter().copied().chain([""]).map(str::to_owned).collect();
    HealthServer::new(Service { health, names })
}

struct Service {
    health: Health,
    names: BTreeSet<String>,
}

#[tonic::async_trait]
impl HealthRpc for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = &request.get_ref().service;
        if !self.names.contains(name) {
            return Err(Failure::new(Code::NotFound, "SERVICE_NOT_FOUND", format!("no service {name:?} on this port")).into());
        }
        Ok(Response::new(response(status(&self.health))))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !self.names.contains(&request.get_ref().service) {
            // As the protocol wants it: the stream stays open, the service might come.
            let unknown = stream::iter([Ok(response(ServingStatus::ServiceUnknown))]);
            return Ok(Response::new(Box::pin(futures::StreamExt::chain(unknown, stream::pending()))));
        }
        let state = (self.health.clone(), self.health.changes(), None);
        let changes = stream::unfold(state, |(health, mut changes, told)| async move {
            loop {
                changes.mark_unchanged();
                let now = status(&health);
                if told != Some(now) {
                    return Some((Ok(response(now)), (health, changes, Some(now))));
                }
                changes.changed().await.ok()?;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

fn status(health: &Health) -> ServingStatus {
    if health.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
