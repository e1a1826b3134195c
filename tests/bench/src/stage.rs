use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use souk_devstack::{Service, StackOptions};
use souk_load::Rpc;
use souk_tests::{System, until};
use sqlx::{PgConnection, PgPool};

use crate::{
    loader::{Loader, Press, all_ok},
    machine::{self, cpu_of},
    record::progress,
    sources::{self, Keys},
};

/// The whole system, every part a process of its own, filled with products 1..=`products` of 1 KB each.
pub struct Stage {
    pub system: System,
    pub products: u64,
}

/// A part of the system whose CPU time is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Service(Service),
    Postgres,
    Nats,
}

impl Part {
    pub const ALL: [Self; 6] = [
        Self::Service(Service::Command),
        Self::Service(Service::Query),
        Self::Service(Service::Projector),
        Self::Service(Service::Saga),
        Self::Postgres,
        Self::Nats,
    ];
    /// Whom a command costs CPU until its reply.
    pub const WRITE_SIDE: [Self; 2] = [Self::Service(Service::Command), Self::Postgres];
}

/// Connections of the loader to each service: one carries 256 calls at a time.
pub const CONNECTIONS: usize = 8;
/// Callers of a closed loop that fills the next batch of the command service while one is written.
pub const WRITERS: usize = 1024;
/// Callers of a load that only has to be there: so few that nobody waits too long when the disk stands still for a moment.
pub const FILLERS: usize = 256;
/// Events of all logs, in the write databases.
pub const WRITTEN: &str = "select coalesce(sum(position), 0)::bigint from partition_head";
/// Events in the views, in the read databases.
pub const APPLIED: &str = "select coalesce(sum(position), 0)::bigint from read_checkpoint";
/// Files of 16 MiB, in `min_wal_size` of [`recommended`].
const WAL_FILES: u64 = 160;

/// How long the system may take to come to rest.
pub const PATIENCE: Duration = Duration::from_secs(300);

impl Stage {
    /// Starts everything and fills it.
    ///
    /// # Errors
    /// When something does not start, or a product is refused.
    pub async fn start(products: u64, change: impl FnOnce(&mut StackOptions)) -> Result<Self> {
        progress("starting Postgres, NATS and the services");
        let system = System::start(|options| {
            recommended(options);
            change(options);
        })
        .await?;
        let stage = Self { system, products };
        stage.age_wal().await?;
        progress(&format!("creating {products} products"));
        stage.create(1, products).await?;
        stage.caught_up().await?;
        settle(&mut stage.system.stack.postgres.connect("postgres").await?).await?;
        Ok(stage)
    }

    /// Gives the server the stock of WAL files that one has which has run for some time. A new server makes each file when it is
    /// needed, and everybody's commits wait for 16 MiB of zeroes.
    async fn age_wal(&self) -> Result<()> {
        let mut connection = self.system.stack.postgres.connect("postgres").await?;
        for _ in 0..(self.products / 400).clamp(1, WAL_FILES) {
            sqlx::raw_sql("select pg_logical_emit_message(false, '', ''); select pg_switch_wal()").execute(&mut connection).await?;
        }
        sqlx::raw_sql("checkpoint").execute(&mut connection).await?;
        Ok(())
    }

    /// Creates so many products of 1 KB, numbered from `first` on.
    ///
    /// # Errors
    /// When one cannot be created.
    pub async fn create(&self, first: u64, count: u64) -> Result<()> {
        self.create_with(first, count, sources::timed_id).await
    }

    /// The same, with request ids of another kind.
    ///
    /// # Errors
    /// When one cannot be created.
    pub async fn create_with(&self, first: u64, count: u64, request_id: fn() -> String) -> Result<()> {
        let source = move |rpc: &Arc<Rpc>| sources::creations(rpc.clone(), first, request_id);
        self.commands().fill(sources::CREATE_PRODUCT, source, FILLERS, count).await
    }

    /// A loader before the query service.
    pub fn queries(&self) -> Loader {
        Loader::new(self.system.stack.urls("query"), CONNECTIONS)
    }

    /// A loader before the command service.
    pub fn commands(&self) -> Loader {
        Loader::new(self.system.stack.urls("command"), CONNECTIONS)
    }

    pub fn uniform(&self) -> Keys {
        Keys::uniform(self.products)
    }

    /// CPU time that these parts have used so far.
    ///
    /// # Errors
    /// When one of them does not run.
    pub fn cpu(&self, parts: &[Part]) -> Result<Duration> {
        parts.iter().map(|part| self.pid(*part).map(cpu_of)).sum()
    }

    /// CPU time that these parts have used since they had used so much.
    ///
    /// # Errors
    /// When one of them does not run.
    pub fn cpu_since(&self, parts: &[Part], before: Duration) -> Result<Duration> {
        Ok(self.cpu(parts)?.saturating_sub(before))
    }

    /// Holds a part to some cores.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pin(&self, part: Part, cores: &[usize]) -> Result<()> {
        machine::pin_process(self.pid(part)?, cores)
    }

    /// The process of a part, whose children are the part's as well.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, part: Part) -> Result<u32> {
        let stack = &self.system.stack;
        let identity = match part {
            Part::Service(service) => Some(stack.service(service)?.identity()),
            Part::Postgres => stack.postgres.identity(),
            Part::Nats => stack.nats.identity(),
        };
        Ok(identity.with_context(|| format!("{part:?} does not run"))?.pid)
    }

    /// Waits until the views have everything.
    ///
    /// # Errors
    /// When they do not come on.
    pub async fn caught_up(&self) -> Result<()> {
        let (write, read) = (self.system.write_pools().await?, self.system.read_pools().await?);
        until("the views caught up", PATIENCE, || async { Ok((sum(&read, APPLIED).await? >= sum(&write, WRITTEN).await?).then_some(())) })
            .await
    }

    /// Has every product in the query service's cache.
    ///
    /// # Errors
    /// When one is not found.
    pub async fn warm_up(&self) -> Result<()> {
        let products = self.products;
        let all = move |rpcs: Vec<Arc<Rpc>>| sources::each(rpcs[0].clone(), products);
        all_ok(self.queries().run(&[(0, sources::GET_PRODUCT)], all, Press::Calls(64, products)).await?).map(drop)
    }

    /// Nothing was lost or doubled by what was measured. Gives the events that were looked at, per second.
    ///
    /// # Errors
    /// With what is wrong.
    pub async fn audit(&self) -> Result<f64> {
        progress("audit");
        self.caught_up().await?;
        let began = Instant::now();
        let findings = self.system.audit_clean().await?;
        let events = findings["checked"]["events"].as_u64().context("the audit looked at no event")?;
        Ok(events as f64 / began.elapsed().as_secs_f64())
    }
}

/// Settings of Postgres for a small server; both sides of every comparison run on them.
pub fn recommended(options: &mut StackOptions) {
    options.postgres_settings = [("min_wal_size", "2560MB"), ("max_wal_size", "8GB"), ("shared_buffers", "1GB")]
        .map(|(key, value)| (key.into(), value.into()))
        .into();
}

/// Has everything written down that filling left in memory. The kernel would write hundreds of megabytes at once half a minute
/// later, and everybody's commits would wait for them, which no load of its own ever does to a system.
///
/// # Errors
/// When the server cannot be asked for it.
pub async fn settle(connection: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("checkpoint").execute(connection).await?;
    tokio::task::spawn_blocking(nix::unistd::sync).await?;
    Ok(())
}

/// The sum of what a query finds in each database.
///
/// # Errors
/// When one cannot be asked.
pub async fn sum(pools: &[PgPool], query: &'static str) -> Result<i64> {
    let mut total = 0;
    for pool in pools {
        total += sqlx::query_scalar::<_, i64>(query).fetch_one(pool).await?;
    }
    Ok(total)
}
