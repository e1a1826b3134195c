use std::{collections::VecDeque, sync::Arc, time::Duration};

use metrics::{counter, histogram};
use souk_bus::Feed;
use souk_bus_publisher::{Ack, LogPublisher, PublishError};
use souk_event_sourcing::{Epoch, LogHash, LogId, Position, RecordedEvent};
use souk_proto::log::v1::HeadAnnouncement;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};

use super::{
    OwnedLog, Progress, Relays, Ring,
    check::{Copied, Trouble, check, unchanged},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// Events read from the table at once.
const PAGE: usize = 256;
/// How long a relay that stops goes on publishing what it has.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub position: Position,
    pub hash: LogHash,
}

/// One log's relay.
pub(super) struct Pump<S, P, F> {
    relays: Arc<Relays<S, P, F>>,
    log: LogId,
    epoch: Epoch,
    /// Head at the takeover; later ones are in the ring.
    taken: Head,
    ring: Arc<Ring>,
    progress: Arc<Progress>,
    /// Read from the table because the ring no longer has them.
    page: VecDeque<Arc<RecordedEvent>>,
}

/// A publish that is not acknowledged yet; its permit is a place in the connection's window.
struct Flight {
    event: Arc<RecordedEvent>,
    ack: Ack,
    sent: Instant,
    _permit: OwnedSemaphorePermit,
}

impl<S: OwnedLog + 'static, P: LogPublisher + 'static, F: Feed + 'static> Pump<S, P, F> {
    pub fn new(relays: Arc<Relays<S, P, F>>, log: LogId, epoch: Epoch, taken: Head, ring: Arc<Ring>, progress: Arc<Progress>) -> Self {
        Self { relays, log, epoch, taken, ring, progress, page: VecDeque::new() }
    }

    /// Checks the stream, then publishes until something is wrong, then checks again.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = FIRST_BACKOFF;
        let mut announce = interval(self.relays.tuning.announce_every);
        announce.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            let trouble = match check(&self.relays, self.log, self.epoch).await {
                Ok(copied) => {
                    backoff = FIRST_BACKOFF;
                    match self.pump(copied, &mut announce, &stop).await {
                        Ok(()) => continue,
                        Err(trouble) => trouble,
                    }
                }
                Err(trouble) => trouble,
            };
            if matches!(trouble, Trouble::NotOwner) {
                warn!(log = %self.log, "the relay stops: the log has another owner");
                return;
            }
            counter!("souk_relay_troubles_total").increment(1);
            warn!(log = %self.log, error = %trouble, "the relay checks its stream again");
            self.progress.report();
            tokio::select! {
                () = sleep(backoff) => {}
                () = stop.cancelled() => return,
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Publishes what follows `copied`. Ends without an error when it was stopped or the stream is no longer what it
    /// left behind.
    async fn pump(&mut self, mut copied: Copied, announce: &mut Interval, stop: &CancellationToken) -> Result<(), Trouble> {
        self.page.clear();
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut next = copied.last.next();
        let mut check_due = Instant::now() + self.relays.tuning.check_every;
        let mut until: Option<Instant> = None;
        loop {
            self.progress.set(self.head().position, copied.last);
            if stop.is_cancelled() {
                let until = *until.get_or_insert_with(|| Instant::now() + FAREWELL);
                if copied.last >= self.head().position || Instant::now() >= until {
                    return Ok(());
                }
            }
            let ready = next <= self.head().position;
            tokio::select! {
                biased;
                Some(done) = landed(&mut flights) => {
                    copied = done?;
                    self.ring.release(copied.last);
                }
                permit = self.relays.window.clone().acquire_owned(), if ready => {
                    let Ok(permit) = permit else { return Ok(()) };
                    let Some(event) = self.event(next).await? else { continue };
                    flights.push_back(self.publish(event, permit).await?);
                    next = next.next();
                }
                _ = announce.tick() => self.announce().await,
                () = self.ring.pushed(), if !ready => {}
                () = tokio::time::sleep_until(check_due), if flights.is_empty() => {
                    check_due = Instant::now() + self.relays.tuning.check_every;
                    if !unchanged(&*self.relays.publisher, self.log, copied).await? {
                        return Ok(());
                    }
                }
                () = stop.cancelled(), if until.is_none() => {}
            }
        }
    }

    async fn publish(&self, event: Arc<RecordedEvent>, permit: OwnedSemaphorePermit) -> Result<Flight, PublishError> {
        let span = info_span!("publish", log = %self.log, position = event.position.0);
        souk_runtime::telemetry::set_parent(&span, &event.traceparent);
        let ack = self.relays.publisher.publish(&event).instrument(span).await?;
        Ok(Flight { event, ack, sent: Instant::now(), _permit: permit })
    }

    /// The event at a position, from memory or from the table.
    async fn event(&mut self, position: Position) -> Result<Option<Arc<RecordedEvent>>, Trouble> {
        if let Some(event) = self.ring.get(position) {
            self.page.clear();
            return Ok(Some(event));
        }
        while self.page.front().is_some_and(|event| event.position < position) {
            self.page.pop_front();
        }
        if self.page.is_empty() {
            let page = self.relays.store.read(self.log, position, PAGE).await?;
            self.page = page.into_iter().map(Arc::new).collect();
        }
        match self.page.pop_front() {
            Some(event) if event.position == position => Ok(Some(event)),
            Some(event) => Err(Trouble::Store(souk_event_store::StoreError::Corrupt(format!("log {}: {} follows {position}", self.log, event.position)))),
            None => Ok(None),
        }
    }

    fn head(&self) -> Head {
        self.ring.last().map_or(self.taken, |event| Head { position: event.position, hash: event.hash })
    }

    async fn announce(&self) {
        let head = self.head();
        let message = HeadAnnouncement {
            region: self.log.region.0.into(),
            partition: self.log.partition.0.into(),
            epoch: self.epoch.0,
            position: head.position.0,
            hash: head.hash.0.to_vec().into(),
        };
        self.progress.report();
        // A lost announcement is followed by the next.
        if let Err(error) = self.relays.feed.publish_head(message).await {
            tracing::debug!(log = %self.log, %error, "head not announced");
        }
    }
}

/// The oldest publish under way, when it has landed; never when none is.
async fn landed(flights: &mut VecDeque<Flight>) -> Option<Result<Copied, PublishError>> {
    let Some(oldest) = flights.front_mut() else { return std::future::pending().await };
    let outcome = (&mut oldest.ack).await;
    let flight = flights.pop_front()?;
    histogram!("souk_relay_publish_seconds").record(flight.sent.elapsed());
    Some(outcome.map(|()| Copied { last: flight.event.position, hash: flight.event.hash }))
}
