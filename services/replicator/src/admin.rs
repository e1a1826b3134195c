use std::time::Instant;

use souk_event_sourcing::UnixMillis;
use souk_proto::internal::v1::{GetStatusRequest, GetStatusResponse, admin_service_server::AdminService};
use tonic::{Request, Response, Status};

use crate::board::Board;

/// What this process says of itself.
pub struct Admin {
    pub board: Board,
    pub replica: String,
    pub started: Instant,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let partitions = self.board.partitions();
        let mut figures = vec![("partitions_owned".to_owned(), partitions.len() as f64)];
        for (region, link) in self.board.links() {
            figures.push((format!("lag_events.{region}"), link.lag_events as f64));
            figures.push((format!("lag_seconds.{region}"), link.lag.as_secs_f64()));
            figures.push((format!("silence_seconds.{region}"), link.silence.as_secs_f64()));
            figures.push((format!("reachable.{region}"), f64::from(link.is_reachable())));
            figures.push((format!("unproven_events.{region}"), link.unproven as f64));
        }
        figures.extend(self.board.refusals().into_iter().map(|(region, count)| (format!("refused.{region}"), count as f64)));
        Ok(Response::new(GetStatusResponse {
            service: "replicator".into(),
            replica: self.replica.clone(),
            process_id: std::process::id().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            time_ms: UnixMillis::now().0,
            partitions,
            figures: figures.into_iter().collect(),
        }))
    }
}
