//! Streaming standbys of a Postgres server: read replicas for development and tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sqlx::{Connection, PgConnection};

use crate::backup::BaseBackup;
use crate::cluster::{self, Cluster};
use crate::ports::Port;
use crate::postgres::{Postgres, PostgresOptions};

/// The most standbys of one server.
pub(crate) const MOST: u16 = 8;
/// How long a standby may take to replay what the primary has written.
const REPLAY_PATIENCE: Duration = Duration::from_secs(60);

/// A server that follows another one and answers reads. It holds every database of that server.
#[derive(Debug)]
pub struct Standby {
    /// The server itself; tests kill it and start it again.
    pub server: Postgres,
    index: u16,
}

/// Where a standby lives.
#[derive(Clone, Debug)]
pub(crate) struct StandbyOptions {
    /// Counted from 1.
    pub index: u16,
    /// Folder of all data, in which it has its own.
    pub data: PathBuf,
    /// Folder of the logs.
    pub logs: PathBuf,
    pub port: Port,
    /// Settings on top of the recommended ones: those of the primary.
    pub settings: Vec<(String, String)>,
}

impl Standby {
    /// Starts a standby of a running server. One that cannot go on where it stopped, because it was promoted or the primary no longer keeps
    /// what it missed, is copied anew.
    pub(crate) async fn start(primary: &Postgres, options: StandbyOptions) -> Result<Self> {
        let StandbyOptions { index, data, logs, port, settings } = options;
        let (folder, slot) = (folder(&data, index), slot(index));
        if folder.exists() {
            Cluster::clean_up_in(&fs::canonicalize(&folder)?)?;
        }
        let mut connection = primary.connect("postgres").await?;
        if !(goes_on(primary, &folder) && slot_is_kept(&mut connection, &slot).await?) {
            Postgres::remove(&folder)?;
            drop_slot(&mut connection, &slot).await?;
            sqlx::query("select pg_create_physical_replication_slot($1, true)").bind(&slot).execute(&mut connection).await?;
            let copy = BaseBackup::of(primary).through(slot.clone()).take_to(&folder).await;
            File::create(copy.with_context(|| format!("cannot make standby {index}"))?.join("standby.signal"))?;
        }
        connection.close().await?;

        let room = fs::canonicalize(&folder)?;
        let passwords = room.join("pgpass");
        let mut settings = settings;
        settings.extend([
            ("primary_slot_name".to_owned(), slot),
            // The port may be another one than when it was copied.
            (
                "primary_conninfo".to_owned(),
                format!("host=127.0.0.1 port={} user={} passfile={}", primary.port(), cluster::USER, passwords.display()),
            ),
            ("wal_retrieve_retry_interval".to_owned(), "100ms".to_owned()),
        ]);
        let log = logs.join(format!("standby-{index}.log"));
        let options = PostgresOptions { folder, log, port, databases: Vec::new(), settings };
        Ok(Self { server: Postgres::start(options).await?, index })
    }

    /// Which one it is, counted from 1.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Stops applying what arrives: reads stay as they are now, and the standby lags.
    ///
    /// # Errors
    /// If it does not run, or was promoted.
    pub async fn pause_replay(&self) -> Result<()> {
        let mut connection = self.server.connect("postgres").await?;
        sqlx::query("select pg_wal_replay_pause()").execute(&mut connection).await?;
        until(&mut connection, "select pg_get_wal_replay_pause_state() = 'paused'", "pause its replay").await
    }

    /// Applies what has arrived in the meantime, and goes on.
    ///
    /// # Errors
    /// If it does not run, or was promoted.
    pub async fn resume_replay(&self) -> Result<()> {
        let mut connection = self.server.connect("postgres").await?;
        sqlx::query("select pg_wal_replay_resume()").execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// Waits until it shows all that the primary has committed by now.
    ///
    /// # Errors
    /// If one of them does not run, or it does not get there in time.
    pub async fn catch_up_with(&self, primary: &Postgres) -> Result<()> {
        let mut connection = primary.connect("postgres").await?;
        let written: String = sqlx::query_scalar("select pg_current_wal_flush_lsn()::text").fetch_one(&mut connection).await?;
        connection.close().await?;
        let mut connection = self.server.connect("postgres").await?;
        until(&mut connection, &format!("select pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"), "catch up").await
    }

    /// Makes it a primary of its own, which takes writes and follows nobody. The next start of the stack makes it a standby again.
    ///
    /// # Errors
    /// If it does not run, or is not promoted in time.
    pub async fn promote(&self) -> Result<()> {
        let mut connection = self.server.connect("postgres").await?;
        let promoted: bool = sqlx::query_scalar("select pg_promote(true, 60)").fetch_one(&mut connection).await?;
        ensure!(promoted, "standby {} was not promoted within 60 s", self.index);
        Ok(connection.close().await?)
    }
}

/// Removes the standbys in this data folder with a higher number.
pub(crate) fn remove_folders_beyond(count: u16, data: &Path) -> Result<()> {
    (count + 1..=MOST).try_for_each(|index| Postgres::remove(&folder(data, index)))
}

/// Removes the standbys in this data folder with a higher number; the primary keeps nothing for them any more.
pub(crate) async fn remove_beyond(count: u16, data: &Path, primary: &Postgres) -> Result<()> {
    remove_folders_beyond(count, data)?;
    let mut connection = primary.connect("postgres").await?;
    for index in count + 1..=MOST {
        drop_slot(&mut connection, &slot(index)).await?;
    }
    Ok(connection.close().await?)
}

fn folder(data: &Path, index: u16) -> PathBuf {
    data.join(format!("standby-{index}"))
}

fn slot(index: u16) -> String {
    format!("standby_{index}")
}

/// Whether there is a standby of this server's version in the folder.
fn goes_on(primary: &Postgres, folder: &Path) -> bool {
    cluster::version(folder) == Some(primary.major_version()) && folder.join("cluster/standby.signal").is_file()
}

/// Whether the primary still has all that this slot's standby may lack.
async fn slot_is_kept(connection: &mut PgConnection, slot: &str) -> Result<bool> {
    let status = sqlx::query_scalar("select wal_status is distinct from 'lost' from pg_replication_slots where slot_name = $1");
    Ok(status.bind(slot).fetch_optional(connection).await?.unwrap_or(false))
}

async fn drop_slot(connection: &mut PgConnection, slot: &str) -> Result<()> {
    let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1";
    sqlx::query(drop).bind(slot).execute(connection).await.with_context(|| format!("cannot drop the replication slot {slot}"))?;
    Ok(())
}

/// Asks until the answer is true.
async fn until(connection: &mut PgConnection, question: &str, what: &str) -> Result<()> {
    let deadline = Instant::now() + REPLAY_PATIENCE;
    while !sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(question)).fetch_one(&mut *connection).await? {
        if Instant::now() > deadline {
            bail!("the standby does not {what} within {} s", REPLAY_PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
