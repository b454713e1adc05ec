//! A fresh ext4 for each filesystem of each round, in an image file on a loop device.
//!
//! ext4 does not reuse an inode for a minute or more after it was removed, and looks for another
//! one by one (`recently_deleted` in its `ialloc.c`). A measurement after a large removal pays for
//! that, more or less depending on the placement of its files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FallocateFlags;

use crate::Outcome;
use crate::filesystems::{done, sync_backing};

/// Dropping it unmounts and frees the device.
#[derive(Debug)]
struct Image {
    device: String,
    root: PathBuf,
}

impl Image {
    /// Creates an image of this size in a directory, and mounts it there. Only root can.
    fn make(place: &Path, bytes: u64) -> Outcome<Self> {
        let path = place.join("image");
        let root = place.join("ext4");
        let file = File::create(&path)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        fs::create_dir(&root)?;
        // Leaves no initialization to a kernel thread that would run during the measurements.
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
        done(mkfs.arg(&path))?;
        // Direct I/O, so that nothing is cached twice and synced data is on the disk.
        let mut attach = Command::new("losetup");
        attach.args(["--find", "--show", "--direct-io=on"]);
        let output = attach.arg(&path).output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("losetup: {text}").into());
        }
        let image = Self {
            device: String::from_utf8(output.stdout)?.trim().to_owned(),
            root,
        };
        done(Command::new("mount").arg(&image.device).arg(&image.root))?;
        Ok(image)
    }

    /// Its root directory.
    fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // A leftover is noticed when the directory cannot be removed.
        let _ = done(Command::new("umount").arg(&self.root));
        let _ = done(Command::new("losetup").arg("--detach").arg(&self.device));
    }
}

/// Runs `measure` in an empty directory below `top`, or with `ext4_bytes` in an ext4 of that size
/// there. Afterwards the directory is removed and everything is on disk.
///
/// # Errors
/// Errors of `measure`; the directory or the ext4 cannot be made or removed; there is no loop
/// device, or this process is not root's.
pub fn in_fresh_backing(
    top: &Path,
    ext4_bytes: Option<u64>,
    measure: impl FnOnce(&Path) -> Outcome<()>,
) -> Outcome<()> {
    let place = tempfile::Builder::new().prefix("round-").tempdir_in(top)?;
    let image = ext4_bytes
        .map(|bytes| Image::make(place.path(), bytes))
        .transpose()?;
    measure(image.as_ref().map_or(place.path(), Image::root))?;
    drop(image);
    place.close()?;
    sync_backing(top)
}
