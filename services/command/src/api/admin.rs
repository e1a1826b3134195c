use std::{sync::Arc, time::Instant};

use souk_event_sourcing::UnixMillis;
use souk_event_store::PostgresStore;
use souk_proto::internal::v1::{
    GetStatusRequest, GetStatusResponse, NudgeRequest, NudgeResponse, PartitionStatus, admin_service_server::AdminService,
    ownership_service_server::OwnershipService,
};
use tonic::{Request, Response, Status};

use crate::ownership::{Directory, Held};

/// What this process says of itself.
pub struct Admin {
    pub store: Arc<PostgresStore>,
    pub held: Held,
    pub replica: String,
    pub started: Instant,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let mut partitions = self.held.each(|log, holding| PartitionStatus {
            region: log.region.0.into(),
            partition: log.partition.0.into(),
            database: self.store.database_of(log.partition).unwrap_or_default().to_owned(),
            epoch: holding.epoch.0,
            head: holding.relay.progress.head().0,
            position: holding.relay.progress.acknowledged().0,
            lag_seconds: holding.relay.progress.lag_seconds(),
            ..Default::default()
        });
        partitions.sort_by_key(|partition| partition.partition);
        Ok(Response::new(GetStatusResponse {
            service: "command".into(),
            replica: self.replica.clone(),
            process_id: std::process::id().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            time_ms: UnixMillis::now().0,
            partitions,
            figures: [("partitions_owned".to_owned(), self.held.each(|_, _| ()).len() as f64)].into(),
        }))
    }
}

/// What other replicas say of leases.
pub struct Nudges(pub Directory);

#[tonic::async_trait]
impl OwnershipService for Nudges {
    async fn nudge(&self, _: Request<NudgeRequest>) -> Result<Response<NudgeResponse>, Status> {
        self.0.ask();
        Ok(Response::new(NudgeResponse {}))
    }
}
