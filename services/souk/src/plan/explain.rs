//! A plan for people: numbered steps, each with its formula and result, then a table.

use super::{
    arithmetic::{
        ENTRY_OVERHEAD, ENVELOPE, EVENT_OVERHEAD, LEDGER_DAYS, LEDGER_OVERHEAD, LN_100, MIB, MOST_USED, Plan, VIEW_OVERHEAD, VIEW_SHARE,
    },
    capacity::Capacity,
    need::{Cause, Need, Part},
    quantity::{bytes, memory, number, share},
};
use crate::paint;

/// One step of the way: what is worked out, how, and what comes out.
struct Step {
    what: &'static str,
    /// Formula and result.
    lines: Vec<(String, String)>,
    why: &'static str,
}

impl Step {
    fn new<const N: usize>(what: &'static str, lines: [(String, String); N], why: &'static str) -> Self {
        Self { what, lines: lines.into(), why }
    }
}

/// The whole text.
pub fn text(plan: &Plan) -> String {
    let mut text = String::new();
    for (index, step) in steps(plan).into_iter().enumerate() {
        text += &format!("{}\n", paint::bold(format!("{:>2}  {}", index + 1, step.what)));
        for (formula, result) in &step.lines {
            text += &format!("    {formula:<68} = {}\n", paint::green(result));
        }
        text += &format!("    {}\n\n", paint::dim(step.why));
    }
    text += &table(plan);
    for note in notes(plan) {
        text += &format!("\n{} {note}\n", paint::yellow("!"));
    }
    text
}

fn steps(plan: &Plan) -> Vec<Step> {
    let mut steps = vec![rates(plan)];
    steps.extend([usable(plan), reads(plan), cache(plan), write_databases(plan), read_databases(plan), storage(plan)]);
    steps.extend([network(plan), jetstream(plan), processes(plan)]);
    steps
}

fn rates(plan: &Plan) -> Step {
    let (demand, requests) = (&plan.demand, number(plan.rates.requests));
    let mut lines = Vec::new();
    if demand.regions > 1 {
        lines.push((
            format!("{} requests/s ÷ {} regions", number(demand.requests), demand.regions),
            format!("{requests} requests/s in each"),
        ));
    }
    lines.push((format!("{requests} requests/s × {}", share(demand.write_share)), format!("{} commands/s", number(plan.rates.commands))));
    lines.push((format!("{requests} requests/s − {}", number(plan.rates.commands)), format!("{} queries/s", number(plan.rates.queries))));
    Step { what: "Commands and queries", lines, why: "The two sides are sized apart: each has its own databases and processes." }
}

fn usable(plan: &Plan) -> Step {
    let line = |what: &str, capacity: &Capacity, p99: f64, usable: f64| {
        let most = MOST_USED * capacity.per_second;
        let cut = if usable == most { format!(", at most {}", share(MOST_USED)) } else { String::new() };
        let formula = format!("{what}: {}/s − {LN_100:.3} ÷ {} ms{cut}", number(capacity.per_second), number(p99 * 1e3));
        (formula, format!("{}/s ({})", number(usable), capacity.source))
    };
    let (objectives, capacities) = (&plan.objectives, &plan.capacities);
    let lines = [
        line("write database", &capacities.write_database, objectives.command_p99, plan.usable.write_database),
        line("command service", &capacities.command, objectives.command_p99, plan.usable.command),
        line("read replica", &capacities.read_replica, objectives.query_p99, plan.usable.read_replica),
        line("query service", &capacities.query, objectives.query_p99, plan.usable.query),
    ];
    Step::new(
        "What one carries within the objectives",
        lines,
        "99 of 100 stay at most ln 100 ÷ (capacity − load) in a queue with random arrivals (M/M/1).",
    )
}

fn reads(plan: &Plan) -> Step {
    let line = counted(plan.need(Part::ReadReplica), "read replicas");
    Step::new(
        "Read replicas",
        [line],
        "Counted for cold caches: after a rollout every query is a miss. The primary steps in for one that is away.",
    )
}

fn cache(plan: &Plan) -> Step {
    let (demand, cache) = (&plan.demand, &plan.cache);
    let entry = format!("({} + {})", bytes(demand.reply_bytes), bytes(ENTRY_OVERHEAD));
    let given = plan.count(Part::Cache);
    let law = format!("H(n) ≥ {} of H({}), exponent {}", share(plan.objectives.hit_ratio), number(demand.entities as f64), demand.zipf);
    let lines = [
        (law, format!("{} entries", number(cache.entries_wanted as f64))),
        (
            format!("{} entries × {entry}", number(cache.entries_wanted as f64)),
            format!("{}, given {}", bytes(cache.bytes_wanted), memory(given)),
        ),
        (
            format!("H({}) ÷ H({})", number(cache.entries as f64), number(demand.entities as f64)),
            format!("{} of queries hit", share(cache.hit_ratio)),
        ),
        (
            format!("{} queries/s × {}", number(plan.rates.queries), share(1.0 - cache.hit_ratio)),
            format!("{} queries/s reach the read databases, caches warm", number(cache.misses)),
        ),
    ];
    Step::new(
        "Cache of each query process",
        lines,
        "Popularity after Zipf: H(n) is 1 + 1/2^s + … + 1/n^s. Writes cost no hits, the change feed replaces what is cached.",
    )
}

fn write_databases(plan: &Plan) -> Step {
    let count = plan.count(Part::WriteDatabase);
    let lines = databases(plan, Part::WriteDatabase, "write databases");
    let partitions = (
        format!("{} partitions ÷ {count}", plan.frame.partitions),
        format!("{} partitions per write database", plan.partitions_per(Part::WriteDatabase)),
    );
    let lines = lines.into_iter().chain([partitions]).collect();
    Step {
        what: "Write databases",
        lines,
        why: "The cause that asks for most decides; rounded so that the partitions can be divided evenly.",
    }
}

fn read_databases(plan: &Plan) -> Step {
    let count = plan.count(Part::ReadDatabase);
    let lines = databases(plan, Part::ReadDatabase, "read databases");
    let partitions = (
        format!("{} partitions ÷ {count}", plan.frame.partitions),
        format!("{} partitions per read database", plan.partitions_per(Part::ReadDatabase)),
    );
    let lines = lines.into_iter().chain([partitions]).collect();
    Step {
        what: "Read databases",
        lines,
        why: "Followers of the log are planned at half their speed: they catch an outage up in the time that it took.",
    }
}

/// A line for each cause, the one that decides last.
fn databases(plan: &Plan, part: Part, name: &str) -> Vec<(String, String)> {
    let need = plan.need(part);
    let mut lines: Vec<_> = need.causes.iter().skip(1).map(|cause| (ratio(cause), format!("{:.2}", cause.wanted()))).collect();
    lines.push(counted(need, name));
    lines
}

fn storage(plan: &Plan) -> Step {
    let (demand, storage, frame) = (&plan.demand, &plan.storage, &plan.frame);
    let (payload, rate) = (bytes(demand.command_bytes), bytes(storage.commands_per_second));
    let events = format!("{} days × {} × ({payload} + {})", number(frame.days), number(plan.rates.commands), bytes(EVENT_OVERHEAD));
    let ledger = format!("{LEDGER_DAYS} days × ({payload} + {})", bytes(LEDGER_OVERHEAD));
    let views = format!(
        "{} days × {} × ({payload} × {} + {})",
        number(frame.days),
        number(plan.rates.projected),
        share(VIEW_SHARE),
        bytes(VIEW_OVERHEAD)
    );
    let lines = [
        (format!("{} commands/s × {payload}", number(plan.rates.commands)), format!("{rate}/s of commands")),
        (format!("{rate}/s × 86,400 s"), format!("{}/day", bytes(storage.commands_per_day))),
        (format!("{}/day × 365", bytes(storage.commands_per_day)), format!("{}/year", bytes(storage.commands_per_year))),
        (format!("{events}, {ledger}"), format!("{} in all write databases", bytes(storage.written))),
        (views, format!("{} in all read databases", bytes(storage.viewed))),
    ];
    Step::new("Storage", lines, "Events are kept for good; the ledger forgets; views keep what began a product, a cart or an order.")
}

fn network(plan: &Plan) -> Step {
    let network = &plan.network;
    let payload = format!("{}/s", bytes(network.payload_per_second));
    let (commands, queries) = (number(plan.rates.commands), number(plan.rates.queries));
    let lines = [
        (
            format!("{commands} × {} + {queries} × {}", bytes(plan.demand.command_bytes), bytes(plan.demand.reply_bytes)),
            format!("{payload} of payload"),
        ),
        (format!("{payload} × 8 ÷ {}", bits(plan.frame.network)), format!("{} of {}", share(network.share), bits(plan.frame.network))),
    ];
    Step::new("Network", lines, "Through one link; spread over the nodes each carries its part.")
}

fn jetstream(plan: &Plan) -> Step {
    let (jetstream, partitions) = (&plan.jetstream, plan.frame.partitions);
    let (stream, servers) = (plan.count(Part::JetStream), plan.count(Part::Nats));
    let lines = [
        counted(plan.need(Part::Nats), "servers"),
        (
            format!("{} × ({} + {}) × 24 h ÷ {partitions}", number(plan.rates.commands), bytes(plan.demand.command_bytes), bytes(ENVELOPE)),
            format!(
                "{}, given {} per partition: {} h",
                bytes(plan.need(Part::JetStream).cause().load),
                memory(stream),
                number(jetstream.hours)
            ),
        ),
        (
            format!("{} × {partitions} partitions × {} copies ÷ {servers} servers", bytes(stream as f64 * MIB), jetstream.copies),
            format!("{} of disk per server", bytes(jetstream.server_bytes)),
        ),
    ];
    Step::new(
        "NATS",
        lines,
        "JetStream is a cache of the log: a day of events or 2 GiB per partition; what is older is read from Postgres.",
    )
}

fn processes(plan: &Plan) -> Step {
    let line = |part, name| counted(plan.need(part), name);
    let lines = [
        line(Part::Command, "of the command service"),
        line(Part::Query, "of the query service"),
        line(Part::Projector, "of the projector"),
        line(Part::Saga, "of the process manager"),
    ];
    let why = match plan.objectives.spares {
        0 => "One of each: a restart is felt for as long as it takes.",
        1 => "With one to spare in each service: a node may go without being missed.",
        _ => "With some to spare in each service: as many nodes may go without being missed.",
    };
    Step::new("Processes", lines, why)
}

/// `9,000 queries/s ÷ 4,539 = 1.98 → 2 read replicas`.
fn counted(need: &Need, name: &str) -> (String, String) {
    let cause = need.cause();
    let name = if need.count == 1 { name.trim_end_matches('s') } else { name };
    (ratio(cause), format!("{:.2} → {} {name}", cause.wanted(), paint::thousands(need.count)))
}

fn ratio(cause: &Cause) -> String {
    format!("{} ÷ {}", load(cause), one(cause))
}

/// `9,000 queries/s`, `22.1 TB of events and ledger`.
pub fn load(cause: &Cause) -> String {
    match cause.what.strip_prefix("bytes of ") {
        Some(what) => format!("{} of {what}", bytes(cause.load)),
        None => format!("{} {}", number(cause.load), cause.what),
    }
}

/// How much of it one carries.
pub fn one(cause: &Cause) -> String {
    if cause.what.starts_with("bytes of ") { bytes(cause.one) } else { number(cause.one) }
}

fn bits(bits: f64) -> String {
    format!("{} Gbit/s", number(bits / 1e9))
}

/// What a part is called in a table.
pub fn name(part: Part) -> &'static str {
    match part {
        Part::Command => "command service",
        Part::Query => "query service",
        Part::Projector => "projector",
        Part::Saga => "process manager",
        Part::WriteDatabase => "write databases",
        Part::ReadDatabase => "read databases",
        Part::ReadReplica => "read replicas",
        Part::Nats => "NATS servers",
        Part::Cache => "cache per query process",
        Part::JetStream => "JetStream per partition",
    }
}

/// A count, or an amount of memory.
pub fn amount(part: Part, count: u64) -> String {
    match part {
        Part::Cache | Part::JetStream => memory(count),
        _ => paint::thousands(count),
    }
}

fn table(plan: &Plan) -> String {
    let titles = ["PART", "NUMBER", "USED", "FOR"].map(str::to_owned);
    let row = |need: &Need| {
        let used = match need.used() {
            _ if need.exceeded => "full".to_owned(),
            Some(used) => format!("{:.0} %", used * 100.0),
            None => "–".to_owned(),
        };
        let cause = if need.part.is_memory() { load(need.cause()) } else { ratio(need.cause()) };
        [name(need.part).to_owned(), amount(need.part, need.count), used, cause]
    };
    let rows: Vec<_> = std::iter::once(titles).chain(plan.needs.iter().filter(|need| !need.part.is_memory()).map(row)).collect();
    let rows: Vec<_> = rows.into_iter().chain(plan.needs.iter().filter(|need| need.part.is_memory()).map(row)).collect();
    let widths: [usize; 3] = std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; 4]| {
        format!(
            "{:<first$}  {:>second$}  {:>third$}  {}",
            row[0],
            row[1],
            row[2],
            row[3],
            first = widths[0],
            second = widths[1],
            third = widths[2]
        )
    };
    rows.iter().enumerate().map(|(index, row)| if index == 0 { paint::dim(line(row)) } else { line(row) } + "\n").collect()
}

/// What the plan cannot mend by numbers.
fn notes(plan: &Plan) -> Vec<String> {
    let mut notes: Vec<String> = plan
        .needs
        .iter()
        .filter(|need| need.exceeded && need.part != Part::JetStream)
        .map(|need| {
            format!(
                "{}: {:.1} would be needed, {} are as many as partitions; larger disks, fewer days or more regions help, more partitions only in a new installation",
                name(need.part),
                need.cause().wanted(),
                need.count
            )
        })
        .collect();
    if plan.network.share > 1.0 {
        notes.push(format!("the payload is {} of one link: the nodes need several or faster ones", share(plan.network.share)));
    }
    notes
}

/// The load as a comment of a values file.
pub fn comment(plan: &Plan) -> String {
    let (demand, commands) = (&plan.demand, bytes(plan.demand.command_bytes));
    format!(
        "# Made by `souk plan --values` for {} requests/s, {} of them commands of {commands}.\n",
        number(demand.requests),
        share(demand.write_share)
    )
}

/// What stands before the steps: who asked for what.
pub fn title(plan: &Plan, users: Option<f64>) -> String {
    let users = users.map_or_else(String::new, |users| format!("{} users, ", number(users)));
    let demand = &plan.demand;
    let what = format!(
        "{users}{} requests/s in the busiest hour, {} commands, {} each",
        number(demand.requests),
        share(demand.write_share),
        bytes(demand.command_bytes)
    );
    let spares = plan.objectives.spares;
    let goals = format!(
        "99 of 100 queries within {} ms, commands within {} ms; {spares} of each service may be away",
        number(plan.objectives.query_p99 * 1e3),
        number(plan.objectives.command_p99 * 1e3)
    );
    format!("{}\n{}\n\n", paint::bold(what), paint::dim(goals))
}
