use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use souk_event_sourcing::{LogHash, Position};
use souk_event_store::{EventLog, PostgresStore};
use sqlx::PgPool;

use crate::world::logs;

/// Between two looks; the machine has other work.
const PAUSE: Duration = Duration::from_millis(5);

/// Follows every log by `position > last`, until told to stop and nothing is left. Returns the number of events.
pub async fn tail(store: Arc<PostgresStore>, stop: Arc<AtomicBool>) -> u64 {
    let mut ends = vec![(Position(0), LogHash::EMPTY); logs().count()];
    loop {
        let last_look = stop.load(Ordering::Relaxed);
        let mut news = false;
        for (log, end) in logs().zip(&mut ends) {
            for event in store.read(log, end.0.next(), 1_000).await.expect("read") {
                assert!(event.continues(end.0, end.1), "log {log} was read to {}, then came {event:?}", end.0);
                *end = (event.position, event.hash);
                news = true;
            }
        }
        if last_look && !news {
            return ends.iter().map(|(position, _)| position.0).sum();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Compares heads, the latest events and their stream heads, all of one snapshot each. Returns the number of snapshots.
pub async fn snapshots(pool: PgPool, stop: Arc<AtomicBool>) -> u64 {
    let mut taken = 0;
    while !stop.load(Ordering::Relaxed) {
        let wrong: Vec<(i32, i64, i64, i64, i64)> = sqlx::query_as(
            "select h.partition, h.position, e.count, e.last, s.behind from partition_head h
             cross join lateral (select count(*), coalesce(max(position), 0) as last from event e
               where e.region = 1 and e.partition = h.partition and e.position > h.position - 300) e
             cross join lateral (select count(*) as behind from (select stream, max(version) as version from event e
               where e.region = 1 and e.partition = h.partition and e.position > h.position - 300 group by stream) e
               left join stream_head s on s.region = 1 and s.partition = h.partition and s.stream = e.stream
               where s.version is distinct from e.version) s
             where e.count <> least(h.position, 300) or e.last <> h.position or s.behind <> 0",
        )
        .fetch_all(&pool)
        .await
        .expect("snapshot");
        assert!(wrong.is_empty(), "(partition, head, of the last 300 events, last event, stream heads that differ): {wrong:?}");
        taken += 1;
        tokio::time::sleep(PAUSE).await;
    }
    taken
}
