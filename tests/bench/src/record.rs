use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::pairs::Ratios;

/// What is wanted of a ratio.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Exactly(f64),
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
}

impl Entry {
    pub fn new(name: &'static str, ratios: Vec<f64>, goal: Goal, note: impl Into<String>) -> Self {
        Self { name, ratios: Ratios::of(ratios), goal, note: note.into(), figures: Map::new(), also: Vec::new() }
    }

    #[must_use]
    pub fn figure(mut self, name: &str, value: f64) -> Self {
        // Four digits say all that such a measurement knows.
        let rounded = format!("{value:.4e}").parse::<f64>().unwrap_or(value);
        self.figures.insert(name.to_owned(), json!(rounded));
        self
    }

    #[must_use]
    pub fn also(mut self, what: impl Into<String>, holds: bool) -> Self {
        self.also.push((what.into(), holds));
        self
    }

    /// `None` when the run was too noisy to say.
    pub fn met(&self) -> Option<bool> {
        let also = self.also.iter().all(|(_, holds)| *holds);
        let ratio = self.ratios.median;
        match self.goal {
            _ if !also => Some(false),
            Goal::Exactly(wanted) => Some(self.ratios.all.iter().all(|ratio| (ratio - wanted).abs() < f64::EPSILON)),
            _ if self.ratios.too_noisy() => None,
            Goal::AtLeast(wanted) => Some(ratio >= wanted),
            Goal::AtMost(wanted) => Some(ratio <= wanted),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.met() {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "too noisy",
        }
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Goal::AtLeast(wanted) => format!("≥ {wanted}"),
            Goal::AtMost(wanted) => format!("≤ {wanted}"),
            Goal::Exactly(wanted) => format!("= {wanted}"),
        }
    }

    fn json(&self) -> Value {
        let Ratios { all, median, min, max } = &self.ratios;
        let also: BTreeMap<_, _> = self.also.iter().cloned().collect();
        let noisy = self.ratios.too_noisy();
        json!({
            "ratio": median, "min": min, "max": max, "pairs": all, "goal": self.goal_text(), "met": self.met(), "too_noisy": noisy,
            "note": self.note, "also": also, "figures": self.figures,
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

/// Adds outcomes to those of earlier runs of other numbers.
///
/// # Errors
/// When the file cannot be written.
pub fn write(folder: &Path, entries: &[Entry]) -> Result<()> {
    fs::create_dir_all(folder)?;
    let file = folder.join("summary.json");
    let mut summary: Map<String, Value> =
        fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    for entry in entries {
        summary.insert(entry.name.to_owned(), entry.json());
    }
    fs::write(&file, serde_json::to_string_pretty(&summary)?).with_context(|| file.display().to_string())
}

/// Says what is measured now, on a line that the next one replaces on a terminal.
pub fn progress(text: &str) {
    let mut out = std::io::stderr();
    let _ = writeln!(out, "      {text}");
}
