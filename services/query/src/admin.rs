use std::time::Instant;

use souk_event_sourcing::UnixMillis;
use souk_proto::internal::v1::{GetStatusRequest, GetStatusResponse, PartitionStatus, admin_service_server::AdminService};
use tonic::{Request, Response, Status};

use crate::core::{Core, Entrance};

/// What this process says of itself.
pub(crate) struct Admin {
    pub entrance: Entrance,
    pub replica: String,
    pub started: Instant,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        // Also answered before the read store is open: that is what an operator wants to see then.
        let core = self.entrance.core().ok();
        Ok(Response::new(GetStatusResponse {
            service: "query".into(),
            replica: self.replica.clone(),
            process_id: std::process::id().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            time_ms: UnixMillis::now().0,
            partitions: core.as_deref().map(partitions).unwrap_or_default(),
            figures: core.as_deref().map(figures).unwrap_or_default().into_iter().collect(),
        }))
    }
}

fn partitions(core: &Core) -> Vec<PartitionStatus> {
    let mut partitions: Vec<_> = core
        .reader
        .cache()
        .logs()
        .map(|log| {
            let feed = log.horizon().feed;
            PartitionStatus {
                region: log.id.region.0.into(),
                partition: log.id.partition.0.into(),
                database: core.store.database_of(log.id).map(|database| database.name().to_owned()).unwrap_or_default(),
                epoch: feed.epoch.0,
                position: feed.position.0,
                ..Default::default()
            }
        })
        .collect();
    partitions.sort_by_key(|partition| (partition.region, partition.partition));
    partitions
}

fn figures(core: &Core) -> Vec<(String, f64)> {
    let cache = core.reader.cache();
    let (hits, misses) = core.reader.hits_and_misses();
    let reads = hits + misses;
    let mut figures = vec![
        ("cache_hits".to_owned(), hits as f64),
        ("cache_misses".to_owned(), misses as f64),
        ("cache_loads".to_owned(), core.reader.loads() as f64),
        ("cache_hit_ratio".to_owned(), if reads == 0 { 0.0 } else { hits as f64 / reads as f64 }),
        ("cache_entries".to_owned(), cache.entries() as f64),
        ("cache_bytes".to_owned(), cache.weight() as f64),
        ("floor_rises".to_owned(), cache.floor_rises() as f64),
    ];
    let servers = core.store.databases().iter().flat_map(|database| database.servers());
    figures.extend(servers.map(|server| (format!("reads_by.{}", server.name()), server.answers() as f64)));
    let now = Instant::now();
    // A log that was never heard of has no age.
    figures.extend(cache.logs().filter_map(|log| {
        let age = log.horizon().age(now)?;
        Some((format!("feed_age_seconds.{}.{}", log.id.region, log.id.partition), age.as_secs_f64()))
    }));
    figures
}
