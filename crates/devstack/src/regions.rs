//! Several regions on one machine: a whole stack each, joined by links that can fail.

mod link;
mod topology;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::control::Control;
use crate::folder::TemporaryFolder;
use crate::options::{RegionIdentity, StackOptions};
use crate::ports::{Port, free_port};
use crate::run_file::RunFile;
use crate::service::Service;
use crate::stack::{Part, Stack};

pub use link::{Link, LinkState, Links};

/// Changes what the stack of a region, by its name, is started with.
type Change = Box<dyn Fn(&str, &mut StackOptions) + Send + Sync>;

/// How several regions are started.
pub struct RegionsOptions {
    /// Where everything that must be kept lives, in a folder for each region.
    pub data: PathBuf,
    /// Where the logs go, in a folder for each region.
    pub logs: PathBuf,
    /// The regions to start. The first is home of all ids that name none; over the same data, names keep their order and new
    /// ones follow behind them.
    pub names: Vec<String>,
    /// Regions that may be added while these run: the ways to them are laid at the start.
    pub later: Vec<String>,
    /// What each stack is started with beside its region, data and logs.
    change: Change,
}

impl RegionsOptions {
    /// Regions with stacks as [`StackOptions::new`] has them.
    pub fn new(data: impl Into<PathBuf>, logs: impl Into<PathBuf>, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self { data: data.into(), logs: logs.into(), names, later: Vec::new(), change: Box::new(|_, _| {}) }
    }

    /// Changes what the stack of a region, by its name, is started with.
    pub fn change(&mut self, change: impl Fn(&str, &mut StackOptions) + Send + Sync + 'static) -> &mut Self {
        self.change = Box::new(change);
        self
    }

    fn stack(&self, name: &str) -> StackOptions {
        let mut options = StackOptions::new(self.data.join(name), self.logs.join(name));
        (self.change)(name, &mut options);
        options
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.names.is_empty(), "no region is named");
        let all: Vec<_> = self.names.iter().chain(&self.later).collect();
        for (index, name) in all.iter().enumerate() {
            let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            let begins_well = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
            ensure!(
                plain && begins_well && name.len() <= 32,
                "{name:?} names no region: want 1 to 32 lower-case letters, digits or '-', beginning with a letter"
            );
            ensure!(!all[..index].contains(name), "region {name:?} is named twice");
        }
        Ok(())
    }
}

impl fmt::Debug for RegionsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionsOptions").field("data", &self.data).field("names", &self.names).field("later", &self.later).finish()
    }
}

/// Running regions: each a [`Stack`] with Postgres, NATS and all services, replicators among them, which reaches the others by
/// [`Link`]s alone.
#[derive(Debug)]
pub struct Regions {
    // Dropped in this order: stacks before the folder they live in.
    stacks: Vec<Stack>,
    links: Links,
    /// Lets other processes change the links.
    control: Control,
    options: RegionsOptions,
    /// Those that may be added.
    later: BTreeMap<String, StackOptions>,
    _temporary: Option<TemporaryFolder>,
}

impl Regions {
    /// Starts the servers of all regions and lays the links. The services do not run yet: see [`Regions::start_services`].
    ///
    /// # Errors
    /// If a name is none, or something does not start.
    pub async fn start(options: RegionsOptions) -> Result<Self> {
        Self::start_in(options, None).await
    }

    /// The same in a new temporary folder, which is removed with everything in it when the regions are dropped. `change` is
    /// what each stack is started with.
    ///
    /// # Errors
    /// If a name is none, or something does not start.
    pub async fn temporary(
        names: &[&str],
        later: &[&str],
        change: impl Fn(&str, &mut StackOptions) + Send + Sync + 'static,
    ) -> Result<Self> {
        let folder = TemporaryFolder::create()?;
        let mut options = RegionsOptions::new(folder.path(), folder.path().join("logs"), names.iter().copied());
        options.later = later.iter().map(|name| (*name).to_owned()).collect();
        options.change(move |name, options| {
            options.postgres_settings = [("max_wal_size", "1GB"), ("shared_buffers", "64MB")].map(|(k, v)| (k.into(), v.into())).into();
            change(name, options);
        });
        Self::start_in(options, Some(folder)).await
    }

    async fn start_in(options: RegionsOptions, temporary: Option<TemporaryFolder>) -> Result<Self> {
        options.check()?;
        let identity = |number, name: &str, token_key: Option<&str>| {
            Some(RegionIdentity { name: name.to_owned(), number, token_key: token_key.map(str::to_owned) })
        };
        let mut wanted = (1..).zip(&options.names).map(|(number, name)| (number, name.clone(), options.stack(name)));
        let (number, name, mut first) = wanted.next().context("no region is named")?;
        first.region = identity(number, &name, None);
        // Alone, for all others sign tokens by its key and have as many partitions.
        let mut stacks = vec![Stack::start(first).await.with_context(|| format!("region {name}"))?];
        let (token_key, partitions) = (stacks[0].token_key().to_owned(), stacks[0].partitions());
        let others = wanted.map(|(number, name, mut stack)| {
            stack.region = identity(number, &name, Some(&token_key));
            stack.partitions = Some(partitions);
            async move { Stack::start(stack).await.with_context(|| format!("region {name}")) }
        });
        stacks.extend(futures::future::try_join_all(others).await?);
        let later = options.later.iter().map(|name| Ok((name.clone(), with_door(options.stack(name))?))).collect::<Result<_>>()?;
        let links = Links::default();
        let control = Control::serve(links.clone()).await?;
        let mut regions = Self { stacks, links, control, options, later, _temporary: temporary };
        for index in 0..regions.stacks.len() {
            regions.lay_links(index).await?;
        }
        Ok(regions)
    }

    /// The ways of one region to all others, those that may come included.
    async fn lay_links(&mut self, index: usize) -> Result<()> {
        let from = self.stacks[index].region().to_owned();
        let there = self.stacks.iter().filter(|stack| stack.region() != from);
        let mut doors: Vec<_> =
            there.map(|stack| (stack.region().to_owned(), stack.ports_named("command_internal").collect::<Vec<_>>())).collect();
        doors.extend(self.later.iter().map(|(name, options)| (name.clone(), door(options).into_iter().collect())));
        for (to, ports) in doors {
            let link = Link::lay(&from, &to, ports).await?;
            self.stacks[index].set(&format!("peers.regions.{to}"), link.urls())?;
            self.links.add(link);
        }
        Ok(())
    }

    /// Starts all services that do not run, as processes, tells each region of all of them, and waits until everybody is ready
    /// and works with the logs of all regions.
    ///
    /// # Errors
    /// If one does not start, or is not ready in time.
    pub async fn start_services(&mut self, patience: Duration) -> Result<()> {
        self.stacks.iter_mut().try_for_each(Stack::start_processes)?;
        self.wait_until_ready(patience).await?;
        topology::apply(&self.stacks.iter().collect::<Vec<_>>(), patience).await
    }

    /// Waits until every process that was started, and not killed or stopped since, is ready.
    ///
    /// # Errors
    /// If one ends, or is not ready in time.
    pub async fn wait_until_ready(&self, patience: Duration) -> Result<()> {
        let ready = self
            .stacks
            .iter()
            .map(|stack| async { stack.wait_until_ready(patience).await.with_context(|| format!("region {}", stack.region())) });
        futures::future::try_join_all(ready).await.map(drop)
    }

    /// Adds one of the regions that were named as later ones: an empty stack, told to all others while they run. It copies
    /// their logs from the first event on, for some time after this has returned.
    ///
    /// # Errors
    /// If it was not named, or does not start.
    pub async fn add(&mut self, name: &str, patience: Duration) -> Result<()> {
        let mut options = self.later.remove(name).with_context(|| format!("region {name:?} was not named as a later one"))?;
        let number = self.stacks.iter().map(Stack::region_number).max().unwrap_or_default() + 1;
        let token_key = Some(self.stacks[0].token_key().to_owned());
        options.region = Some(RegionIdentity { name: name.to_owned(), number, token_key });
        options.partitions = Some(self.stacks[0].partitions());
        self.stacks.push(Stack::start(options).await.with_context(|| format!("region {name}"))?);
        self.lay_links(self.stacks.len() - 1).await?;
        self.start_services(patience).await
    }

    /// All regions, in the order of their numbers.
    pub fn stacks(&self) -> &[Stack] {
        &self.stacks
    }

    /// Names of all regions, in the order of their numbers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stacks.iter().map(Stack::region)
    }

    /// The stack of a region.
    ///
    /// # Errors
    /// If there is no such region.
    pub fn stack(&self, name: &str) -> Result<&Stack> {
        self.stacks.iter().find(|stack| stack.region() == name).with_context(|| format!("there is no region {name:?}"))
    }

    /// The same, to kill, pause, stop, restore and start what is in it.
    ///
    /// # Errors
    /// If there is no such region.
    pub fn stack_mut(&mut self, name: &str) -> Result<&mut Stack> {
        self.stacks.iter_mut().find(|stack| stack.region() == name).with_context(|| format!("there is no region {name:?}"))
    }

    /// The ways between regions. Clones change the same ones, from other tasks, too.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The way by which the services of `from` call those of `to`.
    ///
    /// # Errors
    /// If there is no such region.
    pub fn link(&self, from: &str, to: &str) -> Result<Arc<Link>> {
        self.links.get(from, to)
    }

    /// Kills the replicators of a region with SIGKILL. [`Regions::start_replicators`] brings them back.
    ///
    /// # Errors
    /// If there is no such region, or one does not run.
    pub async fn kill_replicators(&mut self, name: &str) -> Result<()> {
        let stack = self.stack_mut(name)?;
        for replica in stack.replicas_of(Service::Replicator).collect::<Vec<_>>() {
            stack.kill_replica(replica).await?;
        }
        Ok(())
    }

    /// Starts the replicators of a region again; they are ready some time later.
    ///
    /// # Errors
    /// If there is no such region, or one runs.
    pub fn start_replicators(&mut self, name: &str) -> Result<()> {
        let stack = self.stack_mut(name)?;
        let replicas: Vec<_> = stack.replicas_of(Service::Replicator).collect();
        replicas.into_iter().try_for_each(|replica| stack.start_replica(replica))
    }

    /// Kills the broker of a region, removes all its streams and starts it empty.
    ///
    /// # Errors
    /// If there is no such region, or it does not start.
    pub async fn wipe_jetstream(&mut self, name: &str) -> Result<()> {
        let nats = &mut self.stack_mut(name)?.nats;
        if nats.is_running() {
            nats.kill9().await?;
        }
        nats.wipe()?;
        nats.start_again().await
    }

    /// Copies the database server of a region into a new folder beside its data; for [`Regions::restore`].
    ///
    /// # Errors
    /// If there is no such region, its server does not run, or the folder is there already.
    pub async fn back_up(&self, name: &str, label: &str) -> Result<PathBuf> {
        let stack = self.stack(name)?;
        let folder = stack.data().join(format!("backup-{label}"));
        stack.postgres.back_up(&folder).await?;
        Ok(folder)
    }

    /// Kills the database server of a region, puts it back to a backup, which is used up by that, and starts it again under
    /// services that go on: what was committed since is gone (law 13).
    ///
    /// # Errors
    /// If there is no such region, or the files cannot be moved.
    pub async fn restore(&mut self, name: &str, backup: &Path) -> Result<()> {
        let postgres = &mut self.stack_mut(name)?.postgres;
        if postgres.is_running() {
            postgres.kill9().await?;
        }
        postgres.restore(backup)?;
        postgres.start_again().await
    }

    /// What `run.json` says of all regions: the first one with the others in it.
    ///
    /// # Errors
    /// If a Postgres or NATS does not run.
    pub fn run_file(&self) -> Result<RunFile> {
        let mut files = self.stacks.iter().map(Stack::run_file);
        let mut file = files.next().context("no region runs")??;
        file.others = files.collect::<Result<_>>()?;
        file.control = Some(self.control.socket().to_owned());
        Ok(file)
    }

    /// Waits until something of a region ends by itself, and tells of it with the last lines of its log.
    pub async fn first_death(&self) -> (String, Part, anyhow::Error) {
        let deaths = self.stacks.iter().map(|stack| Box::pin(stack.first_death()));
        let ((part, death), index, _) = futures::future::select_all(deaths).await;
        (self.stacks[index].region().to_owned(), part, death)
    }

    /// Lets the services of all regions drain, then stops their servers.
    ///
    /// # Errors
    /// If something cannot be stopped.
    pub async fn stop(&mut self) -> Result<()> {
        let stopped = futures::future::join_all(self.stacks.iter_mut().map(Stack::stop)).await;
        stopped.into_iter().collect()
    }

    /// Where the data of all regions lies.
    pub fn data(&self) -> &Path {
        &self.options.data
    }
}

/// Options with the port fixed by which other regions will come in.
fn with_door(mut options: StackOptions) -> Result<StackOptions> {
    if options.ports.command_internal == Port::Free {
        options.ports.command_internal = Port::Fixed(free_port()?);
    }
    if options.replicas.get(&Service::Command).is_some_and(|count| *count > 1) {
        bail!("a region that is added later begins with one replica of the command service");
    }
    Ok(options)
}

fn door(options: &StackOptions) -> Option<u16> {
    match options.ports.command_internal {
        Port::Fixed(port) => Some(port),
        Port::Free => None,
    }
}
