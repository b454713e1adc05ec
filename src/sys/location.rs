//! A handle of a location in the mount tree, which renames and mounts do not change.
//!
//! It is an `O_PATH` descriptor, and queries on it never reach the filesystem. A filesystem that
//! hangs, is dead, or denies access to this user therefore cannot block this process. (Opening it
//! is an ordinary path walk, which does access the filesystems of the path's directories.)
//!
//! Source: open(2) `O_PATH`; statx(2) of Linux 5.8: `STATX_MNT_ID`, `STATX_ATTR_MOUNT_ROOT`. With
//! an empty mask the kernel gives device and mount alone, to everybody.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// An `O_PATH` handle of a location in the mount tree.
#[derive(Debug)]
pub(crate) struct Location(OwnedFd);

/// Properties of a location that the kernel knows without asking the filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LocationInfo {
    /// Device number of the filesystem, as `stat` has it.
    pub device: u64,
    /// Number of the mount, as `/proc/self/mountinfo` has it.
    pub mount_id: u64,
    /// True for the root of that mount, as seen from the mount point.
    pub is_mount_root: bool,
}

/// The cached attributes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Its owner.
    pub owner: u32,
    /// True for a directory.
    pub is_directory: bool,
}

impl Location {
    /// Opens the location of a path. Symbolic links are followed.
    ///
    /// # Errors
    /// When open(2) fails.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        open_path(libc::AT_FDCWD, path, 0)
    }

    /// Opens the entry `name` of a directory; a symbolic link is not followed.
    ///
    /// # Errors
    /// When openat(2) fails.
    pub(crate) fn open_at(dir: impl AsFd, name: &Path) -> io::Result<Self> {
        open_path(dir.as_fd().as_raw_fd(), name, libc::O_NOFOLLOW)
    }

    /// Device and mount of the location.
    ///
    /// # Errors
    /// `Unsupported` before Linux 5.8, and failures of statx(2).
    pub(crate) fn info(&self) -> io::Result<LocationInfo> {
        location_info(&self.0)
    }

    /// A path that leads to this location, and only to it, while the handle is open.
    pub(crate) fn fixed_path(&self) -> PathBuf {
        fixed_path(&self.0)
    }
}

/// Device, inode and owner of an open file, as cached by the kernel. A FUSE filesystem is not
/// asked, so it cannot block this process uninterruptibly.
///
/// # Errors
/// When statx(2) fails.
pub(crate) fn identity(file: impl AsFd) -> io::Result<Identity> {
    let out = statx(file, libc::STATX_BASIC_STATS)?;
    Ok(Identity {
        device: libc::makedev(out.stx_dev_major, out.stx_dev_minor),
        inode: out.stx_ino,
        owner: out.stx_uid,
        is_directory: libc::mode_t::from(out.stx_mode) & libc::S_IFMT == libc::S_IFDIR,
    })
}

fn statx(file: impl AsFd, mask: libc::c_uint) -> io::Result<libc::statx> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let descriptor = file.as_fd().as_raw_fd();
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty NUL-terminated string, and `out` is
    // writable memory of the size of a `statx`.
    let result = unsafe { libc::statx(descriptor, c"".as_ptr(), flags, mask, out.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero is a valid statx, and the call filled in what it knows.
    Ok(unsafe { out.assume_init() })
}

/// Device and mount of an open file.
///
/// # Errors
/// `Unsupported` before Linux 5.8, and failures of statx(2).
pub(crate) fn location_info(file: impl AsFd) -> io::Result<LocationInfo> {
    let out = statx(file, 0)?;
    let root = libc::STATX_ATTR_MOUNT_ROOT as u64;
    if out.stx_mask & libc::STATX_MNT_ID == 0 || out.stx_attributes_mask & root == 0 {
        let why = "this kernel cannot distinguish mounts (Linux 5.8 is needed)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    Ok(LocationInfo {
        device: libc::makedev(out.stx_dev_major, out.stx_dev_minor),
        mount_id: out.stx_mnt_id,
        is_mount_root: out.stx_attributes & root != 0,
    })
}

impl AsFd for Location {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A path that leads only to this open file while it is open.
pub(crate) fn fixed_path(descriptor: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

fn open_path(dir: libc::c_int, path: &Path, flags: libc::c_int) -> io::Result<Location> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    loop {
        let flags = libc::O_PATH | libc::O_CLOEXEC | flags;
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        let descriptor = unsafe { libc::openat(dir, path.as_ptr(), flags) };
        if descriptor >= 0 {
            // SAFETY: the descriptor was just opened and nobody else owns it.
            return Ok(Location(unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn knows_mount_points_from_directories() {
        let root = Location::open(Path::new("/")).unwrap().info().unwrap();
        assert!(root.is_mount_root);
        let proc = Location::open(Path::new("/proc")).unwrap().info().unwrap();
        assert!(proc.is_mount_root && proc.mount_id != root.mount_id);
        let inner = Location::open(Path::new("/proc/self")).unwrap();
        assert!(!inner.info().unwrap().is_mount_root);
        let metadata = std::fs::metadata("/proc").unwrap();
        assert_eq!(proc.device, metadata.dev());
    }

    #[test]
    fn identities_are_those_of_stat() {
        let file = tempfile::tempfile().unwrap();
        let (identity_of_file, metadata) = (identity(&file).unwrap(), file.metadata().unwrap());
        assert_eq!(identity_of_file.device, metadata.dev());
        assert_eq!(identity_of_file.inode, metadata.ino());
        assert!(identity_of_file.owner == metadata.uid() && !identity_of_file.is_directory);
        let proc = Location::open(Path::new("/proc")).unwrap();
        assert!(identity(&proc).unwrap().is_directory);
    }

    #[test]
    fn stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        std::fs::create_dir(&old).unwrap();
        std::fs::write(old.join("mark"), b"x").unwrap();
        let location = Location::open(&old).unwrap();
        std::fs::rename(&old, &new).unwrap();
        std::fs::create_dir(&old).unwrap();
        assert!(location.fixed_path().join("mark").exists());
        let real = std::fs::canonicalize(&new).unwrap();
        assert_eq!(std::fs::read_link(location.fixed_path()).unwrap(), real);
        std::os::unix::fs::symlink(&new, dir.path().join("link")).unwrap();
        let parent = Location::open(dir.path()).unwrap();
        let link = Location::open_at(&parent, Path::new("link")).unwrap();
        let kind = std::fs::symlink_metadata(dir.path().join("link")).unwrap();
        let path = std::fs::read_link(link.fixed_path()).unwrap();
        assert!(kind.is_symlink() && path.ends_with("link"));
    }
}
