use std::collections::HashMap;

use anyhow::Result;
use futures::StreamExt;
use prost::Message;
use souk_event_sourcing::{LogHash, LogId, Position, RequestId, UnixMillis, Version};
use souk_event_store::{Copies, EventLog};
use souk_proto::log::v1::{StoredReply, stored_reply::Outcome};
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{PAGE, Part, Sources, findings::Findings, messages, views, walk::Walk};

/// Everything that can be said of one log.
pub(super) async fn audit(sources: &Sources, log: LogId, part: Part) -> Result<Findings> {
    let mut found = Findings::default();
    let head = sources.write.head(log).await?.position;
    if log.region != sources.region {
        if head == Position(0) {
            // A copy has no head before its first event.
            return Ok(found);
        }
        found.count("copies", 1);
    }
    let before = part.before(head);
    let hash = match before.0 {
        0 => LogHash::EMPTY,
        _ => sources.write.read(log, before, 1).await?.first().map_or(LogHash::EMPTY, |event| event.hash),
    };
    if head < before {
        return Ok(found);
    }
    let mut walk = Walk::new(log, before, hash, views::parked(sources, log).await?);
    heads(sources, log, &mut walk, &mut found).await?;
    ledger(sources, log, &mut walk, &mut found).await?;
    messages::audit(sources, log, before.next(), &walk, &mut found).await?;
    if walk.is_whole() {
        found.count("whole logs", 1);
        views::audit(sources, log, &mut walk, &mut found).await?;
    }
    Ok(found)
}

/// Walks on to `end`, or to where the log ends.
pub(super) async fn walk_to(sources: &Sources, log: LogId, walk: &mut Walk, end: Position, found: &mut Findings) -> Result<()> {
    while walk.position < end {
        let wanted = PAGE.min((end.0 - walk.position.0) as usize);
        let events = sources.write.read(log, walk.position.next(), wanted).await?;
        if events.is_empty() {
            found.differ(log, "position", format!("the log ends at {}, its head says {end}", walk.position));
            return Ok(());
        }
        events.iter().for_each(|event| walk.step(event, found));
        sources.progress.add(events.len() as u64);
    }
    Ok(())
}

/// Partition head and stream heads, as one snapshot sees them, against the walked events.
async fn heads(sources: &Sources, log: LogId, walk: &mut Walk, found: &mut Findings) -> Result<()> {
    let pool = sources.write.pool_of(log.partition).ok_or_else(|| anyhow::anyhow!("log {log} is not placed"))?;
    let rows = sqlx::query(
        "select h.position, h.hash, s.stream, s.version from partition_head h \
         left join stream_head s on s.region = h.region and s.partition = h.partition where h.region = $1 and h.partition = $2",
    )
    .bind(log.region.0 as i16)
    .bind(i32::from(log.partition.0))
    .fetch_all(pool)
    .await?;
    let Some(head) = rows.first() else {
        found.differ(log, "head", "the log has no head");
        return Ok(());
    };
    let (position, hash): (i64, Vec<u8>) = (head.try_get("position")?, head.try_get("hash")?);
    walk_to(sources, log, walk, Position(position as u64), found).await?;
    if walk.position.0 as i64 == position && walk.hash.0.as_slice() != hash {
        found.differ(log, "head", format!("the head's hash is not that of event {position}"));
    }
    if !walk.is_whole() {
        return Ok(());
    }
    let mut walked = walk.streams.clone();
    for row in &rows {
        let (Some(stream), Some(version)) = (row.try_get::<Option<String>, _>("stream")?, row.try_get::<Option<i64>, _>("version")?) else {
            continue;
        };
        found.count("streams", 1);
        let events = stream.parse().ok().and_then(|stream| walked.remove(&stream)).unwrap_or_default();
        if events != Version(version as u64) {
            found.differ(log, "stream head", format!("{stream} is said to be at {version}, its events end at {events}"));
        }
    }
    for (stream, version) in walked {
        found.differ(log, "stream head", format!("{stream} has {version} events and no head"));
    }
    Ok(())
}

/// Every remembered reply against the events of its request, and the other way round; of a part of the log, the replies to its requests.
async fn ledger(sources: &Sources, log: LogId, walk: &mut Walk, found: &mut Findings) -> Result<()> {
    let pool = sources.write.pool_of(log.partition).ok_or_else(|| anyhow::anyhow!("log {log} is not placed"))?;
    let mut events = std::mem::take(&mut walk.requests);
    if walk.is_whole() {
        let mut rows = sqlx::query("select request_id, reply from ledger where region = $1 and partition = $2")
            .bind(log.region.0 as i16)
            .bind(i32::from(log.partition.0))
            .fetch(pool);
        while let Some(row) = rows.next().await {
            reply(&row?, walk, &mut events, found)?;
        }
    } else {
        let requests: Vec<_> = events.keys().map(|request| request.0).collect();
        for page in requests.chunks(PAGE) {
            let rows = sqlx::query("select request_id, reply from ledger where region = $1 and partition = $2 and request_id = any($3)")
                .bind(log.region.0 as i16)
                .bind(i32::from(log.partition.0))
                .bind(page)
                .fetch_all(pool)
                .await?;
            rows.iter().try_for_each(|row| reply(row, walk, &mut events, found))?;
        }
    }
    // What another region has lent comes without its replies, which the origin adds.
    let unproven = if log.region == sources.region { None } else { sources.write.unproven(log).await? };
    let now = UnixMillis::now();
    for (request, (last, recorded)) in events {
        let lent = unproven.is_some_and(|proven| last > proven);
        if !lent && sources.retention.holds(request, recorded, now) {
            found.differ(log, "ledger", format!("{}: event {last} is its, but no reply is remembered", request.0));
        }
    }
    Ok(())
}

/// One remembered reply against the last event of its request, which is taken out of `events`.
fn reply(row: &PgRow, walk: &Walk, events: &mut HashMap<RequestId, (Position, UnixMillis)>, found: &mut Findings) -> Result<()> {
    let (request, reply): (Uuid, Vec<u8>) = (row.try_get("request_id")?, row.try_get("reply")?);
    let led_to = events.remove(&RequestId(request)).map(|(last, _)| last);
    found.count("replies", 1);
    match StoredReply::decode(reply.as_slice()).map(|reply| reply.outcome) {
        Ok(Some(Outcome::Accepted(accepted))) => match led_to {
            _ if accepted.position > walk.position.0 => {}
            Some(last) if last.0 == accepted.position => {}
            Some(last) => found.differ(
                walk.log,
                "ledger",
                format!("{request}: answered with position {}, its last event is {last}", accepted.position),
            ),
            None => {}
        },
        Ok(Some(Outcome::Refused(refused))) => {
            if let Some(last) = led_to {
                found.differ(walk.log, "ledger", format!("{request}: refused with {}, yet event {last} is its", refused.reason));
            }
        }
        _ => found.differ(walk.log, "ledger", format!("{request}: its reply cannot be read")),
    }
    Ok(())
}
