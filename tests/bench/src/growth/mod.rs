//! `just bench growth`: what a command and a query cost as the system grows; tables for `tests/load/README.md`.
//!
//! # Layout
//! - `cost`: CPU by databases, entities and connections
//! - `time`: long streams, starting, folding views anew
//! - `memory`: views in the cache, connections, partitions

mod cost;
mod memory;
mod time;

use std::{fs, path::Path};

use anyhow::{Context, Result};
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

/// Measures and writes the tables between the markers of a file, which is made unless it is there.
///
/// # Errors
/// When something cannot be measured, an audit is not clean, or the file cannot be written.
pub async fn run(effort: Effort, file: &Path) -> Result<()> {
    let mut tables = vec![cost::databases(effort).await?, cost::entities(effort).await?, cost::connections(effort).await?];
    tables.extend([time::streams(effort).await?, time::starts(effort).await?, time::rebuild(effort).await?]);
    tables.push(memory::table(effort).await?);
    let tables: String = tables.iter().map(Table::markdown).collect();
    let text = format!("\nMeasured on {} cores, servers and load on the same machine.\n{tables}", cores());
    let before = fs::read_to_string(file).unwrap_or_else(|_| format!("# Load\n\n{BEGIN}{END}"));
    fs::write(file, replaced(&before, &text)?).with_context(|| file.display().to_string())
}

/// The text of a file with new tables in it.
fn replaced(file: &str, tables: &str) -> Result<String> {
    let (head, rest) = file.split_once(BEGIN).context("no marker where the tables begin")?;
    let (_, tail) = rest.split_once(END).context("no marker where the tables end")?;
    Ok(format!("{head}{BEGIN}{tables}\n{END}{tail}"))
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
        let file = format!("before\n{BEGIN}old\n{END}after\n");
        let once = replaced(&file, "\nnew\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\nnew\n\n{END}after\n"));
        assert_eq!(replaced(&once, "\nnew\n").unwrap(), once);
        assert!(replaced("nothing", "new").is_err());
    }
}
