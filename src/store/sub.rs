//! A directory of a store as a separate store: several volumes in one store.
//!
//! A power cut of the underlying store affects all of them at the same moment, and one volume can
//! adopt files of another by hard links.

use std::io;
use std::sync::Arc;

use super::{
    Adopted, BallastKind, EntryInfo, EntryKind, OpenMode, SpaceInfo, Store, StoreFile, StoreLock,
    StorePath, SyncPolicy, sync,
};

/// A directory of another store.
#[derive(Clone, Debug)]
pub struct SubStore {
    inner: Arc<dyn Store>,
    prefix: StorePath,
}

impl SubStore {
    /// The directory at `prefix`, which must exist when it is used. Its components count towards
    /// the limit of a path.
    pub fn over(inner: Arc<dyn Store>, prefix: StorePath) -> Self {
        Self { inner, prefix }
    }

    /// The underlying store.
    pub(super) fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    /// The path in the underlying store.
    pub(super) fn inner_path(&self, path: &StorePath) -> StorePath {
        match (self.prefix.is_root(), path.is_root()) {
            (true, _) => path.clone(),
            (_, true) => self.prefix.clone(),
            _ => StorePath::new(&format!("{}/{}", self.prefix.as_str(), path.as_str())),
        }
    }
}

impl Store for SubStore {
    fn open(&self, path: &StorePath, mode: OpenMode) -> io::Result<Arc<dyn StoreFile>> {
        self.inner.open(&self.inner_path(path), mode)
    }

    fn rename(&self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        self.inner
            .rename(&self.inner_path(from), &self.inner_path(to))
    }

    fn link(&self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        self.inner
            .link(&self.inner_path(from), &self.inner_path(to))
    }

    fn adopt(&self, source: &dyn Store, from: &StorePath, to: &StorePath) -> io::Result<Adopted> {
        self.inner.adopt(source, from, &self.inner_path(to))
    }

    fn unlink(&self, path: &StorePath) -> io::Result<()> {
        self.inner.unlink(&self.inner_path(path))
    }

    fn create_dir(&self, path: &StorePath) -> io::Result<()> {
        self.inner.create_dir(&self.inner_path(path))
    }

    fn remove_dir(&self, path: &StorePath) -> io::Result<()> {
        self.inner.remove_dir(&self.inner_path(path))
    }

    fn list(&self, dir: &StorePath) -> io::Result<Vec<(String, EntryKind)>> {
        self.inner.list(&self.inner_path(dir))
    }

    fn sync_dir(&self, dir: &StorePath) -> io::Result<()> {
        self.inner.sync_dir(&self.inner_path(dir))
    }

    fn sync_policy(&self) -> SyncPolicy {
        self.inner.sync_policy()
    }

    fn sync_all(&self) -> io::Result<()> {
        if self.sync_policy().is_at_once() {
            return self.inner.sync_all();
        }
        // Files of this directory only.
        sync::sync_tree(self, &StorePath::root())
    }

    fn info(&self, path: &StorePath) -> io::Result<EntryInfo> {
        self.inner.info(&self.inner_path(path))
    }

    fn ballast_kind(&self) -> BallastKind {
        self.inner.ballast_kind()
    }

    fn space(&self) -> io::Result<SpaceInfo> {
        self.inner.space()
    }

    fn lock(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.inner.lock(&self.inner_path(path))
    }

    fn lock_shared(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.inner.lock_shared(&self.inner_path(path))
    }

    fn lock_dir(&self, dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.inner.lock_dir(&self.inner_path(dir))
    }

    fn lock_dir_shared(&self, dir: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.inner.lock_dir_shared(&self.inner_path(dir))
    }
}
