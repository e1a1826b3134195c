//! `souk status`: what every process of the running system says of itself.

mod regions;
mod table;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use souk_event_sourcing::UnixMillis;
use souk_proto::internal::v1::{GetStatusRequest, GetStatusResponse, admin_service_client::AdminServiceClient};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use crate::{
    paint::say,
    system::{System, Target},
};

pub use regions::link_state;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Show it again every second
    #[arg(long)]
    watch: bool,
    /// Show every partition, not only those that lag or hold parked events
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    target: Target,
}

pub async fn run(args: Args) -> Result<()> {
    let systems = args.target.find_all()?;
    if systems.iter().any(|system| system.internal.is_empty()) {
        bail!("name the internal ports (--internal): they are known only for a system started by `souk up`");
    }
    let clear = if args.watch { "\x1b[2J\x1b[H" } else { "" };
    loop {
        let (json, text) = match systems.as_slice() {
            [system] => {
                let status = Status::gather(system).await;
                (serde_json::to_string(&status)?, table::tables(&status, args.all))
            }
            several => {
                let regions = regions::Regions::gather(several).await;
                (serde_json::to_string(&regions)?, regions.tables())
            }
        };
        if args.json {
            say(json);
        } else {
            say(format_args!("{clear}{}", text.trim_end()));
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The system as its processes see it.
#[derive(Debug, Default, Serialize)]
pub struct Status {
    region: String,
    /// Number of the region, as far as it is known; other regions' logs are copies here.
    #[serde(skip)]
    number: Option<u32>,
    /// By the command service.
    clock: Option<Clock>,
    processes: Vec<Process>,
    /// Replicas that did not answer, and why.
    silent: BTreeMap<String, String>,
    partitions: Vec<Partition>,
    totals: Totals,
    cache: Cache,
}

/// A clock beside the one of this process, estimated from a round trip.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Clock {
    ahead_ms: f64,
    /// Half the time the answer took: the estimate is no farther off.
    within_ms: f64,
}

#[derive(Debug, Serialize)]
struct Process {
    service: String,
    replica: String,
    process_id: u64,
    version: String,
    uptime_seconds: f64,
    partitions: usize,
    figures: BTreeMap<String, f64>,
}

/// One log and how far everybody is with it.
#[derive(Debug, Default, Serialize)]
struct Partition {
    region: u32,
    partition: u32,
    /// Process that writes it.
    owner: String,
    database: String,
    /// Process that makes its views.
    projector: String,
    read_database: String,
    /// Process that drives its orders.
    manager: String,
    /// Process that copies it from another region.
    copier: String,
    epoch: u64,
    head: u64,
    /// Acknowledged by JetStream.
    relayed: u64,
    /// Checkpoint of the views.
    projected: u64,
    /// They are folded anew, and answer nobody until they are whole.
    rebuilding: bool,
    /// Checkpoint of the process manager.
    saga: u64,
    /// Where the copy of another region's log ends.
    copied: u64,
    copy_lag_events: u64,
    copy_lag_seconds: f64,
    relay_lag_events: u64,
    relay_lag_seconds: f64,
    projection_lag_events: u64,
    projection_lag_seconds: f64,
    saga_lag_events: u64,
    saga_lag_seconds: f64,
    parked: u64,
}

#[derive(Debug, Default, Serialize)]
struct Totals {
    /// Of this region's own logs.
    events: u64,
    copy_lag_events: u64,
    copy_lag_seconds: f64,
    relay_lag_events: u64,
    relay_lag_seconds: f64,
    projection_lag_events: u64,
    projection_lag_seconds: f64,
    saga_lag_events: u64,
    saga_lag_seconds: f64,
    parked: u64,
    /// Logs whose views are folded anew.
    rebuilding: usize,
}

#[derive(Debug, Default, Serialize)]
struct Cache {
    hits: u64,
    misses: u64,
    /// Share of reads answered from memory; absent before the first.
    hit_ratio: Option<f64>,
}

impl Status {
    async fn gather(system: &System) -> Self {
        let asked = system.internal.iter().map(|(service, url)| async move { (service.clone(), ask(url).await) });
        let file = system.run_file.as_ref();
        let mut status = Self {
            region: file.map(|file| file.region.clone()).unwrap_or_default(),
            number: file.map(|file| file.region_number.into()),
            ..Self::default()
        };
        let mut partitions = BTreeMap::new();
        for (service, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok((reply, clock)) => {
                    if reply.service == "command" && status.clock.is_none_or(|known| clock.within_ms < known.within_ms) {
                        status.clock = Some(clock);
                    }
                    status.take(reply, &mut partitions);
                }
                Err(error) => {
                    status.silent.insert(service, format!("{error:#}"));
                }
            }
        }
        status.partitions = partitions.into_values().collect();
        status.add_up();
        status
    }

    fn take(&mut self, reply: GetStatusResponse, partitions: &mut BTreeMap<(u32, u32), Partition>) {
        for seen in &reply.partitions {
            let row = partitions.entry((seen.region, seen.partition)).or_default();
            (row.region, row.partition) = (seen.region, seen.partition);
            row.parked += seen.parked;
            row.head = row.head.max(seen.head);
            match reply.service.as_str() {
                // Two may say that they hold it while it changes hands: the one that is ahead does.
                "command" if row.owner.is_empty() || seen.epoch >= row.epoch => {
                    row.owner.clone_from(&reply.replica);
                    row.database.clone_from(&seen.database);
                    (row.epoch, row.relayed, row.relay_lag_seconds) = (seen.epoch, seen.position, seen.lag_seconds);
                }
                "projector" if row.projector.is_empty() || seen.position >= row.projected => {
                    row.projector.clone_from(&reply.replica);
                    row.read_database.clone_from(&seen.database);
                    (row.projected, row.projection_lag_seconds) = (seen.position, seen.lag_seconds);
                    row.rebuilding = seen.rebuilding;
                }
                "saga" if row.manager.is_empty() || seen.position >= row.saga => {
                    row.manager.clone_from(&reply.replica);
                    (row.saga, row.saga_lag_seconds) = (seen.position, seen.lag_seconds);
                }
                "replicator" if row.copier.is_empty() || seen.position >= row.copied => {
                    row.copier.clone_from(&reply.replica);
                    (row.copied, row.copy_lag_seconds) = (seen.position, seen.lag_seconds);
                }
                _ => {}
            }
        }
        let figures: BTreeMap<_, _> = reply.figures.into_iter().collect();
        if reply.service == "query" {
            let figure = |name: &str| figures.get(name).copied().unwrap_or_default() as u64;
            self.cache.hits += figure("cache_hits");
            self.cache.misses += figure("cache_misses");
        }
        self.processes.push(Process {
            service: reply.service,
            replica: reply.replica,
            process_id: reply.process_id,
            version: reply.version,
            uptime_seconds: reply.uptime_seconds,
            partitions: reply.partitions.len(),
            figures,
        });
    }

    fn add_up(&mut self) {
        let knows = |service: &str| self.processes.iter().any(|process| process.service == service && process.partitions > 0);
        let (relays, projects, manages) = (knows("command"), knows("projector"), knows("saga"));
        let totals = &mut self.totals;
        for row in &mut self.partitions {
            let copy = row.is_copy(self.number);
            let lag = |known: bool, position: u64| if known { row.head.saturating_sub(position) } else { 0 };
            row.copy_lag_events = lag(copy, row.copied);
            row.relay_lag_events = lag(relays && !copy, row.relayed);
            row.projection_lag_events = lag(projects, row.projected);
            row.saga_lag_events = lag(manages && !copy, row.saga);
            totals.events += if copy { 0 } else { row.head };
            totals.copy_lag_events += row.copy_lag_events;
            totals.copy_lag_seconds = totals.copy_lag_seconds.max(row.copy_lag_seconds);
            totals.relay_lag_events += row.relay_lag_events;
            totals.projection_lag_events += row.projection_lag_events;
            totals.saga_lag_events += row.saga_lag_events;
            totals.parked += row.parked;
            totals.rebuilding += usize::from(row.rebuilding);
            totals.relay_lag_seconds = totals.relay_lag_seconds.max(row.relay_lag_seconds);
            totals.projection_lag_seconds = totals.projection_lag_seconds.max(row.projection_lag_seconds);
            totals.saga_lag_seconds = totals.saga_lag_seconds.max(row.saga_lag_seconds);
        }
        let reads = self.cache.hits + self.cache.misses;
        self.cache.hit_ratio = (reads > 0).then(|| self.cache.hits as f64 / reads as f64);
    }
}

impl Partition {
    /// Whether it is a log of another region than the one of this `number`; without a number, whether somebody copies it.
    fn is_copy(&self, number: Option<u32>) -> bool {
        number.map_or(!self.copier.is_empty(), |number| self.region != number)
    }
}

async fn ask(url: &str) -> Result<(GetStatusResponse, Clock)> {
    let mut client = AdminServiceClient::new(Endpoint::from_shared(url.to_owned())?.connect_lazy());
    let away = || format!("{url} does not answer");
    let reply = get(&mut client).await.with_context(away)?;
    // Again, for the clock: now the connection stands.
    let sent = UnixMillis::now().0 as f64;
    let then = std::time::Instant::now();
    let time_ms = get(&mut client).await.with_context(away)?.time_ms as f64;
    let half = then.elapsed().as_secs_f64() * 1000.0 / 2.0;
    // Both clocks show whole milliseconds.
    Ok((reply, Clock { ahead_ms: time_ms - (sent + half), within_ms: half + 1.0 }))
}

async fn get(client: &mut AdminServiceClient<Channel>) -> Result<GetStatusResponse> {
    let mut request = Request::new(GetStatusRequest {});
    request.set_timeout(Duration::from_secs(3));
    Ok(client.get_status(request).await?.into_inner())
}

#[cfg(test)]
mod tests {
    use souk_proto::internal::v1::PartitionStatus;

    use super::*;

    fn reply(service: &str, head: u64, position: u64, lag_seconds: f64) -> GetStatusResponse {
        let partition =
            PartitionStatus { region: 1, partition: 7, head, position, lag_seconds, database: "w0".into(), ..Default::default() };
        GetStatusResponse { service: service.into(), replica: format!("{service}-1"), partitions: vec![partition], ..Default::default() }
    }

    #[test]
    fn a_partition_that_changes_hands_is_with_who_is_ahead() {
        let (mut status, mut partitions) = (Status::default(), BTreeMap::new());
        for (replica, epoch) in [("command-1", 5), ("command-2", 6), ("command-3", 4)] {
            let mut reply = reply("command", 100, 98, 0.0);
            (reply.replica, reply.partitions[0].epoch) = (replica.to_owned(), epoch);
            status.take(reply, &mut partitions);
        }
        assert_eq!(partitions[&(1, 7)].owner, "command-2");
    }

    #[test]
    fn a_copy_lags_behind_its_origin_and_has_neither_owner_nor_process_manager() {
        let mut status = Status { number: Some(2), ..Status::default() };
        let mut partitions = BTreeMap::new();
        for reply in [reply("replicator", 100, 70, 4.0), reply("projector", 70, 60, 1.0)] {
            status.take(reply, &mut partitions);
        }
        for (service, position) in [("command", 50), ("saga", 50)] {
            let mut reply = reply(service, 50, position, 0.0);
            reply.partitions[0].region = 2;
            status.take(reply, &mut partitions);
        }
        status.partitions = partitions.into_values().collect();
        status.add_up();
        let row = &status.partitions[0];
        assert_eq!((row.copier.as_str(), row.copied, row.copy_lag_events, row.copy_lag_seconds), ("replicator-1", 70, 30, 4.0));
        assert_eq!((row.relay_lag_events, row.projection_lag_events, row.saga_lag_events), (0, 40, 0));
        assert_eq!((status.totals.events, status.totals.copy_lag_events), (50, 30), "events are those of the region itself");
    }

    #[test]
    fn lag_is_counted_from_the_head_the_owner_knows() {
        let mut status = Status::default();
        let mut partitions = BTreeMap::new();
        // The projector has heard of fewer events than there are.
        for mut reply in [reply("projector", 90, 90, 0.0), reply("command", 100, 98, 0.2), reply("saga", 100, 80, 3.0)] {
            reply.partitions[0].rebuilding = reply.service == "projector";
            status.take(reply, &mut partitions);
        }
        let mut query = reply("query", 0, 0, 0.0);
        query.partitions.clear();
        query.figures = [("cache_hits".to_owned(), 3.0), ("cache_misses".to_owned(), 1.0)].into();
        status.take(query, &mut partitions);
        status.partitions = partitions.into_values().collect();
        status.add_up();
        let row = &status.partitions[0];
        assert_eq!((row.owner.as_str(), row.head, row.relayed, row.projected, row.saga), ("command-1", 100, 98, 90, 80));
        assert_eq!((row.relay_lag_events, row.projection_lag_events, row.saga_lag_events), (2, 10, 20));
        assert_eq!((row.projector.as_str(), row.manager.as_str()), ("projector-1", "saga-1"));
        assert_eq!((status.totals.events, status.totals.saga_lag_seconds, status.cache.hit_ratio), (100, 3.0, Some(0.75)));
        assert_eq!((row.rebuilding, status.totals.rebuilding), (true, 1));
        assert!(table::tables(&status, false).contains("90 (rebuilding)"));
    }
}
