use std::{sync::Arc, time::Duration};

use souk_event_sourcing::{LogId, Position, UnixMillis};
use souk_event_store::{EventLog, PostgresStore, Retention, StoreError};
use tokio::time::{MissedTickBehavior, interval};
use tracing::error;

use super::Held;

/// Where every process has a name of its own, the dead would pile up.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Keeps the tables of the write databases in order: children ahead of every log held here; out with what the ledger may forget,
/// and with replicas long gone.
pub struct Upkeep {
    pub store: Arc<PostgresStore>,
    pub replica: String,
    pub held: Held,
    pub retention: Retention,
}

impl Upkeep {
    /// Looks after all databases every `period`, the first time after one. Ends with the task only: one that waits for a database must
    /// hold up neither heartbeats nor the others.
    pub async fn run(self, period: Duration) {
        let mut due = interval(period);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        due.reset();
        loop {
            due.tick().await;
            futures::future::join_all(self.store.databases().map(async |database| {
                if let Err(error) = self.look_after(database).await {
                    error!(database, %error, "upkeep of the tables failed; it is tried again");
                }
            }))
            .await;
        }
    }

    async fn look_after(&self, database: &str) -> Result<(), StoreError> {
        let held = self.held.each(|log, _| log).into_iter().filter(|log| self.store.database_of(log.partition) == Some(database));
        let mut heads: Vec<(LogId, Position)> = Vec::new();
        for log in held {
            heads.push((log, EventLog::head(&*self.store, log).await?.position));
        }
        let now = UnixMillis::now();
        self.store.prepare(database, &heads, self.retention, now).await?;
        self.store.ownership(&self.replica).forget_silent(database, FORGOTTEN).await?;
        self.store.forget(database, self.retention, now).await
    }
}
