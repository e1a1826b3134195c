use std::collections::BTreeMap;

use souk_event_sourcing::{LogId, StreamId};
use souk_event_store::Taken;
use tokio::sync::oneshot;

use super::{
    CommandError, Model, Outlet,
    lane::{Limits, Pending, Queue, Seen, Work},
};

/// A look-up of entities of one log.
pub(super) struct Read<M: Model> {
    pub log: LogId,
    pub streams: Vec<StreamId>,
    pub reply: oneshot::Sender<Result<Seen<M>, CommandError>>,
}

/// What a lane takes up at once.
pub(super) struct Round<M: Model> {
    pub owns: Vec<(Taken, Box<dyn Outlet>)>,
    pub commands: Queue<M>,
    pub reads: Vec<Read<M>>,
    pub releases: Vec<(LogId, oneshot::Sender<()>)>,
    /// Commands taken up.
    pub many: usize,
    bytes: usize,
}

impl<M: Model> Round<M> {
    pub fn of(first: Work<M>) -> Self {
        let mut round = Self { owns: Vec::new(), commands: BTreeMap::new(), reads: Vec::new(), releases: Vec::new(), many: 0, bytes: 0 };
        round.take(first);
        round
    }

    /// A place in the queue ends here: its work's turn has come.
    pub fn take(&mut self, work: Work<M>) {
        match work {
            Work::Command(job, _place) => {
                (self.many, self.bytes) = (self.many + 1, self.bytes + job.request.body.len());
                self.commands.entry(job.log).or_default().push(Pending { job, repeats: Vec::new(), attempts: 0 });
            }
            Work::Read { log, streams, reply, .. } => self.reads.push(Read { log, streams, reply }),
            Work::Own { taken, outlet } => self.owns.push((taken, outlet)),
            Work::Release { log, done } => self.releases.push((log, done)),
        }
    }

    /// Whether no more may be taken up. What comes after a release is for the next owner.
    pub fn is_full(&self, limits: &Limits) -> bool {
        let count = self.many + self.reads.len();
        count >= limits.batch_commands || self.bytes >= limits.batch_bytes || !self.releases.is_empty()
    }

    /// Whether there is nothing but commands: those may wait for more of them.
    pub fn may_wait(&self) -> bool {
        self.reads.is_empty() && self.owns.is_empty() && self.releases.is_empty()
    }
}
