use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use souk_client::{Endpoints, Session, Souk};
use souk_devstack::{Regions, StackOptions, souk_program};
use sqlx::PgPool;
use tokio::{process::Command, sync::MutexGuard};

use crate::system::turn;

/// Three regions share two cores with everything else.
const READY_PATIENCE: Duration = Duration::from_secs(240);

/// Several whole regions under test, joined by links; gone when dropped.
pub struct World {
    pub regions: Regions,
    run_file: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// Starts regions, and lays the ways to those that may be added later. `change` is what each stack is started with.
    ///
    /// # Errors
    /// When something does not start; the message has the ends of the logs.
    pub async fn start(names: &[&str], later: &[&str], change: impl Fn(&str, &mut StackOptions) + Send + Sync + 'static) -> Result<Self> {
        let turn = turn().await;
        let mut regions = Regions::temporary(names, later, change).await?;
        regions.start_services(READY_PATIENCE).await?;
        let run_file = regions.data().join("run.json");
        let world = Self { regions, run_file, _turn: turn };
        world.write_run_file()?;
        Ok(world)
    }

    /// Adds one of the regions that may be added.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn add(&mut self, name: &str) -> Result<()> {
        self.regions.add(name, READY_PATIENCE).await?;
        self.write_run_file()
    }

    /// A client of one region, with its own connections.
    ///
    /// # Errors
    /// When there is no such region.
    pub fn client(&self, region: &str) -> Result<Souk> {
        let stack = self.regions.stack(region)?;
        Ok(Souk::connect(&Endpoints::new(stack.urls("command"), stack.urls("query")))?)
    }

    /// A session in one region with patience for faults, without tokens.
    ///
    /// # Errors
    /// When there is no such region.
    pub fn session(&self, region: &str) -> Result<Session> {
        Ok(self.client(region)?.session().caller("test").deadline(Duration::from_secs(60)))
    }

    /// A pool on the first write database of a region.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn write_pool(&self, region: &str) -> Result<PgPool> {
        let databases = self.regions.stack(region)?.write_databases();
        Ok(PgPool::connect(&databases.first().context("no write database")?.url).await?)
    }

    /// A pool on the first read database of a region.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn read_pool(&self, region: &str) -> Result<PgPool> {
        let databases = self.regions.stack(region)?.read_databases();
        Ok(PgPool::connect(&databases.first().context("no read database")?.url).await?)
    }

    /// Runs a `souk` command against all regions, or the one it names.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn souk(&self, args: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new(souk_program()?);
        command.args(args).env("SOUK_RUN_FILE", &self.run_file).env_remove("SOUK_REGION").stdin(Stdio::null()).kill_on_drop(true);
        Ok(command.output().await?)
    }

    /// What a `souk` command says that must succeed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn said(&self, args: &[&str]) -> Result<String> {
        let output = self.souk(args).await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        bail!("souk {}: {said}{}", args.join(" "), String::from_utf8_lossy(&output.stderr))
    }

    /// What `souk audit --all-regions` finds, clean or not, when copies and views have so long to catch up.
    ///
    /// # Errors
    /// When it could not look.
    pub async fn audit(&self, settle: &str) -> Result<Value> {
        self.write_run_file()?;
        let output = self.souk(&["audit", "--all-regions", "--json", "--settle", settle]).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("audit said {text:?} {:?}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Fails unless logs, copies, streams and views of all regions agree.
    ///
    /// # Errors
    /// With the differences.
    pub async fn audit_clean(&self) -> Result<Value> {
        let findings = self.audit("60s").await?;
        if findings["wrong"].as_object().is_some_and(serde_json::Map::is_empty) { Ok(findings) } else { bail!("audit: {findings:#}") }
    }

    /// Tells `souk` commands what runs now.
    ///
    /// # Errors
    /// When a Postgres or NATS does not run.
    pub fn write_run_file(&self) -> Result<()> {
        self.regions.run_file()?.write(&self.run_file)
    }
}
