use souk_event_store::StoreError;
use tokio::time::{Instant, timeout};

use crate::session::{End, Session, Turn};

/// What makes no progress although there is some to make is started anew: a reader that hangs, a call of the database that
/// never returns. Nothing is lost by it, for everything begins at what is stored.
impl Session<'_> {
    /// Takes a turn, and ends the session when it hangs. Its outcome is unknown then, as after a lost connection.
    pub(crate) async fn watched(&mut self, turn: Turn) -> Result<Option<End>, StoreError> {
        let after = self.shard.config.watchdog_after;
        if let Ok(outcome) = timeout(after, self.take(turn)).await {
            return outcome.map(|()| None);
        }
        tracing::error!(database = self.shard.database, ?after, "a call of the write database hangs; broken off");
        self.shard.sources.board.restarted();
        Ok(Some(End::Hung))
    }

    /// Lets go of logs whose head is ahead and whose checkpoint does not move; they are claimed anew.
    pub(crate) fn wake_readers(&mut self) {
        let (after, board) = (self.shard.config.watchdog_after, &self.shard.sources.board);
        if self.is_full() {
            self.reading_since = Instant::now();
        }
        // What is not read has no reason to move.
        if self.reading_since.elapsed() < after {
            return;
        }
        let hanging: Vec<_> = self.logs().filter(|log| board.hangs(*log, after)).collect();
        for log in hanging {
            tracing::error!(%log, ?after, "the log lags and nothing moves; it is read anew");
            board.restarted();
            self.let_go(log);
        }
    }
}
