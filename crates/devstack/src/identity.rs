//! Which process a recorded pid means.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process, told apart from a later one that was given the same pid by the moment it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: u32,
    /// When it started, in the words of the operating system; only compared, never parsed.
    pub started: String,
}

impl ProcessIdentity {
    /// The process that has this pid now, or `None` if there is none (a zombie counts as none).
    pub fn of(pid: u32) -> Option<Self> {
        let started = if Path::new("/proc/self/stat").exists() { started_by_proc(pid)? } else { started_by_ps(pid)? };
        Some(Self { pid, started })
    }

    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        Self::of(pid).unwrap_or(Self { pid, started: String::new() })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal, unless the process is gone or its pid belongs to another one by now.
    ///
    /// # Errors
    /// If the process is there and may not be signalled by this user.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match signal::kill(Pid::from_raw(self.pid as i32), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// Ends the process: the signal, then after `grace` SIGKILL. Returns once it is gone. Blocks the thread.
    ///
    /// # Errors
    /// If it may not be signalled, or outlives SIGKILL by ten seconds.
    #[expect(clippy::disallowed_methods, reason = "blocks by contract: destructors and clean-up before a start use it")]
    pub fn end(&self, gently: Signal, grace: Duration) -> Result<()> {
        for (signal, patience) in [(gently, grace), (Signal::SIGKILL, Duration::from_secs(10))] {
            self.signal(signal)?;
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if !self.is_alive() {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        bail!("process {} does not end", self.pid)
    }
}

/// Boot id and field 22 (`starttime`) of proc_pid_stat(5). The name in field 2 may hold spaces and brackets; fields are counted behind
/// its last bracket.
fn started_by_proc(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Some(format!("{}/{}", boot.trim(), fields.get(19)?))
}

fn started_by_ps(pid: u32) -> Option<String> {
    let output = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (state, started) = text.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| started.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_another_process() {
        let this = ProcessIdentity::current();
        assert!(this.is_alive());
        let earlier = ProcessIdentity { started: "earlier".to_owned(), ..this };
        assert!(!earlier.is_alive());
    }

    #[test]
    fn a_foreign_process_is_never_signalled() {
        let mut foreign = Command::new("sleep").arg("30").spawn().unwrap();
        let recorded = ProcessIdentity { pid: foreign.id(), started: "another time".to_owned() };
        recorded.end(Signal::SIGKILL, Duration::ZERO).unwrap();
        assert_eq!(foreign.try_wait().unwrap(), None, "it runs on");
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }

    #[test]
    fn ps_and_proc_agree_on_who_is_there() {
        let pid = std::process::id();
        let gone = {
            let mut child = Command::new("true").spawn().unwrap();
            child.wait().unwrap();
            child.id()
        };
        assert_eq!(ProcessIdentity::of(gone), None);
        // Minimal containers have no ps; elsewhere it is the only source.
        if Command::new("ps").output().is_ok() {
            assert!(started_by_ps(pid).is_some());
            assert_eq!(started_by_ps(gone), None);
        }
    }
}
