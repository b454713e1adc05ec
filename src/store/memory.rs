//! The memory store: a whole tree in memory, for tests and for measuring everything but the disk.
//!
//! It behaves like a directory on a filesystem without a cache: hard links share bytes, an unlinked
//! file exists until its last handle is closed, and holes use no space. Everything is durable at
//! once; [`super::faulty`] is the store that tracks durability.
//!
//! Invariants: a clone is another handle to the same tree; [`MemoryStore::snapshot`] is a separate
//! tree (bytes are shared until written). After ENOSPC a file is unchanged.

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::adopt;
use super::contents::{Contents, SpaceBudget};
use super::tree::{Entry, FileNode, Tree};
use super::{
    Adopted, EntryInfo, EntryKind, OpenMode, SpaceInfo, Store, StoreFile, StoreLock, StorePath,
    SyncPolicy, os_error, sync,
};
use crate::errno::Errno;

/// The size that `space` reports for a store without a limit.
const UNLIMITED_BYTES: u64 = 1 << 44;

type MemoryTree = Tree<RwLock<Contents>>;
type MemoryNode = FileNode<RwLock<Contents>>;

struct Inner {
    tree: RwLock<MemoryTree>,
    budget: Arc<SpaceBudget>,
    each_file: AtomicBool,
}

/// A directory tree in memory. Clones are handles to the same tree.
#[derive(Clone)]
pub struct MemoryStore(Arc<Inner>);

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("used_bytes", &self.0.budget.used_bytes())
            .finish_non_exhaustive()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty tree without a limit.
    pub fn new() -> Self {
        Self::with_budget(SpaceBudget::new(None))
    }

    /// An empty tree with space for this many bytes of contents, in whole pages of 4096 bytes.
    /// Names use no space.
    pub fn with_capacity_bytes(capacity_bytes: u64) -> Self {
        Self::with_budget(SpaceBudget::new(Some(capacity_bytes)))
    }

    /// Requires that files be synced one by one from now on, as on a filesystem whose `syncfs` is
    /// not reliable.
    pub fn sync_each_file(&self) {
        self.0.each_file.store(true, Ordering::SeqCst);
    }

    /// A separate tree with the same names and bytes, and the same limit.
    pub fn snapshot(&self) -> Self {
        let budget = SpaceBudget::new(self.0.budget.limit_bytes());
        let tree = self.0.tree.read();
        let copy = Tree::copy(&tree.directories, |contents: &RwLock<Contents>| {
            RwLock::new(contents.read().copy_into(Arc::clone(&budget)))
        });
        Self::from_parts(copy, budget)
    }

    /// The limit, in bytes.
    pub(super) fn capacity_bytes(&self) -> Option<u64> {
        self.0.budget.limit_bytes()
    }

    /// A store made of existing names and bytes.
    pub(super) fn from_parts(tree: MemoryTree, budget: Arc<SpaceBudget>) -> Self {
        Self(Arc::new(Inner {
            tree: RwLock::new(tree),
            budget,
            each_file: AtomicBool::new(false),
        }))
    }

    /// A copy of the names over transformed contents.
    pub(super) fn copy_tree<G>(&self, mut transform: impl FnMut(&Contents) -> G) -> Tree<G> {
        let tree = self.0.tree.read();
        Tree::copy(&tree.directories, |contents: &RwLock<Contents>| {
            transform(&contents.read())
        })
    }

    fn with_budget(budget: Arc<SpaceBudget>) -> Self {
        Self::from_parts(Tree::new(), budget)
    }
}

impl Store for MemoryStore {
    fn open(&self, path: &StorePath, mode: OpenMode) -> io::Result<Arc<dyn StoreFile>> {
        let node = match mode {
            OpenMode::CreateNew => {
                let contents = RwLock::new(Contents::new(Arc::clone(&self.0.budget)));
                self.0.tree.write().create_file(path, contents)?.0
            }
            OpenMode::Read | OpenMode::ReadWrite => self.0.tree.read().file(path)?,
        };
        Ok(Arc::new(MemoryFile {
            node,
            writable: mode != OpenMode::Read,
        }))
    }

    fn rename(&self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        self.0.tree.write().rename(from, to).map(drop)
    }

    fn link(&self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        self.0.tree.write().link(from, to).map(drop)
    }

    fn adopt(&self, source: &dyn Store, from: &StorePath, to: &StorePath) -> io::Result<Adopted> {
        let (source, from) = adopt::resolve(source, from);
        match (source as &dyn Any).downcast_ref::<Self>() {
            Some(same) if Arc::ptr_eq(&same.0, &self.0) => {
                self.link(&from, to).map(|()| Adopted::Linked)
            }
            _ => adopt::copy(source, &from, self, to).map(|()| Adopted::Copied),
        }
    }

    fn unlink(&self, path: &StorePath) -> io::Result<()> {
        self.0.tree.write().unlink(path).map(drop)
    }

    fn create_dir(&self, path: &StorePath) -> io::Result<()> {
        self.0.tree.write().create_dir(path).map(drop)
    }

    fn remove_dir(&self, path: &StorePath) -> io::Result<()> {
        self.0.tree.write().remove_dir(path).map(drop)
    }

    fn list(&self, dir: &StorePath) -> io::Result<Vec<(String, EntryKind)>> {
        self.0.tree.read().list(dir)
    }

    fn sync_dir(&self, dir: &StorePath) -> io::Result<()> {
        self.0.tree.read().directory(dir).map(drop)
    }

    fn sync_policy(&self) -> SyncPolicy {
        match self.0.each_file.load(Ordering::SeqCst) {
            true => SyncPolicy::each_file("configured so"),
            false => SyncPolicy::AtOnce,
        }
    }

    fn sync_all(&self) -> io::Result<()> {
        match self.sync_policy() {
            SyncPolicy::AtOnce => Ok(()),
            SyncPolicy::EachFile { .. } => sync::sync_tree(self, &StorePath::root()),
        }
    }

    fn info(&self, path: &StorePath) -> io::Result<EntryInfo> {
        Ok(match self.0.tree.read().entry(path)? {
            Entry::File(node) => file_info(&node.data.read(), &node),
            Entry::Directory(_) => DIRECTORY_INFO,
        })
    }

    fn space(&self) -> io::Result<SpaceInfo> {
        Ok(space_of(&self.0.budget))
    }

    fn lock(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        let node = self.0.tree.read().file(path)?;
        if !node.try_lock() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock(node)))
    }
}

/// The `info` of a directory in memory.
pub(super) const DIRECTORY_INFO: EntryInfo = EntryInfo {
    kind: EntryKind::Directory,
    len_bytes: 0,
    links: 2,
    number: 0,
    allocated_bytes: 0,
};

/// The `info` of a file in memory.
pub(super) fn file_info<F>(contents: &Contents, node: &FileNode<F>) -> EntryInfo {
    EntryInfo {
        kind: EntryKind::File,
        len_bytes: contents.len_bytes(),
        links: node.links(),
        number: node.number(),
        allocated_bytes: contents.allocated_bytes(),
    }
}

/// The `space` of a budget.
pub(super) fn space_of(budget: &SpaceBudget) -> SpaceInfo {
    let total_bytes = budget.limit_bytes().unwrap_or(UNLIMITED_BYTES);
    let free_bytes = total_bytes.saturating_sub(budget.used_bytes());
    SpaceInfo {
        total_bytes,
        free_bytes,
        available_bytes: free_bytes,
    }
}

#[derive(Debug)]
struct MemoryLock(Arc<MemoryNode>);

impl StoreLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

struct MemoryFile {
    node: Arc<MemoryNode>,
    writable: bool,
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFile")
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl MemoryFile {
    /// Like the kernel, refuses changes through a handle that was opened for reading.
    fn change(
        &self,
        refusal: Errno,
        change: impl FnOnce(&mut Contents) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.writable {
            return Err(os_error(refusal));
        }
        change(&mut self.node.data.write())
    }
}

impl StoreFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.node.data.read().read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(Errno::EBADF, |contents| contents.write_at(bytes, offset))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.node.data.read().len_bytes())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Errno::EINVAL, |contents| contents.set_len(len_bytes))
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.change(Errno::EBADF, |contents| contents.punch(offset, len_bytes))
    }

    fn reserve(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.change(Errno::EBADF, |contents| contents.reserve(offset, len_bytes))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn info(&self) -> io::Result<EntryInfo> {
        Ok(file_info(&self.node.data.read(), &self.node))
    }
}
