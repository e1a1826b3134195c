use std::{collections::HashMap, time::Instant};

use souk_event_sourcing::UnixMillis;
use souk_proto::internal::v1::{GetStatusRequest, GetStatusResponse, admin_service_server::AdminService};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::board::Board;

/// What `souk status` reads from this process.
#[derive(Debug)]
pub(crate) struct Admin {
    pub replica: String,
    /// Empty until the read databases are open.
    pub board: watch::Receiver<Board>,
    pub started: Instant,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let board = self.board.borrow().clone();
        let (partitions, halted) = (board.partitions(), board.halted());
        let lag: u64 = partitions.iter().map(|partition| partition.head.saturating_sub(partition.position)).sum();
        Ok(Response::new(GetStatusResponse {
            service: "projector".to_owned(),
            replica: self.replica.clone(),
            process_id: std::process::id().into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            time_ms: UnixMillis::now().0,
            figures: HashMap::from([
                ("lag_events".to_owned(), lag as f64),
                ("halted".to_owned(), halted as f64),
                ("rebuilding".to_owned(), board.rebuilding() as f64),
                ("partitions_owned".to_owned(), partitions.len() as f64),
                ("watchdog_restarts".to_owned(), board.restarts() as f64),
            ]),
            partitions,
        }))
    }
}
