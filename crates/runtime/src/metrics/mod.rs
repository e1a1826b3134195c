//! Metrics of a process, through the `metrics` facade; names begin with `souk_`.
//!
//! What is counted is counted where it happens. What is a state (lag, pools, calls in flight) is looked at when somebody
//! scrapes ([`at_scrape`]): it costs nothing in between, and a loop that hangs cannot keep its last good figure on show.

mod catalogue;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use metrics::{counter, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use souk_event_sourcing::UnixMillis;

use crate::Health;
pub use catalogue::{CATALOGUE, Kind, Metric};

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
static LOOKS: Mutex<Vec<Weak<dyn Fn() + Send + Sync>>> = Mutex::new(Vec::new());

const SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0];

/// Installs the recorder of this process; a second call changes nothing. Histograms named `…_seconds` have buckets
/// from half a millisecond to half a minute, all others powers of two.
pub fn install() {
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets(COUNTS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS))
            .expect("the buckets are not empty");
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::debug!("a metrics recorder was installed before");
        }
        CATALOGUE.iter().for_each(Metric::describe);
        gauge!("souk_process_start_time_seconds").set(seconds(UnixMillis::now()));
        gauge!("souk_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        handle
    });
}

/// Shows counters from the start: Prometheus sees no increase in what appears with its first event.
pub fn start_at_zero(counters: &[&'static str]) {
    for name in counters {
        counter!(*name).increment(0);
    }
}

/// All metrics in the Prometheus text format, states as they are now.
pub fn render() -> String {
    // Outside the lock: a look may be long, or add another.
    let looks: Vec<_> = looks().iter().filter_map(Weak::upgrade).collect();
    looks.iter().for_each(|look| look());
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Takes `look` before every scrape, until what is returned is dropped. It must not block.
pub fn at_scrape(look: impl Fn() + Send + Sync + 'static) -> Look {
    let look: Arc<dyn Fn() + Send + Sync> = Arc::new(look);
    let mut looks = looks();
    looks.retain(|look| look.strong_count() > 0);
    looks.push(Arc::downgrade(&look));
    Look(look)
}

/// A look that is taken at every scrape while this lives.
#[must_use = "it is looked at only while this lives"]
pub struct Look(#[expect(dead_code, reason = "held, not used: the scrape knows it weakly")] Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Look")
    }
}

/// The process as a whole.
pub(crate) fn watch_process(health: Health) -> Look {
    at_scrape(move || {
        gauge!("souk_ready").set(f64::from(u8::from(health.is_ready())));
        gauge!("souk_impaired").set(f64::from(u8::from(!health.impairments().is_empty())));
        gauge!("souk_draining").set(f64::from(u8::from(health.is_draining())));
        gauge!("souk_clock_seconds").set(seconds(UnixMillis::now()));
    })
}

fn seconds(time: UnixMillis) -> f64 {
    time.0 as f64 / 1000.0
}

fn looks() -> MutexGuard<'static, Vec<Weak<dyn Fn() + Send + Sync>>> {
    LOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves samples of histograms into their buckets every few seconds, so that they do not pile up unscraped.
pub(crate) async fn upkeep() {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        if let Some(handle) = HANDLE.get() {
            handle.run_upkeep();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_look_is_taken_at_every_scrape_while_it_is_held() {
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = taken.clone();
        let look = at_scrape(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        render();
        render();
        assert_eq!(taken.load(Ordering::Relaxed), 2);
        drop(look);
        render();
        assert_eq!((taken.load(Ordering::Relaxed), Arc::strong_count(&taken)), (2, 1));
    }
}
