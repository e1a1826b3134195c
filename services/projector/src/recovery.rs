use std::time::Duration;

use metrics::counter;
use souk_event_sourcing::{Epoch, LogHash, LogId, Position};
use souk_read_store::{Advance, Batch, Checkpoint, ReadStoreError};
use tokio::time::Instant;

use crate::{
    backoff::Backoff,
    batch::step,
    sequence::Tail,
    shard::{Halted, Held, Progress, Shard, now},
};

impl Shard {
    /// A write found another checkpoint than believed.
    pub(crate) fn lost(&mut self, log: LogId) {
        counter!("souk_projector_lost_total").increment(1);
        self.folder.forget(log);
        self.unsynced.insert(log);
    }

    /// Reads the stored checkpoints of all unsynced logs and goes on from there where the fence is still ours. Another one
    /// means that somebody claimed the log after us, or that a crash took our claim back: it is claimed again if it is ours.
    pub(crate) async fn resync(&mut self) -> Result<(), ReadStoreError> {
        let logs: Vec<_> = self.unsynced.iter().copied().collect();
        for progress in self.logs.iter_mut().filter(|(log, _)| logs.contains(log)).map(|(_, progress)| progress) {
            progress.stop_reading();
            progress.generation += 1;
        }
        let stored = self.store.checkpoints(&logs).await?;
        if let Some(missing) = logs.iter().find(|log| stored.iter().all(|checkpoint| checkpoint.log != **log)) {
            return Err(ReadStoreError::NotPlaced(*missing));
        }
        for checkpoint in stored {
            match self.logs.get(&checkpoint.log).map(|progress| progress.held) {
                Some(Held::Us(fence)) if checkpoint.fence == fence => self.go_on(checkpoint).await?,
                _ => self.lose(checkpoint.log),
            }
        }
        Ok(())
    }

    /// Projects from a stored checkpoint that is ours. Rows of other revisions are folded anew.
    async fn go_on(&mut self, checkpoint: Checkpoint) -> Result<(), ReadStoreError> {
        self.unsynced.remove(&checkpoint.log);
        if checkpoint.position > Position(0) && checkpoint.revision != souk_views::revision() {
            let (stored, revision) = (checkpoint.revision, souk_views::revision());
            tracing::warn!(log = %checkpoint.log, stored, revision, "views of another revision; they are folded anew");
            if let Some(progress) = self.logs.get_mut(&checkpoint.log) {
                progress.checkpoint = Some(checkpoint);
            }
            return self.rewind(checkpoint.log).await;
        }
        self.resume(checkpoint);
        Ok(())
    }

    /// Deletes the rows of a log and folds it from its first event: the plain way back to the truth (law 13).
    pub(crate) async fn rewind(&mut self, log: LogId) -> Result<(), ReadStoreError> {
        // Whatever comes of it, the stored checkpoint has to be read before the next write.
        self.lost(log);
        let Some(progress) = self.logs.get_mut(&log) else { return Ok(()) };
        progress.stop_reading();
        progress.generation += 1;
        let (Held::Us(fence), Some(before)) = (progress.held, progress.checkpoint) else { return Ok(()) };
        let written = now();
        if !self.store.rewind(log, fence, written).await? {
            return Ok(());
        }
        counter!("souk_projector_rewinds_total").increment(1);
        tracing::info!(%log, from = %before.position, "views of the log emptied");
        let start = Checkpoint {
            epoch: Epoch(0),
            position: Position(0),
            hash: LogHash::EMPTY,
            revision: 0,
            parked: 0,
            repaired: before.repaired_at(written),
            written,
            rebuilding: true,
            ..before
        };
        // Receivers see a position before the one they knew, and drop what they hold of this log.
        self.ports.changes.publish(self.message(&start, Position(0)));
        self.unsynced.remove(&log);
        self.resume(start);
        Ok(())
    }

    /// Lets the views of logs be read again whose folding anew has come to where the log ended when it began. The end that counts
    /// is that of the log, not the checkpoint of before: after a restore it lies before that.
    ///
    /// # Errors
    /// When the database does not answer; these logs are read anew then.
    pub(crate) async fn end_rebuilds(&mut self) -> Result<(), ReadStoreError> {
        let done = |(log, progress): (&LogId, &Progress)| {
            let whole = progress.whole.filter(|_| !self.unsynced.contains(log))?;
            progress.checkpoint.filter(|checkpoint| checkpoint.rebuilding && checkpoint.position >= whole)
        };
        let done: Vec<_> = self.logs.iter().filter_map(done).collect();
        if done.is_empty() {
            return Ok(());
        }
        let whole = |checkpoint: &Checkpoint| Advance { whole: true, ..step(checkpoint, Tail::from(checkpoint)) };
        let batch = Batch { advances: done.iter().map(whole).collect(), revision: souk_views::revision(), now: now(), ..Batch::default() };
        let written = self.store.write(&batch).await;
        let written = written.inspect_err(|_| self.unsynced.extend(done.iter().map(|checkpoint| checkpoint.log)))?;
        written.lost.iter().for_each(|log| self.lost(*log));
        for checkpoint in written.moved {
            tracing::info!(log = %checkpoint.log, position = %checkpoint.position, "views of the log are whole again");
            if let Some(progress) = self.logs.get_mut(&checkpoint.log) {
                progress.checkpoint = Some(checkpoint);
            }
            self.ports.changes.publish(self.message(&checkpoint, checkpoint.position));
            self.note(checkpoint.log);
        }
        Ok(())
    }

    /// An event at `position` cannot be applied or written. If that may be the rows' fault the log is folded anew, once;
    /// else it stands still, visibly, and is tried again now and then.
    pub(crate) async fn stand_still(
        &mut self,
        log: LogId,
        position: Position,
        reason: String,
        mendable: bool,
    ) -> Result<(), ReadStoreError> {
        let Some(progress) = self.logs.get_mut(&log) else { return Ok(()) };
        if mendable && progress.mended_at != Some(position) {
            progress.mended_at = Some(position);
            tracing::error!(%log, %position, reason, "rows are not what their events say; they are folded anew");
            return self.rewind(log).await;
        }
        progress.stop_reading();
        progress.generation += 1;
        let known = progress.halted.take().filter(|halted| halted.reason == reason);
        if known.is_none() {
            tracing::error!(%log, %position, reason, "an event cannot be projected; its log stands still");
        }
        let mut backoff = known.map_or_else(|| Backoff::new(Duration::from_secs(1), Duration::from_secs(60)), |halted| halted.backoff);
        let retry_at = Instant::now() + backoff.pause();
        progress.halted = Some(Halted { reason, backoff, retry_at });
        self.folder.forget(log);
        self.note(log);
        Ok(())
    }

    /// Every second: holds what is believed against what is stored, announces it, and tries what stood still. Announcing
    /// only what was just read keeps a projector that was overtaken, or whose database lost its last commits, from vouching
    /// for positions that are not there.
    pub(crate) async fn beat(&mut self) -> Result<(), ReadStoreError> {
        let logs = self.held_logs();
        if logs.is_empty() {
            return Ok(());
        }
        for stored in self.store.checkpoints(&logs).await? {
            let log = stored.log;
            let Some(progress) = self.logs.get(&log) else { continue };
            if progress.checkpoint != Some(stored) {
                self.lost(log);
                continue;
            }
            if progress.halted.as_ref().is_some_and(|halted| halted.retry_at <= Instant::now()) && progress.reader.is_none() {
                self.unsynced.insert(log);
            }
            self.ports.changes.publish(self.message(&stored, stored.position));
            self.note(log);
        }
        self.wake_readers();
        self.end_rebuilds().await
    }
}
