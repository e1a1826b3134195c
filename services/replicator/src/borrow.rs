use std::time::Duration;

use metrics::counter;
use souk_event_sourcing::{Position, RecordedEvent, Region};
use souk_event_store::{Copies, End, EpochStart, EventLog, ReplicaBatch, Replicated};
use tokio::time::Instant;
use tracing::info;

use crate::copier::{Copier, Trouble, refusal};

/// After so long the origin is asked again.
const LENT_FOR: Duration = Duration::from_secs(5);
/// Events asked for at a time.
const LENT_AT_ONCE: u32 = 256;

impl Copier {
    /// Takes what a third region has of the log beyond the copy, for as long as the origin may be left alone.
    ///
    /// The running hash proves that it continues the copy, and no epoch that is over is taken up again; where the origin said
    /// that its log ends, it has to have that hash. What lies behind that nobody can vouch for but the origin, so the copy is
    /// marked together with it: once the origin is back its word holds, under whatever epoch.
    /// Says whether there was any.
    pub async fn borrow(&mut self) -> Result<bool, Trouble> {
        let mut end = End::from(&self.store.head(self.log).await?);
        let Some(lender) = self.lenders.furthest(end).await else { return Ok(false) };
        let begin = end;
        let until = Instant::now() + LENT_FOR;
        while Instant::now() < until {
            let events = lender.read(end.position.next(), LENT_AT_ONCE).await?;
            if events.is_empty() {
                break;
            }
            let now = self.lend(end, lender.region, events).await?;
            if now == end {
                break;
            }
            end = now;
        }
        Ok(end != begin)
    }

    async fn lend(&mut self, end: End, lender: Region, events: Vec<RecordedEvent>) -> Result<End, Trouble> {
        let Some(last) = events.last().map(|last| last.position) else { return Ok(end) };
        if events.iter().any(|event| self.told.is_some_and(|told| told.position == event.position && told.hash != event.hash)) {
            return Err(Trouble::Refused(lender, "the origin told of another event at the end of its log".into()));
        }
        self.prepare(last).await?;
        let epochs = epochs_of(end, &events);
        let batch = ReplicaBatch { log: self.log, events, ledger: Vec::new(), epochs };
        let now = match self.store.borrow(&batch).await.map_err(|error| refusal(lender, error))? {
            Replicated::Done(now) => now,
            Replicated::Hole(at) | Replicated::Forked(at) if at != end => return Err(Trouble::Changed),
            _ => return Err(Trouble::Refused(lender, "it does not continue the copy".into())),
        };
        let lent = now.position.0.saturating_sub(end.position.0);
        info!(log = %self.log, %lender, lent, end = %now.position, "the origin is away, and a third region lends");
        counter!("souk_replicator_lent_total", "region" => self.log.region.to_string()).increment(lent);
        self.lenders.lent(lender);
        self.board.here(self.log, now.position);
        self.board.unproven(self.log, self.store.unproven(self.log).await?);
        self.relaying.ends_at(now, batch.events).await;
        Ok(now)
    }
}

/// The epochs that begin among events behind a copy's end, as the events themselves have them: what else a lender might say of
/// epochs, no hash proves.
fn epochs_of(end: End, events: &[RecordedEvent]) -> Vec<EpochStart> {
    let mut epoch = end.epoch;
    let mut starts = Vec::new();
    for event in events.iter().filter(|event| event.position > end.position) {
        if event.epoch > epoch || (event.position == Position(1) && starts.is_empty()) {
            epoch = event.epoch;
            starts.push(EpochStart { epoch, first: event.position });
        }
    }
    starts
}
