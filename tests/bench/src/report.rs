//! `report.html`: what `summary.json` says, for the eye. One file that needs nothing else.

use std::fmt::Write;

use serde_json::{Map, Value};

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 260.0;
/// Room for the scales.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
const COLOURS: [&str; 4] = ["#1668b8", "#c4571b", "#2f8a4c", "#7a4fa3"];

/// The page about a summary.
pub fn page(summary: &Map<String, Value>) -> String {
    let mut entries: Vec<_> = summary.iter().collect();
    entries.sort_by_key(|(name, _)| (name.strip_prefix('B').and_then(|number| number.parse().ok()).unwrap_or(u32::MAX), name.as_str()));
    let mut page = String::from(HEAD);
    table(&mut page, &entries);
    page.push_str(
        "<h2>Ratios</h2><p>Each pair a dot, the median a stroke, all over the goal: the line at 1. Of those marked ≤ less is better.</p>",
    );
    ratios(&mut page, &entries);
    for (name, entry) in &entries {
        if let Some(latencies) = entry["latencies_us"].as_object().filter(|latencies| !latencies.is_empty()) {
            let _ = write!(page, "<h2>{name}: latencies by percentile</h2><p>{}</p>", escaped(&entry["note"]));
            distributions(&mut page, latencies);
        }
        if let Some(seconds) = entry["over_time"].as_array().filter(|seconds| seconds.len() > 1) {
            let _ = write!(page, "<h2>{name}: second by second</h2>");
            over_time(&mut page, seconds);
        }
    }
    page.push_str("</body></html>\n");
    page
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Souk: benchmarks</title><style>\
    body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#222}\
    h1,h2{font-weight:600}h2{margin-top:2.2rem}table{border-collapse:collapse;width:100%}\
    td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}\
    .met{color:#1d7a3a}.missed{color:#b3261e;font-weight:600}.open{color:#777}small{color:#666}\
    svg{width:100%;height:auto;background:#fbfbfb}svg text{font:11px system-ui,sans-serif;fill:#555}\
    .grid{stroke:#e2e2e2}.goal{stroke:#999;stroke-dasharray:4 3}</style></head><body><h1>Souk: benchmarks</h1>";

fn table(page: &mut String, entries: &[(&String, &Value)]) {
    page.push_str("<table><tr><th></th><th>ratio</th><th>spread</th><th>goal</th><th></th><th>what</th></tr>");
    for (name, entry) in entries {
        let (class, verdict) = match (&entry["met"], &entry["too_noisy"], entry["goal"].as_str()) {
            (_, _, Some("")) => ("open", "on record"),
            (Value::Bool(true), ..) => ("met", "met"),
            (Value::Bool(false), ..) => ("missed", "not met"),
            _ => ("open", "too noisy"),
        };
        let figures: Vec<_> = entry["figures"].as_object().into_iter().flatten().map(|(name, value)| format!("{name} = {value}")).collect();
        let failed = entry["also"].as_object().into_iter().flatten().filter(|(_, holds)| **holds == Value::Bool(false));
        let run = match entry["run"].as_str() {
            None | Some("full") => String::new(),
            Some(run) => format!(" ({run} run)"),
        };
        let failed: String = failed.map(|(what, _)| format!("<br><span class=missed>not: {}</span>", escape(what))).collect();
        let _ = write!(
            page,
            "<tr><td>{name}</td><td class=n>{:.3}</td><td class=n>{:.2}–{:.2}</td><td>{}</td><td class={class}>{verdict}</td>\
             <td>{}{run}{failed}<br><small>{}</small></td></tr>",
            number(&entry["ratio"]),
            number(&entry["min"]),
            number(&entry["max"]),
            escaped(&entry["goal"]),
            escaped(&entry["note"]),
            escape(&figures.join(", ")),
        );
    }
    page.push_str("</table>");
}

/// Every pair of every ratio with a goal, over that goal.
fn ratios(page: &mut String, entries: &[(&String, &Value)]) {
    let with_goal: Vec<_> = entries.iter().filter_map(|(name, entry)| Some((name, entry, goal(entry)?))).collect();
    let height = TOP + BOTTOM + 22.0 * with_goal.len() as f64;
    let all = with_goal.iter().flat_map(|(_, entry, goal)| [number(&entry["max"]) / goal, 1.2]);
    let most = all.fold(0.0, f64::max).min(3.0);
    let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * (value / most).clamp(0.0, 1.0);
    open(page, height);
    line(page, "goal", (x(1.0), TOP), (x(1.0), height - BOTTOM));
    for step in 0..=(most / 0.5) as usize {
        let value = step as f64 * 0.5;
        line(page, "grid", (x(value), TOP), (x(value), height - BOTTOM));
        text(page, (x(value), height - BOTTOM + 16.0), "middle", &format!("{value}"));
    }
    for (row, (name, entry, goal)) in with_goal.iter().enumerate() {
        let y = TOP + 22.0 * row as f64 + 11.0;
        let sign = entry["goal"].as_str().and_then(|goal| goal.chars().next()).unwrap_or(' ');
        text(page, (LEFT - 8.0, y + 4.0), "end", &format!("{name} {sign}"));
        for pair in entry["pairs"].as_array().into_iter().flatten() {
            let _ = write!(page, "<circle cx={:.1} cy={y} r=4 fill=\"{}\" fill-opacity=.45 />", x(number(pair) / goal), COLOURS[0]);
        }
        let median = x(number(&entry["ratio"]) / goal);
        let _ = write!(page, "<path d=\"M{median:.1} {:.1}v16\" stroke=\"{}\" stroke-width=2.5 />", y - 8.0, COLOURS[1]);
    }
    page.push_str("</svg>");
}

/// The number in a goal such as `≥ 0.9`.
fn goal(entry: &Value) -> Option<f64> {
    entry["goal"].as_str()?.rsplit(' ').next()?.parse().ok()
}

/// Latencies on a logarithmic scale over percentiles, each nine as wide as the one before.
fn distributions(page: &mut String, latencies: &Map<String, Value>) {
    const NINES: f64 = 5.0;
    let points = |value: &Value| -> Vec<(f64, f64)> {
        let pairs = value.as_array().into_iter().flatten().map(|point| (number(&point[0]), number(&point[1]).max(1.0)));
        pairs.map(|(share, micros)| ((-(1.0 - share).max(1e-5).log10()).min(NINES), micros.log10())).collect()
    };
    let all: Vec<_> = latencies.values().flat_map(points).collect();
    let low = all.iter().map(|(_, log)| *log).fold(f64::MAX, f64::min).floor();
    let high = all.iter().map(|(_, log)| *log).fold(0.0, f64::max).ceil().max(low + 1.0);
    let scale = Scale { x: (0.0, NINES), y: (low, high) };
    open(page, HEIGHT);
    for nines in 0..=NINES as i32 {
        let label = if nines == 0 { "0 %".to_owned() } else { format!("{} %", 100.0 - 100.0 * 10f64.powi(-nines)) };
        scale.vertical(page, f64::from(nines), &label);
    }
    for power in low as i32..=high as i32 {
        let micros = 10f64.powi(power);
        let label = if micros >= 1000.0 { format!("{} ms", micros / 1000.0) } else { format!("{micros} µs") };
        scale.horizontal(page, f64::from(power), &label);
    }
    for (index, (name, value)) in latencies.iter().enumerate() {
        scale.curve(page, &points(value), index, name);
    }
    page.push_str("</svg>");
}

/// Answers of each second, and their p99.
fn over_time(page: &mut String, seconds: &[Value]) {
    let column = |index: usize| seconds.iter().map(move |second| (number(&second[0]), number(&second[index])));
    let last = column(1).map(|(at, _)| at).fold(1.0, f64::max);
    for (index, unit) in [(1, "answers/s"), (2, "p99 in ms")] {
        let points: Vec<_> = column(index).collect();
        let most = points.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
        let scale = Scale { x: (0.0, last), y: (0.0, most) };
        open(page, HEIGHT);
        for step in 0..=4 {
            let share = f64::from(step) / 4.0;
            scale.horizontal(page, most * share, &format!("{:.*}", usize::from(most < 40.0), most * share));
            scale.vertical(page, last * share, &format!("{:.0} s", last * share));
        }
        scale.curve(page, &points, index - 1, unit);
        page.push_str("</svg>");
    }
}

/// What lies at the edges of a plot.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

impl Scale {
    fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x.0) / (self.x.1 - self.x.0)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y.0) / (self.y.1 - self.y.0)
    }

    fn vertical(&self, page: &mut String, at: f64, label: &str) {
        line(page, "grid", (self.x(at), TOP), (self.x(at), HEIGHT - BOTTOM));
        text(page, (self.x(at), HEIGHT - BOTTOM + 16.0), "middle", label);
    }

    fn horizontal(&self, page: &mut String, at: f64, label: &str) {
        line(page, "grid", (LEFT, self.y(at)), (WIDTH - RIGHT, self.y(at)));
        text(page, (LEFT - 6.0, self.y(at) + 4.0), "end", label);
    }

    fn curve(&self, page: &mut String, points: &[(f64, f64)], index: usize, name: &str) {
        let colour = COLOURS[index % COLOURS.len()];
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{:.1} {:.1}", self.x(*x), self.y(*y))).collect();
        let _ = write!(page, "<path d=\"M{}\" fill=none stroke=\"{colour}\" stroke-width=2 />", path.join("L"));
        let y = TOP + 14.0 + 15.0 * index as f64;
        let _ = write!(page, "<text x={} y={y} style=\"fill:{colour}\">{}</text>", LEFT + 10.0, escape(name));
    }
}

fn open(page: &mut String, height: f64) {
    let _ = write!(page, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=img>");
}

fn line(page: &mut String, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    let _ = write!(page, "<path class={class} d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" />");
}

fn text(page: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let _ = write!(page, "<text x={x:.1} y={y:.1} text-anchor={anchor}>{}</text>", escape(text));
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn escaped(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_entry_is_in_the_table_and_its_curves_are_drawn() {
        let summary = json!({
            "B10": {"ratio": 1.2, "min": 1.0, "max": 1.4, "pairs": [1.0, 1.4], "goal": "≤ 1.5", "met": true, "note": "a < b", "figures": {"x": 1.0}},
            "B3": {"ratio": 1.1, "min": 1.1, "max": 1.1, "pairs": [1.1], "goal": "≤ 1.2", "met": null, "too_noisy": true,
                "latencies_us": {"hits": [[0.0, 10.0], [0.5, 20.0], [0.99, 100.0], [1.0, 3000.0]]},
                "over_time": [[1.0, 100, 2.5], [2.0, 110, 2.6]]},
        });
        let page = page(summary.as_object().unwrap());
        let (third, tenth) = (page.find("<td>B3<").unwrap(), page.find("<td>B10<").unwrap());
        assert!(third < tenth, "in order of number");
        assert!(page.contains("a &lt; b") && page.contains("too noisy") && page.contains("x = 1.0"));
        assert_eq!(page.matches("<svg").count(), 4, "ratios, one distribution, answers and p99 over time");
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
