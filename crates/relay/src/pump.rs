use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use metrics::{counter, histogram};
use souk_bus::Feed;
use souk_bus_publisher::{LogPublisher, PublishError};
use souk_event_sourcing::{Epoch, LogId, Position, RecordedEvent};
use souk_event_store::StoreError;
use souk_proto::log::v1::{EpochStart, HeadAnnouncement};
use souk_runtime::telemetry;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, info, info_span, warn};

use super::{
    OwnedLog, Progress, Relays, Ring,
    check::{Copied, Memory, Trouble, check, unchanged},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);
/// Events read from the table at once.
const PAGE: usize = 128;
/// Publishes of one log under way at most, beside the connection's window: what [`check`] has to prove after a crash.
pub(super) const MOST_FLIGHTS: usize = 64;
/// Payload bytes of one log under way at most: the window counts events, which may be large.
const MOST_BYTES: usize = 2 << 20;
/// Tokens are told from those of a history that is no more as long as the log had fewer epochs since.
const ANNOUNCED_EPOCHS: usize = 16;
/// How long a relay that stops goes on publishing what it has.
const FAREWELL: Duration = Duration::from_secs(2);

/// One log's relay.
pub(super) struct Pump<S, P, F> {
    pub relays: Arc<Relays<S, P, F>>,
    pub log: LogId,
    pub epoch: Epoch,
    pub ring: Arc<Ring>,
    pub progress: Arc<Progress>,
}

impl<S: OwnedLog + 'static, P: LogPublisher + 'static, F: Feed + 'static> Pump<S, P, F> {
    /// Keeps the stream a copy of the log and announces the log's head until stopped, or until the log has another
    /// owner; when stopped, publishes what it can for a moment.
    pub async fn run(self, stop: CancellationToken) {
        let mut memory = Memory::default();
        let lost = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = self.copy(&mut memory) => true,
            () = self.announce() => true,
        };
        if !lost {
            // Begins with a look at the stream: whatever was under way when the token came may have been half done.
            let farewell = async {
                let copied = check(&self.relays, self.log, self.epoch, &mut memory).await?;
                let goal = self.ring.head().position;
                Copying::new(&self, copied, &mut memory).run(Some(goal)).await
            };
            if let Ok(Err(trouble)) = timeout(FAREWELL, farewell).await {
                debug!(log = %self.log, error = %trouble, "the relay stops with events unpublished");
            }
        }
        self.progress.report();
    }

    /// Checks the stream, then publishes until something is wrong, then checks again. Ends when the log is another's.
    async fn copy(&self, memory: &mut Memory) {
        let mut backoff = FIRST_BACKOFF;
        let mut in_trouble = false;
        let mut told = String::new();
        loop {
            let trouble = match check(&self.relays, self.log, self.epoch, memory).await {
                Ok(copied) => {
                    let mut copying = Copying::new(self, copied, memory);
                    let outcome = copying.run(None).await;
                    if copying.copied.last > copied.last || outcome.is_ok() {
                        backoff = FIRST_BACKOFF;
                        if std::mem::take(&mut in_trouble) {
                            told.clear();
                            info!(log = %self.log, "the relay is out of trouble");
                        }
                    }
                    outcome
                }
                Err(trouble) => Err(trouble),
            };
            let Err(trouble) = trouble else { continue };
            if matches!(trouble, Trouble::NotOwner) {
                warn!(log = %self.log, "the relay stops: the log has another owner");
                return;
            }
            counter!("souk_relay_troubles_total").increment(1);
            let error = trouble.to_string();
            // That the connection was lost is said once, by the connection; any other trouble once, until there is another.
            if error == told || self.relays.publisher.reachable().now_or_never().is_none() {
                debug!(log = %self.log, error, "the relay waits");
            } else {
                warn!(log = %self.log, error, "the relay checks its stream again");
                told = error;
            }
            in_trouble = true;
            sleep(backoff).await;
            self.relays.publisher.reachable().await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Announces the head for ever, whatever becomes of the stream: readers of the log go by it.
    async fn announce(&self) {
        let mut ticks = interval(self.relays.tuning.announce_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut epochs = Vec::new();
        loop {
            ticks.tick().await;
            self.progress.report();
            if epochs.is_empty() {
                epochs = self.epochs().await;
            }
            let head = self.ring.head();
            let message = HeadAnnouncement {
                region: self.log.region.0.into(),
                partition: self.log.partition.0.into(),
                epoch: self.epoch.0,
                position: head.position.0,
                hash: head.hash.0.to_vec().into(),
                epochs: epochs.clone(),
            };
            // A lost announcement is followed by the next.
            if let Err(error) = self.relays.feed.publish_head(message).await {
                debug!(log = %self.log, %error, "head not announced");
            }
        }
    }

    /// The latest epochs of the log; none when the store does not say.
    async fn epochs(&self) -> Vec<EpochStart> {
        match self.relays.store.head(self.log).await {
            Ok(head) if head.epoch == self.epoch => {
                let latest = head.epochs.iter().skip(head.epochs.len().saturating_sub(ANNOUNCED_EPOCHS));
                latest.map(|start| EpochStart { epoch: start.epoch.0, first_position: start.first.0 }).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// A publish that is not acknowledged yet; its permit is a place in the connection's window.
struct Flight {
    event: Arc<RecordedEvent>,
    sent: Instant,
    /// Lasts until the acknowledgement.
    _span: Span,
    _permit: OwnedSemaphorePermit,
}

/// What became of the publish of a position.
type Landing = BoxFuture<'static, (Position, Result<(), PublishError>)>;

/// Publishing what follows the part that is copied already.
struct Copying<'a, S, P, F> {
    pump: &'a Pump<S, P, F>,
    copied: Copied,
    memory: &'a mut Memory,
    next: Position,
    /// In order of position.
    flights: VecDeque<Flight>,
    flying_bytes: usize,
    acks: FuturesUnordered<Landing>,
    /// Read from the table because the ring no longer has them.
    page: VecDeque<Arc<RecordedEvent>>,
    check_due: Instant,
}

impl<'a, S: OwnedLog + 'static, P: LogPublisher + 'static, F: Feed + 'static> Copying<'a, S, P, F> {
    fn new(pump: &'a Pump<S, P, F>, copied: Copied, memory: &'a mut Memory) -> Self {
        pump.progress.acknowledge(copied.last, copied.committed);
        pump.ring.release(copied.last);
        Self {
            pump,
            copied,
            memory,
            next: copied.last.next(),
            flights: VecDeque::new(),
            flying_bytes: 0,
            acks: FuturesUnordered::new(),
            page: VecDeque::new(),
            check_due: Instant::now() + pump.relays.tuning.check_every,
        }
    }

    /// Ends without an error when the goal is reached, or the stream is not what it was left as.
    async fn run(&mut self, goal: Option<Position>) -> Result<(), Trouble> {
        let (pump, window) = (self.pump, &self.pump.relays.window);
        while goal.is_none_or(|goal| self.copied.last < goal) {
            // A check that is due goes before new publishes, or constant load would put it off for ever.
            let due = Instant::now() >= self.check_due;
            let behind = self.next <= pump.ring.head().position;
            let room = self.flying_bytes < MOST_BYTES && self.flights.len() < MOST_FLIGHTS;
            tokio::select! {
                biased;
                Some((position, outcome)) = self.acks.next() => self.landed(position, outcome)?,
                permit = window.clone().acquire_owned(), if behind && room && !due => {
                    let permit = permit.expect("nobody closes the window");
                    self.send(permit).await?;
                }
                () = pump.ring.pushed(), if !behind => {}
                () = sleep_until(self.check_due), if self.flights.is_empty() => {
                    self.check_due = Instant::now() + pump.relays.tuning.check_every;
                    if !unchanged(&pump.relays, pump.log, self.memory, self.copied).await? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    async fn send(&mut self, permit: OwnedSemaphorePermit) -> Result<(), Trouble> {
        let Some(event) = self.event(self.next).await? else {
            // Committed, or it would not be in the head: another reader's view may lag, the next look will have it.
            return Err(StoreError::Unavailable(format!("log {} does not show position {} yet", self.pump.log, self.next)).into());
        };
        let span = publish_span(&event);
        let ack = self.pump.relays.publisher.publish(&event).instrument(span.clone()).await?;
        let position = event.position;
        self.memory.unheard.insert(position);
        self.acks.push(ack.map(move |outcome| (position, outcome)).boxed());
        self.flying_bytes += event.payload.len();
        self.flights.push_back(Flight { event, sent: Instant::now(), _span: span, _permit: permit });
        self.next = position.next();
        Ok(())
    }

    /// An acknowledgement of one event stands for all before it whose own was lost, until the stream was looked at. It does not
    /// stand for one that was refused: then the stream has something else at that position.
    fn landed(&mut self, position: Position, outcome: Result<(), PublishError>) -> Result<(), Trouble> {
        match outcome {
            Err(PublishError::Unavailable(_)) if position <= self.copied.last => {
                self.memory.unheard.insert(position);
                self.check_due = Instant::now();
                return Ok(());
            }
            outcome => outcome?,
        }
        self.memory.unheard.remove(&position);
        while let Some(flight) = self.flights.pop_front_if(|flight| flight.event.position <= position) {
            histogram!("souk_relay_publish_seconds").record(flight.sent.elapsed());
            self.flying_bytes -= flight.event.payload.len();
            self.copied.last = flight.event.position;
            self.copied.hash = flight.event.hash;
            self.copied.committed = flight.event.hlc.time();
        }
        self.pump.progress.acknowledge(self.copied.last, self.copied.committed);
        self.pump.ring.release(self.copied.last);
        Ok(())
    }

    /// The event at a position, from memory or from the table.
    async fn event(&mut self, position: Position) -> Result<Option<Arc<RecordedEvent>>, StoreError> {
        if let Some(event) = self.pump.ring.get(position) {
            self.page = VecDeque::new();
            return Ok(Some(event));
        }
        if self.page.is_empty() {
            let page = self.pump.relays.store.read(self.pump.log, position, PAGE).await?;
            self.page = page.into_iter().map(Arc::new).collect();
        }
        match self.page.pop_front() {
            Some(event) if event.position == position => Ok(Some(event)),
            Some(event) => Err(StoreError::Corrupt(format!("log {}: {} comes where {position} should", self.pump.log, event.position))),
            None => Ok(None),
        }
    }
}

/// A span of the command's trace, if that is sampled: one for every event would cost more than it tells.
fn publish_span(event: &RecordedEvent) -> Span {
    if !telemetry::is_sampled(&event.traceparent) {
        return Span::none();
    }
    let span = info_span!("publish", log = %event.log, position = event.position.0);
    telemetry::set_parent(&span, &event.traceparent);
    span
}

#[cfg(test)]
mod tests {
    use souk_bus_publisher::conformance::{History, log};

    use super::*;

    #[test]
    fn only_events_of_sampled_traces_get_a_span() {
        let spans = |traceparent| {
            let mut history = History::of(log(1), "traced");
            history.traceparent = traceparent;
            let event = history.event(1);
            tracing::subscriber::with_default(tracing_subscriber::registry(), || !publish_span(&event).is_disabled())
        };
        assert!(spans("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        for unsampled in ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "", "nonsense-zz"] {
            assert!(!spans(unsampled), "{unsampled:?}");
        }
    }
}
