use souk_event_sourcing::LogId;
use souk_read_store::ReadStoreError;
use tokio::time::{Instant, timeout};

use crate::shard::{Held, Shard, Turn};

/// What makes no progress although there is some to make is started anew: a reader that hangs, a call of the database that
/// never returns. Nothing is lost by it, for everything begins at the stored checkpoint.
impl Shard {
    /// Takes a turn, and breaks it off when it hangs. Its outcome is unknown then, as after a lost connection.
    pub(crate) async fn watched(&mut self, turn: Turn) -> Result<(), ReadStoreError> {
        if let Ok(outcome) = timeout(self.config.watchdog_after, self.take(turn)).await {
            return outcome;
        }
        tracing::error!(database = self.database, after = ?self.config.watchdog_after, "a call of the database hangs; broken off");
        self.ports.board.restarted();
        for log in self.held_logs() {
            self.folder.forget(log);
            self.unsynced.insert(log);
        }
        self.component.impaired("a call of the database hangs");
        Ok(())
    }

    /// Starts the readers of logs anew whose head is ahead and whose checkpoint does not move.
    pub(crate) fn wake_readers(&mut self) {
        let hangs = |log: &LogId| {
            let Some(progress) = self.logs.get(log) else { return false };
            // Both for long: a log that was at its end for hours has not hung by the first event after them.
            let (Some(behind), Some(moved)) = (self.ports.board.behind_since(*log), progress.moved) else { return false };
            let ours = progress.held != Held::Others && progress.halted.is_none();
            ours && behind.elapsed().min(moved.elapsed()) >= self.config.watchdog_after
        };
        let hanging: Vec<_> = self.held_logs().into_iter().filter(hangs).collect();
        for log in hanging {
            tracing::error!(%log, after = ?self.config.watchdog_after, "the log lags and nothing moves; its reader is started anew");
            self.ports.board.restarted();
            if let Some(progress) = self.logs.get_mut(&log) {
                progress.moved = Some(Instant::now());
            }
            self.unsynced.insert(log);
        }
    }
}
