use std::{sync::Arc, time::Duration};

use metrics::counter;
use souk_event_sourcing::{LogId, Position, RecordedEvent, UnixMillis};
use souk_event_store::{Copies, End, EventLog, Head, LedgerRow, PostgresStore, ReplicaBatch, Replicated, Retention, StoreError};
use souk_relay::OwnedLog;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    board::Board,
    fork::{Search, went_back},
    origin::{Origin, OriginError, Page},
    relaying::Relaying,
};

/// Lost events of a copy that are kept at most, the earliest of them.
const LOST_KEPT: usize = 10_000;
/// A copy that has nothing in common with its origin is looked at this seldom: it takes somebody to mend that.
const DIVERGED: Duration = Duration::from_secs(30);

/// Pauses after a session with an origin ended.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    pub first: Duration,
    pub longest: Duration,
}

/// Copies one log from its origin, for as long as it runs.
pub struct Copier {
    pub log: LogId,
    pub store: Arc<PostgresStore>,
    pub origin: Origin,
    pub relaying: Relaying,
    pub board: Board,
    pub retention: Retention,
    pub pauses: Pauses,
    /// The event table has children up to here.
    pub prepared: Option<Position>,
}

/// Why a session with an origin ended.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else changed the copy, or it went back: begin from what is stored.
    #[error("the copy changed")]
    Changed,
    #[error("the copy is ahead of its origin, which nobody has taken anew yet")]
    Ahead,
    #[error("copy and origin have nothing in common")]
    Diverged,
}

impl Copier {
    /// Copies until stopped; whatever goes wrong, the answer is to begin anew from what is stored here.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = self.pauses.first;
        self.board.take(self.log);
        while !stop.is_cancelled() {
            let trouble = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                trouble = self.session(&mut pause) => trouble,
            };
            pause = match &trouble {
                Trouble::Changed => self.pauses.first,
                Trouble::Diverged => DIVERGED,
                _ => pause,
            };
            match &trouble {
                Trouble::Diverged => {
                    counter!("souk_replicator_divergences_total").increment(1);
                    tracing::error!(log = %self.log, "copy and origin have nothing in common: the copy is kept, and nothing is added to it");
                }
                trouble => debug!(log = %self.log, error = %trouble, "the copier begins anew"),
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => break,
            }
            pause = (pause * 2).min(self.pauses.longest);
        }
        self.relaying.stop().await;
        self.board.lose(self.log);
    }

    async fn session(&mut self, pause: &mut Duration) -> Trouble {
        match self.follow(pause).await {
            Ok(never) => match never {},
            Err(trouble) => trouble,
        }
    }

    /// Writes what the origin sends from the copy's end on.
    async fn follow(&mut self, pause: &mut Duration) -> Result<std::convert::Infallible, Trouble> {
        let mut end = End::from(&self.store.head(self.log).await?);
        self.relaying.ends_at(end, Vec::new()).await;
        self.board.here(self.log, end.position);
        let mut tail = self.origin.tail(end.position.next()).await?;
        let mut ledger = Vec::new();
        loop {
            let page = tail.next().await?;
            *pause = self.pauses.first;
            ledger.extend(page.ledger.iter().filter(|row| self.is_kept(row)).cloned());
            let Some(head) = page.head.clone() else { continue };
            self.board.origin(self.log, head.position);
            if head.position < end.position || (head.position == end.position && head.hash != end.hash) {
                return Err(self.go_back(end, &head).await?);
            }
            end = self.write(end, page, std::mem::take(&mut ledger), head).await?;
        }
    }

    async fn write(&mut self, end: End, page: Page, ledger: Vec<LedgerRow>, head: Head) -> Result<End, Trouble> {
        if let Some(last) = page.events.last() {
            self.prepare(last.position).await?;
        }
        let batch = ReplicaBatch { log: self.log, events: page.events, ledger, epochs: head.epochs.clone() };
        match self.store.replicate(&batch).await? {
            Replicated::Done(now) => {
                counter!("souk_replicator_events_total", "region" => self.log.region.to_string())
                    .increment(now.position.0.saturating_sub(end.position.0));
                self.board.here(self.log, now.position);
                if now != end {
                    self.relaying.ends_at(now, batch.events).await;
                }
                Ok(now)
            }
            Replicated::Hole(_) => Err(Trouble::Changed),
            Replicated::Forked(stored) => Err(self.go_back(stored, &head).await?),
        }
    }

    /// The origin's log went back (law 13): what the copy has of the lost part is written down, then the copy goes back to the
    /// fork and follows. One that shares nothing with its origin is left alone: it may be all that is left of that log.
    async fn go_back(&mut self, end: End, head: &Head) -> Result<Trouble, Trouble> {
        let last = Position(end.position.0.min(head.position.0));
        let log = self.log;
        let mut search = Search::until(last);
        while let Some(at) = search.next() {
            let there = self.origin.hash(at).await?;
            let here = self.store.read(log, at, 1).await?.pop().map(|event| event.hash);
            search.learn(at, there.is_some() && there == here);
        }
        let fork = search.fork();
        if fork == Position(0) {
            return Ok(Trouble::Diverged);
        }
        if fork == end.position {
            return Ok(Trouble::Changed);
        }
        let written = self.store.read(log, end.position, 1).await?.pop().map(|event| event.epoch).unwrap_or(end.epoch);
        if !went_back(head, fork, written) {
            return Ok(Trouble::Ahead);
        }
        warn!(%log, %fork, copy = %end.position, origin = %head.position, "the origin's log went back, and its copy follows");
        counter!("souk_replicator_rewinds_total").increment(1);
        self.relaying.stop().await;
        let epochs = ReplicaBatch { log, events: Vec::new(), ledger: Vec::new(), epochs: head.epochs.clone() };
        self.store.replicate(&epochs).await?;
        let lost: Vec<RecordedEvent> = self.store.read(log, fork.next(), LOST_KEPT).await?;
        OwnedLog::keep_lost(&*self.store, log, &lost).await?;
        let rewound = self.store.rewind(log, fork, end).await?;
        info!(%log, %fork, rewound, lost = lost.len(), "the copy ends at the fork");
        Ok(Trouble::Changed)
    }

    /// Sees to it that the event table has children for what comes next.
    async fn prepare(&mut self, position: Position) -> Result<(), StoreError> {
        if self.prepared.is_none_or(|prepared| position >= prepared) {
            self.store.prepare(&[(self.log, position)], self.retention, UnixMillis::now()).await?;
            self.prepared = Some(PostgresStore::next_upkeep(position));
        }
        Ok(())
    }

    /// Ids beyond what the ledger remembers are refused by their time.
    fn is_kept(&self, row: &LedgerRow) -> bool {
        self.retention.wanted(UnixMillis::now()).any(|bucket| bucket == row.bucket)
    }
}
