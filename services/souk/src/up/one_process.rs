//! All services in this process, on one runtime.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use souk_devstack::Service;
use souk_runtime::{Health, Listeners, Process, ServiceKind, Settings, bind, metrics, ops};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::report::Report;

/// What stopping one service may take beyond the grace its servers have.
const GRACE: Duration = Duration::from_secs(5);

/// The services with their common health and ops port. Dropping it ends them without a drain.
pub struct OneProcess {
    services: BTreeMap<Service, Running>,
    health: Health,
    grace: Duration,
    ops: JoinHandle<std::io::Result<()>>,
}

struct Running {
    process: Process,
    task: JoinHandle<Result<()>>,
}

impl OneProcess {
    /// Binds all ports, then starts the services; they are ready some time later.
    pub async fn start(settings: Settings) -> Result<Self> {
        // Before anything that is counted is made.
        metrics::install();
        let settings = Arc::new(settings);
        let health = Health::new();
        let mut doors = Vec::new();
        for service in Service::ALONE {
            let kind = kind(service);
            kind.check(&settings)?;
            doors.push((service, Listeners::bind(kind, &settings).await?));
        }
        let (key, address) = ServiceKind::Command.ops(&settings);
        let ops = tokio::spawn(ops::serve(bind(key, address).await?, health.clone(), CancellationToken::new()));
        let start = |(service, listeners)| {
            let process = Process::new(settings.clone(), kind(service), &health, CancellationToken::new());
            let task = tokio::spawn(run(service, process.clone(), listeners));
            (service, Running { process, task })
        };
        let services = doors.into_iter().map(start).collect();
        Ok(Self { services, grace: settings.process.shutdown_grace + GRACE, health, ops })
    }

    /// Waits until all of them are ready.
    ///
    /// # Errors
    /// If one ends, or is not ready in time.
    pub async fn wait_until_ready(&mut self, patience: Duration) -> Result<()> {
        let health = self.health.clone();
        let mut changes = health.changes();
        let ready = async {
            while !health.is_ready() {
                changes.changed().await.context("health is gone")?;
            }
            Ok(())
        };
        tokio::select! {
            ready = tokio::time::timeout(patience, ready) => match ready {
                Ok(ready) => ready,
                Err(_) => bail!("not ready after {} s: {}", patience.as_secs(), health.reasons().join("; ")),
            },
            failure = self.failure() => Err(failure),
        }
    }

    /// Waits for the first service to end by itself.
    async fn failure(&mut self) -> anyhow::Error {
        let (names, tasks): (Vec<_>, Vec<_>) = self.services.iter_mut().map(|(service, running)| (*service, &mut running.task)).unzip();
        let (ended, index, _) = futures::future::select_all(tasks).await;
        let name = names[index].name();
        // A finished task must not be waited for again.
        self.services.remove(&names[index]);
        match ended {
            Ok(Ok(())) => anyhow!("the {name} service ended by itself"),
            Ok(Err(error)) => error.context(format!("the {name} service failed")),
            Err(error) => anyhow!(error).context(format!("the {name} service panicked")),
        }
    }

    /// Drains the services, one after the other.
    pub async fn stop(mut self, report: &Report) -> Result<()> {
        for service in Service::STOP_ORDER {
            let Some(Running { process, mut task }) = self.services.remove(&service) else { continue };
            report.progress(&format!("draining {}", service.name()));
            process.health.drain();
            process.shutdown.cancel();
            match tokio::time::timeout(self.grace, &mut task).await {
                Ok(ended) => ended?.with_context(|| format!("the {} service did not drain", service.name()))?,
                Err(_) => {
                    task.abort();
                    tracing::warn!(service = service.name(), "not drained within the grace");
                }
            }
        }
        Ok(())
    }
}

impl Drop for OneProcess {
    fn drop(&mut self) {
        self.ops.abort();
        self.services.values().for_each(|running| running.task.abort());
    }
}

/// Waits for the first service of this process to end by itself; for ever if there is none.
pub async fn failure(services: &mut Option<OneProcess>) -> anyhow::Error {
    match services {
        Some(services) => services.failure().await,
        None => std::future::pending().await,
    }
}

fn kind(service: Service) -> ServiceKind {
    match service {
        Service::Command => ServiceKind::Command,
        Service::Projector => ServiceKind::Projector,
        Service::Query => ServiceKind::Query,
        Service::Saga => ServiceKind::Saga,
        Service::Replicator => ServiceKind::Replicator,
    }
}

fn run(service: Service, process: Process, listeners: Listeners) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> {
    match service {
        Service::Command => Box::pin(souk_command::run(process, listeners)),
        Service::Projector => Box::pin(souk_projector::run(process, listeners)),
        Service::Query => Box::pin(souk_query::run(process, listeners)),
        Service::Saga => Box::pin(souk_saga::run(process, listeners)),
        Service::Replicator => Box::pin(souk_replicator::run(process, listeners)),
    }
}
