//! The services of a stack: one or several processes of each.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Stack;
use crate::options::StackOptions;
use crate::replica::{Replica, ReplicaPorts};
use crate::service::{Service, ServiceProcess};

/// How long a process may drain.
const GRACE: Duration = Duration::from_secs(30);

/// A replica: it keeps its ports over restarts.
#[derive(Debug)]
pub(super) struct Slot {
    pub ports: ReplicaPorts,
    /// Variables beside those of this process.
    pub environment: BTreeMap<String, String>,
    pub process: Option<ServiceProcess>,
}

impl Slot {
    fn at(ports: ReplicaPorts) -> Self {
        Self { ports, environment: BTreeMap::new(), process: None }
    }
}

/// The replicas to begin with.
pub(super) fn plan(options: &StackOptions) -> Result<BTreeMap<Replica, Slot>> {
    let StackOptions { ports, replicas: wanted, .. } = options;
    let services = options.services();
    if let Some(service) = wanted.keys().find(|service| !services.contains(service)) {
        bail!("a region that knows of no other has no {}", service.name());
    }
    let mut replicas = Vec::new();
    for service in services {
        replicas.extend(Replica::all(*service, wanted.get(service).copied().unwrap_or(1))?);
    }
    // The first ones choose first: theirs are the ports somebody asked for.
    replicas.sort_by_key(|replica| replica.index);
    let slot = |replica| Ok((replica, Slot::at(ports.choose(replica)?)));
    replicas.into_iter().map(slot).collect()
}

impl Stack {
    /// The replicas of a service, whether they run or not.
    pub fn replicas_of(&self, service: Service) -> impl Iterator<Item = Replica> {
        self.replicas.keys().copied().filter(move |replica| replica.service == service)
    }

    /// Where a replica listens.
    ///
    /// # Errors
    /// If there is no such replica.
    pub fn ports_of(&self, replica: impl Into<Replica>) -> Result<ReplicaPorts> {
        self.slot(replica.into()).map(|slot| slot.ports)
    }

    /// The port of a service's first replica by its name in the section `listen` of the settings, for instance `command` or `query_ops`.
    ///
    /// # Panics
    /// If there is no such name.
    pub fn port(&self, name: &str) -> u16 {
        self.ports_named(name).next().unwrap_or_else(|| panic!("nothing listens as {name:?}"))
    }

    /// `http://…` of a gRPC port of a service's first replica by its name in the section `listen` of the settings.
    ///
    /// # Panics
    /// If there is no such name.
    pub fn endpoint(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.port(name))
    }

    /// `http://…` of that port of all replicas, separated by commas.
    pub fn urls(&self, name: &str) -> String {
        self.ports_named(name).map(|port| format!("http://127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn ports_named(&self, name: &str) -> impl Iterator<Item = u16> {
        let doors = self.replicas.iter().flat_map(|(replica, slot)| replica.doors(&slot.ports));
        doors.filter(move |(door, _)| door == name).map(|(_, port)| port)
    }

    /// Starts a replica as a process of its own. It is ready some time later: see [`Stack::wait_until_ready`].
    ///
    /// # Errors
    /// If there is no such replica, it runs already, or the `souk` program is missing.
    pub fn start_replica(&mut self, replica: impl Into<Replica>) -> Result<()> {
        let replica = replica.into();
        let slot = self.slot(replica)?;
        ensure!(!self.runs(replica), "{replica} is running");
        let process = ServiceProcess::start(replica, &slot.ports, &self.settings, &self.logs, &slot.environment)?;
        self.slot_mut(replica)?.process = Some(process);
        self.apart = true;
        Ok(())
    }

    fn runs(&self, replica: Replica) -> bool {
        self.replicas.get(&replica).and_then(|slot| slot.process.as_ref()).is_some_and(ServiceProcess::is_running)
    }

    /// A setting of one replica alone, from its next start on: `set_for(replica, "process.clock_shift_ms", "5000")`.
    ///
    /// # Errors
    /// If there is no such replica.
    pub fn set_for(&mut self, replica: impl Into<Replica>, key: &str, value: &str) -> Result<()> {
        let variable = format!("SOUK_{}", key.replace('.', "__"));
        self.slot_mut(replica.into())?.environment.insert(variable, value.to_owned());
        Ok(())
    }

    /// Starts the first replica of a service.
    ///
    /// # Errors
    /// As [`Stack::start_replica`].
    pub fn start_service(&mut self, service: Service) -> Result<()> {
        self.start_replica(service)
    }

    /// Starts all replicas of all services that do not run, as processes.
    ///
    /// # Errors
    /// As [`Stack::start_replica`].
    pub fn start_processes(&mut self) -> Result<()> {
        for service in Service::ALL {
            let replicas: Vec<_> = self.replicas_of(service).filter(|replica| !self.runs(*replica)).collect();
            replicas.into_iter().try_for_each(|replica| self.start_replica(replica))?;
        }
        Ok(())
    }

    /// Starts all replicas of all services and waits until they are ready.
    ///
    /// # Errors
    /// If one does not start, or is not ready in time.
    pub async fn start_services(&mut self, patience: Duration) -> Result<()> {
        self.start_processes()?;
        self.wait_until_ready(patience).await
    }

    /// Waits until every process that was started, and not killed or stopped since, is ready.
    ///
    /// # Errors
    /// If one ends, or is not ready in time.
    pub async fn wait_until_ready(&self, patience: Duration) -> Result<()> {
        futures::future::try_join_all(self.processes().map(|process| process.wait_until_ready(patience))).await.map(drop)
    }

    /// The process of a replica that was started, and not killed or stopped since.
    ///
    /// # Errors
    /// If there is none.
    pub fn service(&self, replica: impl Into<Replica>) -> Result<&ServiceProcess> {
        let replica = replica.into();
        self.slot(replica)?.process.as_ref().with_context(|| format!("{replica} does not run"))
    }

    /// Kills a replica with SIGKILL; [`Stack::start_replica`] brings it back under its name, at its ports.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill_replica(&mut self, replica: impl Into<Replica>) -> Result<()> {
        let replica = replica.into();
        self.service(replica)?.kill9().await?;
        self.slot_mut(replica)?.process = None;
        Ok(())
    }

    /// Kills the first replica of a service with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill_service(&mut self, service: Service) -> Result<()> {
        self.kill_replica(service).await
    }

    /// Ends everything with SIGKILL, as when a whole site loses its power. [`Stack::start_all_again`] brings it back.
    ///
    /// # Errors
    /// If something cannot be signalled.
    pub async fn kill_all(&mut self) -> Result<()> {
        for slot in self.replicas.values_mut() {
            if let Some(process) = slot.process.take() {
                process.kill9().await?;
            }
        }
        if self.nats.is_running() {
            self.nats.kill9().await?;
        }
        let servers = self.standbys.iter_mut().map(|standby| &mut standby.server);
        for server in servers.chain(&mut self.second_postgres).chain([&mut self.postgres]) {
            if server.is_running() {
                server.kill9().await?;
            }
        }
        Ok(())
    }

    /// Starts again, over the same data and at the same ports, whatever does not run, and waits until all is ready.
    ///
    /// # Errors
    /// If something does not start, or is not ready in time.
    pub async fn start_all_again(&mut self, patience: Duration) -> Result<()> {
        let standbys = self.standbys.iter_mut().map(|standby| &mut standby.server);
        for server in [&mut self.postgres].into_iter().chain(&mut self.second_postgres).chain(standbys) {
            if !server.is_running() {
                server.start_again().await?;
            }
        }
        if !self.nats.is_running() {
            self.nats.start_again().await?;
        }
        self.start_services(patience).await
    }

    /// Lets a replica drain and end, by SIGTERM. Nothing happens if it does not run.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn stop_replica(&mut self, replica: impl Into<Replica>) -> Result<()> {
        let slot = self.slot_mut(replica.into())?;
        if let Some(process) = &slot.process {
            process.stop(GRACE).await?;
        }
        slot.process = None;
        Ok(())
    }

    /// Holds a replica where it is, by SIGSTOP: it answers nobody, its connections stay open.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause_replica(&self, replica: impl Into<Replica>) -> Result<()> {
        self.service(replica)?.pause()
    }

    /// Lets a paused replica go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume_replica(&self, replica: impl Into<Replica>) -> Result<()> {
        self.service(replica)?.resume()
    }

    /// Scales a service out by one replica and starts it; it is ready some time later. The settings file names it to whoever starts from
    /// now on; processes that run already hear of it through leases and trailers alone.
    ///
    /// # Errors
    /// If there are as many as there may be, or it does not start.
    pub fn add_replica(&mut self, service: Service) -> Result<Replica> {
        let taken: Vec<_> = self.replicas_of(service).collect();
        let mut candidates = Replica::all(service, crate::replica::MOST)?;
        let replica = candidates.find(|replica| !taken.contains(replica)).context("no more replicas of a service are possible")?;
        self.replicas.insert(replica, Slot::at(self.ports.choose(replica)?));
        self.write_settings()?;
        self.start_replica(replica)?;
        Ok(replica)
    }

    /// Scales a service in: lets the replica drain and end, and forgets it.
    ///
    /// # Errors
    /// If there is no such replica, or it is the first, whose ports are those of the settings.
    pub async fn remove_replica(&mut self, replica: impl Into<Replica>) -> Result<()> {
        let replica = replica.into();
        ensure!(replica.index > 1, "{replica} is always there; stop it instead");
        self.stop_replica(replica).await?;
        self.replicas.remove(&replica);
        self.write_settings()
    }

    pub(super) fn processes(&self) -> impl Iterator<Item = &ServiceProcess> {
        self.replicas.values().filter_map(|slot| slot.process.as_ref())
    }

    fn slot(&self, replica: Replica) -> Result<&Slot> {
        self.replicas.get(&replica).with_context(|| format!("there is no {replica}"))
    }

    fn slot_mut(&mut self, replica: Replica) -> Result<&mut Slot> {
        self.replicas.get_mut(&replica).with_context(|| format!("there is no {replica}"))
    }
}
