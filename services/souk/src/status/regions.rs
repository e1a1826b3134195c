use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;
use souk_devstack::{LinkOrder, LinkState};

use super::{Clock, Status, table};
use crate::{paint, system::System};

/// Longest silence of a log that nothing is missing by, in seconds: a region tells where each log ends every second.
const SILENT: f64 = 2.0;

/// Several regions, and each as a copy of each other.
#[derive(Debug, Serialize)]
pub struct Regions {
    regions: Vec<Status>,
    pairs: Vec<Pair>,
    /// Why nothing is known of the links.
    #[serde(skip_serializing_if = "Option::is_none")]
    links_unknown: Option<String>,
}

/// What one region has of another.
#[derive(Debug, PartialEq, Serialize)]
struct Pair {
    /// Who copies.
    region: String,
    /// Whose logs.
    of: String,
    /// Sum of the positions the copies end at, and of those the logs end at.
    copied: u64,
    head: u64,
    lag_events: u64,
    /// Since when the copies are known to be behind, or since when nothing was heard of the origin. What is still on its way is
    /// not known of: add the link's time.
    lag_seconds: f64,
    /// The way by which it copies.
    link: Option<LinkState>,
    /// The origin's clock beside that of the copying region.
    clock: Option<Clock>,
}

impl Regions {
    pub async fn gather(systems: &[System]) -> Self {
        let regions = futures::future::join_all(systems.iter().map(Status::gather)).await;
        let (links, links_unknown) = match links(systems).await {
            Ok(links) => (links, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        let pairs = pairs(&regions, &links);
        Self { regions, pairs, links_unknown }
    }

    /// For people. Writing to a `String` cannot fail, so the results are dropped.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        for status in &self.regions {
            let _ =
                writeln!(text, "{} · {} events", paint::bold(format!("region {}", status.region)), paint::thousands(status.totals.events));
            let _ = writeln!(text, "  lag  {}", table::lag_line(status));
            if status.totals.parked > 0 {
                let _ = writeln!(text, "  {}", paint::red(format!("{} parked", status.totals.parked)));
            }
            for (replica, why) in &status.silent {
                let _ = writeln!(text, "  {replica}: {}", paint::red(why));
            }
        }
        let titles = format!("{:<10} {:<10} {:>23}  {:<24} {:<22} CLOCK", "REGION", "COPIES", "POSITIONS", "BEHIND", "LINK");
        let _ = writeln!(text, "\n{}", paint::dim(titles));
        for pair in &self.pairs {
            let positions = format!("{} of {}", paint::thousands(pair.copied), paint::thousands(pair.head));
            let behind = format!("{} events, {:.1} s", paint::thousands(pair.lag_events), pair.lag_seconds);
            let behind = format!("{behind:<24}");
            let behind = if pair.lag_events == 0 { paint::green(behind) } else { paint::yellow(behind) };
            let (link, clock) = (link_state(pair.link.as_ref()), pair.clock.map_or_else(|| "unknown".to_owned(), skew));
            let _ = writeln!(text, "{:<10} {:<10} {positions:>23}  {behind} {link} {clock}", pair.region, pair.of);
        }
        if let Some(why) = &self.links_unknown {
            let _ = writeln!(text, "{}", paint::red(why));
        }
        let _ = writeln!(text, "{}", paint::dim("more of one region: --region NAME"));
        text
    }
}

/// How the links are, by the process that holds them.
async fn links(systems: &[System]) -> anyhow::Result<Vec<LinkState>> {
    let control = systems.iter().find_map(|system| system.run_file.as_ref()?.control.clone());
    match control {
        Some(control) => souk_devstack::order(&control, &LinkOrder::Show).await,
        None => Ok(Vec::new()),
    }
}

fn pairs(regions: &[Status], links: &[LinkState]) -> Vec<Pair> {
    let ends = regions.iter().flat_map(|here| regions.iter().map(move |origin| (here, origin)));
    ends.filter(|(here, origin)| here.number != origin.number).map(|(here, origin)| pair(here, origin, links)).collect()
}

fn pair(here: &Status, origin: &Status, links: &[LinkState]) -> Pair {
    let of_origin = |status: &Status| -> BTreeMap<u32, (u64, u64)> {
        let rows = status.partitions.iter().filter(|row| Some(row.region) == origin.number);
        rows.map(|row| (row.partition, (row.head, row.copied))).collect()
    };
    let (copies, mut heads) = (of_origin(here), of_origin(origin));
    for (partition, (head, _)) in &copies {
        // The origin may not answer; what was heard of it last is known still.
        let known = heads.entry(*partition).or_default();
        known.0 = known.0.max(*head);
    }
    let copied_of = |partition: &u32| copies.get(partition).map_or(0, |(_, copied)| *copied);
    let lag_events = heads.iter().map(|(partition, (head, _))| head.saturating_sub(copied_of(partition))).sum();
    let figure = |name: &str| {
        let name = format!("{name}.{}", origin.number.unwrap_or_default());
        let of = here.processes.iter().filter(|process| process.service == "replicator");
        of.filter_map(|process| process.figures.get(&name).copied()).fold(0.0, f64::max)
    };
    Pair {
        region: here.region.clone(),
        of: origin.region.clone(),
        copied: copies.values().map(|(_, copied)| copied).sum(),
        head: heads.values().map(|(head, _)| head).sum(),
        lag_events,
        lag_seconds: if lag_events == 0 { 0.0 } else { lag_seconds(figure("lag_seconds"), figure("silence_seconds")) },
        link: links.iter().find(|link| link.from == here.region && link.to == origin.region).cloned(),
        clock: here.clock.zip(origin.clock).map(|(here, there)| there.beside(here)),
    }
}

/// Since when a copy waits for what it was told of; or, while nothing is told, since when that is so.
fn lag_seconds(told: f64, silence: f64) -> f64 {
    if silence > SILENT { told.max(silence) } else { told }
}

impl Clock {
    /// This clock beside another one, both known beside a third.
    fn beside(self, other: Self) -> Self {
        Self { ahead_ms: self.ahead_ms - other.ahead_ms, within_ms: self.within_ms + other.within_ms }
    }
}

fn skew(clock: Clock) -> String {
    let text = format!("{:+.0} ms ± {:.0}", clock.ahead_ms, clock.within_ms.ceil());
    if clock.ahead_ms.abs() > clock.within_ms + 100.0 { paint::yellow(text) } else { text }
}

/// A link as one cell.
pub fn link_state(state: Option<&LinkState>) -> String {
    let Some(state) = state else { return format!("{:<22}", "unknown") };
    let latency = if state.latency_ms > 0 { format!(", {} ms each way", state.latency_ms) } else { String::new() };
    let (word, paint): (_, fn(String) -> String) = match (state.down, state.stalled) {
        (true, _) => ("down", paint::red),
        (_, true) => ("stalled", paint::red),
        _ => ("up", paint::green),
    };
    paint(format!("{:<22}", format!("{word}{latency}")))
}

#[cfg(test)]
mod tests {
    use souk_proto::internal::v1::{GetStatusResponse, PartitionStatus};

    use super::*;

    fn reply(service: &str, region: u32, head: u64, position: u64) -> GetStatusResponse {
        let partition = PartitionStatus { region, partition: 3, head, position, ..Default::default() };
        GetStatusResponse { service: service.into(), replica: format!("{service}-1"), partitions: vec![partition], ..Default::default() }
    }

    fn region(name: &str, number: u32, replies: impl IntoIterator<Item = GetStatusResponse>) -> Status {
        let mut status = Status { region: name.into(), number: Some(number), ..Status::default() };
        let mut partitions = BTreeMap::new();
        replies.into_iter().for_each(|reply| status.take(reply, &mut partitions));
        status.partitions = partitions.into_values().collect();
        status.add_up();
        status
    }

    #[test]
    fn a_pair_is_as_far_behind_as_the_origin_says_and_silent_while_it_is_cut_off() {
        let eu = Status { clock: Some(Clock { ahead_ms: 250.0, within_ms: 2.0 }), ..region("eu", 1, [reply("command", 1, 100, 100)]) };
        let mut copier = reply("replicator", 1, 60, 60);
        copier.figures = [("lag_seconds.1".to_owned(), 0.0), ("silence_seconds.1".to_owned(), 7.0)].into();
        let us = Status { clock: Some(Clock { ahead_ms: -50.0, within_ms: 1.0 }), ..region("us", 2, [reply("command", 2, 5, 5), copier]) };
        let cut = LinkState { from: "us".into(), to: "eu".into(), down: true, ..LinkState::default() };
        let found = pairs(&[eu, us], std::slice::from_ref(&cut));
        let ends: Vec<_> = found.iter().map(|pair| (pair.region.as_str(), pair.of.as_str(), pair.copied, pair.head)).collect();
        assert_eq!(ends, [("eu", "us", 0, 5), ("us", "eu", 60, 100)]);
        let behind = &found[1];
        assert_eq!((behind.lag_events, behind.lag_seconds, behind.link.as_ref()), (40, 7.0, Some(&cut)));
        assert_eq!(behind.clock, Some(Clock { ahead_ms: 300.0, within_ms: 3.0 }));
        assert_eq!(found[0].link, None);
    }

    #[test]
    fn a_pair_that_has_all_is_not_behind_however_long_nothing_was_said() {
        let eu = region("eu", 1, [reply("command", 1, 60, 60)]);
        let mut copier = reply("replicator", 1, 60, 60);
        copier.figures = [("silence_seconds.1".to_owned(), 0.9)].into();
        let found = pairs(&[eu, region("us", 2, [copier])], &[]);
        assert_eq!((found[1].lag_events, found[1].lag_seconds), (0, 0.0));
    }

    #[test]
    fn a_second_without_a_word_on_an_idle_log_makes_no_pair_lag() {
        let eu = region("eu", 1, [reply("command", 1, 61, 61)]);
        let mut copier = reply("replicator", 1, 60, 60);
        copier.figures = [("lag_seconds.1".to_owned(), 0.1), ("silence_seconds.1".to_owned(), 0.95)].into();
        let found = pairs(&[eu, region("us", 2, [copier])], &[]);
        assert_eq!((found[1].lag_events, found[1].lag_seconds), (1, 0.1));
    }
}
