//! Every benchmark runs, on a system with hardly any products and for hardly any time. How fast says nothing here.

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use souk_devstack::souk_program;

#[test]
fn every_benchmark_yields_figures_and_leaves_a_clean_store() {
    let folder = std::env::temp_dir().join(format!("souk-bench-{}", std::process::id()));
    let only: Vec<String> = std::env::var("SOUK_BENCHMARKS").map(|only| only.split(' ').map(str::to_owned).collect()).unwrap_or_default();
    let bench = Command::new(env!("CARGO_BIN_EXE_souk-bench")).args(&only).arg("--smoke").arg("--into").arg(&folder).status().unwrap();
    assert!(bench.success(), "souk-bench: {bench}");

    let summary: Value = serde_json::from_slice(&fs::read(folder.join("summary.json")).unwrap()).unwrap();
    let summary = summary.as_object().unwrap();
    if only.is_empty() {
        planned(&folder);
    }
    let wanted = if only.is_empty() { (1..=15).map(|number| format!("B{number}")).collect() } else { only };
    for number in wanted {
        let entry = summary.get(&number).unwrap_or_else(|| panic!("no {number}"));
        let mut numbers = entry["figures"].as_object().unwrap().values().chain([&entry["ratio"], &entry["min"], &entry["max"]]);
        // What is not finite is written as null.
        assert!(numbers.all(|value| value.as_f64().is_some_and(|value| value >= 0.0)), "{number}: {entry:#}");
        assert!(entry["ratio"].as_f64() > Some(0.0), "{number}: {entry:#}");
    }
    let report = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(summary.keys().all(|number| report.contains(&format!(">{number}<"))), "each number stands in the report");
    assert!(!report.contains("http://") && !report.contains("https://"), "the report needs no network");
    fs::remove_dir_all(folder).unwrap();
}

/// `souk plan` finds in the record what it looks for.
fn planned(folder: &Path) {
    let record = folder.join("summary.json");
    // However slow the machine is.
    let limits = ["--command-p99", "60000", "--query-p99", "60000"];
    let plan = Command::new(souk_program().unwrap()).args(["plan", "--json"]).args(limits).arg("--record").arg(record).output().unwrap();
    assert!(plan.status.success(), "souk plan: {}", String::from_utf8_lossy(&plan.stderr));
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    for part in ["write_database", "command", "query", "projector", "read_database"] {
        let source = plan["capacities"][part]["source"].as_str();
        assert!(source.is_some_and(|source| source.starts_with("measured")), "{part}: {source:?}");
    }
}
