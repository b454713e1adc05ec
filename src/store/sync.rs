//! How everything in a store is made durable: by one `syncfs`, or file by file.
//!
//! One `syncfs(2)` covers thousands of files. Its success proves durability only if the filesystem
//! writes all of them back within the call *and* reports every write that failed since the
//! descriptor was opened, which the kernel does for disk filesystems since Linux 5.8. FUSE does not
//! forward the call, network filesystems keep errors with the files, overlayfs does not report
//! those of the underlying filesystem, and older kernels report none at all. So it is used on
//! filesystems that are known to be correct, and each file is synced separately on all others.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::{EntryKind, OpenMode, Store, StorePath};
use crate::sys::backing;

/// Filesystems whose writeback goes through the page cache of a local disk and records each failed
/// write in the superblock. Excluded, although local: overlayfs (errors stay with the underlying
/// layer), ZFS and others with caches of their own, FAT and NTFS (which do not order metadata
/// writes by `syncfs`).
const SYNCFS_IS_PROOF: [&str; 8] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs",
];
/// The first kernel in which `syncfs` reports failed writes (major, minor).
const REPORTS_ERRORS_SINCE: (u32, u32) = (5, 8);
/// Components of the longest path in a volume's directory.
const DEPTH_MAX: usize = 3;

/// How the files of a store are made durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SyncPolicy {
    /// One `syncfs` covers them and reports every failed write.
    AtOnce,
    /// Each file and each directory is synced separately.
    EachFile {
        /// Why `syncfs` is not reliable.
        reason: Arc<str>,
    },
}

impl SyncPolicy {
    /// True if one `syncfs` is enough.
    pub const fn is_at_once(&self) -> bool {
        matches!(self, Self::AtOnce)
    }

    /// The policy of syncing each file separately, for this reason.
    pub fn each_file(reason: &str) -> Self {
        Self::EachFile {
            reason: reason.into(),
        }
    }

    /// The policy for the contents of an open directory.
    pub fn of_directory(directory: impl AsFd) -> Self {
        let known = backing::filesystem_type(directory).and_then(|filesystem| {
            let release = backing::kernel_release()?;
            Ok(Self::of(filesystem.as_deref(), &release))
        });
        known.unwrap_or_else(|error| {
            Self::each_file(&format!(
                "the type of the backing filesystem cannot be read: {error}"
            ))
        })
    }

    /// The policy for a filesystem of this type (as `/proc/mounts` names it) under this kernel.
    pub fn of(filesystem: Option<&str>, kernel_release: &str) -> Self {
        match filesystem {
            None => Self::each_file("the type of the backing filesystem is unknown"),
            Some(name) if !SYNCFS_IS_PROOF.contains(&name) => Self::each_file(&format!(
                "syncfs on {name} does not prove that all is on disk"
            )),
            Some(_) if !reports_failed_writes(kernel_release) => Self::each_file(&format!(
                "syncfs reports no failed writes before Linux {}.{}",
                REPORTS_ERRORS_SINCE.0, REPORTS_ERRORS_SINCE.1
            )),
            Some(_) => Self::AtOnce,
        }
    }
}

impl std::fmt::Display for SyncPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtOnce => f.write_str("many files at once, by syncfs"),
            Self::EachFile { reason } => write!(f, "each file by itself ({reason})"),
        }
    }
}

/// True if `syncfs` of this kernel reports failed writes. False for a release that cannot be
/// parsed.
fn reports_failed_writes(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    next().zip(next()) >= Some(REPORTS_ERRORS_SINCE)
}

/// Makes every file and directory below `dir` durable, one after the other. Files that are removed
/// meanwhile are skipped.
pub(super) fn sync_tree(store: &dyn Store, dir: &StorePath) -> io::Result<()> {
    let depth = match dir.is_root() {
        true => 0,
        false => dir.as_str().split('/').count(),
    };
    for (name, kind) in store.list(dir)? {
        let path = match dir.is_root() {
            true => StorePath::new(&name),
            false => StorePath::new(&format!("{}/{name}", dir.as_str())),
        };
        let synced = match kind {
            EntryKind::File => sync_file(store, &path),
            // Nothing deeper belongs to a volume.
            EntryKind::Directory if depth + 1 < DEPTH_MAX => sync_tree(store, &path),
            EntryKind::Directory | EntryKind::Other => Ok(()),
        };
        match synced {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    store.sync_dir(dir)
}

/// Opens the file for writing if possible: a network filesystem may flush nothing through a
/// descriptor that was opened for reading only.
fn sync_file(store: &dyn Store, path: &StorePath) -> io::Result<()> {
    match store.open(path, OpenMode::ReadWrite) {
        Ok(file) => file.sync(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            store.open(path, OpenMode::Read)?.sync()
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_filesystems_and_older_kernels_are_synced_file_by_file() {
        for name in SYNCFS_IS_PROOF {
            assert!(SyncPolicy::of(Some(name), "5.8.0").is_at_once(), "{name}");
            assert!(!SyncPolicy::of(Some(name), "5.7.19").is_at_once(), "{name}");
        }
        for name in [
            "fuse",
            "fuseblk",
            "fuse.glusterfs",
            "fuse.bilayer",
            "fuse.sshfs",
            "nfs",
            "nfs4",
            "cifs",
            "smb3",
            "9p",
            "virtiofs",
            "ceph",
            "overlay",
            "ecryptfs",
            "zfs",
            "vfat",
            "ext",
            "ext4.x",
            "",
        ] {
            let policy = SyncPolicy::of(Some(name), "6.18.1");
            assert!(!policy.is_at_once(), "{name}");
            assert!(policy.to_string().contains(name), "{policy}");
        }
        assert!(!SyncPolicy::of(None, "6.18.1").is_at_once());
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        for release in ["5.8.0", "5.8", "5.10.0-8-amd64", "6.1.0+", "10.0"] {
            assert!(reports_failed_writes(release), "{release}");
        }
        for release in ["5.7.19", "4.19.0", "3.10.0-1160.el7", "5", "", "x.y"] {
            assert!(!reports_failed_writes(release), "{release}");
        }
    }
}
