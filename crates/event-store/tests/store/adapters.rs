//! Both adapters against the law of the ports.

use bytes::Bytes;
use souk_devstack::{PostgresOptions, TemporaryFolder};
use souk_event_sourcing::{LogId, UnixMillis};
use souk_event_store::{
    Belief, DatabaseConfig, LedgerRow, MemoryStore, PostgresLane, PostgresStore, ReplicaBatch, Retention,
    conformance::{self, Adapter},
};

#[derive(Default)]
struct Memory(MemoryStore);

impl Adapter for Memory {
    type Lane = MemoryStore;
    type Log = MemoryStore;

    fn lane(&self) -> MemoryStore {
        self.0.clone()
    }

    fn log(&self) -> &MemoryStore {
        &self.0
    }

    async fn take(&self, log: LogId) -> Belief {
        self.0.take(log, 0)
    }

    async fn remembered(&self, batch: &ReplicaBatch) -> Vec<Bytes> {
        let reply = |row: &LedgerRow| Some(self.0.reply(batch.log, &row.stream, row.request_id)?.reply);
        batch.ledger.iter().filter_map(reply).collect()
    }
}

struct Postgres(PostgresStore);

impl Adapter for Postgres {
    type Lane = PostgresLane;
    type Log = PostgresStore;

    fn lane(&self) -> PostgresLane {
        self.0.lane("w1").expect("configured")
    }

    fn log(&self) -> &PostgresStore {
        &self.0
    }

    async fn take(&self, log: LogId) -> Belief {
        let taken = self.0.ownership("conformance").take("w1", &[log.partition], std::time::Duration::ZERO).await.expect("take");
        taken.first().expect("placed").belief
    }

    async fn remembered(&self, batch: &ReplicaBatch) -> Vec<Bytes> {
        let rows = self.0.ledger_of(batch.log, &batch.events, Retention { days: 7 }).await.expect("ledger");
        let found = |row: &LedgerRow| rows.iter().find(|found| found.request_id == row.request_id).map(|found| found.reply.clone());
        batch.ledger.iter().filter_map(found).collect()
    }
}

#[tokio::test]
async fn memory_keeps_the_law() {
    conformance::all(&Memory::default()).await;
}

#[tokio::test]
async fn postgres_keeps_the_law() {
    let folder = TemporaryFolder::create().expect("folder");
    let options = PostgresOptions { databases: vec!["store".into()], ..PostgresOptions::new(folder.path()) };
    let postgres = souk_devstack::Postgres::start(options).await.expect("postgres");
    let url = postgres.url("store");
    let configs = [DatabaseConfig::new("w1", url, 4)];
    let (first, second) = tokio::join!(PostgresStore::migrate(&configs), PostgresStore::migrate(&configs));
    first.and(second).expect("two migrations at once");
    let store = PostgresStore::connect(&configs, souk_event_sourcing::Region(1), 16).await.expect("connect");
    let logs: Vec<_> = (0..16).map(|partition| (conformance::log(partition), souk_event_sourcing::Position(0))).collect();
    let copies = (0..6).map(|partition| (conformance::foreign(partition), souk_event_sourcing::Position(0)));
    let logs: Vec<_> = logs.into_iter().chain(copies).collect();
    store.prepare("w1", &logs, Retention { days: 7 }, UnixMillis::now()).await.expect("prepare");
    conformance::all(&Postgres(store)).await;
}
