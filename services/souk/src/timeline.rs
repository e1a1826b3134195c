//! `souk order timeline`: what happened to an order, and when it was decided and visible.

use std::{fmt::Write, time::SystemTime};

use anyhow::Result;
use souk_proto::orders::v1::{GetOrderTimelineRequest, TimelineEntry};

use crate::{
    paint::{self, say},
    system::Target,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The order
    #[arg(value_name = "ID")]
    order_id: String,
    /// One JSON object per event
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub async fn run(args: Args) -> Result<()> {
    let session = args.target.session("souk-order")?;
    let timeline = session.query(GetOrderTimelineRequest { order_id: args.order_id, token: String::new() }).await?;
    if args.json {
        for entry in &timeline.entries {
            say(json(entry));
        }
        return Ok(());
    }
    say(paint::bold(format!("order {}", timeline.order_id)));
    say(table(&timeline.entries).trim_end());
    Ok(())
}

/// The events of an order, one a line, each with the time since the one before and until its row was written.
fn table(entries: &[TimelineEntry]) -> String {
    let mut text = String::new();
    let header = format!("{:<12}  {:>10}  {:>12}  {:<20} {:<14} SUMMARY", "DECIDED", "AFTER", "IN VIEWS", "EVENT", "BY");
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", paint::dim(header));
    let mut before: Option<SystemTime> = None;
    for entry in entries {
        let (decided, projected) = (decided(entry), projected(entry));
        let after = match (before, decided) {
            (Some(before), Some(decided)) => format!("+{:.1} ms", paint::milliseconds(before, decided)),
            _ => String::new(),
        };
        let in_views = match (decided, projected) {
            (Some(decided), Some(projected)) => format!("{:.1} ms", paint::milliseconds(decided, projected)),
            _ => "–".to_owned(),
        };
        let time = decided.map(paint::clock).unwrap_or_default();
        let _ = writeln!(text, "{time:<12}  {after:>10}  {in_views:>12}  {:<20} {:<14} {}", entry.r#type, entry.actor, entry.summary);
        before = decided.or(before);
    }
    text
}

/// When the event was decided.
pub fn decided(entry: &TimelineEntry) -> Option<SystemTime> {
    entry.event_time.and_then(|time| time.try_into().ok())
}

/// When its row was written to the read store.
pub fn projected(entry: &TimelineEntry) -> Option<SystemTime> {
    entry.projected_time.and_then(|time| time.try_into().ok())
}

fn json(entry: &TimelineEntry) -> serde_json::Value {
    let time = |time: Option<SystemTime>| time.and_then(|time| jiff::Timestamp::try_from(time).ok()).map(|time| time.to_string());
    serde_json::json!({
        "type": entry.r#type,
        "version": entry.version,
        "position": entry.position,
        "summary": entry.summary,
        "event_time": time(decided(entry)),
        "projected_time": time(projected(entry)),
        "request_id": entry.request_id,
        "actor": entry.actor,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_event_shows_what_passed_before_and_after_it() {
        let at = |ms| Some(prost_types::Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)));
        let entry = |kind: &str, event: u64, projected: u64| TimelineEntry {
            r#type: kind.into(),
            event_time: at(event),
            projected_time: at(projected),
            actor: "shop".into(),
            summary: "done".into(),
            ..Default::default()
        };
        let text = table(&[entry("OrderPlaced", 1000, 1004), entry("OrderReserved", 1010, 1013)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["00:00:01.000", "4.0", "ms", "OrderPlaced", "shop", "done"]);
        assert!(lines[2].contains("+10.0 ms") && lines[2].contains("3.0 ms  OrderReserved"), "{text}");
    }
}
