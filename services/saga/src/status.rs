use std::{collections::HashMap, sync::Arc};

use souk_event_sourcing::{Epoch, Partition, UnixMillis};
use souk_proto::internal::v1::{GetStatusRequest, GetStatusResponse, PartitionStatus, admin_service_server::AdminService};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::board::{Board, Progress};

/// What `souk status` reads of this process.
pub(crate) struct Admin {
    pub board: Board,
    pub replica: String,
    pub started: Instant,
    /// Name of the write database of each partition.
    pub databases: Arc<HashMap<Partition, String>>,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let all = self.board.all();
        let held = all.iter().filter(|(_, progress)| progress.epoch != Epoch(0));
        let status = |(log, progress): &(souk_event_sourcing::LogId, Progress)| PartitionStatus {
            region: log.region.0.into(),
            partition: log.partition.0.into(),
            database: self.databases.get(&log.partition).cloned().unwrap_or_default(),
            epoch: progress.epoch.0,
            head: progress.head.0,
            position: progress.checkpoint.0,
            lag_seconds: progress.lag_seconds(),
            parked: u64::from(progress.blocked.is_some()),
            ..Default::default()
        };
        let partitions: Vec<_> = held.map(status).collect();
        let lag: u64 = all.iter().filter(|(_, progress)| progress.epoch != Epoch(0)).map(|(_, progress)| progress.lag()).sum();
        let figures = [
            ("outbox_steps", self.board.all_steps() as f64),
            ("lag_events", lag as f64),
            ("partitions_owned", partitions.len() as f64),
            ("watchdog_restarts", self.board.restarts() as f64),
        ];
        Ok(Response::new(GetStatusResponse {
            service: "saga".into(),
            replica: self.replica.clone(),
            process_id: std::process::id().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            time_ms: UnixMillis::now().0,
            partitions,
            figures: figures.map(|(name, figure)| (name.to_owned(), figure)).into(),
        }))
    }
}
