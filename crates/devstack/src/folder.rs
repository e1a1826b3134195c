//! Folders that belong to one process at a time.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::account::create_open;
use crate::child;
use crate::cluster::version;
use crate::postgres::Postgres;

const TEMPORARY: &str = "souk-test-";
const LOCK: &str = "lock";

/// A lock on a folder. The kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Locks the folder, creating it if there is none.
    ///
    /// # Errors
    /// If another process holds the lock.
    pub fn take(folder: &Path) -> Result<Self> {
        create_open(folder)?;
        let file = open(folder)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => bail!("{} is in use by another souk", folder.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", folder.display())),
        }
    }
}

fn open(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    File::options().create(true).append(true).open(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// A new folder below the system's temporary one, removed with what Postgres keeps elsewhere when it is dropped. After a panic it stays for
/// inspection until the next run; so does that of a killed process.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    _lock: FolderLock,
}

impl TemporaryFolder {
    /// Creates one, and removes those earlier runs left behind.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create() -> Result<Self> {
        let parent = fs::canonicalize(env::temp_dir()).context("there is no temporary folder")?;
        sweep(&parent);
        let unique = uuid::Uuid::new_v4().simple().to_string();
        // Takes its name only when it is locked, so that no sweep can mistake it for a left-over.
        let unlocked = parent.join(format!("souk-new-{unique}"));
        let lock = FolderLock::take(&unlocked)?;
        let path = parent.join(format!("{TEMPORARY}{}", &unique[..12]));
        fs::rename(&unlocked, &path)?;
        Ok(Self { path, _lock: lock })
    }

    /// Whether this is such a folder or lies in one, so that what is in it need not outlive the machine.
    pub(crate) fn holds(path: &Path) -> bool {
        path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(TEMPORARY))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs and data are in {} until the next run", self.path.display());
        } else if let Err(error) = discard(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "temporary folder cannot be removed");
        }
    }
}

fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            continue;
        }
        let Ok(file) = File::options().append(true).open(path.join(LOCK)) else { continue };
        if file.try_lock().is_ok()
            && let Err(error) = discard(&path)
        {
            tracing::warn!(folder = %path.display(), %error, "left-over of an earlier run cannot be removed");
        }
    }
}

fn discard(folder: &Path) -> Result<()> {
    if version(folder).is_some() {
        return Postgres::remove(folder);
    }
    end_servers(folder, 2)?;
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Ends the servers recorded in the folder and so many levels below, and removes data that only a link in there leads to.
fn end_servers(folder: &Path, levels: usize) -> Result<()> {
    child::clean_up(&folder.join("process.json"), Signal::SIGKILL, Duration::ZERO)?;
    for entry in fs::read_dir(folder)? {
        let inner = entry?.path();
        if version(&inner).is_some() || inner.is_symlink() {
            Postgres::remove(&inner)?;
        } else if inner.is_dir() && levels > 0 {
            end_servers(&inner, levels - 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_user_at_a_time() {
        let folder = TemporaryFolder::create().unwrap();
        assert!(FolderLock::take(folder.path()).is_err());
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn the_folder_of_a_dead_process_is_swept_and_that_of_a_living_one_is_not() {
        // A place of its own, because tests beside this one sweep the common one.
        let place = TemporaryFolder::create().unwrap();
        let [left_over, alive] = ["left-over", "alive"].map(|name| place.path().join(format!("{TEMPORARY}{name}")));
        drop(FolderLock::take(&left_over).unwrap());
        let _lock = FolderLock::take(&alive).unwrap();
        sweep(place.path());
        assert!(!left_over.exists());
        assert!(alive.exists());
    }
}
