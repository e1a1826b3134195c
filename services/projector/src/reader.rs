use std::{mem, sync::Arc, time::Duration};

use futures::StreamExt;
use metrics::counter;
use souk_bus::{EventSource, Events};
use souk_event_sourcing::{LogId, Position, RecordedEvent};
use souk_proto::log::v1::EpochStart;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Config,
    backoff::Backoff,
    heads::{Head, Heads},
    log_reader::{LogError, LogPage, LogReader},
    sequence::{Tail, Verdict, is_taken_back},
};

/// What a reader hands to the shard that writes.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub log: LogId,
    /// Which reader of this log it is of: what an earlier one sent is stale.
    pub generation: u64,
    pub what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// The event after the last one this reader sent, proven by its hash. The permit bounds the bytes under way.
    Event(Box<RecordedEvent>, OwnedSemaphorePermit),
    /// The views, which are made anew, are whole from this position on: the log ended there when their making began.
    Whole(Position),
    /// The log, where it is true, is another one than the reader followed (law 13). The reader has ended.
    Diverged,
}

/// Reads one log from a checkpoint on, without holes, doubles or foreign events, whatever the bus delivers.
pub(crate) struct Reader {
    pub log: LogId,
    pub generation: u64,
    pub tail: Tail,
    pub source: Arc<dyn EventSource>,
    pub truth: Arc<dyn LogReader>,
    pub heads: Heads,
    /// The latest epochs of the log that were heard of, oldest first.
    pub epochs: Vec<EpochStart>,
    pub outbox: mpsc::Sender<Arrival>,
    pub room: Arc<Semaphore>,
    pub config: Config,
    /// The views of the log are made anew: it is read to its end before the bus, which tells when they are whole. Also, after
    /// a divergence the bus may go on with the other history, which is just as well chained, until its relay has mended it.
    pub rebuilding: bool,
    /// When the tail last moved, or the event log was last asked because it did not.
    pub moved: Instant,
}

/// Why a reader stopped what it was doing.
enum Stop {
    /// The consumer ended or the event log did not answer: start again from the tail after a pause.
    Again,
    /// Log and tail belong to different histories.
    Diverged,
    /// Nobody reads the outbox any more.
    Closed,
}

/// Heads are announced every second; without one for this long nobody announces.
const SILENCE: Duration = Duration::from_secs(5);
/// Events of the log asked for at a time.
const PAGE: u32 = 256;
/// Bytes that one permit of `room` stands for.
pub(crate) const PERMIT_BYTES: usize = 1024;

impl Reader {
    /// Reads until the outbox closes or the log turns out to be another one.
    pub(crate) async fn run(mut self) {
        // Between consumers the event log is asked, which must not happen less often than for a quiet one.
        let longest = self.config.retry_backoff_max.min(self.config.backfill_after);
        let mut backoff = Backoff::new(self.config.retry_backoff, longest);
        // At start the checkpoint is held against the log; if that does not answer, the bus goes on and the chain of
        // hashes proves each event all the same.
        let mut stop = self.verify().await.err();
        loop {
            match stop.take() {
                Some(Stop::Diverged) => {
                    counter!("souk_projector_divergences_total").increment(1);
                    let _ = self.deliver(What::Diverged).await;
                    return;
                }
                Some(Stop::Closed) => return,
                Some(Stop::Again) | None => {}
            }
            let before = self.tail.position;
            stop = self.read().await.err();
            // A consumer that fails before its first message, made anew and failing again, is as quiet as one that is
            // stuck: it must not keep the log from being asked.
            if matches!(stop, Some(Stop::Again)) && self.moved.elapsed() >= self.config.backfill_after {
                self.moved = Instant::now();
                stop = self.catch_up().await.err();
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

    /// Reads as long as nothing is in the way.
    async fn read(&mut self) -> Result<(), Stop> {
        if self.rebuilding {
            self.rebuild().await?;
        }
        match self.source.consume(self.log, self.tail.position.next()).await {
            Ok(events) => self.follow(events).await,
            Err(error) => {
                tracing::debug!(log = %self.log, %error, "the bus has no such stream; the event log is asked");
                self.catch_up().await
            }
        }
    }

    /// Reads the event log to its end, and says when that is reached where it ended at first: on a busy log the end moves.
    async fn rebuild(&mut self) -> Result<(), Stop> {
        let head = match self.page(self.tail.position.next(), 1).await {
            Ok(page) => page.head,
            Err(LogError::BeyondEnd(_)) => return Err(Stop::Diverged),
            Err(error) => return Err(self.unanswered(&error)),
        };
        self.read_truth(head).await?;
        self.deliver(What::Whole(head.min(self.tail.position))).await?;
        self.read_truth(Position(u64::MAX)).await?;
        self.rebuilding = false;
        Ok(())
    }

    /// Follows a consumer; wakes when the announced head is ahead and no message came for a while.
    async fn follow(&mut self, mut events: Events) -> Result<(), Stop> {
        let mut quiet_since = Instant::now();
        let mut tail_at_announcement = Position(0);
        let mut heads = self.heads.watch(self.log);
        // What was announced before counts, too.
        heads.mark_changed();
        self.learn(self.heads.epochs(self.log));
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
                        tracing::warn!(log = %self.log, %error, "the bus delivers what is no event of this log");
                        return self.arbitrate().await;
                    }
                    None => return Err(Stop::Again),
                },
                () = sleep_until(quiet_since + self.config.backfill_after) => {
                    self.catch_up().await?;
                    quiet_since = Instant::now();
                }
                Ok(()) = heads.changed() => {
                    let head = *heads.borrow_and_update();
                    self.learn(self.heads.epochs(self.log));
                    if let Some(head) = head {
                        self.doubt(head, tail_at_announcement).await?;
                    }
                    tail_at_announcement = self.tail.position;
                }
            }
        }
    }

    /// A head that lies before what was read a second ago, or has another hash, means that the log may have gone back.
    async fn doubt(&mut self, head: Head, tail_at_announcement: Position) -> Result<(), Stop> {
        let doubted = self.tail.is_doubted_by(head.position, head.hash, tail_at_announcement);
        if doubted { self.verify().await } else { Ok(()) }
    }

    /// Takes what the bus delivered: the next event is sent on, an old one dropped, a hole filled from the log first.
    async fn take(&mut self, event: RecordedEvent) -> Result<(), Stop> {
        if event.position > self.tail.position && is_taken_back(&event, &self.epochs) {
            return self.arbitrate().await;
        }
        match self.tail.judge(&event) {
            Verdict::Next => self.send(event).await,
            Verdict::Old => Ok(()),
            Verdict::Hole => {
                counter!("souk_projector_backfills_total").increment(1);
                tracing::debug!(log = %self.log, have = %self.tail.position, got = %event.position, "a hole; reading the event log");
                self.read_truth(Position(event.position.0 - 1)).await?;
                match self.tail.judge(&event) {
                    Verdict::Next => self.send(event).await,
                    Verdict::Old => Ok(()),
                    Verdict::Hole => Err(Stop::Again),
                    Verdict::Foreign => self.arbitrate().await,
                }
            }
            Verdict::Foreign => self.arbitrate().await,
        }
    }

    /// Bus and tail disagree: the log decides. If it confirms the tail, the JetStream stream is wrong, which its relay
    /// mends; meanwhile the log itself is read.
    async fn arbitrate(&mut self) -> Result<(), Stop> {
        tracing::warn!(log = %self.log, position = %self.tail.position, "the bus delivers another history; asking the event log");
        self.verify().await?;
        self.read_truth(Position(u64::MAX)).await?;
        Err(Stop::Again)
    }

    /// Reads from the event log when the announced head is ahead, or when nobody announces: then the bus is away, and
    /// views go on without it (law 1).
    async fn catch_up(&mut self) -> Result<(), Stop> {
        let head = self.heads.of(self.log);
        match head.filter(|head| head.heard.elapsed() < SILENCE) {
            Some(head) if head.position <= self.tail.position => Ok(()),
            Some(head) => {
                counter!("souk_projector_backfills_total").increment(1);
                tracing::debug!(log = %self.log, have = %self.tail.position, head = %head.position, "behind and quiet; reading the event log");
                self.read_truth(head.position).await
            }
            None => self.read_truth(Position(u64::MAX)).await,
        }
    }

    /// Sends the events of the log up to `to`, or to its end.
    async fn read_truth(&mut self, to: Position) -> Result<(), Stop> {
        while self.tail.position < to {
            let page = match self.page(self.tail.position.next(), PAGE).await {
                Ok(page) if page.events.is_empty() => return Ok(()),
                Ok(page) => page.events,
                Err(LogError::BeyondEnd(_)) => return Err(Stop::Diverged),
                Err(error) => return Err(self.unanswered(&error)),
            };
            for event in page {
                match self.tail.judge(&event) {
                    Verdict::Next => self.send(event).await?,
                    Verdict::Old => {}
                    Verdict::Hole => return Err(Stop::Again),
                    Verdict::Foreign => return Err(Stop::Diverged),
                }
            }
        }
        Ok(())
    }

    /// Whether the log still holds the event at the tail. No answer is no disproof.
    async fn verify(&mut self) -> Result<(), Stop> {
        if self.tail == Tail::START {
            return Ok(());
        }
        match self.page(self.tail.position, 1).await {
            Ok(page) if self.tail.is_held_by(page.events.first()) => Ok(()),
            Ok(_) => Err(Stop::Diverged),
            Err(LogError::BeyondEnd(_)) => Err(Stop::Diverged),
            Err(error) => {
                let _ = self.unanswered(&error);
                Ok(())
            }
        }
    }

    /// Reads the event log, and what epochs it has gone through.
    async fn page(&mut self, from: Position, limit: u32) -> Result<LogPage, LogError> {
        let mut page = self.truth.read(self.log, from, limit).await?;
        self.learn(mem::take(&mut page.epochs));
        Ok(page)
    }

    /// Takes epochs in, unless they are those of an owner that does not know of a later one.
    fn learn(&mut self, epochs: Vec<EpochStart>) {
        let latest = |epochs: &[EpochStart]| epochs.last().map(|start| start.epoch);
        if latest(&epochs) >= latest(&self.epochs) {
            self.epochs = epochs;
        }
    }

    fn unanswered(&self, error: &LogError) -> Stop {
        tracing::debug!(log = %self.log, %error, "the event log does not answer");
        Stop::Again
    }

    async fn send(&mut self, event: RecordedEvent) -> Result<(), Stop> {
        let tail = Tail::after(&event);
        let permits = (event.payload.len() / PERMIT_BYTES + 1) as u32;
        let room = self.room.clone().acquire_many_owned(permits).await.map_err(|_| Stop::Closed)?;
        self.deliver(What::Event(Box::new(event), room)).await?;
        self.tail = tail;
        self.moved = Instant::now();
        Ok(())
    }

    async fn deliver(&self, what: What) -> Result<(), Stop> {
        self.outbox.send(Arrival { log: self.log, generation: self.generation, what }).await.map_err(|_| Stop::Closed)
    }
}
