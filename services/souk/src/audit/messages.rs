use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use souk_bus::{BusError, EventSource, Events};
use souk_bus_publisher::{LogPublisher, StreamState};
use souk_event_sourcing::{LogId, Position, RecordedEvent};
use souk_event_store::EventLog;
use tokio::time::{Instant, sleep, timeout};

use super::{PAGE, Sources, findings::Findings, walk::Walk};

const POLL: Duration = Duration::from_millis(100);
/// A bus that is there is given this long for one message that its stream is said to hold: longer than it takes to be
/// found out if it is not there.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(15);

/// The JetStream stream, as far as it and the walk reach back, message by message.
pub(super) async fn audit(sources: &Sources, log: LogId, first: Position, walk: &Walk, found: &mut Findings) -> Result<()> {
    let Some(state) = settled(sources, log, walk.position).await? else {
        found.differ(log, "stream", "JetStream has no stream of this log");
        return Ok(());
    };
    if state.last < walk.position {
        found.differ(log, "stream", format!("the stream ends at {}, the log at {}", state.last, walk.position));
    }
    if !state.whole {
        found.differ(log, "stream", "the stream has holes");
    }
    if !state.settled {
        found.differ(log, "stream", "the stream is of another installation or is set up otherwise");
    }
    let end = state.last.min(walk.position);
    let mut messages = Messages { sources, log, next: state.first.max(first), events: None };
    'pages: while messages.next <= end {
        let stored = sources.write.read(log, messages.next, PAGE.min((end.0 - messages.next.0 + 1) as usize)).await?;
        if stored.is_empty() {
            return Ok(());
        }
        for event in stored {
            let Some(message) = messages.next().await? else {
                found.differ(log, "message", format!("the stream does not deliver {}", event.position));
                return Ok(());
            };
            if messages.forgot(&message, event.position).await? {
                continue 'pages;
            }
            found.count("messages", 1);
            if !same(&message, &event, found) {
                return Ok(());
            }
            messages.next = event.position.next();
        }
    }
    Ok(())
}

/// The stream as soon as it reaches to `end`, or as it is when patience ends.
async fn settled(sources: &Sources, log: LogId, end: Position) -> Result<Option<StreamState>> {
    let deadline = Instant::now() + sources.settle;
    loop {
        let state = sources.publisher.state(log).await;
        let goes_on = match &state {
            Ok(state) => !state.is_some_and(|state| state.last >= end && state.settled),
            Err(error) => error.retryable(),
        };
        if !goes_on || Instant::now() >= deadline {
            return Ok(state?);
        }
        sleep(POLL).await;
    }
}

/// A log's messages one by one, from `next` on, whatever interrupts their reading for less than the audit's patience.
struct Messages<'a> {
    sources: &'a Sources,
    log: LogId,
    next: Position,
    events: Option<Events>,
}

impl Messages<'_> {
    /// `None` when there is none, though the bus is there.
    ///
    /// # Errors
    /// When the bus stays away for longer than the audit is patient.
    async fn next(&mut self) -> Result<Option<Result<RecordedEvent, BusError>>> {
        let deadline = Instant::now() + self.sources.settle;
        loop {
            match timeout(MESSAGE_PATIENCE, self.read()).await {
                Err(_) => return Ok(None),
                Ok(Err(error)) if error.retryable() => {
                    if Instant::now() >= deadline {
                        return Err(error.into());
                    }
                    self.events = None;
                    sleep(POLL).await;
                }
                Ok(message) => return Ok(Some(message)),
            }
        }
    }

    /// Whether another message came than the one due because the stream, which is bounded, has meanwhile let go of that one. Goes on
    /// with the first one it has.
    async fn forgot(&mut self, message: &Result<RecordedEvent, BusError>, due: Position) -> Result<bool> {
        if message.as_ref().is_ok_and(|message| message.position > due)
            && let Some(state) = self.sources.publisher.state(self.log).await?
            && state.first > due
        {
            (self.next, self.events) = (state.first, None);
            return Ok(true);
        }
        Ok(false)
    }

    async fn read(&mut self) -> Result<RecordedEvent, BusError> {
        let events = match &mut self.events {
            Some(events) => events,
            none => none.insert(self.sources.bus.consume(self.log, self.next).await?),
        };
        events.next().await.unwrap_or_else(|| Err(BusError::Unavailable(format!("log {}: the consumer ended", self.log))))
    }
}

/// Compares a message with its event; `false` when nothing behind it can be compared.
fn same(message: &Result<RecordedEvent, BusError>, event: &RecordedEvent, found: &mut Findings) -> bool {
    match message {
        Ok(message) if message == event => true,
        Ok(message) if message.position == event.position => {
            found.differ(event.log, "message", format!("message {} is not its event", event.position));
            true
        }
        Ok(message) => {
            found.differ(event.log, "message", format!("message {} where {} was due", message.position, event.position));
            false
        }
        Err(error) => {
            found.differ(event.log, "message", format!("message {}: {error}", event.position));
            false
        }
    }
}
