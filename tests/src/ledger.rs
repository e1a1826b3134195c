use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use sqlx::PgPool;
use uuid::Uuid;

/// Ids asked for at once.
const CHUNK: usize = 250_000;

/// Request ids of commands a caller was told are durable, each of which led to at least one event.
#[derive(Debug, Default)]
pub struct Acknowledged(Mutex<Vec<Uuid>>);

impl Acknowledged {
    pub fn add(&self, id: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Forgets those added after the first `kept`: a restore took them back.
    pub fn forget_after(&self, kept: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).truncate(kept);
    }

    /// Fails unless every one stands exactly once in the ledger, and its events once each in the log. Asks the tables
    /// themselves, not the audit.
    ///
    /// # Errors
    /// With the first ids that are lost or doubled.
    pub async fn stand_once(&self, pools: &[PgPool]) -> Result<()> {
        let ids = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut remembered: std::collections::HashMap<Uuid, i64> = Default::default();
        let mut logged = remembered.clone();
        for pool in pools {
            // Each reads the whole log, which has no index by request.
            for chunk in ids.chunks(CHUNK) {
                let rows: Vec<(Uuid, i64)> =
                    sqlx::query_as("select request_id, count(*) from ledger where request_id = any($1) group by 1")
                        .bind(chunk)
                        .fetch_all(pool)
                        .await?;
                rows.into_iter().for_each(|(id, count)| *remembered.entry(id).or_default() += count);
                // Events of one command lie at distinct (stream, version); a doubled command would repeat the pair's stream.
                let rows: Vec<(Uuid, i64)> = sqlx::query_as(
                    "select request_id, max(times) from (select request_id, stream, type, count(*) times from event where request_id = any($1) group by 1, 2, 3) e group by 1",
                )
                .bind(chunk)
                .fetch_all(pool)
                .await?;
                rows.into_iter().for_each(|(id, count)| *logged.entry(id).or_default() += count);
            }
        }
        let off = |found: &std::collections::HashMap<Uuid, i64>| {
            ids.iter().filter(|id| found.get(id) != Some(&1)).take(5).copied().collect::<Vec<_>>()
        };
        let (not_remembered, not_logged) = (off(&remembered), off(&logged));
        ensure!(not_remembered.is_empty(), "acknowledged, but not once in the ledger: {not_remembered:?}");
        ensure!(not_logged.is_empty(), "acknowledged, but its events are not once in the log: {not_logged:?}");
        Ok(())
    }
}
