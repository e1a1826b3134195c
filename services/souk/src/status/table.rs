use std::{collections::BTreeMap, fmt::Write, time::Duration};

use super::{Partition, Process, Status};
use crate::paint;

/// The status for people. Writing to a `String` cannot fail, so the results are dropped.
pub fn tables(status: &Status, all: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{} · {} events", paint::bold(format!("region {}", status.region)), paint::thousands(status.totals.events));
    processes(&mut text, status);
    lags(&mut text, status);
    partitions(&mut text, status, all);
    text
}

fn processes(text: &mut String, status: &Status) {
    let _ = writeln!(text, "\n{}", paint::dim(format!("{:<10} {:<18} {:>8} {:>8}  FIGURES", "SERVICE", "REPLICA", "PID", "UP")));
    for process in &status.processes {
        let up = paint::duration(Duration::from_secs_f64(process.uptime_seconds.max(0.0)));
        let figures = figures(process);
        let _ = writeln!(text, "{:<10} {:<18} {:>8} {up:>8}  {figures}", process.service, process.replica, process.process_id);
    }
    for (replica, why) in &status.silent {
        let service = replica.split('-').next().unwrap_or(replica);
        let _ = writeln!(text, "{service:<10} {replica:<18} {}", paint::red(why));
    }
}

/// The figures of a process without those it gives per partition (`name.region.partition`), which `--json` has.
fn figures(process: &Process) -> String {
    let shown = process.figures.iter().filter(|(name, _)| !name.contains('.'));
    shown.map(|(name, value)| format!("{} {}", name.replace('_', " "), figure(*value))).collect::<Vec<_>>().join(", ")
}

fn figure(value: f64) -> String {
    if value.fract() == 0.0 && value >= 0.0 { paint::thousands(value as u64) } else { format!("{value:.3}") }
}

/// How far something is behind.
pub(super) fn lag(events: u64, seconds: f64) -> String {
    let line = format!("{} events, {seconds:.1} s", paint::thousands(events));
    if events == 0 { paint::green(line) } else { paint::yellow(line) }
}

/// Behind the heads of logs: relay, views, process manager, and copies if there are any.
pub(super) fn lag_line(status: &Status) -> String {
    let totals = &status.totals;
    let copies = if status.partitions.iter().any(|row| row.is_copy(status.number)) {
        format!("   copies {}", lag(totals.copy_lag_events, totals.copy_lag_seconds))
    } else {
        String::new()
    };
    format!(
        "relay {}   projection {}   saga {}{copies}",
        lag(totals.relay_lag_events, totals.relay_lag_seconds),
        lag(totals.projection_lag_events, totals.projection_lag_seconds),
        lag(totals.saga_lag_events, totals.saga_lag_seconds),
    )
}

fn lags(text: &mut String, status: &Status) {
    let totals = &status.totals;
    let _ = writeln!(text, "\nlag    {}", lag_line(status));
    let ratio = status.cache.hit_ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0));
    let (hits, misses) = (paint::thousands(status.cache.hits), paint::thousands(status.cache.misses));
    let _ = writeln!(text, "cache  {ratio} of reads ({hits} hits, {misses} misses)");
    let parked = if totals.parked == 0 { paint::green("none") } else { paint::red(totals.parked) };
    let _ = writeln!(text, "parked {parked}");
    if totals.rebuilding > 0 {
        let line = format!("views of {} partitions are folded anew and not read until they are whole", totals.rebuilding);
        let _ = writeln!(text, "{}", paint::yellow(line));
    }
}

fn partitions(text: &mut String, status: &Status, all: bool) {
    let is_copy = |row: &Partition| row.is_copy(status.number);
    held_by(text, "owner", status, |row| (!is_copy(row)).then_some((&row.owner, &row.database)));
    held_by(text, "copies", status, |row| is_copy(row).then_some((&row.copier, "")));
    held_by(text, "views", status, |row| Some((&row.projector, &row.read_database)));
    held_by(text, "saga", status, |row| (!is_copy(row)).then_some((&row.manager, &row.database)));
    let lags = |row: &Partition| row.copy_lag_events + row.relay_lag_events + row.projection_lag_events + row.saga_lag_events > 0;
    let behind = |row: &Partition| lags(row) || row.rebuilding;
    let shown: Vec<_> = status.partitions.iter().filter(|row| all || behind(row) || row.parked > 0).collect();
    if shown.is_empty() {
        let _ = writeln!(text, "{}", paint::dim("no partition lags (--all shows them all)"));
        return;
    }
    let titles = ["PARTITION", "OWNER", "DATABASE", "EPOCH", "HEAD", "RELAYED", "PROJECTED", "SAGA", "PARKED"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(titles).chain(shown.iter().map(|row| cells(row, is_copy(row)))).collect();
    let widths: [usize; 9] = std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    text.push('\n');
    for (index, row) in rows.iter().enumerate() {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        let line = line.join("  ");
        let line = match index.checked_sub(1).map(|index| behind(shown[index])) {
            None => paint::dim(line),
            Some(true) => paint::yellow(line),
            Some(false) => line,
        };
        let _ = writeln!(text, "{line}");
    }
}

/// A line for each process and the partitions it holds of a database; of those that somebody is to hold.
fn held_by<'a>(text: &mut String, title: &str, status: &'a Status, holder: impl Fn(&'a Partition) -> Option<(&'a str, &'a str)>) {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for held in status.partitions.iter().filter_map(holder) {
        *counts.entry(held).or_default() += 1;
    }
    for ((holder, database), count) in counts {
        let place = if database.is_empty() { String::new() } else { format!(" in {database}") };
        let holder = if holder.is_empty() { paint::red("nobody") } else { holder.to_owned() };
        let _ = writeln!(text, "{title:<6} {holder} of {count} partitions{place}");
    }
}

/// Of a copy, who makes it and where it ends stand for owner and relay.
fn cells(row: &Partition, is_copy: bool) -> [String; 9] {
    let (holder, relayed) = if is_copy { (&row.copier, row.copied) } else { (&row.owner, row.relayed) };
    [
        format!("{}/{}", row.region, row.partition),
        holder.clone(),
        row.database.clone(),
        row.epoch.to_string(),
        paint::thousands(row.head),
        paint::thousands(relayed),
        format!("{}{}", paint::thousands(row.projected), if row.rebuilding { " (rebuilding)" } else { "" }),
        if is_copy { "–".to_owned() } else { paint::thousands(row.saga) },
        row.parked.to_string(),
    ]
}
