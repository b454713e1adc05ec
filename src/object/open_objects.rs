//! The cache of open objects. It is bounded and never closes an object that waits for its sync.
//!
//! Invariants:
//! - There is at most one [`ContentsFile`] for an object at a time. Its page locks are shared by
//!   all its users, so an object in use is never closed.
//! - An object that is not open has nothing that waits for a sync, unless writing has ended.
//! - No lock of the cache is held during I/O, closing a file included. A thread that waits for a
//!   `syncfs` holds [`OpenObjects::making_space`], which is taken only by threads that need that
//!   very sync.
//!
//! The bound is exceeded only by objects that are in use at the same moment.
//!
//! A thread that finds the cache full of unsynced objects waits until everything that others have
//! written is synced, too. Therefore a sync in the background is requested
//! ([`OpenObjects::is_sync_due`]) when half of the bound is unsynced: the other half is for objects
//! that are opened meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;

use super::ObjectError;
use crate::meta::Meta;
use crate::meta::records::ObjectName;
use crate::sealed::ContentsFile;
use crate::store::Store;

/// From this number of objects on, one `syncfs` is cheaper than an fdatasync each.
const SYNC_ALL_FROM: usize = 32;
/// Lower bound of the objects kept open.
const OPEN_MIN: usize = 8;
/// How often unsynced objects are counted while the cache fills once.
const COUNTS_PER_FILL: usize = 16;
/// How often a thread that opens an object makes space before it exceeds the bound.
const MAKE_SPACE_ATTEMPTS: u32 = 16;

/// The open objects of a volume.
#[derive(Debug)]
pub(super) struct OpenObjects {
    store: Arc<dyn Store>,
    open: Mutex<LruCache<ObjectName, Arc<ContentsFile>>>,
    /// The bound. It shrinks once the process or machine could not open more files.
    open_max: AtomicUsize,
    /// Objects added so far.
    added: AtomicUsize,
    /// True if half of the bound was unsynced at the last count.
    sync_due: AtomicBool,
    /// Where a failed sync ends all writing; `None` if nothing is written.
    meta: Option<Arc<Meta>>,
    /// Held by the thread that syncs many objects to make space.
    making_space: Mutex<()>,
}

/// Outcome of adding an object to the cache.
enum PutOutcome {
    Open(Arc<ContentsFile>),
    /// All idle objects wait for their sync.
    NeedsSync,
}

impl OpenObjects {
    pub(super) fn new(store: Arc<dyn Store>, open_max: usize, meta: Option<Arc<Meta>>) -> Self {
        Self {
            store,
            open: Mutex::new(LruCache::unbounded()),
            open_max: AtomicUsize::new(open_max.max(1)),
            added: AtomicUsize::new(0),
            sync_due: AtomicBool::new(false),
            meta,
            making_space: Mutex::default(),
        }
    }

    /// Returns the object if it is open.
    pub(super) fn get(&self, name: ObjectName) -> Option<Arc<ContentsFile>> {
        self.open.lock().get(&name).cloned()
    }

    /// Adds an object that was just opened and returns the one to use: another thread may have
    /// opened the same object.
    pub(super) fn put(&self, name: ObjectName, contents: Arc<ContentsFile>) -> Arc<ContentsFile> {
        for _ in 0..MAKE_SPACE_ATTEMPTS {
            match self.try_put(name, &contents, false) {
                PutOutcome::Open(open) => return open,
                PutOutcome::NeedsSync => self.make_space(),
            }
        }
        match self.try_put(name, &contents, true) {
            PutOutcome::Open(open) => open,
            PutOutcome::NeedsSync => contents,
        }
    }

    /// Closes a removed object, even if it waits for a sync.
    pub(super) fn close(&self, name: ObjectName) {
        let closed = self.open.lock().pop(&name);
        drop(closed);
    }

    /// Makes everything written so far to these objects durable.
    pub(super) fn sync(&self, names: impl Iterator<Item = ObjectName>) -> Result<(), ObjectError> {
        let unsynced: Vec<_> = {
            let open = self.open.lock();
            let opened = names.filter_map(|name| Some((name, open.peek(&name)?)));
            let unsynced = opened.filter(|(_, object)| object.is_unsynced());
            unsynced
                .map(|(name, object)| (name, Arc::clone(object)))
                .collect()
        };
        if unsynced.len() >= SYNC_ALL_FROM && self.store.sync_policy().is_at_once() {
            return self.sync_at_once();
        }
        for (name, object) in unsynced {
            sync_one(name, &object)?;
        }
        Ok(())
    }

    fn try_put(&self, name: ObjectName, contents: &Arc<ContentsFile>, exceed: bool) -> PutOutcome {
        let mut closed = Vec::new();
        let mut open = self.open.lock();
        if let Some(first) = open.get(&name) {
            return PutOutcome::Open(Arc::clone(first));
        }
        while open.len() >= self.open_max.load(Ordering::Relaxed) {
            let mut unused = open.iter().rev().filter(|(_, object)| is_idle(object));
            let mut wait_for_sync = false;
            let closable = unused.find(|(_, object)| {
                let may_close = self.may_close(object);
                wait_for_sync |= !may_close;
                may_close
            });
            match closable.map(|(name, _)| *name) {
                Some(name) => closed.extend(open.pop(&name)),
                None if wait_for_sync && !exceed => return PutOutcome::NeedsSync,
                None => break,
            }
        }
        open.put(name, Arc::clone(contents));
        self.count_unsynced(&open);
        // Closing a file may cause I/O.
        drop(open);
        drop(closed);
        PutOutcome::Open(Arc::clone(contents))
    }

    /// Returns true once when a sync of everything should begin before anyone has to wait for one.
    pub(super) fn is_sync_due(&self) -> bool {
        self.sync_due.load(Ordering::Relaxed) && self.sync_due.swap(false, Ordering::Relaxed)
    }

    /// Counts the unsynced objects from time to time, to decide whether a sync is due.
    fn count_unsynced(&self, open: &LruCache<ObjectName, Arc<ContentsFile>>) {
        let open_max = self.open_max.load(Ordering::Relaxed);
        let added = self.added.fetch_add(1, Ordering::Relaxed);
        if self.meta.is_some() && added.is_multiple_of(open_max.div_ceil(COUNTS_PER_FILL)) {
            let unsynced = open.iter().filter(|(_, object)| object.is_unsynced());
            if unsynced.count() > open_max / 2 {
                self.sync_due.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Closes half of the idle objects that wait for no sync and lowers the bound, so that others
    /// can open files. True if something was closed.
    pub(super) fn close_some(&self) -> bool {
        let mut closed = Vec::new();
        let mut open = self.open.lock();
        let names: Vec<_> = open
            .iter()
            .rev()
            .filter(|(_, object)| is_idle(object) && self.may_close(object))
            .map(|(name, _)| *name)
            .collect();
        for name in names.iter().take(names.len().div_ceil(2)) {
            closed.extend(open.pop(name));
        }
        let fewer = (open.len() + closed.len()).div_ceil(2).max(OPEN_MIN);
        self.open_max.fetch_min(fewer, Ordering::Relaxed);
        // Closing a file may cause I/O.
        drop(open);
        !closed.is_empty()
    }

    /// True if the object has nothing that waits for a sync, or if writing has ended: no commit
    /// relies on the object then.
    fn may_close(&self, object: &ContentsFile) -> bool {
        let writing = self.meta.as_ref();
        !object.is_unsynced() || writing.is_none_or(|meta| meta.check_writable().is_err())
    }

    /// Makes sure that some object may be closed: syncs the least recently used one, or many at
    /// once if that costs the same.
    pub(super) fn make_space(&self) {
        let at_once = self.store.sync_policy().is_at_once();
        // A thread that had to wait here benefits from the sync of another.
        let _turn = at_once.then(|| self.making_space.lock());
        let (oldest, unsynced) = {
            let open = self.open.lock();
            let mut unused = open.iter().rev().filter(|(_, object)| is_idle(object));
            if unused.clone().any(|(_, object)| self.may_close(object)) {
                return;
            }
            let oldest = unused.next();
            let oldest = oldest.map(|(name, object)| (*name, Arc::clone(object)));
            let unsynced = open.iter().filter(|(_, object)| object.is_unsynced());
            (oldest, unsynced.count())
        };
        let synced = match oldest {
            _ if at_once && unsynced >= SYNC_ALL_FROM => self.sync_at_once(),
            Some((name, object)) => sync_one(name, &object),
            None => Ok(()),
        };
        if let (Err(error), Some(meta)) = (synced, &self.meta) {
            meta.latch(&format!("contents could not be made durable: {error}"));
        }
    }

    /// Syncs all open objects with one `syncfs`.
    fn sync_at_once(&self) -> Result<(), ObjectError> {
        // Weak references, or the objects would count as in use during the sync.
        let covered: Vec<(Weak<ContentsFile>, u64)> = {
            let open = self.open.lock();
            let unsynced = open.iter().filter(|(_, object)| object.is_unsynced());
            unsynced
                .map(|(_, object)| (Arc::downgrade(object), object.writes()))
                .collect()
        };
        self.store.sync_all()?;
        for (object, writes) in covered {
            if let Some(object) = object.upgrade() {
                object.mark_synced(writes);
            }
        }
        Ok(())
    }
}

/// True if only the cache holds the object.
fn is_idle(object: &Arc<ContentsFile>) -> bool {
    Arc::strong_count(object) == 1
}

fn sync_one(object: ObjectName, contents: &ContentsFile) -> Result<(), ObjectError> {
    contents
        .sync()
        .map_err(|source| ObjectError::Page { object, source })
}
