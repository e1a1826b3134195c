//! `souk plan`: the arithmetic of capacity.
//!
//! # Layout
//!
//! - `demand`: what is asked for; `capacity`: what one of each part carries
//! - `arithmetic`: from the one to numbers of the other, by `need` (rounding) and `zipf` (cache); pure
//! - `explain`, `growth`, `values`: the same for people, for what comes next, for the chart

mod arithmetic;
mod capacity;
mod demand;
mod explain;
mod growth;
mod need;
mod quantity;
#[cfg(test)]
mod tests;
mod values;
mod zipf;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::paint::say;
use arithmetic::Plan;
use capacity::Capacities;
use demand::{Demand, Frame, Objectives, REQUESTS_PER_USER};
use quantity::{parse_bytes, parse_count, parse_number, parse_share};

#[derive(Debug, clap::Args)]
#[command(after_help = "Numbers may be written as 10k, 1M or 10,000; sizes as 1KB or 64MiB.")]
pub struct Args {
    /// Users [default: 1M]
    #[arg(long, value_name = "N", value_parser = parse_number, conflicts_with_all = ["from", "to"])]
    users: Option<f64>,
    /// Requests per second in the busiest hour [default: one for every hundred users]
    #[arg(long, value_name = "N", value_parser = parse_number, conflicts_with_all = ["from", "to"])]
    requests: Option<f64>,
    /// What to do first, second, third as requests per second grow from here …
    #[arg(long, value_name = "N", value_parser = parse_number, requires = "to")]
    from: Option<f64>,
    /// … to here
    #[arg(long, value_name = "N", value_parser = parse_number, requires = "from")]
    to: Option<f64>,
    /// Share of the requests that are commands
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "10%")]
    write_share: f64,
    /// Payload of a command
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "1KB")]
    command_bytes: f64,
    /// Payload of a reply to a query
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "1KB")]
    reply_bytes: f64,
    /// Entities that are asked for [default: ten for each request per second]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    entities: Option<u64>,
    /// Exponent of Zipf's law: the larger, the more is asked for few entities
    #[arg(long, value_name = "S", value_parser = parse_number, default_value = "1")]
    zipf: f64,
    /// Share of the queries that caches shall answer
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "90%")]
    hit_ratio: f64,
    /// Milliseconds within which 99 of 100 queries shall be answered
    #[arg(long, value_name = "MS", value_parser = parse_number, default_value = "10")]
    query_p99: f64,
    /// Milliseconds within which 99 of 100 commands shall be answered
    #[arg(long, value_name = "MS", value_parser = parse_number, default_value = "50")]
    command_p99: f64,
    /// Processes of each service and servers of NATS that may be away without being missed [default: 1 from 50 and 1000 requests/s on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..100))]
    spares: Option<u64>,
    /// Regions that share the requests
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    regions: u32,
    /// Partitions of the log, fixed with the first start
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    partitions: u64,
    /// Days whose events the databases shall hold
    #[arg(long, value_name = "N", value_parser = parse_number, default_value = "180")]
    days: f64,
    /// What one database may come to
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "16TB")]
    disk: f64,
    /// Gbit/s of a network link
    #[arg(long, value_name = "N", value_parser = parse_number, default_value = "1")]
    network: f64,
    /// What one carries in a second, as read-replica=8k: of write-database, read-replica, read-database, command, query, projector, saga
    #[arg(long, value_name = "PART=N", value_delimiter = ',', value_parser = capacity::parse)]
    capacity: Vec<(String, f64)>,
    /// Record of the benchmarks to take capacities from; what it lacks is stated
    #[arg(long, value_name = "FILE", default_value = capacity::RECORD)]
    record: PathBuf,
    /// Print one JSON object
    #[arg(long, conflicts_with = "values")]
    json: bool,
    /// Print a values file for the Helm chart
    #[arg(long, conflicts_with_all = ["from", "to"])]
    values: bool,
}

/// # Errors
/// When an objective is out of reach, or the record cannot be read.
pub fn run(args: &Args) -> Result<()> {
    let capacities = args.capacities()?;
    let plan_at = |requests| args.plan(requests, capacities.clone());
    if let (Some(from), Some(to)) = (args.from, args.to) {
        ensure!(from < to, "--from {from} --to {to}: want growth");
        let steps = growth::steps(plan_at, from, to)?;
        say(if args.json {
            serde_json::to_string_pretty(&json!({"from": from, "to": to, "steps": steps}))?
        } else {
            growth::text(&steps, from, to)
        });
        return Ok(());
    }
    let users = args.users.or(args.requests.is_none().then_some(1e6));
    let requests = args.requests.or(users.map(|users| users * REQUESTS_PER_USER)).unwrap_or_default();
    let plan = plan_at(requests)?;
    if args.json {
        say(serde_json::to_string_pretty(&plan)?);
    } else if args.values {
        say(explain::comment(&plan) + values::yaml(&values::values(&plan)).trim_end());
    } else {
        say(explain::title(&plan, users) + explain::text(&plan).trim_end());
    }
    Ok(())
}

impl Args {
    fn capacities(&self) -> Result<Capacities> {
        let record = capacity::read_record(&self.record)?;
        let measured = record.map_or_else(Capacities::default, |record| Capacities::default().measured(&record));
        measured.stated(&self.capacity)
    }

    fn plan(&self, requests: f64, capacities: Capacities) -> Result<Plan> {
        let (usual, usual_objectives) = (Demand::of(requests), Objectives::of(requests));
        let demand = Demand {
            write_share: self.write_share,
            command_bytes: self.command_bytes,
            reply_bytes: self.reply_bytes,
            entities: self.entities.unwrap_or(usual.entities),
            zipf: self.zipf,
            regions: self.regions,
            ..usual
        };
        let objectives = Objectives {
            query_p99: self.query_p99 / 1e3,
            command_p99: self.command_p99 / 1e3,
            hit_ratio: self.hit_ratio,
            spares: self.spares.unwrap_or(usual_objectives.spares),
            nats_spares: self.spares.unwrap_or(usual_objectives.nats_spares),
        };
        let frame = Frame { partitions: self.partitions, days: self.days, disk: self.disk, network: self.network * 1e9 };
        Ok(Plan::new(demand, objectives, frame, capacities)?)
    }
}
