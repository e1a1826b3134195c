use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use souk_devstack::RunFile;
use souk_event_sourcing::{Site, Topology};
use souk_proto::internal::v1::{ApplyTopologyRequest, topology_service_client::TopologyServiceClient};
use souk_runtime::{Peer, topology};
use tonic::Request;

use crate::{
    paint::{dim, green, red, say},
    system::urls,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the regions are asked.
#[derive(Debug, clap::Args)]
struct Doors {
    /// Internal port of the command service of each region, by its name [default: from .souk/run.json]
    #[arg(long, value_name = "REGION=URL", value_delimiter = ',', value_parser = door)]
    command_internal: Vec<(String, String)>,
}

#[derive(Debug, clap::Args)]
pub struct Show {
    /// As this region has it [default: the first; others are named if they have another one]
    name: Option<String>,
    #[command(flatten)]
    doors: Doors,
}

#[derive(Debug, clap::Args)]
pub struct Apply {
    /// The document as JSON, as `souk region show` prints it, its version one higher
    file: PathBuf,
    #[command(flatten)]
    doors: Doors,
}

fn door(text: &str) -> Result<(String, String)> {
    let (region, address) = text.split_once('=').context("want REGION=URL")?;
    Ok((region.to_owned(), urls(address)))
}

impl Doors {
    /// Each region's name and url.
    fn find(self) -> Result<Vec<(String, String)>> {
        if !self.command_internal.is_empty() {
            return Ok(self.command_internal);
        }
        let run_file = RunFile::find()?;
        let door = |region: &RunFile| {
            let address = region.addresses.internal.get("command-1").context("no command service runs")?;
            Ok((region.region.clone(), urls(address)))
        };
        run_file.regions().map(door).collect()
    }
}

/// Prints the document of one region, and whose is another one.
///
/// # Errors
/// When the region is not there, does not answer or has no document.
pub async fn show(args: Show) -> Result<()> {
    let mut doors = args.doors.find()?;
    if let Some(name) = &args.name {
        let names: Vec<_> = doors.iter().map(|(region, _)| region.clone()).collect();
        doors.retain(|(region, _)| region == name);
        if doors.is_empty() {
            bail!("there is no region {name:?}; there is {}", names.join(", "));
        }
    }
    let mut first: Option<Topology> = None;
    for (region, url) in doors {
        let asked = topology::ask(&Peer::connect(&url)?).await;
        match (asked, &first) {
            (Ok(Some(topology)), None) => {
                say(written(&topology));
                first = Some(topology);
            }
            (Ok(Some(topology)), Some(shown)) if topology != *shown => {
                eprintln!("souk: region {region} has another one, of version {}", topology.version());
            }
            (Ok(Some(_)), Some(_)) => {}
            (Ok(None), _) => eprintln!("souk: region {region} knows of no other: it has no document"),
            (Err(status), _) => eprintln!("souk: region {region} does not tell: {}", status.message()),
        }
    }
    first.map(drop).context("no region has a document")
}

/// Stores a document in every region there is.
///
/// # Errors
/// When the file holds none, or a region does not take it.
pub async fn apply(args: Apply) -> Result<()> {
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let wanted: Topology = serde_json::from_str(&text).with_context(|| format!("{} is no topology", args.file.display()))?;
    let mut refused = 0;
    for (region, url) in args.doors.find()? {
        match put(&url, &wanted).await {
            Ok(()) => say(format_args!("{} {region} has version {}", green("✓"), wanted.version())),
            Err(error) => {
                refused += 1;
                say(format_args!("{} {region}: {error:#}", red("✗")));
            }
        }
    }
    if refused > 0 {
        say(dim("What was taken stays; apply the same document again when the others can take it."));
        bail!("{refused} regions did not take it");
    }
    Ok(())
}

async fn put(url: &str, wanted: &Topology) -> Result<()> {
    let mut request = Request::new(ApplyTopologyRequest { topology: Some(topology::to_wire(wanted)) });
    request.set_timeout(CALL_TIMEOUT);
    let applied = TopologyServiceClient::new(Peer::connect(url)?).apply_topology(request).await;
    applied.map(drop).map_err(|status| anyhow::anyhow!("{}", status.message()))
}

/// JSON with a line for each region, and one for the homes, of which there are many.
fn written(topology: &Topology) -> String {
    let site = |site: &Site| format!("    {}", serde_json::to_string(site).expect("text and numbers"));
    let regions: Vec<_> = topology.sites().iter().map(site).collect();
    let homes: Vec<_> = topology.homes().iter().map(|home| home.0.to_string()).collect();
    format!(
        "{{\n  \"version\": {},\n  \"regions\": [\n{}\n  ],\n  \"homes\": [{}]\n}}",
        topology.version(),
        regions.join(",\n"),
        homes.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::Region;

    use super::*;

    #[test]
    fn what_is_shown_can_be_applied() {
        let site = |number, name: &str| Site { number: Region(number), name: name.into(), command_internal: format!("http://{name}:1") };
        let topology = Topology::new(3, vec![site(1, "eu"), site(2, "us")], vec![Region(1), Region(2), Region(1)]).unwrap();
        let text = written(&topology);
        assert_eq!(serde_json::from_str::<Topology>(&text).unwrap(), topology);
        assert_eq!(text.lines().count(), 8, "{text}");
    }

    #[test]
    fn a_door_is_a_region_and_a_url() {
        assert_eq!(door("eu=127.0.0.1:1").unwrap(), ("eu".to_owned(), "http://127.0.0.1:1".to_owned()));
        assert!(door("http://127.0.0.1:1").is_err());
    }
}
