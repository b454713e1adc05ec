//! POSIX semantics over metadata and contents, without any FUSE type.
//!
//! Invariants:
//! - Names, link counts and directories change under one lock (`namespace`), and every record of
//!   an inode under that inode's lock, so that each operation is one batch, applied as a whole or
//!   not at all.
//! - An inode exists as long as it has a name, the kernel knows it, or it is open.
//! - The kernel checks permissions (`default_permissions`). The filesystem does what the kernel
//!   leaves to it (set-id bits, inheritance of the group).
//!
//! One file per group of operations.

mod access_times;
mod acl;
mod attributes;
mod background;
mod check;
mod commit;
mod consistency;
mod contents;
mod directories;
mod lifecycle;
mod lookup;
mod names;
pub mod privileges;
mod references;
mod remount;
mod rename;
mod seek;
mod separate;
mod shutdown;
pub mod snapshots;
pub mod types;
mod xattrs;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use crate::audit;
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
use references::{Access, References};
pub use snapshots::SnapshotDir;
use types::ViewsDirectory;
use types::{DirentRef, Handle, NodeId};

pub use access_times::AccessTimes;
pub use lifecycle::Usage;

/// The longest name, in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes (`PATH_MAX` without its NUL).
pub const TARGET_BYTES_MAX: usize = 4095;
/// The most names of one inode, as on ext4.
pub const LINKS_MAX: u32 = 65_000;

/// Options for opening the filesystem of a volume.
#[derive(Clone, Debug)]
pub struct FilesystemOptions {
    /// Refuse all changes.
    pub read_only: bool,
    /// Maximum time that a change stays in memory only.
    pub commit_interval: Duration,
    /// Bound of redb's cache, in bytes.
    pub meta_cache_bytes: usize,
    /// Maximum number of open objects.
    pub open_objects: usize,
    /// Bytes of pending changes beyond which a commit begins.
    pub pending_bytes: usize,
    /// When reading updates the access time.
    pub access_times: AccessTimes,
    /// Where kept views appear in the root directory.
    pub snapshot_dir: SnapshotDir,
    /// Minimum interval between checkpoints of the metadata; `None` disables them.
    pub checkpoint_interval: Option<Duration>,
    /// Whether a background thread commits by time and cleans up. Without it, nothing happens
    /// except on request ([`Filesystem::run_maintenance`]), always in the same order.
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

/// Errors of a filesystem as a whole.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The metadata cannot be read or changed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// Contents cannot be read or changed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The sealed file of the metadata cannot be read or written.
    #[error("the metadata file of the volume: {0}")]
    Sealed(#[from] SealedError),
    /// The backing store failed.
    #[error("the backing store failed: {0}")]
    Io(#[from] std::io::Error),
    /// Writing ended before the filesystem was closed.
    #[error("writing had ended before, and what was not on disk by then is lost: {0}")]
    Stopped(String),
    /// A restore is incomplete, and the volume may not be written to finish it.
    #[error("a restore from a snapshot was interrupted; the next writable mount finishes it")]
    HalfRestored,
    /// The volume is older than the platform keystore's record of it.
    #[error("the volume is not the newest state that this machine knows: {0}")]
    RolledBack(#[from] Rollback),
    /// Everything is on disk, but the platform keystore could not record it.
    #[error(
        "everything is on disk, but the platform keystore could not record it, so that an older \
         copy from after its last record would not be noticed: {0}"
    )]
    NotRemembered(#[source] KeyError),
    /// The keys or the header of the volume are not usable.
    #[error("the volume: {0}")]
    Volume(#[from] VolumeError),
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self::Io(os_error(errno))
    }
}

impl FsError {
    /// True if only the platform keystore's record is missing.
    pub fn is_all_on_disk(&self) -> bool {
        matches!(self, Self::NotRemembered(_))
    }

    /// The error number that a caller of the filesystem receives.
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
    access: Access,
    /// The access time has been checked since the file was opened.
    accessed: AtomicBool,
}

/// The filesystem of one volume.
#[derive(Debug)]
pub struct Filesystem {
    volume: Volume,
    options: FilesystemOptions,
    meta: Arc<Meta>,
    contents: Contents,
    /// Space for commits that free space, if it has to be reserved.
    ballast: Arc<Ballast>,
    /// Held while names, link counts or directories change.
    namespace: Mutex<()>,
    references: References,
    open_files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    open_directories: Mutex<HashMap<u64, NodeId>>,
    next_handle: AtomicU64,
    /// Unlinked inodes that are to be removed in the background.
    pending_removals: Mutex<Vec<Ino>>,
    /// How often space was reclaimed on a full disk. Held during a reclaim.
    reclaims: Mutex<u64>,
    background: Mutex<background::Background>,
    wake: Condvar,
    worker: Mutex<Option<std::thread::JoinHandle<()>>>,
    checkpoints: background::Checkpoints,
    /// The filesystem was remounted read-only.
    remounted_read_only: AtomicBool,
    /// The filesystem was shut down.
    was_shut_down: AtomicBool,
    /// Held while the filesystem is remounted.
    remounting: Mutex<()>,
    /// Held shared by changes that the kernel does not know of and that take more than one batch
    /// (views, restores), and exclusively while the volume is made read-only or closed. Outermost.
    long_changes: RwLock<()>,
    access_times: AccessTimesNow,
    /// Held while views are taken, renamed or deleted.
    viewing: Mutex<()>,
    /// Held during a restore; taken before `viewing`. A restore of the whole volume would remove
    /// the copy that a restore of one path is making.
    restoring: Mutex<()>,
    purge: Mutex<Purge>,
    /// Held exclusively while hidden pages are punched.
    trimming: RwLock<()>,
    cache: RwLock<Option<Arc<dyn KernelCache>>>,
    keystore: background::KeystoreState,
    /// The head of the audit that the metadata was given last.
    noted_audit_head: Mutex<Option<audit::Head>>,
}

/// The kernel's cache of the filesystem's state. Its methods may wait until requests are answered,
/// WRITE among them.
pub trait KernelCache: Send + Sync + std::fmt::Debug {
    /// Returns when the kernel has sent everything that was written to these files before.
    fn write_back(&self, nodes: &[NodeId]);
    /// True if the kernel trusts its cached size and times of a file over those in replies.
    fn trusts_cached_attrs(&self) -> bool;
    /// Returns when the kernel has dropped these files and names from its cache.
    fn forget(&self, nodes: &[NodeId], names: &[DirentRef<'_>]);
}

impl Filesystem {
    fn view(&self, node: NodeId) -> Result<View, Errno> {
        self.check_running()?;
        if node.is_live() {
            Ok(View::LIVE)
        } else {
            self.meta.view(node.view()).ok_or(Errno::ESTALE)
        }
    }

    /// The inode record of a node.
    fn inode(&self, node: NodeId) -> Result<InodeRecord, Errno> {
        let view = self.view(node)?;
        if let Some(directory) = ViewsDirectory::of(node) {
            return self.views_inode(directory);
        }
        match self.meta.inode(node.ino(), view)? {
            Some(record) => Ok(record),
            // The root cannot be removed.
            None if node == NodeId::ROOT => {
                Err(self.inconsistent(Ino::ROOT, "the root directory does not exist"))
            }
            None => Err(Errno::ESTALE),
        }
    }

    /// Fails with EROFS if nothing may change. Otherwise makes sure that there is memory for one
    /// more change.
    fn check_change(&self, node: NodeId) -> Result<(), Errno> {
        self.check_running()?;
        if self.is_read_only() || !node.is_live() {
            return Err(Errno::EROFS);
        }
        if ViewsDirectory::of(node).is_some() {
            return Err(Errno::EPERM);
        }
        self.meta.check_writable()?;
        self.relieve_pressure()
    }

    /// Checks that a change is allowed and returns the permit for it, which the caller holds until
    /// the change is applied.
    fn begin_change(&self, node: NodeId) -> Result<Permit<'_>, Errno> {
        self.check_change(node)?;
        Ok(self.meta.permit())
    }

    /// The permit for a change that takes several steps and ends in a commit. While it is held, the
    /// volume is not marked clean.
    ///
    /// # Errors
    /// EROFS if nothing may change, or soon nothing may.
    fn begin_long_change(&self) -> Result<RwLockReadGuard<'_, ()>, Errno> {
        // Does not wait: a thread that wants it exclusively may wait for others that wait for the
        // kernel.
        let permit = self.long_changes.try_read().ok_or(Errno::EROFS)?;
        self.check_running()?;
        if self.is_read_only() {
            return Err(Errno::EROFS);
        }
        self.meta.check_writable()?;
        Ok(permit)
    }

    /// Attaches the kernel's cache.
    pub fn attach(&self, cache: Arc<dyn KernelCache>) {
        *self.cache.write() = Some(cache);
    }

    /// Detaches the kernel's cache.
    pub fn detach(&self) {
        *self.cache.write() = None;
    }

    fn cache(&self) -> Option<Arc<dyn KernelCache>> {
        self.cache.read().clone()
    }

    /// Allocates a handle that no open file had before.
    fn allocate_handle(&self) -> Result<Handle, Errno> {
        let (order, next) = (Ordering::Relaxed, |number: u64| number.checked_add(1));
        let allocated = self.next_handle.fetch_update(order, order, next);
        allocated.map(Handle).map_err(|_| Errno::ENFILE)
    }
}

/// The node of an inode that a record names.
fn node_in(view: ViewId, ino: Ino) -> Result<NodeId, Errno> {
    NodeId::new(view, ino).ok_or(Errno::EIO)
}

/// The live node of an inode that a record names.
fn live_node(ino: Ino) -> Result<NodeId, Errno> {
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
