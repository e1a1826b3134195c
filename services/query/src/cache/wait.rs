use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use souk_event_sourcing::{LogId, Position, Token};
use souk_read_store::ReadStoreError;
use souk_runtime::TooLong;
use tokio::time::{sleep, timeout_at};

use super::{
    flight::Crashed,
    freshness::{Mark, Standing},
    log::Log,
};

/// Between two looks at a store that is behind: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("position {} of log {log} is not visible yet, the views are at {}", token.position, known.position)]
    NotYetVisible { log: LogId, token: Mark, known: Mark, waited: Duration },
    #[error("the views of log {log} are being made anew and have come to position {position}")]
    Rebuilding { log: LogId, position: Position },
    #[error("position {} of log {log} was taken back by a restore", token.position)]
    Restored { log: LogId, token: Mark },
    #[error("an event of this entity at position {at} of log {log} could not be applied")]
    Parked { log: LogId, at: Position },
    #[error("log {0} is not kept in this region")]
    UnknownLog(LogId),
    #[error(transparent)]
    Store(Arc<ReadStoreError>),
    /// Refused at the door of a read database.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("the read store did not answer in time")]
    Slow,
    #[error(transparent)]
    Crashed(#[from] Crashed),
}

impl From<ReadStoreError> for ReadError {
    fn from(error: ReadStoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Waiting for tokens within one call.
pub(crate) struct Wait {
    until: Instant,
    pause: Duration,
    began: Option<Instant>,
}

impl Wait {
    /// Waits until `until` at most.
    pub fn new(until: Instant) -> Self {
        Self { until, pause: PAUSES.0, began: None }
    }

    /// Waits until the feed says that the views have reached `token`, and are whole. Returns at once when the feed is silent:
    /// then only the store can tell. Without a token nothing is waited for.
    pub async fn reach(&mut self, log: &Log, token: Option<Mark>) -> Result<(), ReadError> {
        let horizon = log.horizon();
        let rebuilding = horizon.rebuilding(Instant::now());
        let Some(token) = token else {
            return if rebuilding { Err(ReadError::Rebuilding { log: log.id, position: horizon.feed.position }) } else { Ok(()) };
        };
        if !rebuilding && log.standing(token, horizon.feed) == Standing::Reached {
            return Ok(());
        }
        // Looked at again after subscribing: a message between the two must not be waited for in vain.
        let mut horizons = log.watch();
        loop {
            let horizon = *horizons.borrow_and_update();
            let (now, standing) = (Instant::now(), log.standing(token, horizon.feed));
            match standing {
                Standing::Reached if !horizon.rebuilding(now) => return Ok(()),
                Standing::Lost => return Err(ReadError::Restored { log: log.id, token }),
                Standing::Reached | Standing::Ahead => {}
            }
            let Some(proof_ends) = horizon.proof_ends().filter(|ends| *ends > now) else { return Ok(()) };
            self.go_on(now, log, token, horizon.feed)?;
            // Either a new horizon, or time is up: the next round tells which.
            let _ = timeout_at(self.until.min(proof_ends).into(), horizons.changed()).await;
        }
    }

    /// Whether a snapshot that contains the log up to `contained` is enough for `token`, and of views that are not `rebuilding`.
    /// If not, waits a little before the store is asked again; without a token that is refused at once.
    pub async fn satisfied(&mut self, log: &Log, token: Option<Mark>, contained: Mark, rebuilding: bool) -> Result<bool, ReadError> {
        let Some(token) = token else {
            return if rebuilding { Err(ReadError::Rebuilding { log: log.id, position: contained.position }) } else { Ok(true) };
        };
        match log.standing(token, contained) {
            Standing::Reached if !rebuilding => return Ok(true),
            Standing::Lost => return Err(ReadError::Restored { log: log.id, token }),
            Standing::Reached | Standing::Ahead => {}
        }
        let now = Instant::now();
        let known = if rebuilding { contained } else { contained.max(log.horizon().feed) };
        self.go_on(now, log, token, known)?;
        sleep(self.pause.min(self.until - now)).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
        Ok(false)
    }

    fn go_on(&mut self, now: Instant, log: &Log, token: Mark, known: Mark) -> Result<(), ReadError> {
        let began = *self.began.get_or_insert(now);
        if now >= self.until {
            if log.standing(token, known) == Standing::Reached {
                // What else would it have waited for?
                return Err(ReadError::Rebuilding { log: log.id, position: known.position });
            }
            return Err(ReadError::NotYetVisible { log: log.id, token, known, waited: now - began });
        }
        Ok(())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            metrics::histogram!("souk_token_wait_seconds").record(began.elapsed());
        }
    }
}

/// What a token says of a log.
pub(crate) fn mark_of(token: &Token, log: LogId) -> Option<Mark> {
    token.of(log).map(|part| Mark { epoch: part.epoch, position: part.position })
}
