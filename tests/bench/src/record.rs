use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use souk_load::{Histogram, Second};

use crate::{
    effort::Effort,
    pairs::{Ratios, Side, median_of},
    report,
};

/// What is wanted of a ratio.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Exactly(f64),
    None,
}

/// The outcome of one benchmark.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: &'static str,
    pub ratios: Ratios,
    pub goal: Goal,
    pub note: String,
    /// Absolute figures of both sides, with units in their names.
    pub figures: Map<String, Value>,
    /// What must hold besides; all of it was looked at.
    pub also: Vec<(String, bool)>,
    /// Latencies by percentile, by what took them.
    pub latencies: Map<String, Value>,
    /// Second by second.
    pub over_time: Vec<Value>,
}

/// Of every distribution kept.
const QUANTILES: [f64; 14] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 1.0];

impl Entry {
    pub fn new(name: &'static str, ratios: Vec<f64>, goal: Goal, note: impl Into<String>) -> Self {
        Self {
            name,
            ratios: Ratios::of(ratios),
            goal,
            note: note.into(),
            figures: Map::new(),
            also: Vec::new(),
            latencies: Map::new(),
            over_time: Vec::new(),
        }
    }

    /// Something to be known that nobody set a goal for.
    pub fn on_record(name: &'static str, value: f64, note: impl Into<String>) -> Self {
        Self::new(name, vec![value], Goal::None, note)
    }

    #[must_use]
    pub fn figure(mut self, name: &str, value: f64) -> Self {
        // Four digits say all that such a measurement knows.
        let rounded = format!("{value:.4e}").parse::<f64>().unwrap_or(value);
        self.figures.insert(name.to_owned(), json!(rounded));
        self
    }

    /// The medians of both sides under their names.
    #[must_use]
    pub fn sides(mut self, names: [&str; 2], pairs: &[(Side, Side)]) -> Self {
        for (name, side) in names.into_iter().zip([0, 1]) {
            let of = |value: fn(&Side) -> f64| median_of(pairs.iter().map(|(a, b)| value([a, b][side])));
            self =
                self.figure(&format!("{name}_per_second"), of(|side| side.rate)).figure(&format!("{name}_cpu_us"), of(|side| side.cpu_us));
        }
        self
    }

    #[must_use]
    pub fn also(mut self, what: impl Into<String>, holds: bool) -> Self {
        self.also.push((what.into(), holds));
        self
    }

    /// Keeps how long calls took, for the report.
    #[must_use]
    pub fn latencies(mut self, of: &str, histogram: &Histogram) -> Self {
        let micros = |share: f64| (histogram.quantile(share).as_secs_f64() * 1e7).round() / 10.0;
        self.latencies.insert(of.to_owned(), QUANTILES.iter().map(|share| json!([share, micros(*share)])).collect());
        self
    }

    /// Keeps what was answered second by second, for the report.
    #[must_use]
    pub fn over_time(mut self, seconds: &[Second]) -> Self {
        let second = |second: &Second| json!([second.at.as_secs_f64(), second.ok, second.p99.as_secs_f64() * 1e3]);
        self.over_time = seconds.iter().map(second).collect();
        self
    }

    /// `None` when the run was too noisy to say, or there is no goal.
    pub fn met(&self) -> Option<bool> {
        let also = self.also.iter().all(|(_, holds)| *holds);
        let ratio = self.ratios.median;
        let met = match self.goal {
            Goal::None => return None,
            Goal::Exactly(wanted) => self.ratios.all.iter().all(|ratio| (ratio - wanted).abs() < f64::EPSILON),
            _ if self.ratios.too_noisy() => return None,
            Goal::AtLeast(wanted) => ratio >= wanted,
            Goal::AtMost(wanted) => ratio <= wanted,
        };
        Some(met && also)
    }

    fn verdict(&self) -> &'static str {
        match self.met() {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None if matches!(self.goal, Goal::None) => "on record",
            None => "too noisy",
        }
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Goal::AtLeast(wanted) => format!("≥ {wanted}"),
            Goal::AtMost(wanted) => format!("≤ {wanted}"),
            Goal::Exactly(wanted) => format!("= {wanted}"),
            Goal::None => String::new(),
        }
    }

    fn json(&self) -> Value {
        let Ratios { all, median, min, max } = &self.ratios;
        let also: BTreeMap<_, _> = self.also.iter().cloned().collect();
        let noisy = self.ratios.too_noisy();
        json!({
            "ratio": median, "min": min, "max": max, "pairs": all, "goal": self.goal_text(), "met": self.met(), "too_noisy": noisy,
            "note": self.note, "also": also, "figures": self.figures,
            "latencies_us": self.latencies, "over_time": self.over_time,
        })
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let Ratios { median, min, max, all } = &self.ratios;
        let spread = if all.len() > 1 { format!("{min:.2}–{max:.2}") } else { String::new() };
        let failed: Vec<_> = self.also.iter().filter(|(_, holds)| !holds).map(|(what, _)| format!("; not: {what}")).collect();
        format!(
            "{:<5} {median:>7.3}  {spread:<11} {:<8} {:<9} {}{}",
            self.name,
            self.goal_text(),
            self.verdict(),
            self.note,
            failed.concat()
        )
    }
}

/// Adds outcomes to those of earlier runs of other numbers, each marked with the kind of its run, and draws the report of all.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, effort: Effort, entries: &[Entry]) -> Result<()> {
    fs::create_dir_all(folder)?;
    let file = folder.join("summary.json");
    let mut summary: Map<String, Value> =
        fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    for entry in entries {
        let mut json = entry.json();
        json["run"] = effort.name().into();
        summary.insert(entry.name.to_owned(), json);
    }
    fs::write(&file, serde_json::to_string_pretty(&summary)?).with_context(|| file.display().to_string())?;
    let page = folder.join("report.html");
    fs::write(&page, report::page(&summary)).with_context(|| page.display().to_string())
}

/// Says what is measured now.
pub fn progress(text: &str) {
    let mut out = std::io::stderr();
    let _ = writeln!(out, "      {text}");
}
