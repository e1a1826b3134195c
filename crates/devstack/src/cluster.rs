//! The data folder of a Postgres server: made by initdb, cleaned up after a crash.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::account::Account;
use crate::child;
use crate::identity::ProcessIdentity;
use crate::tools::PostgresTools;

/// The superuser of every cluster.
pub(crate) const USER: &str = "souk";

/// The major version that wrote the data below this folder; `None` if there is no data.
pub(crate) fn version(room: &Path) -> Option<u32> {
    fs::read_to_string(room.join("cluster/PG_VERSION")).ok()?.trim().parse().ok()
}

/// A folder holding `cluster` (what initdb makes), `password` and, while a server runs, `process.json`.
#[derive(Debug)]
pub(crate) struct Cluster {
    room: PathBuf,
    password: String,
    tools: PostgresTools,
    account: Option<Account>,
}

impl Cluster {
    /// Opens the folder, creating its content if there is none. `for_tests` says that new content need not be on disk before the first
    /// write-ahead log is.
    pub fn open(room: PathBuf, tools: PostgresTools, account: Option<Account>, for_tests: bool) -> Result<Self> {
        let secret = room.join("password");
        if version(&room).is_none() {
            initialise(&room, &secret, &tools, account.as_ref(), for_tests)?;
        }
        let password = fs::read_to_string(&secret).with_context(|| format!("cannot read {}", secret.display()))?.trim().to_owned();
        Ok(Self { room, password, tools, account })
    }

    pub fn server(&self) -> Command {
        let mut command = self.tools.program("postgres");
        command.arg("-D").arg(self.room.join("cluster")).current_dir(&self.room);
        command
    }

    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    pub fn tools(&self) -> &PostgresTools {
        &self.tools
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    pub fn folder(&self) -> &Path {
        &self.room
    }

    pub fn major_version(&self) -> u32 {
        self.tools.major()
    }

    pub fn record(&self) -> PathBuf {
        self.room.join("process.json")
    }

    /// Ends a server an earlier run left behind and removes its lock file.
    pub fn clean_up(&self) -> Result<()> {
        Self::clean_up_in(&self.room)
    }

    pub fn clean_up_in(room: &Path) -> Result<()> {
        child::clean_up(&room.join("process.json"), Signal::SIGINT, Duration::from_secs(20))?;
        let data = room.join("cluster");
        let lock = data.join("postmaster.pid");
        let pid = fs::read_to_string(&lock).ok().and_then(|text| text.lines().next()?.trim().parse::<u32>().ok());
        if let Some(server) = pid.and_then(ProcessIdentity::of).filter(|server| works_in(server.pid, &data)) {
            tracing::info!(pid = server.pid, "ending a Postgres left over from an earlier run");
            server.end(Signal::SIGINT, Duration::from_secs(20))?;
        }
        kill_backends(&data)?;
        // The pid in it may belong to anybody by now, which Postgres could not tell from a running server.
        match fs::remove_file(&lock) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot remove a stale postmaster.pid"),
            _ => Ok(()),
        }
    }

    /// Kills backends whose postmaster is gone. Most notice by themselves; one inside a long statement does so only at its end, and until
    /// then no new server can start.
    pub fn kill_what_is_left(&self) -> Result<()> {
        kill_backends(&self.room.join("cluster"))
    }

    /// Signals postmaster and backends.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        signal_backends(&self.room.join("cluster"), signal).map(drop)
    }
}

fn initialise(room: &Path, secret: &Path, tools: &PostgresTools, account: Option<&Account>, for_tests: bool) -> Result<()> {
    fs::write(secret, random_hex()?).with_context(|| format!("cannot write {}", secret.display()))?;
    fs::set_permissions(secret, Permissions::from_mode(0o600))?;
    if let Some(account) = account {
        account.give(secret)?;
    }
    // Made under another name, so that one cut short is never taken for a whole one.
    let unfinished = room.join("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let mut command = tools.program("initdb");
    command.arg("-D").arg(&unfinished).args(["--username", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]);
    command.arg(format!("--pwfile={}", secret.display())).current_dir(room).stdin(Stdio::null());
    if for_tests {
        command.arg("--no-sync");
    }
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    child::die_with_parent(&mut command, Signal::SIGKILL);
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "initdb failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&unfinished, room.join("cluster")).context("cannot put the new cluster in its place")
}

/// Kills every process whose working directory is the data folder, and waits until none is left that holds its shared memory. Postgres
/// moves there and nothing else should; a shell somebody has left there is told apart by its program.
#[expect(clippy::disallowed_methods, reason = "blocks for the moment the kernel needs to end a killed process")]
fn kill_backends(data: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = signal_backends(data, Signal::SIGKILL)?;
        if left.is_empty() && !is_attached(data) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "processes of Postgres do not end: {left:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process holds the server's shared memory. One that is ending does so for a moment in which /proc tells neither its program
/// nor its owner any more, and no new server can start meanwhile.
fn is_attached(data: &Path) -> bool {
    // The last but one line of a running server's: key and id of the block.
    let lock = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let block = lock.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
    let blocks = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let mut columns = blocks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    block.is_some() && columns.any(|row| row.get(1).copied() == block && row.get(6).is_some_and(|attached| *attached != "0"))
}

/// Signals them all, and says which they were.
fn signal_backends(data: &Path, signal: Signal) -> Result<Vec<u32>> {
    let Ok(owner) = fs::metadata(data).map(|metadata| metadata.uid()) else { return Ok(Vec::new()) };
    let backends: Vec<u32> = processes_of(owner).filter(|pid| works_in(*pid, data)).collect();
    for pid in &backends {
        match kill(Pid::from_raw(*pid as i32), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot signal the Postgres process {pid}")),
        }
    }
    Ok(backends)
}

fn processes_of(owner: u32) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (entry.metadata().ok()?.uid() == owner).then_some(pid)
    })
}

/// Whether this process is a Postgres whose data folder is `data`. Where there is no /proc nothing is, and Postgres itself has to judge.
fn works_in(pid: u32, data: &Path) -> bool {
    let at = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
    let program = at("exe").ok().and_then(|path| Some(path.file_name()?.to_string_lossy().starts_with("postgres")));
    let place = fs::canonicalize(data).ok();
    program == Some(true) && place.is_some() && at("cwd").ok() == place
}

/// 32 random bytes.
pub(crate) fn random_hex() -> Result<String> {
    let mut bytes = [0_u8; 32];
    fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
