use std::{
    fmt::{self, Write},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    instrument::WithSubscriber,
    level_filters::LevelFilter,
    span,
    subscriber::Interest,
};

use crate::StoreError;

/// Hears the warnings that the server sends beside a result. A commit whose wait for a synchronous standby was cancelled
/// is told by nothing else (`SyncRepWaitForLSN` in Postgres), and sqlx hands notices to `tracing` alone.
#[derive(Clone)]
pub(super) struct Warnings {
    heard: Heard,
    dispatch: Dispatch,
}

type Heard = Arc<Mutex<Option<String>>>;

impl Default for Warnings {
    fn default() -> Self {
        let heard = Heard::default();
        Self { dispatch: Dispatch::new(Ear(heard.clone())), heard }
    }
}

impl Warnings {
    /// Runs a statement; its success with a warning is an unknown outcome. No statement of ours earns one otherwise.
    pub async fn refused<T>(&self, statement: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.take();
        let done = statement.with_subscriber(self.dispatch.clone()).await?;
        self.take().map_or(Ok(done), |warning| Err(StoreError::Unknown(warning)))
    }

    fn take(&self) -> Option<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Takes notices from sqlx and is deaf to everything else, so that no other call site becomes enabled by it.
struct Ear(Heard);

impl Subscriber for Ear {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::postgres::notice" && *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, "{value:?}");
    }
}
