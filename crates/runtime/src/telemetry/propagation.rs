//! W3C trace context: from metadata into spans, from spans into metadata and into stored events.

use std::future::Future;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator},
    trace::{SpanContext, TraceContextExt},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::MetadataMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";
const TRACEPARENT_NAME: HeaderName = HeaderName::from_static(TRACEPARENT);
/// Links of one span: a batch joins hundreds of commands, a trace viewer shows dozens.
const MAX_LINKS: usize = 32;

tokio::task_local! {
    /// What the caller of the RPC under way sent along.
    static INCOMING: Option<HeaderValue>;
}

/// The caller's traceparent, unread.
pub(crate) fn incoming(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(TRACEPARENT_NAME).cloned()
}

/// Runs a call so that [`current_traceparent`] knows what its caller sent.
pub(crate) fn with_incoming<F: Future>(incoming: Option<HeaderValue>, call: F) -> impl Future<Output = F::Output> {
    INCOMING.scope(incoming, call)
}

/// Traceparent to store with what happens now, or to send on: that of the current span; where this process makes no
/// traces, the one the caller of the RPC under way sent, so that the chain does not break here. Empty when there is
/// neither.
pub fn current_traceparent() -> String {
    let current = traceparent(Span::current().context().span().span_context());
    if !current.is_empty() {
        return current;
    }
    let incoming = INCOMING.try_with(|incoming| incoming.as_ref().and_then(|value| value.to_str().ok().map(str::to_owned)));
    incoming.ok().flatten().filter(|text| remote(text).is_some()).unwrap_or_default()
}

/// Puts the current span into the metadata of an outgoing request.
pub fn inject(metadata: &mut MetadataMap) {
    let current = current_traceparent();
    if let Ok(value) = current.parse()
        && !current.is_empty()
    {
        metadata.insert(TRACEPARENT, value);
    }
}

/// Makes `span` a child of the span behind a stored traceparent. Call it before the span is entered; a malformed or
/// empty traceparent changes nothing.
pub fn set_parent(span: &Span, traceparent: &str) {
    if !span.is_disabled()
        && let Some(parent) = remote(traceparent)
    {
        // Fails only when no trace layer is there or the span was entered: the trace is then shorter, nothing else.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Links `span` to the span behind a stored traceparent, for work that serves several traces at once.
fn link_to(span: &Span, traceparent: &str) {
    if !span.is_disabled()
        && let Some(linked) = remote(traceparent)
    {
        span.add_link(linked);
    }
}

/// Whether a traceparent's trace is recorded, as far as whoever began it decided.
pub fn is_sampled(traceparent: &str) -> bool {
    let flags = traceparent.split('-').nth(3).and_then(|flags| u8::from_str_radix(flags, 16).ok());
    flags.unwrap_or_default() & 1 == 1
}

/// For a batch: `span` becomes a child of the first sampled traceparent and is linked to the other sampled ones. A batch
/// of which nothing is sampled is not recorded either; it must not take the span from those who share a batch with it.
pub fn set_parents<'a>(span: &Span, traceparents: impl IntoIterator<Item = &'a str>) {
    if span.is_disabled() {
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut unsampled = None;
    for traceparent in traceparents {
        if !is_sampled(traceparent) {
            unsampled = unsampled.or(remote(traceparent).map(|_| traceparent));
            continue;
        }
        if seen.contains(&traceparent) {
            continue;
        }
        if seen.is_empty() {
            set_parent(span, traceparent)
        } else {
            link_to(span, traceparent)
        }
        seen.push(traceparent);
        if seen.len() > MAX_LINKS {
            return;
        }
    }
    if let (true, Some(unsampled)) = (seen.is_empty(), unsampled) {
        set_parent(span, unsampled);
    }
}

pub(crate) fn set_parent_from_headers(span: &Span, headers: &HeaderMap) {
    if !span.is_disabled()
        && let Some(traceparent) = headers.get(TRACEPARENT_NAME).and_then(|value| value.to_str().ok())
    {
        set_parent(span, traceparent);
    }
}

fn remote(traceparent: &str) -> Option<SpanContext> {
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(traceparent));
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

fn traceparent(span: &SpanContext) -> String {
    if !span.is_valid() {
        return String::new();
    }
    format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8() & 1)
}

struct Carrier<'a>(&'a str);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SdkTracerProvider, SpanData, SpanExporter},
    };
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Exported(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Exported {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    const FIRST: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const SECOND: &str = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01";

    #[test]
    fn a_traceparent_round_trips_and_nonsense_is_ignored() {
        assert_eq!(traceparent(&remote(FIRST).unwrap()), FIRST);
        for bad in ["", "x", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            assert!(remote(bad).is_none(), "{bad}");
        }
    }

    #[tokio::test]
    async fn without_traces_the_callers_traceparent_is_passed_on() {
        assert_eq!(current_traceparent(), "");
        for (sent, want) in [(FIRST, FIRST), ("nonsense", "")] {
            let headers: HeaderMap = [(http::HeaderName::from_static(TRACEPARENT), sent.parse().unwrap())].into_iter().collect();
            assert_eq!(with_incoming(incoming(&headers), async { current_traceparent() }).await, want);
        }
    }

    const UNSAMPLED: &str = "00-2af7651916cd43dd8448eb211c80319c-d7ad6b7169203331-00";

    /// The spans that are recorded of what `work` does.
    fn recorded(work: impl FnOnce()) -> Vec<SpanData> {
        let exporter = Exported::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let subscriber = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
        tracing::subscriber::with_default(subscriber, work);
        std::mem::take(&mut exporter.0.lock().unwrap())
    }

    #[test]
    fn a_batch_of_which_nothing_is_sampled_is_not_recorded() {
        assert!(recorded(|| set_parents(&tracing::info_span!("append"), ["", "nonsense", UNSAMPLED])).is_empty());
        assert_eq!(recorded(|| set_parents(&tracing::info_span!("append"), [""])).len(), 1, "nobody decided: it is a trace of its own");
    }

    #[test]
    fn a_batch_is_a_child_of_the_first_sampled_trace_and_linked_to_the_others() {
        let spans = recorded(|| {
            let span = tracing::info_span!("append");
            set_parents(&span, ["", UNSAMPLED, FIRST, FIRST, SECOND]);
            let entered = span.enter();
            let mut metadata = MetadataMap::new();
            inject(&mut metadata);
            assert_eq!(metadata.get(TRACEPARENT).unwrap().to_str().unwrap()[..36], FIRST[..36]);
            assert_eq!(current_traceparent(), metadata.get(TRACEPARENT).unwrap().to_str().unwrap());
            drop(entered);
        });
        assert_eq!(spans[0].parent_span_id.to_string(), "b7ad6b7169203331");
        let linked: Vec<_> = spans[0].links.iter().map(|link| link.span_context.span_id().to_string()).collect();
        assert_eq!(linked, ["c7ad6b7169203331"]);
    }
}
