//! What to do first, second and third when the load grows.

use anyhow::Result;
use serde::Serialize;

use super::{
    arithmetic::Plan,
    explain::{amount, load, name, one},
    need::{Cause, Part},
    quantity::number,
};
use crate::paint;

/// How closely the load is found at which something saturates, as a share of the largest load.
const PRECISION: f64 = 1e-9;

/// One thing to do before the load gets there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Requests per second that are carried without it.
    pub until: f64,
    pub part: Part,
    pub from: u64,
    pub to: u64,
    pub reason: Reason,
    /// What to do about it.
    pub action: &'static str,
}

/// Why a number grows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The part saturates.
    Saturated(Cause),
    /// From this load on one may be away without being missed.
    Spare,
    /// Each of the read databases, which have become more, has standbys of its own.
    EachDatabase,
}

/// All that has to grow between two loads, in the order in which it has to.
///
/// # Errors
/// As `plan_at`, which plans for so many requests per second; more of them must never need fewer of a part.
pub fn steps(plan_at: impl Fn(f64) -> Result<Plan>, from: f64, to: f64) -> Result<Vec<Step>> {
    let (start, end) = (plan_at(from)?, plan_at(to)?);
    let mut steps = Vec::new();
    for need in &start.needs {
        let (part, mut count, mut here) = (need.part, need.count, from);
        while count < end.count(part) {
            let (until, grown) = first_change(&plan_at, part, count, here, to)?;
            // Memory is given once and for the whole way.
            let next = if part.is_memory() { end.count(part) } else { grown.count(part) };
            let reason = reason(&plan_at(until)?, &grown, part);
            steps.push(Step { until, part, from: count, to: next, reason, action: action(part) });
            (count, here) = (next, until);
        }
    }
    // What has to grow at the same load stays in the order of the plan: databases before their replicas.
    steps.sort_by_key(|step| (step.until / to / PRECISION / 100.0).round() as u64);
    Ok(steps)
}

/// The load up to which `count` of a part are enough, and the plan just beyond it, by halving.
fn first_change(plan_at: &impl Fn(f64) -> Result<Plan>, part: Part, count: u64, from: f64, to: f64) -> Result<(f64, Plan)> {
    let (mut low, mut high) = (from, to);
    while high - low > PRECISION * to {
        let middle = low + (high - low) / 2.0;
        if plan_at(middle)?.count(part) > count { high = middle } else { low = middle }
    }
    Ok((low, plan_at(high)?))
}

fn reason(before: &Plan, grown: &Plan, part: Part) -> Reason {
    let (cause, databases) = (*grown.need(part).cause(), |plan: &Plan| plan.count(Part::ReadDatabase));
    if cause.count() > before.need(part).cause().count() {
        Reason::Saturated(cause)
    } else if part == Part::ReadReplica && databases(grown) > databases(before) {
        Reason::EachDatabase
    } else {
        Reason::Spare
    }
}

/// What to do when a part saturates, in the words of the chart.
pub const fn action(part: Part) -> &'static str {
    match part {
        Part::Command => "raise command.autoscaling.min (or replicas): partitions are handed over one by one, callers notice nothing",
        Part::Query => "raise query.autoscaling.min (or replicas): each fills a cache of its own",
        Part::Projector => "raise projector.autoscaling.min (or replicas): projectors share the partitions by themselves",
        Part::Saga => "raise saga.autoscaling.min (or replicas): process managers share the partitions by themselves",
        Part::WriteDatabase => {
            "move whole databases to servers of their own: names stay, urls change; begin with as many as will be needed, one added later stays empty"
        }
        Part::ReadDatabase => {
            "name a larger, fresh set in read.databases and let the projectors fold the log anew; one added to those there are stays empty"
        }
        Part::ReadReplica => "add standbys and name them in read.databases[].replicas; a lagging one is noticed and passed over",
        Part::Nats => "add servers to the NATS cluster and raise nats.streamReplicas; streams are a cache and can be made anew",
        Part::Cache => "raise settings.query.cache_bytes and the memory limit of the query service; a rollout fills the caches anew",
        Part::JetStream => "raise nats.streamMaxBytes, or let older events be read from Postgres",
    }
}

/// The steps for people.
pub fn text(steps: &[Step], from: f64, to: f64) -> String {
    let mut text = format!("{}\n", paint::bold(format!("From {} to {} requests/s", number(from), number(to))));
    if steps.is_empty() {
        text += "\nNothing saturates: what is there carries it.\n";
    }
    for (index, step) in steps.iter().enumerate() {
        let (before, after) = (amount(step.part, step.from), amount(step.part, step.to));
        let what = paint::green(format!("{} {before} → {after}", name(step.part)));
        text += &format!("\n{:>2}  beyond {:>7} requests/s  {what}\n", index + 1, number(step.until));
        text += &format!("    why  {}\n    do   {}\n", because(step), step.action);
    }
    text
}

fn because(step: &Step) -> String {
    match &step.reason {
        Reason::Spare => "from here on one may be away without being missed".to_owned(),
        Reason::EachDatabase => "there are more read databases, and each has standbys of its own".to_owned(),
        Reason::Saturated(cause) if step.part.is_memory() => format!("{} do not go into {}", load(cause), amount(step.part, step.from)),
        // Those to spare carry nothing that counts.
        Reason::Saturated(cause) => format!("{} are more than {} × {}", load(cause), cause.count() - 1, one(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plan_of, *};

    fn told(from: f64, to: f64) -> Vec<(u64, Part, u64, u64)> {
        let steps = steps(|requests| Ok(plan_of(requests)), from, to).unwrap();
        steps.iter().map(|step| (step.until.round() as u64, step.part, step.from, step.to)).collect()
    }

    #[test]
    fn ten_times_the_traffic_asks_for_streams_then_reads_then_writes() {
        use Part::{JetStream, ReadReplica, WriteDatabase};
        let wanted = [(1420, JetStream, 256, 2048), (5044, ReadReplica, 1, 2), (7242, WriteDatabase, 1, 2)];
        assert_eq!(told(1000.0, 10_000.0), wanted);
    }

    #[test]
    fn a_second_of_everything_is_asked_for_before_anything_saturates() {
        let steps = steps(|requests| Ok(plan_of(requests)), 1.0, 1500.0).unwrap();
        let spare = steps.iter().filter(|step| step.reason == Reason::Spare).map(|step| (step.until.round() as u64, step.part));
        let at_fifty = [Part::Command, Part::Query, Part::Projector, Part::Saga, Part::ReadReplica].map(|part| (50, part));
        assert_eq!(spare.collect::<Vec<_>>(), [&at_fifty[..], &[(1000, Part::Nats)]].concat());
    }

    #[test]
    fn what_saturates_is_told_without_those_to_spare() {
        let steps = steps(|requests| Ok(plan_of(requests)), 10_000.0, 30_000.0).unwrap();
        let told = |part| steps.iter().filter(|step| step.part == part).map(because).collect::<Vec<_>>();
        assert_eq!(told(Part::Query), ["19,000 queries/s are more than 1 × 19,000"]);
        assert_eq!(told(Part::Cache), ["67.1 MB of replies do not go into 64 MiB"]);
        let each = "there are more read databases, and each has standbys of its own";
        let replicas = [
            "9,079 queries/s with cold caches are more than 2 × 4,539",
            each,
            "18,158 queries/s with cold caches are more than 4 × 4,539",
            each,
        ];
        assert_eq!(told(Part::ReadReplica), replicas);
    }

    #[test]
    fn where_nothing_saturates_nothing_is_to_be_done() {
        assert_eq!(told(1000.0, 1001.0), []);
    }

    /// Whoever takes the steps in turn has what the larger load needs, each before it is needed.
    #[test]
    fn the_steps_lead_from_one_plan_to_the_other() {
        let (from, to) = (1.0, 200_000.0);
        let steps = steps(|requests| Ok(plan_of(requests)), from, to).unwrap();
        let mut counts: Vec<_> = plan_of(from).needs.iter().map(|need| (need.part, need.count)).collect();
        for step in &steps {
            let before = plan_of(step.until);
            assert!(counts.iter().all(|(part, count)| before.count(*part) <= *count), "something was late before {step:?}");
            let (_, count) = counts.iter_mut().find(|(part, _)| *part == step.part).unwrap();
            assert_eq!(*count, step.from);
            *count = step.to;
        }
        assert!(counts.iter().all(|(part, count)| plan_of(to).count(*part) == *count));
    }
}
