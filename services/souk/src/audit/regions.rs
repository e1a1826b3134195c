use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use souk_event_sourcing::{LogHash, LogId, Position};
use souk_event_store::{EventLog, Head};
use souk_read_store::{Checkpoint, Row, Table};
use souk_runtime::Settings;
use souk_views::{comparable, is_marker};
use tokio::time::{Instant, sleep};

use super::{
    Args, Sources,
    findings::Findings,
    one_region,
    views::{checkpoint, name, parked, read_all},
};

const POLL: Duration = Duration::from_millis(100);

/// A region and what is compared of it.
struct Place {
    name: String,
    sources: Sources,
}

/// The rows of a log in all tables of one region.
type Rows = Vec<(&'static Table, Vec<Row>)>;

/// All regions: that copies have what their origins had when this began, then each region by itself, then copies against their
/// origins and the views of all regions against each other. Names of the regions beside what was found.
///
/// # Errors
/// When a region cannot be reached.
pub(super) async fn audit(settings: &[Settings], args: &Args) -> Result<(Findings, Vec<String>)> {
    let mut places = Vec::new();
    for settings in settings {
        let sources = Sources::open(settings, args.settle, args.shows_progress()).await?;
        places.push(Place { name: settings.installation.region.clone(), sources });
    }
    let mut found = Findings::default();
    let mut logs = BTreeSet::new();
    for place in &places {
        // Each region's own audit tells what it lacks.
        logs.extend(place.sources.logs(&mut Findings::default()).await?);
    }
    let deadline = Instant::now() + args.settle;
    let compare = |logs: BTreeSet<LogId>| stream::iter(logs);
    let all = compare(logs.clone()).map(|log| copies(&places, log, deadline)).buffer_unordered(args.parallel.get());
    found.add(all.try_fold(Findings::default(), summed).await?);
    for place in &places {
        found.add(one_region(&place.sources, args).await?.of(&place.name));
    }
    let deadline = Instant::now() + args.settle;
    let all = compare(logs).map(|log| views(&places, log, deadline)).buffer_unordered(args.parallel.get());
    found.add(all.try_fold(Findings::default(), summed).await?);
    for place in &places {
        place.sources.close().await;
    }
    Ok((found, places.into_iter().map(|place| place.name).collect()))
}

async fn summed(mut all: Findings, one: Findings) -> Result<Findings> {
    all.add(one);
    Ok(all)
}

/// Every copy of a log against its origin, at the position where the copy ends; one that lags has until `deadline`.
async fn copies(places: &[Place], log: LogId, deadline: Instant) -> Result<Findings> {
    let mut found = Findings::default();
    let Some(origin) = places.iter().find(|place| place.sources.region == log.region) else {
        // A region of the topology that is not looked at.
        found.count("logs without their origin", 1);
        return Ok(found);
    };
    let wanted = origin.sources.write.head(log).await?.position;
    for place in places.iter().filter(|place| place.sources.region != log.region) {
        let copy = reached(place, log, wanted, deadline).await?;
        let label = format!("{}: {log}", place.name);
        if copy.position < wanted {
            found.differ(&label, "copy", format!("the copy ends at {}, the log in {} at {wanted}", copy.position, origin.name));
        }
        match hash_at(origin, log, copy.position).await? {
            None => {
                found.differ(&label, "copy", format!("the copy ends at {}, beyond the log in {}", copy.position, origin.name));
            }
            Some(hash) if hash != copy.hash => {
                found.differ(&label, "copy", format!("the copy up to {} is not the log in {}", copy.position, origin.name));
            }
            Some(_) => found.count("copies equal to their origin", 1),
        }
    }
    Ok(found)
}

/// Where a copy ends when it has come as far as `wanted`, or when time is up.
async fn reached(place: &Place, log: LogId, wanted: Position, deadline: Instant) -> Result<Head> {
    loop {
        let head = place.sources.write.head(log).await?;
        if head.position >= wanted || Instant::now() >= deadline {
            return Ok(head);
        }
        sleep(POLL).await;
    }
}

/// Running hash of a log at a position; `None` beyond its end.
async fn hash_at(place: &Place, log: LogId, at: Position) -> Result<Option<LogHash>> {
    if at == Position(0) {
        return Ok(Some(LogHash::EMPTY));
    }
    let event = place.sources.write.read(log, at, 1).await?.pop();
    Ok(event.filter(|event| event.position == at).map(|event| event.hash))
}

/// The view rows of a log in every region, when all stand at the same position of it. Logs that move all the time are each
/// proved against their events alone.
async fn views(places: &[Place], log: LogId, deadline: Instant) -> Result<Findings> {
    let mut found = Findings::default();
    let holding: Vec<_> = places.iter().filter(|place| place.sources.read.logs().any(|placed| placed == log)).collect();
    for place in &holding {
        if !parked(&place.sources, log).await?.streams.is_empty() {
            // Entities stand still there at another version, which the audit of that region tells.
            found.count("logs with parked entities, not compared", 1);
            return Ok(found);
        }
    }
    loop {
        let before = checkpoints(&holding, log).await?;
        if agree(&before) {
            let rows = try_join_all(holding.iter().map(|place| read_all(&place.sources, log))).await?;
            if places_of(&checkpoints(&holding, log).await?) == places_of(&before) {
                compare(&holding, log, rows, &mut found);
                return Ok(found);
            }
        }
        if Instant::now() >= deadline {
            found.count("logs that moved, not compared", 1);
            return Ok(found);
        }
        sleep(POLL).await;
    }
}

async fn checkpoints(places: &[&Place], log: LogId) -> Result<Vec<Checkpoint>> {
    try_join_all(places.iter().map(|place| checkpoint(&place.sources, log))).await
}

fn places_of(checkpoints: &[Checkpoint]) -> Vec<(Position, LogHash)> {
    checkpoints.iter().map(|checkpoint| (checkpoint.position, checkpoint.hash)).collect()
}

/// Whether all views stand at the same place.
fn agree(checkpoints: &[Checkpoint]) -> bool {
    places_of(checkpoints).windows(2).all(|pair| pair[0] == pair[1])
}

/// The rows of each region against those of the first.
fn compare(places: &[&Place], log: LogId, rows: Vec<Rows>, found: &mut Findings) {
    let mut all = places.iter().zip(rows);
    let Some((first, wanted)) = all.next() else { return };
    for (place, rows) in all {
        for ((table, wanted), (_, rows)) in wanted.iter().zip(rows) {
            found.count("view rows of two regions", rows.len() as u64);
            let label = format!("{}: {log}", place.name);
            for what in differences(table, wanted.clone(), rows) {
                found.differ(&label, "views", format!("{} {what} in {}", table.name, first.name));
            }
        }
    }
}

/// What is not the same in two tables.
fn differences(table: &Table, wanted: Vec<Row>, rows: Vec<Row>) -> Vec<String> {
    let plain = |rows: Vec<Row>| rows.into_iter().filter(|row| !is_marker(row)).map(|row| comparable(table, row)).collect::<Vec<_>>();
    let (wanted, rows) = (plain(wanted), plain(rows));
    let mut differences = Vec::new();
    let mut wanted = wanted.into_iter().peekable();
    for row in rows {
        while let Some(missing) = wanted.next_if(|wanted| wanted.key < row.key) {
            differences.push(format!("lacks {}, which is", name(&missing.key)));
        }
        match wanted.next_if(|wanted| wanted.key == row.key) {
            Some(wanted) if wanted == row => {}
            Some(_) => differences.push(format!("{} is not as", name(&row.key))),
            None => differences.push(format!("has {}, which is not", name(&row.key))),
        }
    }
    differences.extend(wanted.map(|missing| format!("lacks {}, which is", name(&missing.key))));
    differences
}
