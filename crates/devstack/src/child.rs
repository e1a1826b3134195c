//! A child process that cannot outlive this one.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::account::Account;
use crate::identity::ProcessIdentity;

/// A log file that has grown beyond this is set aside when its process starts.
const LARGEST_LOG: u64 = 16 << 20;

/// How a child is started.
pub(crate) struct Launch {
    /// What it is called in messages.
    pub name: String,
    /// Program and arguments.
    pub command: Command,
    /// Where its output is appended.
    pub log: PathBuf,
    /// Whom it runs as; `None` is this user.
    pub account: Option<Account>,
    /// What the kernel sends it if this process dies.
    pub at_parent_death: Signal,
    /// Where its identity is kept, for the next start to clean up after a crash of the machine's user or of a kernel without that signal.
    pub record: Option<PathBuf>,
}

/// A running child: in a process group of its own, so that Ctrl-C in a terminal reaches it only through its parent.
///
/// Dropping it does not end it; its owner decides how. Only the death of the process does.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    log: PathBuf,
    identity: ProcessIdentity,
    exit: watch::Receiver<Option<ExitStatus>>,
    thread: Option<JoinHandle<()>>,
}

impl Child {
    /// Starts the process.
    ///
    /// One thread starts it and waits for it: the death signal of Linux is bound to the *thread* that forked, so that thread must live as
    /// long as the child (prctl(2), `PR_SET_PDEATHSIG`).
    pub fn start(launch: Launch) -> Result<Self> {
        let Launch { name, mut command, log, account, at_parent_death, record } = launch;
        let output = open_log(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        if let Some(account) = account {
            command.uid(account.uid).gid(account.gid);
        }
        die_with_parent(&mut command, at_parent_death);

        let (started, start) = mpsc::channel();
        let (exited, exit) = watch::channel(None);
        let thread = thread::Builder::new().name(format!("child-{name}")).spawn(move || match command.spawn() {
            Ok(mut child) => {
                let _ = started.send(Ok(child.id()));
                if let Ok(status) = child.wait() {
                    exited.send_replace(Some(status));
                }
            }
            Err(error) => {
                let _ = started.send(Err(anyhow!(error).context(format!("cannot start {:?}", command.get_program()))));
            }
        })?;
        let pid = start.recv().context("the thread that starts the process ended")??;
        let identity = ProcessIdentity::of(pid).unwrap_or(ProcessIdentity { pid, started: String::new() });
        if let Some(record) = record {
            fs::write(&record, serde_json::to_vec(&identity)?).with_context(|| format!("cannot write {}", record.display()))?;
        }
        tracing::debug!(name, pid, "process started");
        Ok(Self { name, log, identity, exit, thread: Some(thread) })
    }

    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.exit_status().is_some() { Ok(()) } else { self.identity.signal(signal) }
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.map_err(|_| anyhow!("lost sight of {}", self.name))?;
        status.ok_or_else(|| anyhow!("lost sight of {}", self.name))
    }

    /// Asks it to end, and forces it after `grace`.
    pub async fn stop(&self, gently: Signal, grace: Duration) -> Result<ExitStatus> {
        self.signal(gently)?;
        if let Ok(status) = tokio::time::timeout(grace, self.wait()).await {
            return status;
        }
        tracing::warn!(name = self.name, grace_ms = grace.as_millis() as u64, "process did not end in time and is killed");
        self.kill9().await
    }

    /// Ends it as a power cut would.
    pub async fn kill9(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait().await
    }

    /// For destructors: the same as [`Child::stop`], but blocks the thread.
    pub fn stop_now(&mut self, gently: Signal, grace: Duration) {
        let Some(thread) = self.thread.take() else { return };
        if self.exit_status().is_none()
            && let Err(error) = self.identity.end(gently, grace)
        {
            tracing::error!(name = self.name, %error, "process cannot be ended");
            return;
        }
        let _ = thread.join();
    }

    /// Waits for its end, and tells of it.
    pub async fn death(&self) -> anyhow::Error {
        match self.wait().await {
            Ok(_) => self.died(),
            Err(error) => error,
        }
    }

    /// An error telling how the process ended and the last lines of its log.
    pub fn died(&self) -> anyhow::Error {
        let end = self.exit_status().map_or_else(|| "is not ready".to_owned(), |status| format!("ended ({status})"));
        anyhow!("{} {end}; {}", self.name, self.log_end())
    }

    /// The last lines of its log, with where they stand, for messages.
    pub fn log_end(&self) -> String {
        format!("the last lines of {}:\n{}", self.log.display(), tail(&self.log, 12))
    }
}

/// Ends the process an earlier run recorded in this file, if it still runs, and removes the file.
pub(crate) fn clean_up(record: &Path, gently: Signal, grace: Duration) -> Result<()> {
    let Ok(bytes) = fs::read(record) else { return Ok(()) };
    if let Some(identity) = serde_json::from_slice::<ProcessIdentity>(&bytes).ok().filter(ProcessIdentity::is_alive) {
        tracing::info!(pid = identity.pid, "ending a process left over from an earlier run");
        identity.end(gently, grace)?;
    }
    fs::remove_file(record).with_context(|| format!("cannot remove {}", record.display()))
}

/// The last lines of a text file, for error messages.
pub(crate) fn tail(file: &Path, lines: usize) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(file) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(16 << 10)));
        let _ = file.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn open_log(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    if fs::metadata(log).is_ok_and(|metadata| metadata.len() > LARGEST_LOG) {
        fs::rename(log, log.with_extension("log.old"))?;
    }
    OpenOptions::new().create(true).append(true).open(log).with_context(|| format!("cannot open {}", log.display()))
}

/// Lets the kernel end the child when the thread that starts it ends, and with it this process, however it dies. `pre_exec` runs behind the
/// change of user, which would clear it.
///
/// This is the one piece of unsafe code of the workspace. A shell or a second process in between would be safe code, and would itself
/// have to survive whatever ends its parent.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub(crate) fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = nix::unistd::getpid();
    let ask = move || {
        nix::sys::prctl::set_pdeathsig(signal)?;
        // The parent may have died between fork and the line above.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls may be made. The closure makes two bare system calls and allocates
    // nothing, nor does the conversion of an errno into an io::Error.
    unsafe {
        command.pre_exec(ask);
    }
}

/// Other systems know no such signal; the next start cleans up by the recorded identity.
#[cfg(not(target_os = "linux"))]
pub(crate) fn die_with_parent(_command: &mut Command, _signal: Signal) {}
