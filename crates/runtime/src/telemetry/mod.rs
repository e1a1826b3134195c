//! Logs and traces of a process. Spans cost nothing until an OTLP endpoint is set: only then is a layer there that
//! wants them.

mod logs;
mod propagation;

use std::sync::OnceLock;

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, FilterFn, LevelFilter, Targets, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::settings::{ConfigError, LogFormat, TelemetrySettings};

pub use propagation::{current_traceparent, inject, is_sampled, set_parent, set_parents};
pub(crate) use propagation::{incoming, set_parent_from_headers, with_incoming};

static PROVIDER: OnceLock<Option<SdkTracerProvider>> = OnceLock::new();

/// Flushes what is still to be exported. Kept by `main` until the very end.
#[derive(Debug)]
pub struct Telemetry(());

impl Telemetry {
    /// Sets up logs and traces for this process; a second call changes nothing. Must run inside the tokio runtime,
    /// which carries the exporter's connection.
    pub fn init(settings: &TelemetrySettings, service: &str, replica: &str) -> Result<Self, ConfigError> {
        let mut problem = None;
        PROVIDER.get_or_init(|| {
            install(settings, service, replica).unwrap_or_else(|error| {
                problem = Some(error);
                None
            })
        });
        problem.map_or(Ok(Self(())), Err)
    }

    /// Waits until all finished spans are exported or the exporter gives up.
    pub async fn flush(self) {
        let Some(provider) = PROVIDER.get().cloned().flatten() else { return };
        // The exporter blocks its thread while this runtime sends.
        let flushed = tokio::task::spawn_blocking(move || provider.force_flush()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "traces were not flushed");
        }
    }
}

fn install(settings: &TelemetrySettings, service: &str, replica: &str) -> Result<Option<SdkTracerProvider>, ConfigError> {
    let provider = settings.otlp_endpoint.as_ref().map(|endpoint| exporter(settings, endpoint, service, replica)).transpose()?;
    let directives =
        EnvFilter::try_new(&settings.log_filter).map_err(|error| ConfigError::new(format!("telemetry.log_filter: {error}")))?;
    // Spans are for traces; log lines carry the trace id instead of span fields.
    let events = directives.and(only(|metadata| metadata.is_event()));
    let mut layers = vec![match settings.log_format {
        LogFormat::Human => logs::human().with_filter(events).boxed(),
        LogFormat::Json => logs::json().with_filter(events).boxed(),
    }];
    if let Some(provider) = &provider {
        let ours = Targets::new().with_targets(["souk", "rpc"].map(|target| (target, tracing::Level::INFO)));
        let traces = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("souk"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(ours.and(only(|metadata| metadata.is_span())));
        layers.push(traces.boxed());
    }
    let installed = tracing_subscriber::registry().with(layers).try_init();
    if installed.is_err() {
        // Somebody else's subscriber is there, as in tests: it stays.
        tracing::debug!("logging was set up before");
    }
    logs::report_panics();
    Ok(provider)
}

/// A filter by kind. It must say that it lets every level pass: without a hint, the filter it is joined to loses its
/// own, and then every trace event of every library is looked at, which takes half the time of a small call.
fn only<F: Fn(&Metadata<'_>) -> bool>(kind: F) -> FilterFn<F> {
    filter_fn(kind).with_max_level_hint(LevelFilter::TRACE)
}

fn exporter(settings: &TelemetrySettings, endpoint: &str, service: &str, replica: &str) -> Result<SdkTracerProvider, ConfigError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| ConfigError::new(format!("telemetry.otlp_endpoint: {endpoint:?}: {error}")))?;
    let resource = Resource::builder()
        .with_service_name(format!("souk-{service}"))
        .with_attribute(KeyValue::new("service.instance.id", replica.to_owned()))
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.trace_sample)));
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_sampler(sampler).with_resource(resource).build())
}
