//! POSIX semantics over metadata and contents, without any FUSE type.
//!
//! Invariants:
//! - Names, link counts and directories change under one lock (`namespace`), and every record of
//!   an inode under that inode's lock, so that each operation is one batch that happens or not.
//! - An inode lives as long as it has a name, the kernel knows it, or it is open.
//! - Permissions are the kernel's business (`default_permissions`); what it leaves to the
//!   filesystem (set-id bits, sticky inheritance) is done here.
//!
//! One file per group of operations.

mod access_times;
mod acl;
mod attributes;
mod check;
mod checkpoints;
mod commit;
mod consistency;
mod contents;
mod directories;
mod images;
mod lifecycle;
mod lookup;
mod names;
pub mod privileges;
mod references;
mod remember;
mod remount;
mod rename;
mod restore;
mod restore_path;
mod room;
mod seek;
mod separate;
mod shutdown;
pub mod types;
pub mod views;
mod views_directory;
mod xattrs;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use crate::errno::Errno;
use crate::ids::{Ino, ViewId};
use crate::keys::KeyError;
use crate::meta::records::InodeRecord;
use crate::meta::{Meta, MetaError, Permit, View};
use crate::object::{Contents, File, ObjectError};
use crate::sealed::SealedError;
use crate::snapshot::purge::Purge;
use crate::store::ballast::Ballast;
use crate::store::os_error;
use crate::volume::{Rollback, Volume, VolumeError};
use access_times::AccessTimesNow;
use references::References;
use types::{Handle, NodeId};
pub use views_directory::SnapshotDir;
use views_directory::ViewsDirectory;

pub use access_times::AccessTimes;
pub use lifecycle::Usage;

/// The longest name, in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes (`PATH_MAX` without its NUL).
pub const TARGET_BYTES_MAX: usize = 4095;
/// The most names of one inode, as on ext4.
pub const LINKS_MAX: u32 = 65_000;

/// How a volume is used.
#[derive(Clone, Debug)]
pub struct FilesystemOptions {
    /// Refuse all changes.
    pub read_only: bool,
    /// The longest that a change stays in memory alone.
    pub commit_interval: Duration,
    /// Bound of redb's cache, in bytes.
    pub meta_cache_bytes: usize,
    /// Bound of open objects.
    pub open_objects: usize,
    /// Changes in memory from which on a commit begins, in bytes.
    pub pending_bytes: usize,
    /// When reading changes the time of last access.
    pub access_times: AccessTimes,
    /// Where kept views are found in the root.
    pub snapshot_dir: SnapshotDir,
    /// How often a copy of the metadata is put beside them, at the most; `None`: never.
    pub checkpoint_interval: Option<Duration>,
    /// A thread of its own commits by time and cleans up. Without it, nothing happens but what is
    /// asked for ([`Filesystem::tend`]), always in the same order.
    pub background: bool,
}

impl Default for FilesystemOptions {
    /// Suits a machine with 1 GiB of memory.
    fn default() -> Self {
        Self {
            read_only: false,
            commit_interval: Duration::from_secs(5),
            meta_cache_bytes: 64 << 20,
            open_objects: 4096,
            pending_bytes: 32 << 20,
            access_times: AccessTimes::Relative,
            snapshot_dir: SnapshotDir::default(),
            checkpoint_interval: None,
            background: true,
        }
    }
}

/// What can go wrong with a filesystem as a whole.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The contents.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The metadata's sealed file.
    #[error("the metadata file of the volume: {0}")]
    Sealed(#[from] SealedError),
    /// The backing store.
    #[error("the backing store failed: {0}")]
    Io(#[from] std::io::Error),
    /// Writing ended before the filesystem was closed.
    #[error("writing had ended before, and what was not on disk by then is lost: {0}")]
    Stopped(String),
    /// It cannot be shown as it is, and nothing may be changed.
    #[error(
        "it is being taken back to a snapshot, which was cut off and is finished by the next use that may write"
    )]
    HalfRestored,
    /// The volume is older than the platform keystore knows it to be.
    #[error("the volume is not the newest state that this machine knows: {0}")]
    RolledBack(#[from] Rollback),
    /// Everything is on disk, and the platform keystore does not know it.
    #[error(
        "everything is on disk, but the platform keystore could not be told of it, so that an older \
         copy from after its last record would not be noticed: {0}"
    )]
    NotRemembered(#[source] KeyError),
    /// The keys or the header of the volume.
    #[error("the volume: {0}")]
    Volume(#[from] VolumeError),
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self::Io(os_error(errno))
    }
}

impl FsError {
    /// True where nothing but the platform keystore's record is missing.
    pub fn is_all_on_disk(&self) -> bool {
        matches!(self, Self::NotRemembered(_))
    }

    /// What a caller of the filesystem is told.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Meta(error) => error.errno(),
            Self::Object(error) => error.errno(),
            Self::Sealed(error) => error.errno(),
            Self::Io(error) => Errno::from_backing(error),
            Self::HalfRestored => Errno::EROFS,
            Self::Stopped(_) | Self::RolledBack(_) | Self::NotRemembered(_) | Self::Volume(_) => {
                Errno::EIO
            }
        }
    }
}

/// An open file.
#[derive(Debug)]
struct OpenFile {
    file: Arc<File>,
    writable: bool,
    /// The time of last access has been looked at since the file was opened.
    accessed: AtomicBool,
}

/// The filesystem of one volume.
#[derive(Debug)]
pub struct Filesystem {
    volume: Volume,
    options: FilesystemOptions,
    meta: Arc<Meta>,
    contents: Contents,
    /// Room for commits that make room, where it has to be kept.
    ballast: Arc<Ballast>,
    /// Held while names, link counts or directories change.
    namespace: Mutex<()>,
    references: References,
    open_files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    open_directories: Mutex<HashMap<u64, NodeId>>,
    next_handle: AtomicU64,
    /// Inodes that are to be removed in the background.
    doomed: Mutex<Vec<Ino>>,
    /// How often room was made on a full disk; held while it is.
    room_made: Mutex<u64>,
    background: Mutex<commit::Background>,
    wake: Condvar,
    worker: Mutex<Option<std::thread::JoinHandle<()>>>,
    checkpoints: checkpoints::Checkpoints,
    /// Nothing may change for now.
    held: AtomicBool,
    /// It was shut down.
    down: AtomicBool,
    /// Held while `held` changes.
    remounting: Mutex<()>,
    /// Held shared by changes that the kernel knows nothing of and that are more than one batch
    /// (views, restores); exclusively while the volume is being made read-only or closed.
    /// Outermost.
    long_changes: RwLock<()>,
    access_times: AccessTimesNow,
    /// Held while views are taken, renamed or deleted.
    viewing: Mutex<()>,
    /// Held while something is taken back to what a snapshot shows; before `viewing`. The whole would
    /// take the copy away that one path is to become.
    restoring: Mutex<()>,
    purge: Mutex<Purge>,
    /// Held exclusively while pages that nobody reads are given back.
    trimming: RwLock<()>,
    cache: RwLock<Option<Arc<dyn KernelCache>>>,
    keystore: remember::KeystoreState,
}

/// What holds copies of the filesystem's state in front of it: the kernel. Its calls may wait for
/// requests to be answered, WRITE among them.
pub trait KernelCache: Send + Sync + std::fmt::Debug {
    /// Returns when nothing is held back any more of what was written to these files before.
    fn write_back(&self, nodes: &[NodeId]);
    /// True when it believes its own size and times of a file that it remembers over what it is
    /// told of them.
    fn believes_itself(&self) -> bool;
    /// Returns when nothing is remembered any more of these files and names (directory and name).
    fn forget(&self, nodes: &[NodeId], names: &[(NodeId, Vec<u8>)]);
}

impl Filesystem {
    fn view(&self, node: NodeId) -> Result<View, Errno> {
        self.check_up()?;
        if node.is_live() {
            Ok(View::LIVE)
        } else {
            self.meta.view(node.view()).ok_or(Errno::ESTALE)
        }
    }

    /// The inode of a node.
    fn inode(&self, node: NodeId) -> Result<InodeRecord, Errno> {
        let view = self.view(node)?;
        if let Some(directory) = ViewsDirectory::of(node) {
            return self.views_inode(directory);
        }
        match self.meta.inode(node.ino(), view)? {
            Some(record) => Ok(record),
            // Nobody can have removed the root.
            None if node == NodeId::ROOT => {
                Err(self.inconsistent(Ino::ROOT, "the root directory is not there"))
            }
            None => Err(Errno::ESTALE),
        }
    }

    /// `Err(EROFS)` where nothing may change, and room for one more change otherwise.
    fn check_change(&self, node: NodeId) -> Result<(), Errno> {
        self.check_up()?;
        if self.is_read_only() || !node.is_live() {
            return Err(Errno::EROFS);
        }
        if ViewsDirectory::of(node).is_some() {
            return Err(Errno::EPERM);
        }
        self.meta.check_writable()?;
        self.relieve_pressure()
    }

    /// The same, and the right to change it, which is to be held until the change is applied.
    fn begin_change(&self, node: NodeId) -> Result<Permit<'_>, Errno> {
        self.check_change(node)?;
        Ok(self.meta.permit())
    }

    /// The right to make a change of several steps, which ends in a commit. While it is held, the
    /// volume is not said to be clean.
    ///
    /// # Errors
    /// EROFS where nothing may change, or soon nothing may.
    fn begin_long_change(&self) -> Result<RwLockReadGuard<'_, ()>, Errno> {
        // Without waiting: who wants it exclusively waits for others who may wait for the kernel.
        let turn = self.long_changes.try_read().ok_or(Errno::EROFS)?;
        self.check_up()?;
        if self.is_read_only() {
            return Err(Errno::EROFS);
        }
        self.meta.check_writable()?;
        Ok(turn)
    }

    /// Connects it with the cache that is in front of it.
    pub fn attach(&self, cache: Arc<dyn KernelCache>) {
        *self.cache.write() = Some(cache);
    }

    /// There is no cache in front of it any more.
    pub fn detach(&self) {
        *self.cache.write() = None;
    }

    fn cache(&self) -> Option<Arc<dyn KernelCache>> {
        self.cache.read().clone()
    }

    /// A number that no open file had before.
    fn handle(&self) -> Result<Handle, Errno> {
        let (order, next) = (Ordering::Relaxed, |number: u64| number.checked_add(1));
        let drawn = self.next_handle.fetch_update(order, order, next);
        drawn.map(Handle).map_err(|_| Errno::ENFILE)
    }
}

/// The node of an inode that a record names.
fn node_in(view: ViewId, ino: Ino) -> Result<NodeId, Errno> {
    NodeId::new(view, ino).ok_or(Errno::EIO)
}

/// The live node of an inode that a record names.
fn live(ino: Ino) -> Result<NodeId, Errno> {
    node_in(ViewId::LIVE, ino)
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        [] => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EINVAL),
        _ if name.len() > NAME_BYTES_MAX => Err(Errno::ENAMETOOLONG),
        _ if name.contains(&0) || name.contains(&b'/') => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}
