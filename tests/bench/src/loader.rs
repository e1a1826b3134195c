use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, anyhow};
use souk_load::{Load, Report, Rpc, Schedule, Source, Target, Until};

use crate::machine;

/// How hard to press.
#[derive(Debug, Clone)]
pub enum Press {
    /// So many callers, each with one call at a time.
    Callers(usize, Duration),
    /// Calls per second, whatever becomes of them, with so many under way at most.
    Rate(f64, Duration, usize),
    /// So many calls by so many callers.
    Calls(usize, u64),
}

/// Where load goes and from where.
#[derive(Debug, Clone)]
pub struct Loader {
    /// `http://host:port` of each service, with the number of connections.
    pub services: Vec<(String, usize)>,
    /// The cores it may use; all if empty.
    pub cores: Vec<usize>,
}

impl Loader {
    pub fn new(url: impl Into<String>, connections: usize) -> Self {
        Self { services: vec![(url.into(), connections)], cores: Vec::new() }
    }

    #[must_use]
    pub fn and(mut self, url: impl Into<String>, connections: usize) -> Self {
        self.services.push((url.into(), connections));
        self
    }

    #[must_use]
    pub fn on(self, cores: &[usize]) -> Self {
        Self { cores: cores.to_vec(), ..self }
    }

    /// Sends what `source` makes of the methods at `paths`, each with the index of its service.
    ///
    /// # Errors
    /// When a service cannot be reached.
    pub async fn run<S: Source>(
        &self,
        paths: &[(usize, &str)],
        source: impl FnOnce(Vec<Arc<Rpc>>) -> S + Send + 'static,
        press: Press,
    ) -> Result<Report> {
        let Self { services, cores } = self.clone();
        let paths: Vec<(usize, String)> = paths.iter().map(|(service, path)| (*service, (*path).to_owned())).collect();
        on_own_thread(move || async move {
            if !cores.is_empty() {
                machine::pin_thread(&cores)?;
            }
            let mut target = Target::default();
            let mut connected = Vec::new();
            for (url, connections) in &services {
                connected.push(target.connect(url, *connections).await?);
            }
            let rpcs = paths.iter().map(|(service, path)| Ok(Arc::new(target.rpc(connected[*service], path)?)));
            let load = Load::new(&target, source(rpcs.collect::<Result<Vec<_>>>()?));
            Ok(match press {
                Press::Callers(callers, time) => load.closed_loop(callers, Until::Elapsed(time)).await?,
                Press::Calls(callers, calls) => load.closed_loop(callers, Until::Sent(calls)).await?,
                Press::Rate(rate, time, outstanding) => load.open_loop(Schedule::constant(rate, time), outstanding).await?,
            })
        })
        .await
    }
}

/// Runs something on a thread that has nothing else to do: no wake-up goes from one thread to another.
///
/// # Errors
/// Those of `work`, or its panic.
pub async fn on_own_thread<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    let (send, receive) = tokio::sync::oneshot::channel();
    let alone = move || -> Result<T> { tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work()) };
    thread::Builder::new().name("loader".to_owned()).spawn(move || drop(send.send(alone())))?;
    receive.await.map_err(|_| anyhow!("a loader ended by a panic"))?
}

/// Fails unless every call was answered with OK.
///
/// # Errors
/// With the first error seen.
pub fn all_ok(report: Report) -> Result<Report> {
    let failed = report.failed() + report.unsent;
    (failed == 0).then_some(()).with_context(|| format!("{failed} calls failed: {:?}", report.errors.first()))?;
    Ok(report)
}
