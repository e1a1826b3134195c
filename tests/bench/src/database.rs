//! What Postgres does without Souk, on the same server with the same settings.

use std::{path::PathBuf, process::Stdio, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use souk_devstack::Postgres;
use souk_event_sourcing::{Region, UnixMillis};
use souk_read_store::{DatabaseConfig, Installation, ReadStore};
use souk_views::ViewsMigrator;
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{process::Command, time::Instant};

use crate::loader::on_own_thread;

const DATABASE: &str = "bare";
const VIEWS: &str = "bare_views";
const ROW: usize = 1024;
/// Clients of pgbench to choose the best of.
pub const CLIENTS: [usize; 4] = [1, 8, 32, 64];

/// A database with one table for rows of 1 KB.
pub struct Bare {
    url: String,
    port: u16,
    script: PathBuf,
    pgbench: PathBuf,
}

impl Bare {
    /// # Errors
    /// When the database cannot be made or there is no pgbench.
    pub async fn create(postgres: &Postgres, folder: &std::path::Path) -> Result<Self> {
        postgres.create_database(DATABASE).await?;
        let url = postgres.url(DATABASE);
        let mut connection = PgConnection::connect(&url).await?;
        sqlx::query("create table row (id bigint generated always as identity primary key, payload bytea not null)")
            .execute(&mut connection)
            .await?;
        let script = folder.join("insert.sql");
        let payload = "5a".repeat(ROW);
        std::fs::write(&script, format!("insert into row (payload) values ('\\x{payload}');\n"))?;
        Ok(Self { url, port: postgres.port(), script, pgbench: find_pgbench(postgres)? })
    }

    /// Rows per second that so many clients insert, one row a transaction.
    ///
    /// # Errors
    /// When pgbench fails.
    pub async fn pgbench(&self, clients: usize, time: Duration) -> Result<f64> {
        let (clients, seconds) = (clients.to_string(), pgbench_seconds(time).to_string());
        let (user, _) = self.url.trim_start_matches("postgres://").split_once('@').unwrap_or(("souk", ""));
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        let output = Command::new(&self.pgbench)
            .args(["-n", "-M", "prepared", "-j", "2", "-c", &clients, "-T", &seconds, "-h", "127.0.0.1", "-U", user, "-p"])
            .arg(self.port.to_string())
            .arg("-f")
            .arg(&self.script)
            .arg(DATABASE)
            .env("PGPASSWORD", password)
            .stdin(Stdio::null())
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split_ascii_whitespace().next()?.parse().ok());
        rate.with_context(|| format!("pgbench said {text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The number of clients that inserts fastest, and its rate.
    ///
    /// # Errors
    /// When pgbench fails.
    pub async fn best_clients(&self, time: Duration) -> Result<(usize, f64)> {
        let mut best = (0, 0.0);
        for clients in CLIENTS {
            let rate = self.pgbench(clients, time).await?;
            if rate > best.1 {
                best = (clients, rate);
            }
        }
        Ok(best)
    }

    /// The median time of one durable insert on one connection: one after another, or one at every `pause`.
    ///
    /// # Errors
    /// When an insert fails.
    pub async fn insert_p50(&self, time: Duration, pause: Option<Duration>) -> Result<Duration> {
        let url = self.url.clone();
        on_own_thread(move || async move {
            let mut connection = PgConnection::connect(&url).await?;
            let (payload, mut times) = (vec![0x5a_u8; ROW], Vec::new());
            let mut ticks = pause.map(tokio::time::interval);
            let began = Instant::now();
            while began.elapsed() < time {
                if let Some(ticks) = &mut ticks {
                    ticks.tick().await;
                }
                let sent = Instant::now();
                sqlx::query("insert into row (payload) values ($1)").bind(&payload).execute(&mut connection).await?;
                times.push(sent.elapsed());
            }
            times.sort_unstable();
            Ok(times[times.len() / 2])
        })
        .await
    }
}

/// How long pgbench runs that is to run for some time.
pub fn pgbench_seconds(time: Duration) -> f64 {
    time.as_secs_f64().ceil().max(1.0)
}

/// A read database without Souk: the view tables with all their indexes.
#[derive(Debug, Clone)]
pub struct BareViews {
    url: String,
}

impl BareViews {
    /// # Errors
    /// When the database cannot be made.
    pub async fn create(postgres: &Postgres) -> Result<Self> {
        postgres.create_database(VIEWS).await?;
        let url = postgres.url(VIEWS);
        let installation = Installation { region: Region(1), partitions: 64 };
        let config = DatabaseConfig::new("r1", &url, 2);
        ReadStore::install::<ViewsMigrator>(&[config], installation, UnixMillis::now()).await?.close().await;
        Ok(Self { url })
    }

    /// A connection as the projector has it: its commits do not wait for the disk.
    ///
    /// # Errors
    /// When the database is not there.
    pub async fn connect(&self) -> Result<PgConnection> {
        let options = PgConnectOptions::from_str(&self.url)?.options([("synchronous_commit", "off")]);
        Ok(options.disable_statement_logging().connect().await?)
    }

    /// Puts rows of a view, as `COPY … TO STDOUT (FORMAT binary)` gave them, into the table of the same name: how many, and how long it
    /// took.
    ///
    /// # Errors
    /// When a row is there already.
    pub async fn copy(&self, view: &str, rows: Vec<Bytes>) -> Result<(u64, Duration)> {
        let (views, statement) = (self.clone(), format!("copy {view} from stdin (format binary)"));
        on_own_thread(move || async move {
            let mut connection = views.connect().await?;
            let began = Instant::now();
            let mut copy = connection.copy_in_raw(&statement).await?;
            for part in rows {
                copy.send(part).await?;
            }
            Ok((copy.finish().await?, began.elapsed()))
        })
        .await
    }
}

fn find_pgbench(postgres: &Postgres) -> Result<PathBuf> {
    let version = postgres.major_version();
    let mut folders = vec![PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    match folders.into_iter().map(|folder| folder.join("pgbench")).find(|program| program.is_file()) {
        Some(program) => Ok(program),
        None => bail!("no pgbench on PATH; it comes with Postgres (Debian: postgresql-client, or postgresql-{version})"),
    }
}
