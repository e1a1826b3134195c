//! The logs a lane may append to: how they come, what is believed of their heads, and how they go.

use std::sync::Arc;

use metrics::counter;
use souk_event_sourcing::{Epoch, LogId, LogPosition, Position, RecordedEvent};
use souk_event_store::{Belief, Lane, Taken};
use tokio::time::Instant;
use tracing::warn;

use super::{Committer, Model};

/// Where committed events of one log go next. Nothing here may block.
pub trait Outlet: Send {
    /// The next event.
    fn push(&self, event: Arc<RecordedEvent>);

    /// The log ends here, and what lies between was not pushed: the outcome of an append was unknown.
    fn ends_at(&self, head: &Belief);
}

/// A log that another replica took over, or that went back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostOwnership {
    pub log: LogId,
    /// The epoch it was owned under.
    pub epoch: Epoch,
    /// Where it was known to end, if it went back behind that (law 13).
    pub went_back_from: Option<Position>,
}

/// A log this lane may append to.
pub(super) struct Owned {
    pub belief: Belief,
    /// Epoch of the event at the head.
    pub written: Epoch,
    pub outlet: Box<dyn Outlet>,
}

impl Owned {
    pub fn head(&self, log: LogId) -> LogPosition {
        LogPosition { log, epoch: self.written, position: self.belief.position }
    }
}

impl<M: Model, L: Lane> Committer<M, L> {
    pub(super) fn own(&mut self, taken: Taken, outlet: Box<dyn Outlet>) {
        self.entities.forget_log(taken.log);
        self.owned.insert(taken.log, Owned { belief: taken.belief, written: taken.written, outlet });
    }

    pub(super) fn release(&mut self, log: LogId) {
        self.entities.forget_log(log);
        self.owned.remove(&log);
        self.watchers.notify_all();
    }

    /// Gives a log up whose stored head is another one than this lane's. One that went back is taken again under a new
    /// epoch, like any other: what follows must be told from what is lost.
    fn disown(&mut self, log: LogId, stored: &Belief) {
        self.entities.forget_log(log);
        let Some(Owned { belief, outlet, .. }) = self.owned.remove(&log) else { return };
        let went_back = stored.went_back_from(&belief);
        if went_back {
            warn!(%log, known = %belief.position, stored = %stored.position, "the log went back");
            // Nothing of the lost part must reach the bus any more.
            outlet.ends_at(stored);
        } else {
            warn!(%log, "another replica took this log over");
            counter!("souk_leases_lost_total").increment(1);
        }
        self.watchers.notify_all();
        (self.lost)(LostOwnership { log, epoch: belief.epoch, went_back_from: went_back.then_some(belief.position) });
    }

    /// Reads the heads again after an unknown outcome. What was believed of a head that moved is forgotten.
    pub(super) async fn refresh(&mut self) -> bool {
        let logs: Vec<_> = self.owned.keys().copied().collect();
        let heads = match self.store.heads(&logs).await {
            Ok(heads) => heads,
            Err(error) => {
                warn!(%error, "heads cannot be read");
                return false;
            }
        };
        for (log, belief) in heads {
            self.adopt_head(log, belief);
        }
        (self.unsure, self.confirmed) = (false, Instant::now());
        true
    }

    fn adopt_head(&mut self, log: LogId, stored: Belief) {
        let Some(owned) = self.owned.get_mut(&log) else { return };
        if stored.epoch != owned.belief.epoch || stored.went_back_from(&owned.belief) {
            return self.disown(log, &stored);
        }
        if stored != owned.belief {
            if stored.position > owned.belief.position {
                owned.written = stored.epoch;
                owned.outlet.ends_at(&stored);
            }
            owned.belief = stored;
            self.entities.forget_log(log);
            self.watchers.notify_all();
        }
    }
}
