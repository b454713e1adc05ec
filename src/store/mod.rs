//! The backing store: plain files and directories that contain nothing but sealed bytes.
//!
//! A narrow trait with three implementations: [`directory`], [`memory`] and [`faulty`] (power cuts,
//! torn pages, lost directory entries, EIO, ENOSPC). [`read_only`] wraps any of them, and [`sub`]
//! is a directory of any of them.
//!
//! The caller is responsible for the order of writes. The store guarantees only what POSIX
//! guarantees: bytes are durable after `sync`, and a directory entry is durable after `sync_dir` of
//! its directory.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::errno::Errno;

pub use crate::sys::directory_identity::{DirectoryIdentity, depends_on_kernel, has_stable_inodes};

mod adopt;
pub mod ballast;
mod contents;
pub mod directory;
mod duplicate;
pub mod faulty;
pub mod memory;
pub mod read_only;
pub mod sub;
mod sync;
mod tree;

pub(crate) use duplicate::duplicate;
pub use sync::SyncPolicy;

/// The error that the kernel would have reported.
pub(crate) fn os_error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.code())
}

/// Limit on the components of a path: three below a volume's directory, plus one if that is a
/// directory of another store.
const COMPONENTS_MAX: usize = 4;

/// A path below the volume directory: one to four components of `[0-9a-z.-]`, none of them
/// empty, `.` or `..`. The empty path names the volume directory itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StorePath(String);

impl StorePath {
    /// The volume directory itself.
    pub const fn root() -> Self {
        Self(String::new())
    }

    /// The path with this text. Only texts that this program makes are passed; none is read from a
    /// volume.
    ///
    /// # Panics
    /// If the text is not a store path.
    pub fn new(text: &str) -> Self {
        assert!(
            text.split('/').all(is_component) && text.split('/').count() <= COMPONENTS_MAX,
            "not a store path: {text:?}"
        );
        Self(text.to_owned())
    }

    /// True for the volume directory itself.
    pub const fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path as text, with components separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory that holds the entry; the root for one-component paths.
    pub fn parent(&self) -> Self {
        Self(
            self.0
                .rsplit_once('/')
                .map_or(String::new(), |(dir, _)| dir.to_owned()),
        )
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }
}

/// True for a name that a [`StorePath`] may hold.
fn is_component(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || b == b'.' || b == b'-')
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// The file must exist.
    Read,
    /// The file must exist.
    ReadWrite,
    /// The file must not exist (`O_EXCL`).
    CreateNew,
}

/// The kind of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// Anything else (symbolic links included): never followed, never opened.
    Other,
}

/// Attributes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryInfo {
    /// Its kind.
    pub kind: EntryKind,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Number of hard links.
    pub links: u64,
    /// Number of the file within the store: the same under each of its names.
    pub number: u64,
    /// Bytes allocated on the backing filesystem.
    pub allocated_bytes: u64,
}

/// Space on the backing filesystem, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceInfo {
    /// Total size.
    pub total_bytes: u64,
    /// Free space, including space reserved for root.
    pub free_bytes: u64,
    /// Free space for this user.
    pub available_bytes: u64,
}

/// True for the error that this process, or the whole machine, has too many open files. It is no
/// failure of the backing filesystem.
pub fn too_many_open(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The kind of a volume's ballast (see [`ballast`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BallastKind {
    /// There is no ballast.
    None,
    /// Preallocated blocks: the filesystem overwrites data in place.
    Blocks,
    /// Incompressible bytes: overwriting data needs new space, or may need it.
    Bytes,
}

/// A lock that is held until it is dropped.
pub trait StoreLock: Send + Sync + Debug {
    /// The descriptors behind the lock, if it is a lock of the operating system.
    fn held(&self) -> Option<HeldLock<'_>> {
        None
    }
}

/// The descriptors that prove to another process that a lock is held.
#[derive(Clone, Copy, Debug)]
pub struct HeldLock<'a> {
    /// The open file description that holds the lock.
    pub file: BorrowedFd<'a>,
    /// The directory of the store. This description holds no lock.
    pub directory: BorrowedFd<'a>,
    /// True for an exclusive lock, false for one that readers share.
    pub exclusive: bool,
}

/// An open file of the store.
pub trait StoreFile: Send + Sync + Debug {
    /// Reads from `offset` until `buffer` is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// When the backing filesystem fails.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`, growing the file where needed.
    ///
    /// # Errors
    /// EBADF if the file is open for reading only, ENOSPC or EDQUOT if space is exhausted, and
    /// other failures of the backing filesystem. Any part of the bytes may be written then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// When the backing filesystem fails.
    fn len(&self) -> io::Result<u64>;
    /// True when the file has no bytes.
    ///
    /// # Errors
    /// When the backing filesystem fails.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Truncates the file or extends it with zeros.
    ///
    /// # Errors
    /// EINVAL if the file is open for reading only, and failures of the backing filesystem.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Punches a hole: frees the range, which then reads as zeros. The length stays. If the backing
    /// filesystem cannot punch holes, the range is unchanged, so callers must not rely on zeros.
    ///
    /// # Errors
    /// EBADF if the file is open for reading only, and failures of the backing filesystem.
    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()>;
    /// Preallocates space for the range without changing the length. Succeeds without effect if the
    /// backing filesystem cannot preallocate.
    ///
    /// # Errors
    /// ENOSPC or EDQUOT if there is not enough space, and other failures of the backing filesystem.
    fn reserve(&self, offset: u64, len_bytes: u64) -> io::Result<()>;
    /// Turns copy-on-write off for an empty file, if the backing filesystem copies on write and
    /// allows that.
    fn write_in_place(&self) {}
    /// Starts reading the range ahead without waiting, if the backing filesystem can. A caller that
    /// reads from several files in turn then waits only once.
    fn will_need(&self, _offset: u64, _len_bytes: u64) {}
    /// `fdatasync`: bytes and length are durable when it returns.
    ///
    /// # Errors
    /// When the backing filesystem fails. Bytes written since the last success may be lost then,
    /// and a later sync need not cover them.
    fn sync(&self) -> io::Result<()>;
    /// Attributes of the file (`fstat`).
    ///
    /// # Errors
    /// When the backing filesystem fails.
    fn info(&self) -> io::Result<EntryInfo>;
}

/// How a file of another store was adopted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adopted {
    /// By a hard link: it is the same file under another name.
    Linked,
    /// By a reflink: it is a separate file that shares its blocks until one of the two is written.
    Reflinked,
    /// Its bytes were copied.
    Copied,
}

/// A directory tree that holds a volume.
pub trait Store: Send + Sync + Debug + Any {
    /// Opens or creates a file. Symbolic links are never followed.
    ///
    /// # Errors
    /// ENOENT if the file does not exist, EEXIST if a file to create does, EISDIR for a directory,
    /// `InvalidData` for anything else that is no plain file.
    fn open(&self, path: &StorePath, mode: OpenMode) -> io::Result<Arc<dyn StoreFile>>;
    /// Atomically renames a file, replacing the file at `to`. If both are names of one file,
    /// nothing changes, as POSIX requires.
    ///
    /// # Errors
    /// EISDIR if either is a directory, ENOENT if there is no file `from`.
    fn rename(&self, from: &StorePath, to: &StorePath) -> io::Result<()>;
    /// Creates a hard link; `to` must not exist.
    ///
    /// # Errors
    /// EEXIST if `to` exists, EMLINK if the file has too many links, EPERM for a directory.
    fn link(&self, from: &StorePath, to: &StorePath) -> io::Result<()>;
    /// Makes the file `from` of the store `source` available here as `to`, which must not exist: by
    /// a hard link, otherwise by sharing its blocks, otherwise by copying its bytes. Neither the
    /// name nor copied bytes are durable before a sync, except that bytes of a new file are durable
    /// on return if each file is synced separately ([`SyncPolicy`]).
    ///
    /// # Errors
    /// EEXIST if `to` exists, and failures of reading the source or of writing here. A partial copy
    /// is removed.
    fn adopt(&self, source: &dyn Store, from: &StorePath, to: &StorePath) -> io::Result<Adopted>;
    /// Removes a file's name.
    ///
    /// # Errors
    /// ENOENT if there is no such file, EISDIR for a directory.
    fn unlink(&self, path: &StorePath) -> io::Result<()>;
    /// Creates a directory (mode 0700); it must not exist.
    ///
    /// # Errors
    /// EEXIST if it exists.
    fn create_dir(&self, path: &StorePath) -> io::Result<()>;
    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOTEMPTY if the directory is not empty, ENOENT if there is none.
    fn remove_dir(&self, path: &StorePath) -> io::Result<()>;
    /// Names and kinds of a directory's entries, in no particular order. Names that are not store
    /// path components are left out.
    ///
    /// # Errors
    /// ENOENT if there is no such directory.
    fn list(&self, dir: &StorePath) -> io::Result<Vec<(String, EntryKind)>>;
    /// Makes the directory's entries durable (`fsync` of the directory).
    ///
    /// # Errors
    /// When the backing filesystem fails. Entries changed since the last success may be lost then.
    fn sync_dir(&self, dir: &StorePath) -> io::Result<()>;
    /// How [`Self::sync_all`] works. The policy may change to syncing each file, but never back.
    fn sync_policy(&self) -> SyncPolicy;
    /// Makes everything written so far durable, files and directories alike: by one `syncfs` if
    /// that is reliable, otherwise file by file, which takes long. A caller that knows which files
    /// were written should consult [`Self::sync_policy`] first. A failed write is reliably reported
    /// only while the written file has not been closed.
    ///
    /// # Errors
    /// When the backing filesystem fails. Anything written since the last success may be lost then.
    fn sync_all(&self) -> io::Result<()>;
    /// Attributes of an entry (`lstat`).
    ///
    /// # Errors
    /// ENOENT if there is no such entry.
    fn info(&self, path: &StorePath) -> io::Result<EntryInfo>;
    /// The kind of the ballast that a volume in this store has.
    fn ballast_kind(&self) -> BallastKind {
        BallastKind::None
    }
    /// Space on the backing filesystem.
    ///
    /// # Errors
    /// When the backing filesystem fails.
    fn space(&self) -> io::Result<SpaceInfo>;
    /// Takes the exclusive lock on the existing file without waiting. It is released when dropped
    /// or when the process ends.
    ///
    /// # Errors
    /// `WouldBlock` if another process, or another open in this one, holds it.
    fn lock(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>>;
    /// Takes a shared lock, which excludes the exclusive one. It is for read-only media: the file
    /// is opened for reading only.
    ///
    /// # Errors
    /// `WouldBlock` if somebody holds the exclusive lock, `Unsupported` if the store has no shared
    /// locks.
    fn lock_shared(&self, _path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Takes the exclusive lock on a directory without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if another process, or another open in this one, holds it; `Unsupported` if
    /// directories cannot be locked, as on NFS.
    fn lock_dir(&self, _dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Takes a shared lock on a directory, which excludes the exclusive one.
    ///
    /// # Errors
    /// `WouldBlock` if somebody holds the exclusive lock, `Unsupported` if directories cannot be
    /// locked.
    fn lock_dir_shared(&self, _dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The current identity of the directory that this store is; `None` if the store is not a
    /// directory of the operating system.
    ///
    /// # Errors
    /// When the directory's identity cannot be determined.
    fn directory_identity(&self) -> io::Result<Option<DirectoryIdentity>> {
        Ok(None)
    }
}
