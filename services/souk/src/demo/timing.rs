use std::{fmt::Write, time::SystemTime};

use souk_proto::orders::v1::TimelineEntry;

use super::stage::Moment;
use crate::{
    paint::{clock, dim, milliseconds},
    timeline::{decided, projected},
};

/// The events of the order: when their command was sent, and how long until they were decided, written to the views
/// and visible to a reader. `reserved` is when a watch showed the reservation, which no command of ours asked for.
pub fn table(entries: &[TimelineEntry], moments: &[Moment], reserved: SystemTime) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        text,
        "{}",
        dim(format!("{:<16} {:<13} {:>8} {:>8} {:>8} {:>8}  WHAT", "EVENT", "COMMAND SENT", "→ EVENT", "→ VIEWS", "→ SEEN", "TOTAL"))
    );
    for entry in entries {
        let moment = moments.iter().find(|moment| moment.request_id == entry.request_id);
        let (decided, projected) = (decided(entry), projected(entry));
        let visible = moment.map(|moment| moment.visible).or_else(|| (entry.r#type == "OrderReserved").then_some(reserved));
        let sent = moment.map(|moment| moment.sent);
        let _ = writeln!(
            text,
            "{:<16} {:<13} {:>8} {:>8} {:>8} {:>8}  {}",
            entry.r#type,
            sent.map_or_else(|| format!("({})", entry.actor), clock),
            step(sent, decided),
            step(decided, projected),
            step(projected, visible),
            step(sent.or(decided), visible),
            dim(&entry.summary),
        );
    }
    let mean = mean(moments, |moment| (moment.sent, moment.replied));
    let _ = writeln!(
        text,
        "{}",
        dim(format!(
            "{} commands, answered after {mean:.1} ms on average. Events and views keep whole milliseconds; seen is when the read with\nthe command's token came back, which is asked only after the command was answered.",
            moments.len()
        ))
    );
    text
}

/// Mean of the milliseconds between two times of each moment.
pub fn mean(moments: &[Moment], between: impl Fn(&Moment) -> (SystemTime, SystemTime)) -> f64 {
    let times = moments.iter().map(between).map(|(from, to)| milliseconds(from, to));
    times.sum::<f64>() / moments.len().max(1) as f64
}

/// The milliseconds between two moments. Whole milliseconds beside finer clocks may seem to go back: that is 0.
fn step(from: Option<SystemTime>, to: Option<SystemTime>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => format!("{:.1}", milliseconds(from, to).max(0.0)),
        _ => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_table_tells_each_stage_of_each_event() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let entry = |kind: &str, request_id: &str, event: u64, written: u64| TimelineEntry {
            r#type: kind.into(),
            request_id: request_id.into(),
            event_time: Some(at(event).into()),
            projected_time: Some(at(written).into()),
            actor: "saga".into(),
            ..Default::default()
        };
        let moments = [Moment { request_id: "r1".into(), sent: at(1000), replied: at(1003), visible: at(1008) }];
        let entries = [entry("OrderPlaced", "r1", 1001, 1004), entry("OrderReserved", "r2", 1010, 1015)];
        let text = table(&entries, &moments, at(1020));
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["OrderPlaced", "00:00:01.000", "1.0", "3.0", "4.0", "8.0"]);
        assert_eq!(lines[2], ["OrderReserved", "(saga)", "–", "5.0", "5.0", "10.0"]);
    }
}
