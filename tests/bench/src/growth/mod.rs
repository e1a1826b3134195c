//! `just bench growth`: what a command and a query cost as the system grows; tables for `tests/load/README.md`.
//!
//! # Layout
//! - `cost`: CPU by databases, entities and connections
//! - `time`: long streams, starting, folding views anew
//! - `memory`: views in the cache, connections, partitions
//! - `bounds`: bytes by place, and what is bounded however much is written

mod bounds;
mod cost;
mod memory;
mod time;

use std::{fs, path::Path};

use anyhow::{Context, Result};
use clap::ValueEnum;
use souk_devstack::StackOptions;

use crate::{effort::Effort, machine::cores, stage::Stage};

const BEGIN: &str = "<!-- growth: made by `just bench growth` -->\n";
const END: &str = "<!-- growth: end -->\n";

/// One table: how something changes as one thing grows.
pub struct Table {
    title: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    const fn new(title: &'static str, columns: &'static [&'static str]) -> Self {
        Self { title, columns, rows: Vec::new() }
    }

    /// A row, told as it is known.
    fn row(&mut self, cells: Vec<String>) {
        println!("{}: {}", self.title, cells.join(" | "));
        self.rows.push(cells);
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let columns: Vec<_> = self.columns.iter().map(ToString::to_string).collect();
        let rule: Vec<_> = columns.iter().map(|_| "---:".to_owned()).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("\n### {}\n\n{}{}{rows}", self.title, line(&columns), line(&rule))
    }
}

/// What can be measured, in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Growth {
    Databases,
    Entities,
    Connections,
    Streams,
    Starts,
    Rebuild,
    Memory,
    Bytes,
    Bounds,
}

impl Growth {
    async fn measure(self, effort: Effort) -> Result<Table> {
        match self {
            Self::Databases => cost::databases(effort).await,
            Self::Entities => cost::entities(effort).await,
            Self::Connections => cost::connections(effort).await,
            Self::Streams => time::streams(effort).await,
            Self::Starts => time::starts(effort).await,
            Self::Rebuild => time::rebuild(effort).await,
            Self::Memory => memory::table(effort).await,
            Self::Bytes => bounds::bytes(effort).await,
            Self::Bounds => bounds::table(effort).await,
        }
    }
}

/// Measures what `wanted` names, everything if it names nothing, and writes each table between the markers of a file as soon as it is
/// known, in place of the one that was there. The file is made unless it is there; if none is named, it is that of the load files after
/// a full run, else one beside the record of benchmarks.
///
/// # Errors
/// When something cannot be measured, an audit is not clean, or the file cannot be written.
pub async fn run(wanted: &[Growth], effort: Effort, file: Option<&Path>) -> Result<()> {
    // What is less than a full run has no business among the figures of one.
    let file = file.unwrap_or(Path::new(effort.of("tests/load/README.md", "target/bench/growth.md", "target/bench/growth.md")));
    fs::create_dir_all(file.parent().unwrap_or(Path::new("")))?;
    let wanted = if wanted.is_empty() { Growth::value_variants() } else { wanted };
    if wanted.contains(&Growth::Starts) {
        time::check_room(effort)?;
    }
    for growth in wanted {
        let table = growth.measure(effort).await?;
        let before = fs::read_to_string(file).unwrap_or_else(|_| format!("# Load\n\n{BEGIN}{END}"));
        fs::write(file, replaced(&before, &table)?).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// The text of a file with a table in it, behind the others if it is new.
fn replaced(file: &str, table: &Table) -> Result<String> {
    const HEAD: &str = "\n### ";
    let (head, rest) = file.split_once(BEGIN).context("no marker where the tables begin")?;
    let (tables, tail) = rest.split_once(END).context("no marker where the tables end")?;
    let mut tables: Vec<String> = tables.split(HEAD).skip(1).map(|table| format!("{HEAD}{table}")).collect();
    let (new, title) = (table.markdown(), format!("{HEAD}{}\n", table.title));
    match tables.iter_mut().find(|old| old.starts_with(&title)) {
        Some(old) => *old = new,
        None => tables.push(new),
    }
    let tables: String = tables.iter().map(|table| format!("{}\n", table.trim_end())).collect();
    let measured = format!("\nMeasured on {} cores, servers and load on the same machine.\n", cores());
    Ok(format!("{head}{BEGIN}{measured}{tables}\n{END}{tail}"))
}

/// A system of its own, with products that its services have created.
async fn filled(effort: Effort, products: u64, change: impl FnOnce(&mut StackOptions)) -> Result<Stage> {
    let change = |options: &mut StackOptions| {
        effort.adapt(options);
        change(options);
    };
    Stage::start(products, change).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_markers_is_replaced() {
        let mut table = Table::new("One", &["of"]);
        table.row(vec!["1".to_owned()]);
        let file = format!("before\n{BEGIN}old\n{END}after\n");
        let once = replaced(&file, &table).unwrap();
        let measured = format!("before\n{BEGIN}\nMeasured on {} cores, servers and load on the same machine.\n", cores());
        assert_eq!(once, format!("{measured}\n### One\n\n| of |\n| ---: |\n| 1 |\n\n{END}after\n"));
        assert_eq!(replaced(&once, &table).unwrap(), once);

        let both = replaced(&once, &Table::new("Other", &["of"])).unwrap();
        assert_eq!(both, format!("{measured}\n### One\n\n| of |\n| ---: |\n| 1 |\n\n### Other\n\n| of |\n| ---: |\n\n{END}after\n"));
        table.rows[0][0] = "2".to_owned();
        assert_eq!(replaced(&both, &table).unwrap(), both.replace("| 1 |", "| 2 |"));
        assert!(replaced("nothing", &table).is_err());
    }
}
