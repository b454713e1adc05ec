//! The identity of a volume's directory, independent of its path, and an open handle to it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sys::files::{self, Access, FileType};
use crate::sys::location::{Identity, Location, fixed_path, identity, location_info};
use crate::sys::mountinfo::MountInfo;
use crate::volume::LOCK_NAME;

/// Device and inode of a directory: the identity of a volume, however its path is spelled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub(crate) struct DirectoryId {
    /// Device number.
    pub(crate) device: u64,
    /// Inode number.
    pub(crate) inode: u64,
}

impl DirectoryId {
    /// The id of the directory at a path.
    ///
    /// # Errors
    /// The path cannot be looked up.
    pub(crate) fn of_path(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// The id of an open directory.
    ///
    /// # Errors
    /// The kernel does not describe the descriptor.
    pub(crate) fn of_descriptor(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        identity(descriptor).map(Self::of)
    }

    pub(super) fn of(identity: Identity) -> Self {
        Self {
            device: identity.device,
            inode: identity.inode,
        }
    }
}

/// A volume's directory, held open: renames do not change which one it is.
#[derive(Debug)]
pub(crate) struct VolumeDirectory {
    directory: File,
    pub(crate) id: DirectoryId,
    /// The user who owns it.
    pub(crate) owner: u32,
    /// Where it is now, for people.
    pub(crate) path: PathBuf,
}

impl VolumeDirectory {
    /// The directory of a location.
    ///
    /// # Errors
    /// The location is no directory, or this process may open no more descriptors.
    pub(crate) fn at(location: &Location) -> io::Result<Self> {
        Self::new(location.as_fd().try_clone_to_owned()?)
    }

    /// The directory behind a descriptor.
    ///
    /// # Errors
    /// The descriptor is no directory.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let directory = File::from(descriptor);
        let identity = identity(&directory)?;
        if !identity.is_directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self {
            id: DirectoryId::of(identity),
            owner: identity.owner,
            path: fs::read_link(fixed_path(&directory))?,
            directory,
        })
    }

    /// A second handle to the directory.
    ///
    /// # Errors
    /// This process may open no more descriptors.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            directory: self.directory.try_clone()?,
            path: self.path.clone(),
            ..*self
        })
    }

    /// A path by which this process reaches the directory while the handle is open, whatever its
    /// name is now.
    pub(crate) fn access_path(&self) -> PathBuf {
        fixed_path(&self.directory)
    }

    /// Opens its `lock` a second time: for reading if it cannot be opened for writing, which is
    /// enough to lock it on every local filesystem.
    ///
    /// # Errors
    /// There is no `lock`, this user may not open it, or it is no plain file.
    pub(super) fn open_lock(&self) -> io::Result<File> {
        let open = |access| files::open_file_at(&self.directory, LOCK_NAME, access);
        let lock = match open(Access::ReadWrite) {
            Err(error) if is_refusal_to_write(&error) => open(Access::Read)?,
            result => result?,
        };
        match files::stat(&lock)?.file_type {
            FileType::Regular => Ok(lock),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is no plain file",
            )),
        }
    }

    /// True if access to its contents may hang for ever, in a state that no signal ends: on a FUSE
    /// mount of another user, or on a mount that cannot be seen from here.
    pub(super) fn may_hang(&self, asker: u32) -> bool {
        let mount = location_info(&self.directory)
            .ok()
            .and_then(|info| MountInfo::of_id(info.mount_id).ok()?);
        mount.is_none_or(|mount| {
            let owner = mount.owner();
            mount.filesystem.starts_with("fuse") && owner != Some(0) && owner != Some(asker)
        })
    }

    /// True if some process holds its lock.
    ///
    /// # Errors
    /// The lock cannot be opened.
    pub(crate) fn is_locked(&self) -> io::Result<bool> {
        match self.open_lock()?.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

fn is_refusal_to_write(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}
