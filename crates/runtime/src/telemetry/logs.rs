use std::{fmt, io, panic};

use opentelemetry::{Context, trace::TraceContextExt};
use tracing::{Event, Subscriber, field::Visit};
use tracing_subscriber::{
    Layer,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        layer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Lines for people, on stderr, coloured when that is a terminal.
pub(super) fn human<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    use io::IsTerminal;
    layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(true)
}

/// One JSON object a line, with the trace id of the span the event happened in.
pub(super) fn json<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    layer().with_writer(io::stderr).with_ansi(false).event_format(Json)
}

/// A panic becomes a log line like any other error.
pub(super) fn report_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message");
        tracing::error!(place, text, "panic");
    }));
}

struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields(serde_json::Map::new());
        fields.put("time", time);
        fields.put("level", event.metadata().level().as_str());
        fields.put("target", event.metadata().target());
        event.record(&mut fields);
        let context = Context::current();
        let span = context.span().span_context().clone();
        if span.is_valid() {
            fields.put("trace_id", span.trace_id().to_string());
        }
        writeln!(writer, "{}", serde_json::Value::Object(fields.0))
    }
}

struct Fields(serde_json::Map<String, serde_json::Value>);

impl Fields {
    fn put(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        self.0.insert(key.to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &tracing::field::Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_f64(&mut self, field: &tracing::field::Field, value: f64) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &tracing::field::Field, value: bool) {
        self.put(field.name(), value);
    }
}
