use std::time::Duration;

use anyhow::Result;
use souk_event_sourcing::{LogId, Position};
use souk_read_store::{Checkpoint, ParkedQuery, Row, RowKey, Table, ViewStore};
use souk_views::{TABLES, comparable, is_marker};
use tokio::time::{Instant, sleep};

use super::{
    Sources,
    findings::Findings,
    log::walk_to,
    walk::{Parked, Walk},
};

const PAGE: usize = 1000;
const POLL: Duration = Duration::from_millis(100);

/// What stands still in the views of a log: its entities are compared up to there.
pub(super) async fn parked(sources: &Sources, log: LogId) -> Result<Parked> {
    // The time first: what is mended after it was read is noticed.
    let repaired = checkpoint(sources, log).await?.repaired;
    let entities = sources.views(log)?.parked_entities(ParkedQuery::all(&[log], usize::MAX >> 1)).await?;
    Ok(Parked { streams: entities.into_iter().map(|entity| (entity.stream, entity.parked.at)).collect(), repaired })
}

/// Every view row of a log against the fold of its events up to the rows' own checkpoint. Views that move meanwhile are
/// read again, the log walked on.
pub(super) async fn audit(sources: &Sources, log: LogId, walk: &mut Walk, found: &mut Findings) -> Result<()> {
    let deadline = Instant::now() + sources.settle;
    loop {
        let before = checkpoint(sources, log).await?;
        if before.position >= walk.position {
            let tables = read_all(sources, log).await?;
            let after = checkpoint(sources, log).await?;
            if (before.position, before.epoch) == (after.position, after.epoch) {
                walk_to(sources, log, walk, after.position, found).await?;
                if after.repaired != walk.parked.repaired {
                    found.differ(log, "view", "parked events were replayed or dropped during the audit; audit again");
                    return Ok(());
                }
                for (stream, at) in &walk.parked.streams {
                    found.park(log, format!("{stream} stands still in the views from {at} on"));
                }
                return compare(log, walk, &after, tables, found);
            }
        }
        if Instant::now() >= deadline {
            found.differ(log, "view", format!("the views stand at {}, the log at {}", before.position, walk.position));
            return Ok(());
        }
        sleep(POLL).await;
    }
}

pub(super) async fn checkpoint(sources: &Sources, log: LogId) -> Result<Checkpoint> {
    Ok(sources.read.checkpoint(log).await?)
}

pub(super) async fn read_all(sources: &Sources, log: LogId) -> Result<Vec<(&'static Table, Vec<Row>)>> {
    let views = sources.views(log)?;
    let mut tables = Vec::with_capacity(TABLES.len());
    for table in TABLES.iter().copied() {
        let mut rows: Vec<Row> = Vec::new();
        loop {
            let after: Option<RowKey> = rows.last().map(|row| row.key.clone());
            let page = views.scan(table, log, after.as_ref(), PAGE).await?;
            let last = page.rows.len() < PAGE;
            rows.extend(page.rows);
            if last {
                break;
            }
        }
        tables.push((table, rows));
    }
    Ok(tables)
}

fn compare(log: LogId, walk: &Walk, checkpoint: &Checkpoint, tables: Vec<(&'static Table, Vec<Row>)>, found: &mut Findings) -> Result<()> {
    if walk.position != checkpoint.position || (checkpoint.position > Position(0) && walk.hash != checkpoint.hash) {
        found.differ(log, "view", format!("the checkpoint {} is not a place in this log", checkpoint.position));
        return Ok(());
    }
    for (table, rows) in tables {
        found.count("view rows", rows.len() as u64);
        let rows = rows.into_iter().filter(|row| !is_marker(row));
        let wanted = walk.reference.rows(table);
        let mut wanted = wanted.into_iter().peekable();
        for row in rows {
            while let Some(missing) = wanted.next_if(|wanted| wanted.key < row.key) {
                found.differ(log, "view", format!("{} lacks {}", table.name, name(&missing.key)));
            }
            match wanted.next_if(|wanted| wanted.key == row.key) {
                Some(wanted) if comparable(table, wanted.clone()) == comparable(table, row.clone()) => {}
                Some(_) => found.differ(log, "view", format!("{} {} is not the fold of its events", table.name, name(&row.key))),
                None => found.differ(log, "view", format!("{} has {} of no event", table.name, name(&row.key))),
            }
        }
        for missing in wanted {
            found.differ(log, "view", format!("{} lacks {}", table.name, name(&missing.key)));
        }
    }
    Ok(())
}

pub(super) fn name(key: &RowKey) -> String {
    let parts: Vec<_> =
        key.key.iter().map(|value| value.as_text().map_or_else(|| value.as_int().unwrap_or_default().to_string(), str::to_owned)).collect();
    parts.join("/")
}
