//! `souk region`: the regions that run, the document that all of them follow, and the links between them.
//!
//! # Layout
//! - `document`: the topology as a file, as it is stored in each region, and as it is applied
//! - `link`: links made slow, cut and healed

mod document;
mod link;

use anyhow::Result;
use souk_devstack::{LinkOrder, RunFile};

use crate::{
    paint::{bold, dim, say},
    status::link_state,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List regions and links
    List,
    /// Print the topology in force, in a form that `apply` takes
    Show(document::Show),
    /// Store the next topology in every region
    Apply(document::Apply),
    /// Make the link between two regions slow, cut it, or heal it
    Link(link::Args),
}

pub async fn run(command: Command) -> Result<()> {
    match command {
        Command::List => list().await,
        Command::Show(args) => document::show(args).await,
        Command::Apply(args) => document::apply(args).await,
        Command::Link(args) => link::run(args).await,
    }
}

async fn list() -> Result<()> {
    let run_file = RunFile::find()?;
    say(dim(format!("{:<10} {:>6}  {:<22} {:<22} {:<16} NATS", "REGION", "NUMBER", "COMMAND", "QUERY", "POSTGRES")));
    for region in run_file.regions() {
        let first = |addresses: &str| addresses.split(',').next().unwrap_or_default().to_owned();
        let name = format!("{:<10}", region.region);
        let (command, query) = (first(&region.addresses.command), first(&region.addresses.query));
        let (postgres, nats) = (&region.postgres.address, &region.nats.address);
        say(format_args!("{} {:>6}  {command:<22} {query:<22} {postgres:<16} {nats}", bold(name), region.region_number));
    }
    let Some(control) = &run_file.control else { return Ok(()) };
    let links = souk_devstack::order(control, &LinkOrder::Show).await?;
    if !links.is_empty() {
        say(dim(format!("\n{:<10} {:<10} LINK", "FROM", "TO")));
    }
    for state in links.iter().filter(|state| run_file.region(&state.to).is_ok()) {
        say(format_args!("{:<10} {:<10} {}", state.from, state.to, link_state(Some(state)).trim_end()));
    }
    Ok(())
}
