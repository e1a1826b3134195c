//! PgBouncer in transaction mode before a Postgres server, for tests of what may pass through it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use sqlx::{Connection, PgConnection};

use crate::account::Account;
use crate::child::{Child, Launch};
use crate::cluster;
use crate::ports::free_port;
use crate::postgres::Postgres;
use crate::tools::PoolerTools;

const START_PATIENCE: Duration = Duration::from_secs(30);

/// A running pooler. Dropping it kills it.
#[derive(Debug)]
pub struct Pooler {
    server_port: u16,
    port: u16,
    child: Child,
}

impl Pooler {
    /// Starts one on a free port before a running server and waits until a query passes through it.
    ///
    /// # Errors
    /// If no PgBouncer is found that is recent enough, or it does not start.
    pub async fn start(postgres: &Postgres, folder: &Path, log: &Path) -> Result<Self> {
        let tools = PoolerTools::find()?;
        let port = free_port()?;
        fs::create_dir_all(folder)?;
        let (users, config) = (folder.join("users"), folder.join("pgbouncer.ini"));
        fs::write(&users, format!("\"{}\" \"{}\"\n", cluster::USER, postgres.cluster().password()))?;
        fs::set_permissions(&users, Permissions::from_mode(0o600))?;
        let mut text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\nmax_client_conn = 1000\ndefault_pool_size = 20\n\
             max_prepared_statements = 500\nignore_startup_parameters = options,extra_float_digits\n",
            postgres.port(),
            users.display(),
        );
        // Like Postgres it does not work as root.
        if let Some(account) = Account::for_postgres(folder)? {
            account.give(folder)?;
            account.give(&users)?;
            text += &format!("user = {}\n", account.name);
        }
        fs::write(&config, text)?;
        let mut command = tools.program();
        command.arg(&config);
        let name = "pgbouncer".to_owned();
        let launch = Launch { name, command, log: log.to_owned(), account: None, at_parent_death: Signal::SIGKILL, record: None };
        let pooler = Self { server_port: postgres.port(), port, child: Child::start(launch)? };
        pooler.wait_until_it_answers(&postgres.url("postgres")).await?;
        Ok(pooler)
    }

    /// The address of a database of that server, through the pooler.
    pub fn url(&self, straight: &str) -> String {
        straight.replace(&format!(":{}/", self.server_port), &format!(":{}/", self.port))
    }

    async fn wait_until_it_answers(&self, straight: &str) -> Result<()> {
        let (url, deadline) = (self.url(straight), Instant::now() + START_PATIENCE);
        loop {
            if self.child.exit_status().is_some() {
                return Err(self.child.died());
            }
            match PgConnection::connect(&url).await {
                Ok(connection) => return connection.close().await.context("the pooler's first connection"),
                Err(error) if Instant::now() > deadline => bail!("the pooler does not answer: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.child.stop_now(Signal::SIGKILL, Duration::ZERO);
    }
}
