//! From a load to what carries it. Pure: what is printed of it stands in `explain`.

use serde::Serialize;
use thiserror::Error;

use super::{
    capacity::{Capacities, Capacity},
    demand::{Demand, Frame, Objectives},
    need::{Cause, Need, Part, Rounding},
    zipf,
};

pub const DAY: f64 = 86_400.0;
pub const YEAR: f64 = 365.0 * DAY;

/// Beyond this share of its capacity nothing is planned, however patient the objectives are.
pub const MOST_USED: f64 = 0.95;
/// The primary of a read database alone answers up to this share of what a standby would, where nobody minds its restart.
const PRIMARY_ALONE: f64 = 0.1;
/// What follows the log runs at half its speed, so that what waited through an outage is caught up in the time that this took.
pub const CATCHING_UP: f64 = 0.5;
/// ln 100: in a queue whose arrivals and services are random (M/M/1), 99 of 100 stay no longer than `ln 100 / (capacity - load)`
/// seconds (Kleinrock, Queueing Systems I, 3.2).
pub const LN_100: f64 = 4.605_170_185_988_092;

// Measured with `pg_total_relation_size` after 18,100 events of a shop (3,000 products, 1,500 carts, 400 orders), the payload taken off.

/// What an event takes beside its payload, with its part of the indexes and of the stream heads.
pub const EVENT_OVERHEAD: f64 = 370.0;
/// What a row of the ledger takes beside the command, with its index.
pub const LEDGER_OVERHEAD: f64 = 300.0;
/// How long the ledger remembers commands, in days (`command.ledger_retention`).
pub const LEDGER_DAYS: f64 = 7.0;
/// What an event takes in the views whatever its payload.
pub const VIEW_OVERHEAD: f64 = 300.0;
/// Share of the commands whose payload stays in the views: those that begin a product, a cart or an order. The others change a row.
pub const VIEW_SHARE: f64 = 0.4;
/// What an event carries on the bus beside its payload.
pub const ENVELOPE: f64 = 400.0;
/// What a cached reply takes beside its bytes.
pub const ENTRY_OVERHEAD: f64 = 300.0;
/// Messages one server of NATS takes in a second, a quarter of what its Rust client publishes to one (400–540k/s).
const NATS_MESSAGES: f64 = 100_000.0;
pub const MIB: f64 = 1_048_576.0;

/// An objective that no number of parts can meet.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("99 of 100 {what} within {p99_ms} ms cannot be had from parts that carry {capacity}/s: even an idle one takes {least_ms:.1} ms")]
pub struct OutOfReach {
    what: &'static str,
    p99_ms: f64,
    capacity: f64,
    least_ms: f64,
}

/// What a region of an installation needs. All rates are per second and of one region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub demand: Demand,
    pub objectives: Objectives,
    pub frame: Frame,
    pub capacities: Capacities,
    pub rates: Rates,
    /// What one carries while the objectives are met.
    pub usable: Usable,
    pub storage: Storage,
    pub network: Network,
    pub cache: Cache,
    pub jetstream: JetStream,
    pub needs: Vec<Need>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    pub requests: f64,
    pub commands: f64,
    pub queries: f64,
    /// Events of all regions, which the views of each show.
    pub projected: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Usable {
    pub write_database: f64,
    pub read_replica: f64,
    pub command: f64,
    pub query: f64,
}

/// Growth, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Storage {
    /// Payload of commands.
    pub commands_per_second: f64,
    pub commands_per_day: f64,
    pub commands_per_year: f64,
    /// What the write databases come to over the days planned for, indexes and ledger included.
    pub written: f64,
    /// What the read databases come to over the same days.
    pub viewed: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Network {
    /// Payload of requests and replies, bytes per second.
    pub payload_per_second: f64,
    /// Of one link.
    pub share: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cache {
    /// Entries that give the hit ratio asked for.
    pub entries_wanted: u64,
    pub bytes_wanted: f64,
    /// Entries that fit in what each process is given.
    pub entries: u64,
    /// Share of the queries they answer.
    pub hit_ratio: f64,
    /// Queries per second that reach the read databases once the caches are warm.
    pub misses: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct JetStream {
    /// Copies of each stream.
    pub copies: u64,
    /// Bytes per second published by this region.
    pub bytes_per_second: f64,
    /// Hours of events the streams hold; older ones are read from the log in Postgres.
    pub hours: f64,
    /// Disk of each server.
    pub server_bytes: f64,
}

impl Plan {
    /// # Errors
    /// When an objective is out of reach.
    pub fn new(demand: Demand, objectives: Objectives, frame: Frame, capacities: Capacities) -> Result<Self, OutOfReach> {
        let rates = Rates::new(&demand);
        let usable = Usable::new(&capacities, &objectives)?;
        let storage = Storage::new(&demand, &frame, rates);
        let payload_per_second = rates.commands * demand.command_bytes + rates.queries * demand.reply_bytes;
        let network = Network { payload_per_second, share: payload_per_second * 8.0 / frame.network };
        let (cache, cache_need) = Cache::new(&demand, &objectives, rates.queries);
        // A majority goes on; JetStream makes five copies at most.
        let servers = 2 * objectives.nats_spares + 1;
        let nats = Need::new(Part::Nats, Rounding::Least(servers), vec![Cause::new("messages/s", rates.commands, NATS_MESSAGES)]);
        let (jetstream, jetstream_need) = JetStream::new(&demand, &frame, rates.commands, nats.count, servers.min(5));
        let mut needs = processes(rates, &usable, &capacities, &objectives, frame.partitions);
        needs.push(Need::new(
            Part::WriteDatabase,
            Rounding::Evenly { partitions: frame.partitions },
            vec![
                Cause::new("commands/s", rates.commands, usable.write_database),
                Cause::new("bytes of events and ledger", storage.written, frame.disk),
            ],
        ));
        let read = Need::new(
            Part::ReadDatabase,
            Rounding::Evenly { partitions: frame.partitions },
            vec![
                Cause::new("events/s", rates.projected, capacities.read_database.per_second * CATCHING_UP),
                Cause::new("bytes of views", storage.viewed, frame.disk),
            ],
        );
        let replicas = read_replicas(rates.queries, usable.read_replica, read.count, objectives.spares);
        needs.extend([read, replicas, nats, cache_need, jetstream_need]);
        Ok(Self { demand, objectives, frame, capacities, rates, usable, storage, network, cache, jetstream, needs })
    }

    /// How many of a part are needed.
    ///
    /// # Panics
    /// Never: a plan has a need for each part.
    pub fn need(&self, part: Part) -> &Need {
        self.needs.iter().find(|need| need.part == part).expect("a plan has a need for each part")
    }

    pub fn count(&self, part: Part) -> u64 {
        self.need(part).count
    }

    /// Partitions in each database of a side.
    pub fn partitions_per(&self, databases: Part) -> u64 {
        self.frame.partitions / self.count(databases)
    }
}

fn processes(rates: Rates, usable: &Usable, capacities: &Capacities, objectives: &Objectives, partitions: u64) -> Vec<Need> {
    let spares = objectives.spares;
    let of = |part, most, what, load, one| Need::new(part, Rounding::Spare { spares, most }, vec![Cause::new(what, load, one)]);
    let follower = |capacity: &Capacity| capacity.per_second * CATCHING_UP;
    vec![
        of(Part::Command, partitions, "commands/s", rates.commands, usable.command),
        // Any of them answers for all partitions.
        of(Part::Query, u64::MAX, "queries/s", rates.queries, usable.query),
        of(Part::Projector, partitions, "events/s", rates.projected, follower(&capacities.projector)),
        of(Part::Saga, partitions, "events/s", rates.commands, follower(&capacities.saga)),
    ]
}

/// Standbys are counted for cold caches: after a rollout of the query service everything is a miss. The primary takes the place of one that
/// is away.
fn read_replicas(queries: f64, usable: f64, read_databases: u64, spares: u64) -> Need {
    let cause = Cause::new("queries/s with cold caches", queries, usable);
    if spares == 0 && cause.wanted() <= PRIMARY_ALONE {
        return Need { part: Part::ReadReplica, count: 0, causes: vec![cause], exceeded: false };
    }
    Need::new(Part::ReadReplica, Rounding::Each { of: read_databases, least: 1 }, vec![cause])
}

impl Rates {
    fn new(demand: &Demand) -> Self {
        let regions = f64::from(demand.regions);
        let requests = demand.requests / regions;
        let commands = requests * demand.write_share;
        Self { requests, commands, queries: requests - commands, projected: commands * regions }
    }
}

impl Usable {
    fn new(capacities: &Capacities, objectives: &Objectives) -> Result<Self, OutOfReach> {
        let (query, command) = (("queries", objectives.query_p99), ("commands", objectives.command_p99));
        Ok(Self {
            write_database: within(capacities.write_database.per_second, command)?,
            read_replica: within(capacities.read_replica.per_second, query)?,
            command: within(capacities.command.per_second, command)?,
            query: within(capacities.query.per_second, query)?,
        })
    }
}

/// The load under which 99 of 100 calls end within `p99`.
fn within(capacity: f64, (what, p99): (&'static str, f64)) -> Result<f64, OutOfReach> {
    let usable = capacity - LN_100 / p99;
    if usable <= 0.0 {
        return Err(OutOfReach { what, p99_ms: p99 * 1e3, capacity, least_ms: LN_100 / capacity * 1e3 });
    }
    Ok(usable.min(MOST_USED * capacity))
}

impl Storage {
    fn new(demand: &Demand, frame: &Frame, Rates { commands, projected, .. }: Rates) -> Self {
        let commands_per_second = commands * demand.command_bytes;
        let events = commands * frame.days * DAY * (demand.command_bytes + EVENT_OVERHEAD);
        let ledger = commands * LEDGER_DAYS.min(frame.days) * DAY * (demand.command_bytes + LEDGER_OVERHEAD);
        Self {
            commands_per_second,
            commands_per_day: commands_per_second * DAY,
            commands_per_year: commands_per_second * YEAR,
            written: events + ledger,
            viewed: projected * frame.days * DAY * (demand.command_bytes * VIEW_SHARE + VIEW_OVERHEAD),
        }
    }
}

impl Cache {
    fn new(demand: &Demand, objectives: &Objectives, queries: f64) -> (Self, Need) {
        let entry = demand.reply_bytes + ENTRY_OVERHEAD;
        let entries_wanted = zipf::entries_for(objectives.hit_ratio, demand.entities, demand.zipf);
        let bytes_wanted = entries_wanted as f64 * entry;
        let rounding = Rounding::PowerOfTwo { least: 64, most: 1 << 20 };
        let need = Need::new(Part::Cache, rounding, vec![Cause::new("bytes of replies", bytes_wanted, MIB)]);
        let entries = ((need.count as f64 * MIB / entry) as u64).min(demand.entities);
        let hit_ratio = zipf::hit_ratio(entries, demand.entities, demand.zipf);
        (Self { entries_wanted, bytes_wanted, entries, hit_ratio, misses: queries * (1.0 - hit_ratio) }, need)
    }
}

impl JetStream {
    /// A day of events, or the 2 GiB per partition beyond which the log in Postgres is the better place.
    fn new(demand: &Demand, frame: &Frame, commands: f64, servers: u64, copies: u64) -> (Self, Need) {
        let bytes_per_second = commands * (demand.command_bytes + ENVELOPE);
        let partition = bytes_per_second / frame.partitions as f64;
        let rounding = Rounding::PowerOfTwo { least: 64, most: 2048 };
        let need = Need::new(Part::JetStream, rounding, vec![Cause::new("bytes of a day's events", partition * DAY, MIB)]);
        let stream = need.count as f64 * MIB;
        let hours = (stream / partition / 3600.0).min(24.0);
        let server_bytes = stream * frame.partitions as f64 * copies as f64 / servers as f64;
        (Self { copies, bytes_per_second, hours, server_bytes }, need)
    }
}
