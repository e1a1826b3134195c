use std::{convert::Infallible, sync::Arc, time::Duration};

use metrics::counter;
use souk_event_sourcing::{Epoch, LogId, Position, RecordedEvent, Region, UnixMillis};
use souk_event_store::{Copies, End, EventLog, Head, LedgerRow, PostgresStore, ReplicaBatch, Replicated, Retention, StoreError};
use souk_relay::OwnedLog;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    board::Board,
    fork::{Search, knows, went_back},
    lenders::Lenders,
    relaying::Relaying,
    source::{Source, SourceError},
};

/// Lost events of a copy that are kept at most, the earliest of them.
const LOST_KEPT: usize = 10_000;
/// Longest pauses between two looks at an origin that sends what cannot be copied: it takes somebody to mend that.
const HOPELESS: u32 = 15;
/// Rows of the ledger are kept before their events come once they are more than this.
const LEDGER_BYTES: usize = 4 << 20;

/// Pauses after a session with an origin ended.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    pub first: Duration,
    pub longest: Duration,
}

/// Copies one log from its origin, for as long as it runs. It holds one page at a time: the next is not asked for before the
/// last is written.
pub struct Copier {
    pub log: LogId,
    pub store: Arc<PostgresStore>,
    pub origin: Source,
    pub lenders: Lenders,
    pub relaying: Relaying,
    pub board: Board,
    pub retention: Retention,
    pub pauses: Pauses,
    /// The event table has children up to here.
    pub prepared: Option<Position>,
    /// Where the origin last said that its log ends.
    pub told: Option<End>,
}

/// Why a session with an origin ended.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("what region {0} sent is refused: {1}")]
    Refused(Region, String),
    #[error("the origin lacks what follows the copy")]
    Lacks,
    /// Somebody else changed the copy, or it went back: begin from what is stored.
    #[error("the copy changed")]
    Changed,
    #[error("the copy is ahead of its origin, which nobody has taken anew yet")]
    Ahead,
    #[error("copy and origin have nothing in common")]
    Diverged,
}

impl Trouble {
    /// Whether others may have what the origin does not tell.
    const fn leaves_a_gap(&self) -> bool {
        matches!(self, Self::Source(_) | Self::Refused(..) | Self::Lacks)
    }
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
                Trouble::Diverged | Trouble::Lacks | Trouble::Refused(..) | Trouble::Source(SourceError::Damaged(..)) => {
                    self.pauses.longest * HOPELESS
                }
                _ => pause,
            };
            self.report(&trouble);
            tokio::select! {
                () = self.meanwhile(&trouble, pause) => {}
                () = stop.cancelled() => break,
            }
            pause = (pause * 2).min(self.pauses.longest);
        }
        self.relaying.stop().await;
        self.board.lose(self.log);
    }

    /// Leaves the origin alone for a pause, or for as long as a third region lends.
    async fn meanwhile(&mut self, trouble: &Trouble, pause: Duration) {
        if trouble.leaves_a_gap() {
            match self.borrow().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(trouble) => self.report(&trouble),
            }
        }
        sleep(pause).await;
    }

    fn report(&mut self, trouble: &Trouble) {
        match trouble {
            Trouble::Diverged => {
                counter!("souk_replicator_divergences_total").increment(1);
                tracing::error!(log = %self.log, "copy and origin have nothing in common: the copy is kept, and nothing is added to it");
            }
            Trouble::Lacks => self.refuse(self.origin.region, trouble),
            Trouble::Refused(from, _) | Trouble::Source(SourceError::Damaged(from, _)) => self.refuse(*from, trouble),
            trouble => debug!(log = %self.log, error = %trouble, "the copier begins anew"),
        }
    }

    fn refuse(&mut self, from: Region, why: &Trouble) {
        counter!("souk_replicator_refused_total", "region" => from.to_string()).increment(1);
        self.board.refused(from);
        self.lenders.refuse(from);
        warn!(log = %self.log, %from, error = %why, "refused");
    }

    async fn session(&mut self, pause: &mut Duration) -> Trouble {
        match self.follow(pause).await {
            Ok(never) => match never {},
            Err(trouble) => trouble,
        }
    }

    /// Writes what the origin sends from the copy's end on. What a third region lent comes once more, so that the origin
    /// proves it and what its ledger remembers comes along.
    async fn follow(&mut self, pause: &mut Duration) -> Result<Infallible, Trouble> {
        // The database may be another than before: one restored to a time when the table lacked children it has had since.
        self.prepared = None;
        let mut end = End::from(&self.store.head(self.log).await?);
        let mut unproven = self.store.unproven(self.log).await?;
        self.relaying.ends_at(end, Vec::new()).await;
        self.board.here(self.log, end.position);
        self.board.unproven(self.log, unproven);
        let mut heard = unproven.unwrap_or(end.position).min(end.position);
        let mut tail = self.origin.tail(heard.next()).await?;
        let mut ledger = Vec::new();
        loop {
            let page = tail.next().await?;
            *pause = self.pauses.first;
            ledger.extend(page.ledger.into_iter().filter(|row| self.is_kept(row)));
            let Some(head) = page.head else {
                ledger = self.keep_early(end, ledger).await?;
                continue;
            };
            self.told = Some(End::from(&head));
            self.board.origin(self.log, head.position);
            if head.position < end.position || (head.position == end.position && head.hash != end.hash) {
                return Err(self.go_back(end, &head).await?);
            }
            for events in runs(page.events) {
                heard = events.last().map_or(heard, |last| last.position);
                end = self.write(end, events, std::mem::take(&mut ledger), &head).await?;
            }
            if unproven.is_some() && heard >= end.position {
                if !self.store.prove(self.log, end).await? {
                    return Err(Trouble::Changed);
                }
                self.lenders.settle(true);
                unproven = None;
                self.board.unproven(self.log, unproven);
            }
        }
    }

    async fn write(&mut self, end: End, events: Vec<RecordedEvent>, ledger: Vec<LedgerRow>, head: &Head) -> Result<End, Trouble> {
        if let Some(last) = events.last() {
            self.prepare(last.position).await?;
        }
        let batch = ReplicaBatch { log: self.log, events, ledger, epochs: head.epochs.clone() };
        match self.store.replicate(&batch).await.map_err(|error| refusal(self.origin.region, error))? {
            Replicated::Done(now) => {
                let wanted = batch.events.last().map_or(end.position, |last| last.position).max(end.position);
                if now.position < wanted || (now.position == end.position && now.hash != end.hash) {
                    // This region was restored to an earlier time, and nothing but this says so while the log is idle.
                    return Err(Trouble::Changed);
                }
                counter!("souk_replicator_events_total", "region" => self.log.region.to_string())
                    .increment(now.position.0.saturating_sub(end.position.0));
                self.board.here(self.log, now.position);
                if now != end {
                    self.relaying.ends_at(now, batch.events).await;
                }
                Ok(now)
            }
            Replicated::Hole(stored) if stored == end => Err(Trouble::Lacks),
            Replicated::Hole(_) => Err(Trouble::Changed),
            Replicated::Forked(stored) => Err(self.go_back(stored, head).await?),
        }
    }

    /// Keeps rows of the ledger whose events have not come yet, if they are many.
    async fn keep_early(&self, end: End, ledger: Vec<LedgerRow>) -> Result<Vec<LedgerRow>, Trouble> {
        if ledger.iter().map(|row| row.command.len() + row.reply.len()).sum::<usize>() <= LEDGER_BYTES {
            return Ok(ledger);
        }
        self.prepare_days(end.position).await?;
        let batch = ReplicaBatch { log: self.log, events: Vec::new(), ledger, epochs: Vec::new() };
        self.store.replicate(&batch).await.map_err(|error| refusal(self.origin.region, error))?;
        Ok(Vec::new())
    }

    /// The origin's log is another than the copy: it went back (law 13), or what a third region lent was not its. The copy goes
    /// back to the fork and follows; what it has of a lost part is written down first. One that shares nothing with its origin, not
    /// even an epoch, is left alone: it may be all that is left of that log.
    async fn go_back(&mut self, end: End, head: &Head) -> Result<Trouble, Trouble> {
        let log = self.log;
        let fork = self.fork(end, head).await?;
        if fork == end.position {
            return Ok(Trouble::Refused(self.origin.region, "it does not continue the copy, though it has all of it".into()));
        }
        let proven = self.store.unproven(log).await?;
        let lent = proven.is_some_and(|proven| fork >= proven);
        let back = went_back(head, fork, self.written_under(end.position).await?.unwrap_or(end.epoch));
        if !lent && fork == Position(0) && !self.is_its_origin(head, back).await? {
            return Ok(Trouble::Diverged);
        }
        if !lent && !back {
            return Ok(Trouble::Ahead);
        }
        warn!(%log, %fork, lent, copy = %end.position, origin = %head.position, "the origin has another log, and its copy follows");
        counter!("souk_replicator_rewinds_total").increment(1);
        self.relaying.stop().await;
        self.keep_lost(fork, head).await?;
        // What is left of what was lent comes once more, with its rows of the ledger.
        let rewound = self.store.rewind(log, fork, end, &head.epochs).await?;
        // It may have been true until then.
        self.lenders.settle(back);
        info!(%log, %fork, rewound, "the copy ends at the fork");
        Ok(Trouble::Changed)
    }

    /// Whether an origin without any of the copy's events was restored to a time before the first of them. If it holds others it
    /// must have begun a later epoch for them.
    async fn is_its_origin(&self, head: &Head, back: bool) -> Result<bool, StoreError> {
        let first = self.written_under(Position(1)).await?;
        Ok(first.is_some_and(|first| knows(head, first)) && (back || head.position == Position(0)))
    }

    /// The epoch of an event of the copy.
    async fn written_under(&self, position: Position) -> Result<Option<Epoch>, StoreError> {
        Ok(self.store.read(self.log, position, 1).await?.pop().map(|event| event.epoch))
    }

    /// The last position that copy and origin have in common.
    async fn fork(&self, end: End, head: &Head) -> Result<Position, Trouble> {
        let mut search = Search::until(end.position.min(head.position));
        while let Some(at) = search.next() {
            let there = self.origin.hash(at).await?;
            let here = self.store.read(self.log, at, 1).await?.pop().map(|event| event.hash);
            search.learn(at, there.is_some() && there == here);
        }
        Ok(search.fork())
    }

    /// Writes down what the copy has behind the fork, under the epoch that took its place; nothing if none did, for then it never
    /// was the origin's.
    async fn keep_lost(&self, fork: Position, head: &Head) -> Result<(), StoreError> {
        let epochs = ReplicaBatch { log: self.log, events: Vec::new(), ledger: Vec::new(), epochs: head.epochs.clone() };
        self.store.replicate(&epochs).await?;
        let lost: Vec<RecordedEvent> = self.store.read(self.log, fork.next(), LOST_KEPT).await?;
        OwnedLog::keep_lost(&*self.store, self.log, &lost).await
    }

    /// Sees to it that the event table has children for what comes next.
    pub async fn prepare(&mut self, position: Position) -> Result<(), StoreError> {
        if self.prepared.is_none_or(|prepared| position >= prepared) {
            self.prepare_days(position).await?;
            self.prepared = Some(PostgresStore::next_upkeep(position));
        }
        Ok(())
    }

    async fn prepare_days(&self, position: Position) -> Result<(), StoreError> {
        let database = self.store.database_of(self.log.partition);
        let database = database.ok_or_else(|| StoreError::Setup(format!("log {} is not placed here", self.log)))?;
        self.store.prepare(database, &[(self.log, position)], self.retention, UnixMillis::now()).await
    }

    /// Ids beyond what the ledger remembers are refused by their time.
    fn is_kept(&self, row: &LedgerRow) -> bool {
        self.retention.wanted(UnixMillis::now()).any(|bucket| bucket == row.bucket)
    }
}

/// A page cut where its chain breaks, so that all before is copied; one run without events if it has none.
fn runs(events: Vec<RecordedEvent>) -> Vec<Vec<RecordedEvent>> {
    let mut runs: Vec<Vec<RecordedEvent>> = vec![Vec::new()];
    for event in events {
        let run = runs.last_mut().expect("one at least");
        match run.last() {
            Some(before) if !event.continues(before.position, before.hash) => runs.push(vec![event]),
            _ => run.push(event),
        }
    }
    runs
}

/// What a batch was refused for is the fault of who sent it.
pub fn refusal(from: Region, error: StoreError) -> Trouble {
    match error {
        StoreError::Corrupt(why) | StoreError::Data { message: why, .. } => Trouble::Refused(from, why),
        other => Trouble::Store(other),
    }
}
