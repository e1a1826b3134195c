use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use metrics::counter;
use souk_bus::{EventSource, Events};
use souk_event_sourcing::{Epoch, LogId, Position, RecordedEvent};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    backoff::Backoff,
    board::Board,
    changes::Tail,
    truth::{Truth, TruthError},
};

/// Where readers read.
#[derive(Clone)]
pub(crate) struct Sources {
    pub bus: Arc<dyn EventSource>,
    pub truth: Arc<dyn Truth>,
    pub board: Board,
    pub backoff: Backoff,
}

/// Reads one log from a checkpoint on and sends each event once, in order, its hash proven against the one before
/// (law 5), whatever the bus delivers.
pub(crate) struct Reader {
    pub log: LogId,
    /// Under which this process holds the log.
    pub epoch: Epoch,
    pub tail: Tail,
    pub sources: Sources,
    pub outbox: mpsc::Sender<Arrival>,
}

/// An event, and under which epoch its log was held when reading began: what an earlier reader sent is stale.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub epoch: Epoch,
    pub event: RecordedEvent,
}

/// Why a reader stopped what it was doing.
enum Stop {
    /// Begin again from the tail after a pause.
    Again,
    /// Nobody listens any more.
    Closed,
}

/// What an event is to a reader.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Next,
    Old,
    Hole,
    /// It does not continue what was read.
    Foreign,
}

/// A log behind its announced head is looked up after this time without a message.
const QUIET: Duration = Duration::from_secs(2);

impl Reader {
    /// Reads until nobody listens.
    pub async fn run(mut self) {
        let mut backoff = self.sources.backoff.clone();
        // When the tail last moved, or the event log was last asked because it did not.
        let mut moved = Instant::now();
        loop {
            let before = self.tail.position;
            let mut stopped = match self.sources.bus.consume(self.log, self.tail.position.next()).await {
                Ok(events) => self.follow(events).await,
                Err(error) => {
                    tracing::debug!(log = %self.log, %error, "the bus does not deliver; asking the event log");
                    self.catch_up(Position(u64::MAX)).await
                }
            };
            if self.tail.position > before {
                moved = Instant::now();
            } else if matches!(stopped, Err(Stop::Again)) && moved.elapsed() >= QUIET {
                // A consumer that fails before its first message, made anew and failing again, must not keep the log from
                // being asked.
                stopped = self.catch_up(Position(u64::MAX)).await;
                moved = Instant::now();
            }
            if matches!(stopped, Err(Stop::Closed)) {
                return;
            }
            if self.tail.position > before {
                backoff.reset();
            }
            tokio::select! {
                () = sleep(backoff.pause()) => {}
                () = self.outbox.closed() => return,
            }
        }
    }

    async fn follow(&mut self, mut events: Events) -> Result<(), Stop> {
        let mut quiet_since = Instant::now();
        loop {
            tokio::select! {
                next = events.next() => match next {
                    Some(Ok(event)) => {
                        self.take(event).await?;
                        quiet_since = Instant::now();
                    }
                    Some(Err(error)) if error.retryable() => {
                        tracing::debug!(log = %self.log, %error, "the consumer failed; making a new one");
                        return Err(Stop::Again);
                    }
                    Some(Err(error)) => {
                        tracing::warn!(log = %self.log, %error, "the bus delivers what is no event of this log; reading the event log");
                        self.catch_up(Position(u64::MAX)).await?;
                        return Err(Stop::Again);
                    }
                    None => return Err(Stop::Again),
                },
                () = sleep_until(quiet_since + QUIET) => {
                    let head = self.sources.board.head(self.log);
                    if head > self.tail.position {
                        self.catch_up(head).await?;
                    }
                    quiet_since = Instant::now();
                }
                () = self.outbox.closed() => return Err(Stop::Closed),
            }
        }
    }

    async fn take(&mut self, event: RecordedEvent) -> Result<(), Stop> {
        match judge(&self.tail, &event) {
            Verdict::Next => self.send(event).await,
            Verdict::Old => Ok(()),
            Verdict::Hole => {
                tracing::debug!(log = %self.log, have = %self.tail.position, got = %event.position, "a hole; reading the event log");
                self.catch_up(Position(event.position.0 - 1)).await?;
                match judge(&self.tail, &event) {
                    Verdict::Next => self.send(event).await,
                    Verdict::Old => Ok(()),
                    Verdict::Hole | Verdict::Foreign => Err(Stop::Again),
                }
            }
            Verdict::Foreign => {
                // The relay mends the JetStream stream; meanwhile the log itself is read.
                tracing::warn!(log = %self.log, position = %event.position, "the bus delivers another history; reading the event log");
                self.catch_up(Position(u64::MAX)).await?;
                Err(Stop::Again)
            }
        }
    }

    /// Sends what the event log holds up to `to`, or to its end.
    async fn catch_up(&mut self, to: Position) -> Result<(), Stop> {
        counter!("souk_saga_backfills_total").increment(1);
        while self.tail.position < to {
            let page = match self.sources.truth.read(self.log, self.tail.position.next()).await {
                Ok(page) if page.is_empty() => return Ok(()),
                Ok(page) => page,
                Err(error @ TruthError::BeyondEnd(_)) => return Err(self.diverged(&error.to_string())),
                Err(error) => {
                    tracing::debug!(log = %self.log, %error, "the event log does not answer");
                    return Err(Stop::Again);
                }
            };
            for event in page {
                match judge(&self.tail, &event) {
                    Verdict::Next => self.send(event).await?,
                    Verdict::Old => {}
                    Verdict::Hole => return Err(Stop::Again),
                    Verdict::Foreign => return Err(self.diverged("its next event does not continue the checkpoint")),
                }
            }
        }
        Ok(())
    }

    /// The checkpoint lies in the database of its log, so that they go back together; this takes a database put together
    /// from two. It is waited for somebody to mend that.
    fn diverged(&self, why: &str) -> Stop {
        counter!("souk_saga_divergences_total").increment(1);
        tracing::error!(log = %self.log, checkpoint = %self.tail.position, why, "the log is not the one that was read before");
        Stop::Again
    }

    async fn send(&mut self, event: RecordedEvent) -> Result<(), Stop> {
        let tail = Tail::after(&event);
        self.outbox.send(Arrival { epoch: self.epoch, event }).await.map_err(|_| Stop::Closed)?;
        self.tail = tail;
        Ok(())
    }
}

fn judge(tail: &Tail, event: &RecordedEvent) -> Verdict {
    match event.position {
        position if position > tail.position.next() => Verdict::Hole,
        position if position == tail.position.next() => {
            let follows = event.continues(tail.position, tail.hash) && event.epoch >= tail.epoch;
            if follows { Verdict::Next } else { Verdict::Foreign }
        }
        position if position == tail.position && event.hash != tail.hash => Verdict::Foreign,
        _ => Verdict::Old,
    }
}

#[cfg(test)]
mod tests;
