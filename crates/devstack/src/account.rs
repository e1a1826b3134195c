//! Whom Postgres runs as when this process is root, which Postgres refuses to be.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::{User, geteuid};

/// Where data and tools go that the account cannot reach in their own place.
const ROOMS: &str = "/var/lib/souk";

/// A user without privileges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The name in the user database.
    pub name: String,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric id of its first group.
    pub gid: u32,
}

impl Account {
    /// Who runs Postgres over the data in `folder`: this user (`None`) unless it is root. For root the owner of the data; without data
    /// `postgres` if there is such a user, else `nobody`.
    ///
    /// # Errors
    /// If this is root and there is no such user, or if the data belongs to somebody else.
    pub fn for_postgres(folder: &Path) -> Result<Option<Self>> {
        let owner = fs::metadata(folder).ok().map(|metadata| metadata.uid());
        if !geteuid().is_root() {
            return match owner {
                Some(owner) if owner != geteuid().as_raw() => {
                    bail!(
                        "{} belongs to another user (uid {owner}); start souk as that user or as root, or choose another --data",
                        folder.display()
                    )
                }
                _ => Ok(None),
            };
        }
        if let Some(user) = owner.filter(|owner| *owner != 0).and_then(|owner| User::from_uid(owner.into()).ok()?) {
            return Ok(Some(Self::of(user)));
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)?.filter(|user| !user.uid.is_root()) {
                return Ok(Some(Self::of(user)));
            }
        }
        bail!("Postgres does not run as root, and there is no user `postgres` or `nobody` to run it as; start souk as an ordinary user")
    }

    fn of(user: User) -> Self {
        Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }
    }

    /// Whether the account may enter every folder on the way to `path` (and `path` itself, as far as it exists). Goes by owner, group and
    /// mode; access control lists are not looked at.
    pub fn reaches(&self, path: &Path) -> bool {
        path.ancestors().filter_map(|folder| fs::metadata(folder).ok()).all(|folder| {
            let bit = match () {
                () if folder.uid() == self.uid => 0o100,
                () if folder.gid() == self.gid => 0o010,
                () => 0o001,
            };
            folder.mode() & bit != 0
        })
    }

    /// Makes `folder`, with all that is in it, the account's own.
    ///
    /// # Errors
    /// If this process may not.
    pub fn give(&self, folder: &Path) -> Result<()> {
        chown(folder, Some(self.uid), Some(self.gid)).with_context(|| format!("cannot give {} to {}", folder.display(), self.name))?;
        if folder.is_dir() && !folder.is_symlink() {
            for entry in fs::read_dir(folder)? {
                self.give(&entry?.path())?;
            }
        }
        Ok(())
    }
}

/// Creates `folder` for the account (for this user if `None`) and returns where it really is: if the account cannot reach the place, `folder`
/// becomes a link to one it can reach, so that removing the link forgets the data.
///
/// # Errors
/// If neither place can be made.
pub(crate) fn make_room(folder: &Path, account: Option<&Account>) -> Result<PathBuf> {
    let parent = folder.parent().context("a data folder has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    if let (true, Ok(target)) = (folder.is_symlink(), fs::canonicalize(folder)) {
        return Ok(target);
    }
    let Some(account) = account else {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        return Ok(folder.to_owned());
    };
    let parent = fs::canonicalize(parent)?;
    if account.reaches(&parent) {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        chown(folder, Some(account.uid), Some(account.gid))?;
        return Ok(folder.to_owned());
    }
    let room = Path::new(ROOMS).join(uuid::Uuid::new_v4().simple().to_string());
    create_open(Path::new(ROOMS))?;
    create_open(&room)?;
    chown(&room, Some(account.uid), Some(account.gid))?;
    if folder.is_symlink() {
        fs::remove_file(folder)?;
    }
    std::os::unix::fs::symlink(&room, folder)?;
    tracing::info!(user = account.name, place = %room.display(), "the user cannot reach the data folder, which is a link to another place now");
    Ok(room)
}

/// Removes a folder made by [`make_room`], with the place it links to.
pub(crate) fn remove_room(folder: &Path) -> Result<()> {
    if folder.is_symlink() {
        let target = fs::read_link(folder)?;
        fs::remove_file(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        if target.starts_with(ROOMS) && target.exists() {
            fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
        }
    } else if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// A copy of a folder of programs in a place every account reaches; made once per name.
pub(crate) fn copy_within_reach(source: &Path, name: &str) -> Result<PathBuf> {
    let target = Path::new(ROOMS).join("tools").join(name);
    if target.exists() {
        return Ok(target);
    }
    create_open(Path::new(ROOMS))?;
    create_open(&Path::new(ROOMS).join("tools"))?;
    let unfinished = Path::new(ROOMS).join("tools").join(uuid::Uuid::new_v4().simple().to_string());
    copy_folder(source, &unfinished)?;
    // Another process may have been faster; its copy is as good.
    if fs::rename(&unfinished, &target).is_err() {
        fs::remove_dir_all(&unfinished)?;
    }
    Ok(target)
}

fn copy_folder(source: &Path, target: &Path) -> Result<()> {
    create_open(target)?;
    for entry in fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))? {
        let entry = entry?;
        let to = target.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &to)?;
        } else {
            fs::copy(entry.path(), &to)?;
            let mode = fs::metadata(&to)?.mode();
            fs::set_permissions(&to, fs::Permissions::from_mode(mode | 0o444))?;
        }
    }
    Ok(())
}

/// A folder everybody may enter and read, whatever the umask.
pub(crate) fn create_open(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).with_context(|| format!("cannot open up {}", folder.display()))
}
