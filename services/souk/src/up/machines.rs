//! What was started: the servers of one region, or whole regions.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use souk_devstack::{Part, Regions, RegionsOptions, RunFile, Stack, StackOptions, StackPorts, souk_folder};

use super::{Args, report::Report};

/// One region that knows of no other, or several.
pub enum Machines {
    One(Box<Stack>),
    Several(Box<Regions>),
}

/// Something that ended, and in which region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    region: Option<String>,
    part: Part,
}

impl fmt::Display for Dead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.region {
            Some(region) => write!(f, "{} of {region}", self.part),
            None => self.part.fmt(f),
        }
    }
}

impl Machines {
    /// Starts the servers, of each of `args.regions` if there are any.
    pub async fn start(mut args: Args, mut ports: Vec<StackPorts>, report: &Report) -> Result<Self> {
        let regions = std::mem::take(&mut args.regions);
        let logs = souk_folder().join("logs");
        let folder = souk_folder().join(if regions.is_empty() { "data" } else { "regions" });
        let data = args.data.take().unwrap_or(folder);
        if regions.is_empty() {
            report.progress("starting Postgres and NATS");
            let mut options = StackOptions::new(data, logs);
            options.ports = ports.swap_remove(0);
            args.apply_to(&mut options);
            let stack = Stack::start(options).await?;
            report.progress(&servers(&stack));
            return Ok(Self::One(Box::new(stack)));
        }
        report.progress(&format!("starting Postgres and NATS of {}", regions.join(", ")));
        let ports: BTreeMap<String, StackPorts> = regions.iter().cloned().zip(ports).collect();
        let mut options = RegionsOptions::new(data, logs, regions);
        options.change(move |name, options| {
            options.ports = ports.get(name).copied().unwrap_or_default();
            args.apply_to(options);
        });
        let regions = Regions::start(options).await?;
        report.progress(&regions.stacks().iter().map(servers).next().unwrap_or_default());
        Ok(Self::Several(Box::new(regions)))
    }

    /// One of the stacks.
    pub fn first(&self) -> &Stack {
        match self {
            Self::One(stack) => stack,
            Self::Several(regions) => &regions.stacks()[0],
        }
    }

    /// Starts all services as processes, and waits until they are ready.
    pub async fn start_services(&mut self, patience: Duration) -> Result<()> {
        match self {
            Self::One(stack) => stack.start_services(patience).await,
            Self::Several(regions) => regions.start_services(patience).await,
        }
    }

    pub fn run_file(&self) -> Result<RunFile> {
        match self {
            Self::One(stack) => stack.run_file(),
            Self::Several(regions) => regions.run_file(),
        }
    }

    /// Waits until something ends by itself.
    pub async fn first_death(&self) -> (Dead, anyhow::Error) {
        match self {
            Self::One(stack) => {
                let (part, death) = stack.first_death().await;
                (Dead { region: None, part }, death)
            }
            Self::Several(regions) => {
                let (region, part, death) = regions.first_death().await;
                (Dead { region: Some(region), part }, death)
            }
        }
    }

    /// Starts it again: same data, same port.
    pub async fn start_again(&mut self, dead: &Dead) -> Result<()> {
        match self {
            Self::One(stack) => stack.start_again(dead.part).await,
            Self::Several(regions) => regions.stack_mut(dead.region.as_deref().unwrap_or_default())?.start_again(dead.part).await,
        }
    }

    pub async fn stop(&mut self) -> Result<()> {
        match self {
            Self::One(stack) => stack.stop().await,
            Self::Several(regions) => regions.stop().await,
        }
    }
}

fn servers(stack: &Stack) -> String {
    let user = stack.postgres.runs_as().map(|user| format!(" as user {user}")).unwrap_or_default();
    let folder = stack.postgres.data_folder();
    let place = if folder.starts_with(stack.data()) { String::new() } else { format!(", its data in {}", folder.display()) };
    let standbys = match stack.standbys.len() {
        0 => String::new(),
        count => format!(" with {count} standbys"),
    };
    format!("Postgres {} runs{standbys}{user}{place}; NATS runs", stack.postgres.major_version())
}
