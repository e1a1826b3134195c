//! Where the programs of Postgres and NATS are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::account::{Account, copy_within_reach};

/// The lowest major version of Postgres that is used.
pub const POSTGRES_AT_LEAST: u32 = 15;
/// The lowest version of nats-server that is used.
pub const NATS_AT_LEAST: (u32, u32) = (2, 12);
/// The lowest version of PgBouncer that is used: the first with prepared statements in transaction mode.
pub const POOLER_AT_LEAST: (u32, u32) = (1, 21);
/// If set to 1, only what `just setup` downloaded is used and the machine's own programs are passed over.
pub const ONLY_DOWNLOADED: &str = "SOUK_TOOLS_ONLY";

/// The folder `.souk`: that of the working directory or the nearest one above it, else one beside the `target` folder this program was built
/// into, else a new one in the working directory.
pub fn souk_folder() -> PathBuf {
    let here = env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let program = env::current_exe().unwrap_or_default();
    let is_home = |folder: &&Path| folder.join(".souk").is_dir() || folder.join("crates/devstack/Cargo.toml").is_file();
    let home = here.ancestors().find(is_home).or_else(|| program.ancestors().skip(1).find(is_home));
    home.unwrap_or(&here).join(".souk")
}

/// The programs of one Postgres installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresTools {
    bin: PathBuf,
    major: u32,
}

impl PostgresTools {
    /// Finds an installation: the one downloaded into `.souk/tools`, then the machine's, highest version first. If there is data already,
    /// only the version that wrote it will do.
    ///
    /// # Errors
    /// If there is none that is recent enough and fits the data.
    pub fn find(data_version: Option<u32>, account: Option<&Account>) -> Result<Self> {
        let mut seen = Vec::new();
        for bin in postgres_folders() {
            let Some(major) = version_of(&bin.join("postgres")).map(|version| version.0) else { continue };
            if !bin.join("initdb").is_file() {
                continue;
            }
            seen.push(format!("{major} in {}", bin.display()));
            let fits = major >= POSTGRES_AT_LEAST && data_version.is_none_or(|version| version == major);
            if fits && let Some(bin) = within_reach(&bin, account)? {
                return Ok(Self { bin, major });
            }
        }
        let found = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
        match data_version {
            Some(version) => {
                bail!("the data was written by Postgres {version}, found: {found}; install that version, or start with --fresh")
            }
            None => bail!("no Postgres {POSTGRES_AT_LEAST} or later (found: {found}); run `just setup`"),
        }
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    pub(crate) fn program(&self, name: &str) -> Command {
        Command::new(self.bin.join(name))
    }
}

/// The NATS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsTools {
    program: PathBuf,
}

impl NatsTools {
    /// Finds `nats-server`: the one downloaded into `.souk/tools`, then the one on the PATH.
    ///
    /// # Errors
    /// If there is none that is recent enough.
    pub fn find() -> Result<Self> {
        let mut seen = Vec::new();
        for folder in folders(souk_folder().join("tools/nats/bin"), &[]) {
            let program = folder.join("nats-server");
            match version_of(&program) {
                Some(version) if version >= NATS_AT_LEAST => return Ok(Self { program }),
                Some((major, minor)) => seen.push(format!("{major}.{minor} in {}", folder.display())),
                None => {}
            }
        }
        let found = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
        bail!("no nats-server {}.{} or later (found: {found}); run `just setup`", NATS_AT_LEAST.0, NATS_AT_LEAST.1)
    }

    pub(crate) fn program(&self) -> Command {
        Command::new(&self.program)
    }
}

/// PgBouncer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolerTools {
    program: PathBuf,
}

impl PoolerTools {
    /// Finds `pgbouncer`: the one downloaded into `.souk/tools`, then the one on the PATH.
    ///
    /// # Errors
    /// If there is none that keeps prepared statements in transaction mode.
    pub fn find() -> Result<Self> {
        let programs = folders(souk_folder().join("tools/pgbouncer/bin"), &[]).into_iter().map(|folder| folder.join("pgbouncer"));
        let mut recent = programs.filter(|program| version_of(program).is_some_and(|version| version >= POOLER_AT_LEAST));
        let found = recent.next().map(|program| Self { program });
        found.with_context(|| format!("no pgbouncer {}.{} or later; run `just setup-tests`", POOLER_AT_LEAST.0, POOLER_AT_LEAST.1))
    }

    pub(crate) fn program(&self) -> Command {
        Command::new(&self.program)
    }
}

fn postgres_folders() -> Vec<PathBuf> {
    let mut packaged: Vec<(u32, PathBuf)> = Vec::new();
    for root in ["/usr/lib/postgresql", "/usr/local/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(major) = name.trim_start_matches("postgresql@").parse() {
                packaged.push((major, entry.path().join("bin")));
            }
        }
    }
    packaged.sort_by(|one, other| other.cmp(one));
    let packaged: Vec<PathBuf> = packaged.into_iter().map(|(_, bin)| bin).collect();
    folders(souk_folder().join("tools/postgres/bin"), &packaged)
}

fn folders(downloaded: PathBuf, packaged: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders = vec![downloaded];
    if env::var(ONLY_DOWNLOADED).as_deref() != Ok("1") {
        folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        folders.extend_from_slice(packaged);
    }
    folders
}

/// The folder with its links resolved, because Postgres looks for its libraries beside its programs; a copy of it if the account cannot
/// reach a downloaded one; `None` if it cannot reach one of the machine's.
fn within_reach(bin: &Path, account: Option<&Account>) -> Result<Option<PathBuf>> {
    let program = fs::canonicalize(bin.join("postgres")).with_context(|| format!("cannot resolve {}", bin.display()))?;
    let bin = program.parent().context("a program lies in a folder")?.to_owned();
    let Some(account) = account.filter(|account| !account.reaches(&bin)) else { return Ok(Some(bin)) };
    let tools = fs::canonicalize(souk_folder().join("tools")).unwrap_or_default();
    let Ok(inner) = bin.strip_prefix(&tools) else {
        tracing::debug!(bin = %bin.display(), user = account.name, "passed over a Postgres the user cannot reach");
        return Ok(None);
    };
    let mut inner = inner.components();
    let download = inner.next().context("a downloaded program lies in a folder of its own")?;
    let copy = copy_within_reach(&tools.join(download), &download.as_os_str().to_string_lossy())?;
    Ok(Some(copy.join(inner.as_path())))
}

/// Major and minor number out of what `program --version` prints; `None` if it cannot be run.
fn version_of(program: &Path) -> Option<(u32, u32)> {
    if !program.is_file() {
        return None;
    }
    let output = Command::new(program).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split('.').map(|part| part.trim_end_matches(|c: char| !c.is_ascii_digit()).parse());
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_programs_print() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some((15, 18)));
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(parse_version("nats-server: v2.12.0-RC.1\n"), Some((2, 12)));
        assert_eq!(parse_version("PgBouncer 1.24.1\nlibevent 2.1.13-stable\n"), Some((1, 24)));
        assert_eq!(parse_version("command not found"), None);
    }
}
