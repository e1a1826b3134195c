use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Result;
use prost::Message;
use serde::Serialize;
use souk_bus::from_wire;
use souk_event_sourcing::{Position, RecordedEvent, UnixMillis};
use souk_event_store::{PostgresStore, Restored};
use souk_proto::log::v1::Event;

const PAGE: usize = 1000;
/// Lost events of one log that are told to a person.
const TOLD: usize = 10;

/// What was lost in all.
#[derive(Debug, Serialize)]
struct Losses {
    events: u64,
    /// Of which so many are kept, to be looked at.
    kept: u64,
    /// The latest first.
    logs: Vec<Loss>,
}

/// What one log lost when it went back.
#[derive(Debug, Serialize)]
struct Loss {
    /// As region/partition.
    log: String,
    /// The first position that was lost, and the last that is known of.
    from: u64,
    to: u64,
    /// Epoch of the last lost event, and the one under which the log went on.
    lost_epoch: u64,
    epoch: u64,
    found: String,
    found_by: String,
    events: Vec<LostEvent>,
}

#[derive(Debug, Serialize)]
struct LostEvent {
    position: u64,
    epoch: u64,
    stream: String,
    version: u64,
    r#type: String,
    event_id: String,
    request_id: Option<String>,
    actor: String,
    time: String,
}

/// Tells what was lost when logs went back.
pub(super) async fn tell(store: &PostgresStore, json: bool) -> Result<()> {
    let mut logs = Vec::new();
    for restored in store.restored().await? {
        logs.push(loss(store, &restored).await?);
    }
    let (events, kept) = (logs.iter().map(|loss| loss.to + 1 - loss.from).sum(), logs.iter().map(|loss| loss.events.len() as u64).sum());
    let losses = Losses { events, kept, logs };
    if json {
        println!("{}", serde_json::to_string(&losses)?);
    } else {
        report(&losses);
    }
    Ok(())
}

async fn loss(store: &PostgresStore, restored: &Restored) -> Result<Loss> {
    let mut events: Vec<LostEvent> = Vec::new();
    loop {
        let from = events.last().map_or(restored.fork.0, |event| event.position) + 1;
        let page = store.lost_events(restored, Position(from), PAGE).await?;
        let last = page.len() < PAGE;
        for envelope in page {
            events.push(LostEvent::of(&from_wire(Event::decode(envelope.as_slice())?)?));
        }
        if last {
            break;
        }
    }
    Ok(Loss {
        log: restored.log.to_string(),
        from: restored.fork.0 + 1,
        to: restored.lost.position.0,
        lost_epoch: restored.lost.epoch.0,
        epoch: restored.epoch.0,
        found: time(restored.found),
        found_by: restored.found_by.clone(),
        events,
    })
}

impl LostEvent {
    fn of(event: &RecordedEvent) -> Self {
        Self {
            position: event.position.0,
            epoch: event.epoch.0,
            stream: event.stream.to_string(),
            version: event.version.0,
            r#type: event.kind.clone(),
            event_id: event.event_id.0.to_string(),
            request_id: event.request_id.map(|request| request.0.to_string()),
            actor: event.actor.clone(),
            time: time(event.hlc.time()),
        }
    }
}

fn report(losses: &Losses) {
    if losses.logs.is_empty() {
        return println!("no log is known to have gone back");
    }
    for Loss { log, from, to, lost_epoch, epoch, found, found_by, events } in &losses.logs {
        println!("log {log} went back: {} events lost, {from} to {to} of epoch {lost_epoch}; goes on under {epoch}", to + 1 - from);
        println!("  found {found} by {found_by}; {} of them kept", events.len());
        for event in events.iter().take(TOLD) {
            let request = event.request_id.as_deref().unwrap_or("none");
            println!("  {:>8}  {:<20} {}@{}  request {request}", event.position, event.r#type, event.stream, event.version);
        }
        if events.len() > TOLD {
            println!("  … and {} more: --json has all", events.len() - TOLD);
        }
    }
    let requests: BTreeSet<_> = losses.logs.iter().flat_map(|loss| &loss.events).filter_map(|event| event.request_id.as_deref()).collect();
    let streams: BTreeSet<_> = losses.logs.iter().flat_map(|loss| &loss.events).map(|event| event.stream.as_str()).collect();
    println!(
        "{} events lost, {} of them kept: of {} requests, about {} entities",
        losses.events,
        losses.kept,
        requests.len(),
        streams.len()
    );
}

fn time(time: UnixMillis) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time.0.max(0) as u64)).to_string()
}
