use std::time::Duration;

use souk_runtime::Failure;

use crate::cache::ReadError;

/// Soon enough for a view that is a little behind.
const RETRY_VISIBLE: Duration = Duration::from_millis(100);
/// Views made anew take as long as there are events: seconds, seldom minutes.
const RETRY_REBUILT: Duration = Duration::from_millis(250);
/// A database that does not answer takes longer.
const RETRY_STORE: Duration = Duration::from_millis(500);

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let text = error.to_string();
        match error {
            ReadError::NotYetVisible { log, token, known, waited } => Self::unavailable("NOT_YET_VISIBLE", text, RETRY_VISIBLE)
                .with("region", log.region)
                .with("partition", log.partition)
                .with("position", token.position)
                .with("visible", known.position)
                .with("lag_events", token.position.0.saturating_sub(known.position.0))
                .with("waited_ms", waited.as_millis()),
            ReadError::Rebuilding { log, position } => Self::unavailable("VIEW_REBUILDING", text, RETRY_REBUILT)
                .with("region", log.region)
                .with("partition", log.partition)
                .with("position", position),
            ReadError::Restored { log, token } => Self::refused("LOG_RESTORED", text)
                .with("region", log.region)
                .with("partition", log.partition)
                .with("position", token.position),
            ReadError::Parked { log, at } => {
                Self::refused("ENTITY_PARKED", text).with("region", log.region).with("partition", log.partition).with("position", at)
            }
            ReadError::UnknownLog(log) => Self::refused("LOG_NOT_KEPT", text).with("region", log.region).with("partition", log.partition),
            ReadError::Store(error) if error.retryable() => {
                tracing::debug!(%error, "the read store does not answer");
                Self::unavailable("STORE_UNAVAILABLE", "the read store does not answer", RETRY_STORE)
            }
            ReadError::Store(error) => {
                tracing::error!(%error, "the read store cannot be read");
                Self::internal("STORE_DAMAGED", "the read store cannot be read")
            }
            ReadError::TooLong(error) => error.into(),
            ReadError::Slow => Self::unavailable("STORE_UNAVAILABLE", text, RETRY_STORE),
            ReadError::Crashed(_) => {
                tracing::error!("a load ended without a result");
                Self::internal("LOAD_BROKEN_OFF", text)
            }
        }
    }
}
