//! What must hold when all is over.

use std::collections::{HashMap, HashSet};

use souk_event_sourcing::{LogHash, LogId, Position, RecordedEvent, StreamId};
use souk_event_store::{EventLog, PostgresStore};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::report::{Ack, Reply};
use crate::world::{World, logs};

/// Numbers out of the database that must be nought.
const NOUGHT: &[(&str, &str)] = &[
    (
        "heads that differ from their events",
        "select count(*) from partition_head h left join (select partition, count(*), max(position) as last from event group by partition) e
           using (partition) where h.position <> coalesce(e.count, 0) or h.position <> coalesce(e.last, 0)",
    ),
    (
        "stream heads that differ from their events",
        "select count(*) from stream_head h full join (select partition, stream, count(*), max(version) as last from event group by partition, stream) e
           using (partition, stream) where h.version is distinct from e.count or h.version is distinct from e.last",
    ),
    (
        "events outside their epoch",
        "select count(*) from event e where e.epoch is distinct from
           (select max(s.epoch) from epoch_start s where s.partition = e.partition and s.first_position <= e.position)",
    ),
    (
        "requests remembered twice",
        "select count(*) from (select from ledger group by partition, stream, request_id having count(*) > 1) twice",
    ),
    ("deadlocks", "select deadlocks from pg_stat_database where datname = current_database()"),
];

/// Checks the whole database against what was acknowledged. Returns the number of events.
pub async fn audit(world: &World, acks: &[Ack], void: &[Uuid]) -> u64 {
    let (_, pool) = world.store.pools().next().expect("configured");
    for (what, sql) in NOUGHT {
        assert_eq!(sqlx::query_scalar::<_, i64>(*sql).fetch_one(pool).await.expect(what), 0, "{what}");
    }
    let mut events = Vec::new();
    for log in logs() {
        events.extend(whole(&world.store, log).await);
    }
    let count = events.len() as u64;
    let mut written: HashMap<Uuid, Vec<RecordedEvent>> = HashMap::new();
    let mut ends: HashMap<(u16, StreamId), Vec<Position>> = HashMap::new();
    for event in events {
        ends.entry((event.log.partition.0, event.stream.clone())).or_default().push(event.position);
        written.entry(event.request_id.expect("always given").0).or_default().push(event);
    }
    for (request, events) in &written {
        let payload = std::str::from_utf8(&events[0].payload).expect("a number");
        assert_eq!(events.len().to_string(), payload, "events of request {request}: {events:?}");
        let together = events.windows(2).all(|two| two[0].log == two[1].log && two[0].position.next() == two[1].position);
        assert!(together && events.iter().all(|event| event.epoch == events[0].epoch), "request {request}: {events:?}");
    }
    let ledger = ledger(pool).await;
    let mut seen: HashMap<Uuid, Reply> = HashMap::new();
    for ack in acks {
        let earlier = seen.insert(ack.request, ack.reply);
        assert!(earlier.is_none_or(|earlier| earlier == ack.reply), "{ack:?} was answered with {earlier:?} before");
        check(ack, written.get(&ack.request), &ends, &ledger);
    }
    for request in void {
        assert!(!written.contains_key(request) && !ledger.keys().any(|key| key.2 == *request), "request {request} was stale");
    }
    let remembered: HashSet<_> = ledger.keys().map(|key| key.2).collect();
    assert!(written.keys().all(|request| remembered.contains(request)), "events without a ledger row");
    count
}

/// A log from its first event to its head, which must be one chain.
async fn whole(store: &PostgresStore, log: LogId) -> Vec<RecordedEvent> {
    let mut events: Vec<RecordedEvent> = Vec::new();
    let mut end = (Position(0), LogHash::EMPTY);
    let head = store.head(log).await.expect("head");
    while end.0 < head.position {
        let page = store.read(log, end.0.next(), 5_000).await.expect("read");
        assert!(!page.is_empty(), "log {log} ends at {}, its head at {}", end.0, head.position);
        for event in page {
            assert!(event.continues(end.0, end.1), "log {log} is broken at {}", event.position);
            assert!(events.last().is_none_or(|before| before.epoch <= event.epoch), "log {log} went back an epoch at {}", event.position);
            end = (event.position, event.hash);
            events.push(event);
        }
    }
    assert_eq!(end, (head.position, head.hash), "head of log {log}");
    events
}

type Ledger = HashMap<(u16, String, Uuid), String>;

async fn ledger(pool: &PgPool) -> Ledger {
    let rows = sqlx::query("select partition, stream, request_id, convert_from(reply, 'UTF8') as reply from ledger");
    let rows = rows.fetch_all(pool).await.expect("ledger");
    rows.iter().map(|row| ((row.get::<i32, _>("partition") as u16, row.get("stream"), row.get("request_id")), row.get("reply"))).collect()
}

/// What an acknowledged command says of the log is so, and the ledger says the same.
fn check(ack: &Ack, written: Option<&Vec<RecordedEvent>>, ends: &HashMap<(u16, StreamId), Vec<Position>>, ledger: &Ledger) {
    let remembered = ledger.get(&(ack.partition, ack.stream.clone(), ack.request));
    let version_at = |position: u64| {
        let stream = ack.stream.parse().expect("stream");
        let positions = ends.get(&(ack.partition, stream)).map_or(&[][..], Vec::as_slice);
        positions.iter().filter(|at| at.0 <= position).count() as u64
    };
    match ack.reply {
        Reply::Wrote { first, events } => {
            let positions: Vec<_> = written.into_iter().flatten().map(|event| (event.log.partition.0, event.position.0)).collect();
            let said: Vec<_> = (first..first + events).map(|position| (ack.partition, position)).collect();
            assert_eq!(positions, said, "{ack:?}");
        }
        Reply::Refused { version, position } | Reply::Seen { version, position } => {
            assert!(written.is_none(), "{ack:?} has events");
            assert_eq!(version_at(position), version, "{ack:?} was not true when it was given");
        }
    }
    let expected = (!matches!(ack.reply, Reply::Seen { .. })).then(|| ack.reply.to_string());
    assert_eq!(remembered, expected.as_ref(), "{ack:?} in the ledger");
}
