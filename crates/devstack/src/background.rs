//! `souk` commands that run beside a test.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::child::{Child, Launch};
use crate::service::souk_program;

/// A `souk` command that goes on by itself, with its output in a file. Dropping it kills it.
#[derive(Debug)]
pub struct BackgroundCommand(Child);

impl BackgroundCommand {
    /// Starts `souk ARGUMENTS`; the log in the folder `logs` is called as the first of them.
    ///
    /// # Errors
    /// If the `souk` program is not found or does not start.
    pub fn start(
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        environment: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
        logs: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(souk_program()?);
        command.args(arguments).envs(environment);
        let name = command.get_args().next().unwrap_or(OsStr::new("souk")).to_string_lossy().into_owned();
        let log = logs.join(format!("{name}.log"));
        Child::start(Launch { name, command, log, account: None, at_parent_death: Signal::SIGKILL, record: None }).map(Self)
    }

    /// The last lines of its log, for the message of a test that waits for it in vain.
    pub fn log_end(&self) -> String {
        self.0.log_end()
    }
}

impl Drop for BackgroundCommand {
    fn drop(&mut self) {
        self.0.stop_now(Signal::SIGKILL, Duration::ZERO);
    }
}
