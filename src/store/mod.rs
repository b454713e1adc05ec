//! The backing store: plain files and directories that hold sealed bytes and nothing else.
//!
//! A narrow trait with three implementations: [`directory`], [`memory`] and [`faulty`] (power
//! cuts, torn pages, lost directory entries, EIO, ENOSPC). [`read_only`] goes over any of them,
//! [`sub`] is a directory of any of them.
//!
//! Order of writes is the caller's business; the store promises only what POSIX promises: bytes
//! are durable after `sync`, a directory entry is durable after `sync_dir` of its directory.

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
pub mod faulty;
pub mod memory;
pub mod read_only;
pub mod sub;
mod sync;
mod tree;

pub(crate) use adopt::duplicate;
pub use sync::SyncPolicy;

/// An error as the kernel would have reported it.
pub(crate) fn os_error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.code())
}

/// Most components of a path: three below a volume's directory, and one where that is a directory
/// of another store.
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

    /// # Panics
    /// When the text is not a store path. All store paths are made by this program; none is read
    /// from a volume.
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

    /// The text, components separated by `/`.
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

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// Anything else (symbolic links included): never followed, never opened.
    Other,
}

/// What `stat` says of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryInfo {
    /// What it is.
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

/// Room on the backing filesystem, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceInfo {
    /// All of it.
    pub total_bytes: u64,
    /// Free, in all.
    pub free_bytes: u64,
    /// Free for this user.
    pub available_bytes: u64,
}

/// True where more files are open than this process, or the whole machine, may have: no error of what
/// is stored.
pub fn too_many_open(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// What room is kept with, for what makes room ([`ballast`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BallastKind {
    /// None is kept.
    None,
    /// Blocks that are set aside: bytes that are written anew stay where they are.
    Blocks,
    /// Bytes that cannot be compressed: what is written anew takes room, or that is not known.
    Bytes,
}

/// A lock that is held until it is dropped.
pub trait StoreLock: Send + Sync + Debug {
    /// The descriptors behind it, where it is a lock of the operating system's.
    fn held(&self) -> Option<HeldLock<'_>> {
        None
    }
}

/// What a process can show of a lock that it holds.
#[derive(Clone, Copy, Debug)]
pub struct HeldLock<'a> {
    /// The open file description that holds the lock.
    pub file: BorrowedFd<'a>,
    /// The directory of the store. No lock is on this description.
    pub directory: BorrowedFd<'a>,
    /// Nobody else can have it; else others may, who only read.
    pub exclusive: bool,
}

/// An open file of the store.
pub trait StoreFile: Send + Sync + Debug {
    /// Reads from `offset` until `buffer` is full or the file ends; returns the bytes read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`, growing the file where needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True when the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or grows (with zeros) the file.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Gives the range back to the backing filesystem; it then reads as zeros. The length stays.
    /// Where the backing filesystem cannot, the range is left as it is: callers must not rely on
    /// zeros.
    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()>;
    /// Sets space aside for the range without changing the length. ENOSPC when there is none; Ok
    /// where the backing filesystem cannot reserve.
    fn reserve(&self, offset: u64, len_bytes: u64) -> io::Result<()>;
    /// Has a file that is empty written in place from now on, where the backing filesystem copies on
    /// write and can do without.
    fn write_in_place(&self) {}
    /// Has the range read ahead, without waiting for it, where the backing filesystem can: whoever
    /// reads from several files in turn waits once for all of them then.
    fn will_need(&self, _offset: u64, _len_bytes: u64) {}
    /// `fdatasync`: bytes and length are durable when it returns.
    fn sync(&self) -> io::Result<()>;
    /// What `fstat` says.
    fn info(&self) -> io::Result<EntryInfo>;
}

/// How a file of another store came here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adopted {
    /// It is the same file under another name.
    Linked,
    /// It is a file of its own that shares its blocks until one of the two is written.
    Reflinked,
    /// Its bytes were copied.
    Copied,
}

/// A directory tree that holds a volume.
pub trait Store: Send + Sync + Debug + Any {
    /// Opens or creates a file. Symbolic links are never followed.
    fn open(&self, path: &StorePath, mode: OpenMode) -> io::Result<Arc<dyn StoreFile>>;
    /// Atomically renames a file, replacing the file at `to`. EISDIR when either is a directory.
    /// Two names of one file are left as they are, as POSIX wants.
    fn rename(&self, from: &StorePath, to: &StorePath) -> io::Result<()>;
    /// Makes a hard link; `to` must not exist.
    fn link(&self, from: &StorePath, to: &StorePath) -> io::Result<()>;
    /// Gives a plain file of the store `source` the name `to` here, which must not exist: by a hard
    /// link, where there can be none by sharing its blocks, else by copying its bytes. Neither the
    /// name nor copied bytes are durable before a sync; but where each file is synced by itself
    /// ([`SyncPolicy`]), bytes that are the new file's own are durable on return.
    fn adopt(&self, source: &dyn Store, from: &StorePath, to: &StorePath) -> io::Result<Adopted>;
    /// Removes a file's name.
    fn unlink(&self, path: &StorePath) -> io::Result<()>;
    /// Makes a directory (mode 0700); it must not exist.
    fn create_dir(&self, path: &StorePath) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &StorePath) -> io::Result<()>;
    /// Names and kinds of a directory's entries, in no particular order. Names that are not store
    /// path components are left out.
    fn list(&self, dir: &StorePath) -> io::Result<Vec<(String, EntryKind)>>;
    /// Makes the directory's entries durable (`fsync` of the directory).
    fn sync_dir(&self, dir: &StorePath) -> io::Result<()>;
    /// What [`Self::sync_all`] does. It may change to syncing each file, never back.
    fn sync_policy(&self) -> SyncPolicy;
    /// Makes everything written so far durable, files and directories alike: by one `syncfs` where
    /// that proves it, else file by file, which takes long. Who knows which files were written
    /// asks [`Self::sync_policy`] first. A failed write is reported for sure only while the file
    /// that was written has not been closed.
    fn sync_all(&self) -> io::Result<()>;
    /// What `lstat` says.
    fn info(&self, path: &StorePath) -> io::Result<EntryInfo>;
    /// What the ballast of a volume in it is made of.
    fn ballast_kind(&self) -> BallastKind {
        BallastKind::None
    }
    /// Room on the backing filesystem.
    fn space(&self) -> io::Result<SpaceInfo>;
    /// Takes the exclusive lock on the (existing) file without waiting; `WouldBlock` when another
    /// holder has it. Released when dropped or when the process ends.
    fn lock(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>>;
    /// Takes a lock that shuts out those who take the exclusive one, for a medium that nobody can
    /// write to: the file is opened for reading alone.
    fn lock_shared(&self, _path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Takes the exclusive lock on a directory without waiting; `WouldBlock` when another holder has
    /// it, `Unsupported` where directories cannot be locked, as on NFS.
    fn lock_dir(&self, _dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Takes a lock on a directory that shuts out those who take the exclusive one.
    fn lock_dir_shared(&self, _dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The directory of the operating system's that it is, as it is found now; `None` for a store
    /// that is no such directory.
    ///
    /// # Errors
    /// It is one, and where it is cannot be told.
    fn directory_identity(&self) -> io::Result<Option<DirectoryIdentity>> {
        Ok(None)
    }
}
