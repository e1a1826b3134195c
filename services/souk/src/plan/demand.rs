//! What is asked of an installation.

use serde::Serialize;

/// Requests a user makes in the busiest hour, by the textbook's example: a million users make 10,000 requests/s.
pub const REQUESTS_PER_USER: f64 = 0.01;
/// Entities that are asked for, by the same example: 100,000 at 10,000 requests/s.
pub const ENTITIES_PER_REQUEST: f64 = 10.0;

/// The load of the busiest hour.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Demand {
    /// Requests per second of all regions.
    pub requests: f64,
    /// Share of the requests that are commands.
    pub write_share: f64,
    /// Payload of a command, and of the event it becomes.
    pub command_bytes: f64,
    /// Payload of a query's reply.
    pub reply_bytes: f64,
    /// Entities that queries ask for.
    pub entities: u64,
    /// Exponent of Zipf's law, by which the k-th most popular entity is asked for.
    pub zipf: f64,
    /// Regions that share the requests evenly. Each writes its own events and shows those of all.
    pub regions: u32,
}

/// How well it is to be served.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Objectives {
    /// 99 of 100 queries take at most this long, in seconds, also when nothing is cached.
    pub query_p99: f64,
    /// 99 of 100 commands take at most this long, in seconds.
    pub command_p99: f64,
    /// Share of the queries that the cache shall answer.
    pub hit_ratio: f64,
    /// Processes of each service that may be away without being missed.
    pub spares: u64,
    /// Servers of NATS that may be away without being missed. Without it views stand still until it is back, and nothing is lost.
    pub nats_spares: u64,
}

/// What is fixed, rented or chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frame {
    /// Partitions of the log per region, fixed with the first start.
    pub partitions: u64,
    /// Days whose events the disks shall hold.
    pub days: f64,
    /// Bytes one database may come to.
    pub disk: f64,
    /// Bits per second of one network link.
    pub network: f64,
}

impl Demand {
    /// So many requests per second, and all else by the textbook's example.
    pub fn of(requests: f64) -> Self {
        let entities = (requests * ENTITIES_PER_REQUEST).ceil().max(1000.0) as u64;
        Self { requests, write_share: 0.1, command_bytes: 1e3, reply_bytes: 1e3, entities, zipf: 1.0, regions: 1 }
    }
}

impl Objectives {
    /// From so many requests per second on nobody waits for the one process of a service to come back,
    const SPARES_FROM: f64 = 50.0;
    /// nor for the one server of NATS.
    const NATS_SPARES_FROM: f64 = 1000.0;

    /// Usual ones for so many requests per second.
    pub fn of(requests: f64) -> Self {
        let (spares, nats_spares) = (u64::from(requests >= Self::SPARES_FROM), u64::from(requests >= Self::NATS_SPARES_FROM));
        Self { query_p99: 0.010, command_p99: 0.050, hit_ratio: 0.9, spares, nats_spares }
    }
}

impl Default for Frame {
    /// 16 TB is the largest disk common to the clouds; half a year is time enough to see the next step coming, try it and take it.
    fn default() -> Self {
        Self { partitions: 64, days: 180.0, disk: 16e12, network: 1e9 }
    }
}
