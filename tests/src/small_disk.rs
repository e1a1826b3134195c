use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A file system of a few megabytes that can be filled, mounted over a folder; gone when dropped. Only root may mount.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one.
    ///
    /// # Errors
    /// When that is not allowed.
    pub fn mount(folder: &Path, megabytes: u32) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=755"), "tmpfs"]).arg(folder).output()?;
        ensure!(mounted.status.success(), "cannot mount a small disk: {}", String::from_utf8_lossy(&mounted.stderr));
        Ok(Self { folder: folder.to_owned() })
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// When it cannot be written to at all.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast()).context("cannot open the ballast")?;
        // First in large pieces, then what is left.
        for size in [1 << 20, 4096] {
            let piece = vec![0_u8; size];
            while ballast.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When there is nothing to give.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still works in it keeps it until the end.
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}
