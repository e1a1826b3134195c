//! Physical copies of a running Postgres server: what standbys start from, and what a server is restored from.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::account::{Account, make_room};
use crate::child;
use crate::cluster;
use crate::folder::TemporaryFolder;
use crate::postgres::Postgres;
use crate::tools::PostgresTools;

/// A server, as `pg_basebackup` is told of it.
pub(crate) struct BaseBackup {
    tools: PostgresTools,
    account: Option<Account>,
    port: u16,
    password: String,
    slot: Option<String>,
}

impl BaseBackup {
    pub fn of(server: &Postgres) -> Self {
        let cluster = server.cluster();
        let (tools, account) = (cluster.tools().clone(), cluster.account().cloned());
        Self { tools, account, port: server.port(), password: cluster.password().to_owned(), slot: None }
    }

    /// Lets the server keep what it writes from now on for whoever starts from the copy.
    pub fn through(self, slot: String) -> Self {
        Self { slot: Some(slot), ..self }
    }

    /// Copies the server, as it is when the copy ends, into a new folder; returns where its data lies there.
    pub async fn take_to(self, folder: &Path) -> Result<PathBuf> {
        let folder = folder.to_owned();
        tokio::task::spawn_blocking(move || self.copy_to(&folder)).await?
    }

    fn copy_to(&self, folder: &Path) -> Result<PathBuf> {
        let room = fs::canonicalize(make_room(folder, self.account.as_ref())?)?;
        // Under another name until it is whole.
        let (unfinished, finished) = (room.join("unfinished"), room.join("cluster"));
        let mut command = self.tools.program("pg_basebackup");
        command.arg("-D").arg(&unfinished).args(["--host=127.0.0.1", "--no-password", "--checkpoint=fast", "--wal-method=stream"]);
        command.args([format!("--port={}", self.port), format!("--username={}", cluster::USER)]);
        command.args(self.slot.as_ref().map(|slot| format!("--slot={slot}")));
        if TemporaryFolder::holds(folder) {
            command.arg("--no-sync");
        }
        command.env("PGPASSWORD", &self.password).current_dir(&room).stdin(Stdio::null());
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        child::die_with_parent(&mut command, Signal::SIGKILL);
        let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
        ensure!(output.status.success(), "pg_basebackup failed:\n{}", String::from_utf8_lossy(&output.stderr));
        self.write_secret(&room.join("password"), &self.password)?;
        self.write_secret(&room.join("pgpass"), &format!("*:*:*:{}:{}\n", cluster::USER, self.password))?;
        fs::rename(&unfinished, &finished).context("cannot put the new cluster in its place")?;
        Ok(finished)
    }

    fn write_secret(&self, file: &Path, text: &str) -> Result<()> {
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        fs::set_permissions(file, Permissions::from_mode(0o600))?;
        self.account.as_ref().map_or(Ok(()), |account| account.give(file))
    }
}
