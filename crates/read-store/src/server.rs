//! The servers that hold a read database: one takes writes, its streaming standbys answer reads too, as of some moment
//! before. How far a snapshot reaches is read together with the rows, and a reader says how far it must.

use std::{
    fmt::Display,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::{DatabaseConnection, SqlxPostgresConnector};
use souk_event_sourcing::{LogPosition, UnixMillis};
use sqlx::PgPool;

use crate::{AsOf, RowRead};

/// How far the snapshot of a replica must reach to answer a reader, log by log.
///
/// The default is that no replica will do.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    /// A replica that contains this is as good as the primary; `None`: none is.
    pub fresh: Option<Arc<[Least]>>,
    /// A replica that contains this answers while the primary is away; `None`: none does.
    pub least: Option<Arc<[Least]>>,
}

/// How far a snapshot must reach in one log, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Least {
    /// The epoch counts before the position.
    pub position: LogPosition,
    /// Rows from before they were last mended or deleted will not do, whatever their position; see [`crate::Checkpoint`].
    pub repaired: UnixMillis,
}

/// What was read in one snapshot.
pub trait Snapshot {
    /// Whether it contains what is demanded of the logs it is about, and is of views that are whole: who else is asked may know
    /// that they are by now.
    fn reaches(&self, demanded: &[Least]) -> bool;
}

impl Snapshot for AsOf {
    fn reaches(&self, demanded: &[Least]) -> bool {
        let reached = (self.position.epoch, self.position.position);
        let reaches = |Least { position, repaired }: &Least| reached >= (position.epoch, position.position) && self.repaired >= *repaired;
        !self.rebuilding && demanded.iter().filter(|least| least.position.log == self.position.log).all(reaches)
    }
}

impl Snapshot for RowRead {
    fn reaches(&self, demanded: &[Least]) -> bool {
        self.as_of.reaches(demanded)
    }
}

impl Snapshot for Vec<RowRead> {
    fn reaches(&self, demanded: &[Least]) -> bool {
        self.iter().all(|read| read.reaches(demanded))
    }
}

/// Rows of a list, and what the snapshot contains of each log.
impl<M> Snapshot for (Vec<M>, Vec<AsOf>) {
    fn reaches(&self, demanded: &[Least]) -> bool {
        self.1.iter().all(|as_of| as_of.reaches(demanded))
    }
}

/// Longest a replica may take, and the primary when there are replicas to ask instead.
pub(crate) const REPLICA_LIMIT: Duration = Duration::from_secs(1);
pub(crate) const PRIMARY_LIMIT: Duration = Duration::from_secs(2);
/// How long a server that failed is left alone, doubling, and at most.
const AFTER_FAILURE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
/// The same for a replica that was behind several times running. Once is nothing: somebody wanted the very newest.
const WHEN_BEHIND: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
const TIMES_BEHIND: u32 = 3;

/// A connection pool to one server that holds a read database.
#[derive(Debug, Clone)]
pub struct Server {
    name: Arc<str>,
    pool: PgPool,
    orm: DatabaseConnection,
    health: Arc<Mutex<Health>>,
    answered: Arc<AtomicU64>,
}

/// How it has answered of late.
#[derive(Debug, Default)]
struct Health {
    /// Left alone until then.
    rests_until: Option<Instant>,
    /// Running, with no answer between.
    failures: u32,
    behind: u32,
}

impl Server {
    pub(crate) fn new(name: &str, pool: PgPool) -> Self {
        let orm = SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone());
        Self { name: name.into(), pool, orm, health: Arc::default(), answered: Arc::default() }
    }

    /// As figures name it: as its database, or with a number if it is a replica.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads it has answered.
    pub fn answers(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// For hot paths with array binds.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The same pool through SeaORM, for ordinary reads.
    pub fn orm(&self) -> &DatabaseConnection {
        &self.orm
    }

    /// Whether it is worth asking now. Of those who want to know after a rest, one is told so and finds out for all.
    pub(crate) fn may_be_asked(&self) -> bool {
        let (mut health, now) = (self.health(), Instant::now());
        match &mut health.rests_until {
            None => true,
            Some(until) if *until <= now => {
                *until = now + PRIMARY_LIMIT;
                true
            }
            Some(_) => false,
        }
    }

    /// What `read` brings of this replica, if it comes in time and contains what is demanded.
    pub(crate) async fn ask<T: Snapshot, E: Display>(&self, demanded: &[Least], read: impl Future<Output = Result<T, E>>) -> Option<T> {
        match tokio::time::timeout(REPLICA_LIMIT, read).await {
            Ok(Ok(answer)) if answer.reaches(demanded) => {
                self.answered();
                return Some(answer);
            }
            Ok(Ok(_)) => self.note("behind", |health| {
                health.failures = 0;
                health.behind += 1;
                health.rests_until = health.behind.checked_sub(TIMES_BEHIND).map(|times| rest(times, WHEN_BEHIND));
            }),
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&"no answer in time"),
        }
        None
    }

    pub(crate) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.note("answered", |health| *health = Health::default());
    }

    pub(crate) fn failed(&self, error: &dyn Display) {
        tracing::debug!(server = &*self.name, %error, "a read database does not answer");
        self.note("failed", |health| {
            health.rests_until = Some(rest(health.failures, AFTER_FAILURE));
            health.failures += 1;
        });
    }

    fn note(&self, outcome: &'static str, change: impl FnOnce(&mut Health)) {
        change(&mut self.health());
        metrics::counter!("souk_read_server_answers_total", "server" => self.name.to_string(), "outcome" => outcome).increment(1);
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until when to rest, twice as long with every time.
fn rest(times: u32, (first, most): (Duration, Duration)) -> Instant {
    Instant::now() + (first * 2_u32.saturating_pow(times.min(16))).min(most)
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::{Epoch, LogId, Partition, Position, Region, UnixMillis};

    use super::*;

    fn at(partition: u16, epoch: u64, position: u64) -> LogPosition {
        let log = LogId { region: Region(1), partition: Partition(partition) };
        LogPosition { log, epoch: Epoch(epoch), position: Position(position) }
    }

    fn least(position: LogPosition) -> Least {
        Least { position, repaired: UnixMillis(5) }
    }

    #[test]
    fn a_snapshot_is_held_against_what_is_demanded_of_its_own_log() {
        let as_of = AsOf { position: at(3, 7, 10), written: UnixMillis(0), revision: 1, repaired: UnixMillis(5), rebuilding: false };
        for (demanded, reached) in [
            (vec![], true),
            (vec![at(3, 7, 10)], true),
            (vec![at(3, 7, 11)], false),
            (vec![at(3, 8, 1)], false),
            (vec![at(3, 6, 99)], true),
            (vec![at(4, 9, 99)], true),
            (vec![at(3, 7, 9), at(3, 7, 11)], false),
        ] {
            let demanded: Vec<_> = demanded.into_iter().map(least).collect();
            assert_eq!(as_of.reaches(&demanded), reached, "{demanded:?}");
            assert_eq!((Vec::<()>::new(), vec![as_of]).reaches(&demanded), reached);
            assert!(!AsOf { rebuilding: true, ..as_of }.reaches(&demanded), "views that are not whole answer nobody");
            let repaired_since: Vec<_> = demanded.iter().map(|least| Least { repaired: UnixMillis(6), ..*least }).collect();
            assert_eq!(as_of.reaches(&repaired_since), demanded.iter().all(|least| least.position.log != as_of.position.log));
        }
    }
}
