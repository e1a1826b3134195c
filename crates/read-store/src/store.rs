use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::try_join_all;
use sea_orm::{DatabaseConnection, EntityTrait};
use souk_event_sourcing::LogId;
use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use crate::{
    Demand, Installation, ReadStoreError, Server, Snapshot,
    checkpoint::log_id,
    entity::placement,
    install,
    server::{PRIMARY_LIMIT, REPLICA_LIMIT},
};

/// Where a read database is.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// The name placement knows it by; its address may change, its name never.
    pub name: String,
    pub url: String,
    /// The same database on streaming standbys; [`Access::Read`] alone reads from them.
    pub replicas: Vec<String>,
    /// Of the pool; a projector's batches have one more.
    pub max_connections: u32,
}

impl DatabaseConfig {
    /// A database without standbys.
    pub fn new(name: impl Into<String>, url: impl Into<String>, max_connections: u32) -> Self {
        Self { name: name.into(), url: url.into(), replicas: Vec::new(), max_connections }
    }
}

/// What a process does with the read store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Queries: transactions are read-only, enforced by the server.
    Read,
    /// Projector and tools. Commits do not wait for the disk: after a crash a checkpoint went back together with its
    /// rows, and the projector goes on from there. Plans are generic, since every statement is bound to arrays.
    Write,
}

/// One read database under its name: the server that takes writes, and its standbys.
#[derive(Debug, Clone)]
pub struct Database {
    name: String,
    primary: Server,
    replicas: Arc<[Server]>,
    /// Which replica is next.
    turn: Arc<AtomicUsize>,
}

impl Database {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server that takes writes, for hot paths with array binds.
    pub fn pool(&self) -> &PgPool {
        self.primary.pool()
    }

    /// The same pool through SeaORM, for ordinary reads.
    pub fn orm(&self) -> &DatabaseConnection {
        self.primary.orm()
    }

    /// Whether anybody but the primary can be asked.
    pub fn has_replicas(&self) -> bool {
        !self.replicas.is_empty()
    }

    /// Reads from a replica that contains what the reader wants, else from the primary; and while that is away from a
    /// replica that contains the least.
    ///
    /// # Errors
    /// Those of the primary.
    pub async fn read<T, F>(&self, demand: &Demand, read: impl Fn(Server) -> F) -> Result<T, ReadStoreError>
    where
        T: Snapshot,
        F: Future<Output = Result<T, ReadStoreError>>,
    {
        if let Some(fresh) = &demand.fresh
            && let Some(replica) = self.next_replica()
            && let Some(answer) = replica.ask(fresh, read(replica.clone())).await
        {
            return Ok(answer);
        }
        let Some(least) = demand.least.as_ref().filter(|_| self.has_replicas()) else {
            let answer = read(self.primary.clone()).await;
            if answer.is_ok() {
                self.primary.answered();
            }
            return answer;
        };
        let ask_primary = || async {
            let answer = timeout(PRIMARY_LIMIT, read(self.primary.clone())).await;
            answer.unwrap_or_else(|_| Err(ReadStoreError::database(&self.name)(sqlx::Error::PoolTimedOut)))
        };
        let mut away = None;
        if self.primary.may_be_asked() {
            match ask_primary().await {
                Err(error) if error.retryable() => {
                    self.primary.failed(&error);
                    away = Some(error);
                }
                answer => {
                    self.primary.answered();
                    return answer;
                }
            }
        }
        for replica in self.replicas.iter().filter(|replica| replica.may_be_asked()) {
            if let Some(answer) = replica.ask(least, read(replica.clone())).await {
                return Ok(answer);
            }
        }
        match away {
            Some(error) => Err(error),
            None => ask_primary().await,
        }
    }

    /// The replica whose turn it is, of those worth asking.
    fn next_replica(&self) -> Option<&Server> {
        let (count, turn) = (self.replicas.len(), self.turn.fetch_add(1, Ordering::Relaxed));
        (0..count).map(|offset| &self.replicas[turn.wrapping_add(offset) % count]).find(|replica| replica.may_be_asked())
    }

    /// The primary first.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.primary).chain(self.replicas.iter())
    }
}

/// The read databases of one region, and which log is placed in which.
#[derive(Debug, Clone)]
pub struct ReadStore {
    databases: Vec<Database>,
    placement: BTreeMap<LogId, usize>,
    placement_version: i64,
    installation: Installation,
}

impl ReadStore {
    /// Opens databases that a projector has installed, checks that they belong together and to this configuration, and
    /// reads the placement.
    ///
    /// # Errors
    /// [`ReadStoreError::NotInstalled`] while no projector has created the tables and placed all logs (retry), a lasting error when the
    /// databases belong to another installation, region or partition count, or hold logs under unknown names.
    pub async fn open(configs: &[DatabaseConfig], access: Access, installation: Installation) -> Result<Self, ReadStoreError> {
        let databases = connect(configs, access).await?;
        let store = Self::with(databases, installation).await?;
        install::complete(&store, installation).await?;
        Ok(store)
    }

    /// The same databases with the placement as it is now.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn reread(&self) -> Result<Self, ReadStoreError> {
        Self::with(self.databases.clone(), self.installation).await
    }

    /// Checks and loads over pools that exist already.
    pub(crate) async fn with(databases: Vec<Database>, installation: Installation) -> Result<Self, ReadStoreError> {
        install::check(&databases, installation).await?;
        let first = &databases[0];
        let rows = placement::Entity::find().all(first.orm()).await.map_err(ReadStoreError::orm(first.name()))?;
        let mut placed = BTreeMap::new();
        let mut placement_version = 0;
        for row in rows {
            let index = databases.iter().position(|database| database.name == row.database);
            placed.insert(log_id(row.region, row.partition), index.ok_or(ReadStoreError::UnknownDatabase(row.database))?);
            placement_version = placement_version.max(row.version);
        }
        Ok(Self { databases, placement: placed, placement_version, installation })
    }

    pub fn databases(&self) -> &[Database] {
        &self.databases
    }

    pub fn installation(&self) -> Installation {
        self.installation
    }

    /// Highest version among the placements: another one than remembered means that a log has moved.
    pub fn placement_version(&self) -> i64 {
        self.placement_version
    }

    /// The database that holds the rows of `log`.
    ///
    /// # Errors
    /// [`ReadStoreError::NotPlaced`] for a log this store does not hold.
    pub fn database_of(&self, log: LogId) -> Result<&Database, ReadStoreError> {
        self.placement.get(&log).map(|index| &self.databases[*index]).ok_or(ReadStoreError::NotPlaced(log))
    }

    /// All logs held here, in order.
    pub fn logs(&self) -> impl Iterator<Item = LogId> + '_ {
        self.placement.keys().copied()
    }

    /// The logs placed in the database of that name, in order.
    pub fn logs_of(&self, database: &str) -> Vec<LogId> {
        self.placement.iter().filter(|(_, index)| self.databases[**index].name == database).map(|(log, _)| *log).collect()
    }

    /// Reports how many connections each pool has in use and idle, as metrics; called by the process at every scrape.
    pub fn report_pools(&self) {
        for server in self.databases.iter().flat_map(Database::servers) {
            let (size, idle) = (server.pool().size() as usize, server.pool().num_idle());
            let name = format!("read/{}", server.name());
            for (state, count) in [("idle", idle), ("used", size.saturating_sub(idle))] {
                metrics::gauge!("souk_pool_connections", "pool" => name.clone(), "state" => state).set(count as f64);
            }
            let most = server.pool().options().get_max_connections();
            metrics::gauge!("souk_pool_connections_max", "pool" => name).set(f64::from(most));
        }
    }

    /// Closes all pools, waiting for connections in use.
    pub async fn close(&self) {
        for server in self.databases.iter().flat_map(Database::servers) {
            server.pool().close().await;
        }
    }
}

/// A connection that was used within this time is taken to live.
pub(crate) const UNTESTED_PAUSE: Duration = Duration::from_millis(250);

/// One pool per database, each with a first connection, so that a wrong address is told at start.
pub(crate) async fn connect(configs: &[DatabaseConfig], access: Access) -> Result<Vec<Database>, ReadStoreError> {
    let named_well = configs
        .iter()
        .enumerate()
        .all(|(index, config)| !config.name.is_empty() && configs[..index].iter().all(|earlier| earlier.name != config.name));
    if configs.is_empty() || !named_well {
        return Err(ReadStoreError::BadConfiguration);
    }
    try_join_all(configs.iter().map(|config| connect_one(config, access))).await
}

async fn connect_one(config: &DatabaseConfig, access: Access) -> Result<Database, ReadStoreError> {
    let told = ReadStoreError::database(&config.name);
    let pool = pool(config.max_connections, ACQUIRE_LIMIT);
    let pool = pool.connect_with(options(&config.url, access).map_err(ReadStoreError::database(&config.name))?).await.map_err(told)?;
    let urls = match access {
        Access::Read => config.replicas.as_slice(),
        Access::Write => &[],
    };
    let replicas = urls.iter().enumerate().map(|(index, url)| {
        let name = format!("{}-replica-{}", config.name, index + 1);
        let options = options(url, access).map_err(ReadStoreError::database(&name))?;
        // Connected when it is asked for the first time: one that is away keeps nobody from starting.
        let pool = self::pool(config.max_connections, REPLICA_LIMIT).connect_lazy_with(options);
        Ok(Server::new(&name, pool))
    });
    let replicas = replicas.collect::<Result<_, ReadStoreError>>()?;
    Ok(Database { name: config.name.clone(), primary: Server::new(&config.name, pool), replicas, turn: Arc::default() })
}

/// Longest wait for a connection.
pub(crate) const ACQUIRE_LIMIT: Duration = Duration::from_secs(5);

fn options(url: &str, access: Access) -> Result<PgConnectOptions, sqlx::Error> {
    let session: &[(&str, &str)] = match access {
        Access::Read => &[("default_transaction_read_only", "on")],
        // `unnest` puts a batch by before it is written: 4,096 rows of 1 KB go to a file beyond the 4 MB that a server gives it by itself.
        Access::Write => &[("synchronous_commit", "off"), ("plan_cache_mode", "force_generic_plan"), ("work_mem", "32MB")],
    };
    // A plan is kept for the life of a connection, often from when the tables were empty: it must not scan them whole. The
    // price the planner then puts on unavoidable scans would call for compilation, which costs more than they do.
    let session = session.iter().chain(&[("enable_seqscan", "off"), ("jit", "off")]);
    let name = match access {
        Access::Read => "souk-read",
        Access::Write => "souk-projector",
    };
    Ok(PgConnectOptions::from_str(url)?.application_name(name).options(session.copied()).disable_statement_logging())
}

fn pool(max_connections: u32, acquire_limit: Duration) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(max_connections.max(1))
        .acquire_timeout(acquire_limit)
        // A ping per checkout would double the round trips of a hot path; one after a pause finds the connections that a
        // restarted server has dropped, before each of them fails somebody.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < UNTESTED_PAUSE || sqlx::Connection::ping(connection).await.is_ok()) })
        })
}
