use std::{os::unix::fs::symlink, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use souk_client::{Endpoints, Session, Souk};
use souk_devstack::{RunFile, TemporaryFolder, souk_folder, souk_program};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    sync::MutexGuard,
};

use crate::system::turn;

/// A folder in which `souk up` is started again and again over the same data, as somebody does whose shop grows.
pub struct Site {
    folder: TemporaryFolder,
    _turn: MutexGuard<'static, ()>,
}

/// A system that `souk up` started; killed when dropped.
pub struct Up {
    child: Child,
    run_file: PathBuf,
    /// What it said of itself.
    pub facts: RunFile,
}

impl Site {
    /// # Errors
    /// When the folder cannot be made.
    pub async fn new() -> Result<Self> {
        let turn = turn().await;
        let folder = TemporaryFolder::create()?;
        std::fs::create_dir(folder.path().join(".souk"))?;
        symlink(souk_folder().join("tools"), folder.path().join(".souk/tools"))?;
        Ok(Self { folder, _turn: turn })
    }

    fn souk_up(&self, flags: &[&str]) -> Result<Command> {
        let mut command = Command::new(souk_program()?);
        command.args(["up", "--json", "--free-ports"]).args(flags).current_dir(self.folder.path()).env_remove("SOUK_RUN_FILE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(command)
    }

    /// Starts it with flags and waits until all is ready.
    ///
    /// # Errors
    /// When it does not start; with what it said.
    pub async fn up(&self, flags: &[&str]) -> Result<Up> {
        let mut child = self.souk_up(flags)?.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line).await?;
        if line.is_empty() {
            let mut said = String::new();
            child.stderr.take().context("no stderr")?.read_to_string(&mut said).await?;
            bail!("souk up {}: {said}", flags.join(" "));
        }
        // Nothing is read from its stderr any more, which must not hold it up: it is a file by now.
        Ok(Up { child, run_file: self.folder.path().join(".souk/run.json"), facts: serde_json::from_str(&line)? })
    }

    /// What it says when it refuses these flags.
    ///
    /// # Errors
    /// When it does not refuse.
    pub async fn refuses(&self, flags: &[&str]) -> Result<String> {
        let output = self.souk_up(flags)?.output().await?;
        ensure!(!output.status.success(), "souk up {} was not refused", flags.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Up {
    /// A session over all replicas.
    ///
    /// # Errors
    /// When the addresses are malformed.
    pub fn session(&self) -> Result<Session> {
        let urls = |addresses: &str| addresses.split(',').map(|address| format!("http://{address}")).collect::<Vec<_>>().join(",");
        let addresses = &self.facts.addresses;
        Ok(Souk::connect(&Endpoints::new(urls(&addresses.command), urls(&addresses.query)))?.session().caller("test"))
    }

    /// Fails unless `souk audit` finds log, streams and views equal.
    ///
    /// # Errors
    /// With what it found.
    pub async fn audit_clean(&self) -> Result<()> {
        let said = self.souk(&["audit"]).await?;
        ensure!(said.contains("clean"), "audit: {said}");
        Ok(())
    }

    /// Runs a `souk` command against it, and returns what that said.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn souk(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(souk_program()?).args(arguments).env("SOUK_RUN_FILE", &self.run_file).output().await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "souk {}: {said}", arguments.join(" "));
        Ok(said)
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// When it does not drain.
    pub async fn stop(mut self) -> Result<()> {
        self.facts.souk.signal(Signal::SIGINT)?;
        let status = self.child.wait().await?;
        ensure!(status.success(), "souk up ended with {status}");
        Ok(())
    }
}
