use std::{collections::BTreeMap, str::FromStr, time::Duration};

use futures::future::try_join_all;
use sea_orm::{DatabaseConnection, EntityTrait, SqlxPostgresConnector};
use souk_event_sourcing::LogId;
use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{Installation, ReadStoreError, checkpoint::log_id, entity::placement, install};

/// Where a read database is.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// The name placement knows it by; its address may change, its name never.
    pub name: String,
    pub url: String,
    pub max_connections: u32,
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

/// One read database: a connection pool under its name.
#[derive(Debug, Clone)]
pub struct Database {
    name: String,
    pool: PgPool,
    orm: DatabaseConnection,
}

impl Database {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For hot paths with array binds.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The same pool through SeaORM, for ordinary reads.
    pub fn orm(&self) -> &DatabaseConnection {
        &self.orm
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

    /// Reports how many connections each pool has in use and idle, as metrics; called now and then by the process.
    pub fn report_pools(&self) {
        for database in &self.databases {
            let (size, idle) = (database.pool.size() as usize, database.pool.num_idle());
            for (state, count) in [("idle", idle), ("used", size.saturating_sub(idle))] {
                let labels = [("database", database.name.clone()), ("state", state.to_owned())];
                metrics::gauge!("souk_read_pool_connections", &labels).set(count as f64);
            }
        }
    }

    /// Closes all pools, waiting for connections in use.
    pub async fn close(&self) {
        for database in &self.databases {
            database.pool.close().await;
        }
    }
}

/// A connection that was used within this time is taken to live.
const UNTESTED_PAUSE: Duration = Duration::from_millis(250);

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
    let session: &[(&str, &str)] = match access {
        Access::Read => &[("default_transaction_read_only", "on")],
        Access::Write => &[("synchronous_commit", "off"), ("plan_cache_mode", "force_generic_plan")],
    };
    // A plan is kept for the life of a connection, often from when the tables were empty: it must not scan them whole. The
    // price the planner then puts on unavoidable scans would call for compilation, which costs more than they do.
    let session = session.iter().chain(&[("enable_seqscan", "off"), ("jit", "off")]);
    let options = PgConnectOptions::from_str(&config.url)
        .map_err(ReadStoreError::database(&config.name))?
        .application_name(match access {
            Access::Read => "souk-read",
            Access::Write => "souk-projector",
        })
        .options(session.copied())
        .disable_statement_logging();
    let pool = PgPoolOptions::new()
        .max_connections(config.max_connections.max(1))
        .acquire_timeout(Duration::from_secs(5))
        // A ping per checkout would double the round trips of a hot path; one after a pause finds the connections that a
        // restarted server has dropped, before each of them fails somebody.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < UNTESTED_PAUSE || sqlx::Connection::ping(connection).await.is_ok()) })
        })
        .connect_with(options)
        .await
        .map_err(ReadStoreError::database(&config.name))?;
    let orm = SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone());
    Ok(Database { name: config.name.clone(), pool, orm })
}
