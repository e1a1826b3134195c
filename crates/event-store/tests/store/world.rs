//! A server for all tests of this binary and a database for each of them.

use std::{
    env,
    process::Stdio,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use souk_devstack::{Postgres, PostgresOptions, TemporaryFolder};
use souk_event_sourcing::{LogId, Position, Region, UnixMillis};
use souk_event_store::{Belief, DatabaseConfig, PostgresLane, PostgresStore, Retention, Taken, conformance::log};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{process::Command, sync::Mutex};

/// Partitions of each test's installation.
pub const PARTITIONS: u16 = 8;
const URL: &str = "SOUK_TEST_PROCESS_URL";
pub const RETENTION: Retention = Retention { days: 7 };
/// How long a condition may take to come true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stopped when the last test that uses it is done.
static SHARED: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());
/// The migrated and prepared database that those of the tests are copied from.
const PATTERN: &str = "pattern";
static DATABASES: AtomicU32 = AtomicU32::new(0);

struct Server {
    postgres: Postgres,
    _folder: TemporaryFolder,
}

impl Server {
    async fn start() -> Self {
        let folder = TemporaryFolder::create().expect("folder");
        let postgres = Postgres::start(PostgresOptions::new(folder.path())).await.expect("postgres");
        postgres.create_database(PATTERN).await.expect("pattern");
        let url = postgres.url(PATTERN);
        PostgresStore::migrate(&configs(&url)).await.expect("migrate");
        let store = connect(&url).await;
        let logs: Vec<_> = logs().map(|log| (log, Position(0))).collect();
        store.prepare("w1", &logs, RETENTION, UnixMillis::now()).await.expect("prepare");
        store.close().await;
        Self { postgres, _folder: folder }
    }

    async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&server);
        server
    }
}

/// A store of its own, with logs 0–7 ready to be written.
pub struct World {
    pub store: PostgresStore,
    pub url: String,
    _server: Arc<Server>,
}

impl World {
    pub async fn new() -> Self {
        Self::on(Server::shared().await).await
    }

    /// With a server of its own, whose settings may be changed.
    pub async fn alone() -> Self {
        Self::on(Arc::new(Server::start().await)).await
    }

    async fn on(server: Arc<Server>) -> Self {
        let database = format!("store_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let create = format!("create database {database} template {PATTERN}");
        let mut admin = server.postgres.connect("postgres").await.expect("connection");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.expect("database");
        let url = server.postgres.url(&database);
        let store = connect(&url).await;
        Self { store, url, _server: server }
    }

    pub fn lane(&self) -> PostgresLane {
        self.store.lane("w1").expect("configured")
    }

    /// Takes a log over from whoever has it.
    pub async fn take(&self, log: LogId) -> Belief {
        self.taken(log).await.belief
    }

    pub async fn taken(&self, log: LogId) -> Taken {
        let taken = self.store.ownership("world").take("w1", &[log.partition], Duration::ZERO).await.expect("take");
        taken.into_iter().next().expect("placed")
    }

    /// A connection past the store.
    pub async fn sql(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("connection")
    }

    /// Locks a head as a statement under way would, until the connection is told to commit or goes.
    pub async fn hold(&self, log: LogId) -> PgConnection {
        let mut holder = self.sql().await;
        sqlx::raw_sql("begin").execute(&mut holder).await.expect("begin");
        sqlx::query("select from partition_head where partition = $1 for update")
            .bind(i32::from(log.partition.0))
            .execute(&mut holder)
            .await
            .expect("lock");
        holder
    }

    /// Waits until so many statements of this database wait for a lock.
    pub async fn until_waiting(&self, statements: i64) {
        let mut connection = self.sql().await;
        until("statements wait for a lock", async || {
            let sql = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut connection).await.expect("activity") == statements
        })
        .await;
    }

    /// One number out of the database.
    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.sql().await).await.expect(sql)
    }
}

/// This binary again, as a process that runs one of the tests that others start.
pub fn process(test: &str, url: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.args([test, "--exact", "--ignored", "--nocapture"]).env(URL, url);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// The database such a process works on; `None` if nobody started it.
pub fn started_for() -> Option<String> {
    let url = env::var(URL).ok()?;
    // Ends the line the test runner has begun.
    println!();
    Some(url)
}

/// What `hold` locked is free again.
pub async fn release(mut holder: PgConnection) {
    sqlx::raw_sql("commit").execute(&mut holder).await.expect("commit");
}

pub fn logs() -> impl Iterator<Item = LogId> {
    (0..PARTITIONS).map(log)
}

fn configs(url: &str) -> [DatabaseConfig; 1] {
    [DatabaseConfig::new("w1", url, 4)]
}

/// The store of a test as another process sees it.
pub async fn connect(url: &str) -> PostgresStore {
    PostgresStore::connect(&configs(url), Region(1), PARTITIONS).await.expect("connect")
}

/// Waits for a condition.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}
