//! The faulty store: a tree in memory that tracks durability. On demand it cuts the power, and
//! calls fail.
//!
//! It guarantees exactly what POSIX guarantees, so code that survives it survives any backing
//! filesystem. Programs see the *current* state. The disk holds the *durable* state and, for what
//! was not synced, any of the following, chosen by the seed of [`FaultyStore::power_cut`]:
//!
//! **Contents.** Each 4096-byte page is, independently, in the state of the last sync or of any
//! later write, punch or truncation (of many, the newest sixteen). With [`WriteUnit::Sector`] it
//! may also be a mixture of two of these versions in steps of 512 bytes. The length is,
//! independently of the pages, the old one or any later one; what lies beyond it is gone, and bytes
//! that were never received read as zeros. `StoreFile::sync` makes bytes and length durable, but no
//! name.
//!
//! **Names.** Creating, linking, unlinking, renaming, and making or removing a directory are
//! operations on the directory that holds the name. Each is, independently, lost or kept until
//! `sync_dir` of *that* directory. So a directory's entries are useless while its own name is not
//! durable in its parent, and an unlinked file may come back. The exceptions:
//! - a rename within a directory is kept or lost as a whole;
//! - a rename across directories may leave both names, never none: the new name is durable no
//!   later than the removal of the old one, even when only the old directory is synced;
//! - operations on one name keep their order;
//! - the removal of a directory reaches the disk no earlier than moves of entries out of it.
//!
//! **Failed syncs.** A `sync` that fails leaves pages that may or may not be on the disk, and a
//! later successful `sync` does *not* cover them unless they were written again: the kernel counts
//! them as clean. A `sync_dir` that fails leaves its operations pending.
//!
//! `sync_all` makes everything durable, or, after [`FaultyStore::sync_each_file`], syncs file by
//! file; it is no call of its own then, and the calls that it makes are counted. Reserved space is
//! no content and is not kept. Choices are drawn by SplitMix64 in a fixed order: the same calls and
//! the same seed leave the same survivor. A probability between 0 and 1 (both included, in eighths)
//! is drawn first, per file and for all names together, so that cuts which lose nothing or
//! everything are as likely as those in between.
//!
//! Faults: [`FaultyStore::fail_call`], [`fail_kind`](FaultyStore::fail_kind) and
//! [`fail_when`](FaultyStore::fail_when). Calls are counted from 1. [`FaultyStore::cut_at_call`]
//! lets the power fail *during* a call: the effect of the call is pending like anything else that
//! is not synced, the caller gets EIO, and so does every later call.
//!
//! A [`Stall`] blocks one call before it is admitted ([`FaultyStore::stall_when`]).
//!
//! One lock protects everything: a call is either before a cut or after it, on whichever thread.

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::adopt;
use super::contents::{Contents, SpaceBudget};
use super::memory::{DIRECTORY_INFO, MemoryStore, file_info, space_of};
use super::tree::{Change, Entry, FileNode, Tree};
use super::{
    Adopted, EntryInfo, EntryKind, OpenMode, SpaceInfo, Store, StoreFile, StoreLock, StorePath,
    SyncPolicy, os_error, sync,
};
use crate::errno::Errno;

mod faults;
mod file;
mod names;
mod random;
mod stalls;

pub use faults::{Call, CallKind, CutCall, Fault};
use faults::{FaultPlan, Verdict};
use file::FaultyContents;
use names::NameJournal;
use random::Random;
pub use stalls::Stall;
use stalls::Stalls;

/// The unit that the disk writes atomically.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WriteUnit {
    /// 4096 bytes at a 4096-byte boundary: the stated precondition of a volume.
    #[default]
    Page,
    /// 512 bytes at a 512-byte boundary: a page may be torn.
    Sector,
}

/// Options of a faulty store.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultyOptions {
    /// The unit that the disk writes atomically.
    pub write_unit: WriteUnit,
    /// Space for contents, in whole pages; `None` for no limit.
    pub capacity_bytes: Option<u64>,
}

type FaultyTree = Tree<Mutex<FaultyContents>>;
type FaultyNode = FileNode<Mutex<FaultyContents>>;

#[derive(Debug)]
struct State {
    tree: FaultyTree,
    names: NameJournal<Mutex<FaultyContents>>,
    faults: FaultPlan,
    budget: Arc<SpaceBudget>,
    /// Number of the simulated process; raised when the process or the machine ends. Handles and
    /// locks belong to one process.
    process_run: u64,
    /// The machine is off and does not start again.
    off: bool,
}

impl State {
    fn durable(tree: FaultyTree, budget: Arc<SpaceBudget>) -> Self {
        Self {
            names: NameJournal::durable(&tree.directories),
            tree,
            faults: FaultPlan::default(),
            budget,
            process_run: 0,
            off: false,
        }
    }

    /// Calls `action` for every file that has a name now or may have one after a cut.
    fn each_file(&self, mut action: impl FnMut(&FaultyNode)) {
        let entries = self.tree.directories.values().flat_map(|d| d.values());
        for entry in entries.chain(self.names.files()) {
            if let Entry::File(node) = entry {
                action(node);
            }
        }
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    write_unit: WriteUnit,
    stalls: Stalls,
    each_file: AtomicBool,
}

/// A directory tree in memory that separates durable from current state. Clones are handles to the
/// same tree. See the module's documentation for the model.
#[derive(Clone, Debug)]
pub struct FaultyStore(Arc<Shared>);

impl Default for FaultyStore {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultyStore {
    /// An empty tree that writes whole pages and has no limit.
    pub fn new() -> Self {
        Self::with_options(FaultyOptions::default())
    }

    /// An empty tree.
    pub fn with_options(options: FaultyOptions) -> Self {
        let state = State::durable(Tree::new(), SpaceBudget::new(options.capacity_bytes));
        Self::from_state(state, options.write_unit)
    }

    /// A copy of a memory store, all of it durable. The store's own limit is taken, not that of
    /// the options.
    pub fn from_memory(store: &MemoryStore, write_unit: WriteUnit) -> Self {
        let budget = SpaceBudget::new(store.capacity_bytes());
        let tree = store.copy_tree(|contents| {
            Mutex::new(FaultyContents::durable(
                contents.copy_into(Arc::clone(&budget)),
            ))
        });
        Self::from_state(State::durable(tree, budget), write_unit)
    }

    /// A copy of the current state.
    pub fn to_memory(&self) -> MemoryStore {
        let state = self.0.state.lock();
        let budget = SpaceBudget::new(state.budget.limit_bytes());
        let tree = Tree::copy(&state.tree.directories, |file: &Mutex<FaultyContents>| {
            parking_lot::RwLock::new(file.lock().current().copy_into(Arc::clone(&budget)))
        });
        MemoryStore::from_parts(tree, budget)
    }

    fn from_state(state: State, write_unit: WriteUnit) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            write_unit,
            stalls: Stalls::default(),
            each_file: AtomicBool::new(false),
        }))
    }

    /// Number of calls so far. Calls after a cut do not count.
    pub fn calls(&self) -> u64 {
        self.0.state.lock().faults.calls()
    }

    /// Fails the call of this number, counted from 1 since the store was made.
    pub fn fail_call(&self, number: u64, fault: Fault) {
        self.fail_when(move |call| call.number == number, fault);
    }

    /// Fails every call of this kind.
    pub fn fail_kind(&self, kind: CallKind, fault: Fault) {
        self.fail_when(move |call| call.kind == kind, fault);
    }

    /// Fails every call that the rule matches. Of several rules the one added first decides. The
    /// rule runs under the store's lock and must not call the store.
    pub fn fail_when(
        &self,
        rule: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static,
        fault: Fault,
    ) {
        self.0.state.lock().faults.add(rule, fault);
    }

    /// Blocks the next call that the rule matches, from its beginning until the returned value is
    /// released or dropped. The rule runs on the caller's thread and must not call the store.
    pub fn stall_when(
        &self,
        rule: impl Fn(CallKind, &StorePath) -> bool + Send + Sync + 'static,
    ) -> Stall {
        self.0.stalls.add(rule)
    }

    /// Requires that files be synced one by one from now on, as on a filesystem whose `syncfs` is
    /// not reliable. Survivors of a cut do the same.
    pub fn sync_each_file(&self) {
        self.0.each_file.store(true, Ordering::SeqCst);
    }

    /// Removes all rules; a cut stays in effect.
    pub fn clear_faults(&self) {
        self.0.state.lock().faults.clear();
    }

    /// Lets the power fail during the call of this number (counted from 1), or during the next
    /// one where that has passed.
    pub fn cut_at_call(&self, number: u64) {
        self.0.state.lock().faults.cut_at(number);
    }

    /// True once the power has failed.
    pub fn is_cut(&self) -> bool {
        self.0.state.lock().faults.stopped()
    }

    /// The call into which the last cut of [`Self::cut_at_call`] fell.
    pub fn cut_call(&self) -> Option<CutCall> {
        self.0.state.lock().faults.cut_call().cloned()
    }

    /// Cuts the power permanently and returns the state that the machine has when it starts again.
    /// Every later call on this store, its files and its clones fails with EIO. May be called again
    /// with other seeds.
    pub fn power_cut(&self, seed: u64) -> Self {
        let mut state = self.0.state.lock();
        state.faults.stop();
        state.off = true;
        self.survivor_of(&state, seed)
    }

    /// The state that a power cut at this moment would leave. This store continues to work.
    pub fn survivor(&self, seed: u64) -> Self {
        self.survivor_of(&self.0.state.lock(), seed)
    }

    fn survivor_of(&self, state: &State, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let unit = self.0.write_unit;
        let budget = SpaceBudget::new(state.budget.limit_bytes());
        let directories = state.names.survivor(&mut random);
        let tree = Tree::copy(&directories, |file: &Mutex<FaultyContents>| {
            let bytes: Contents = file.lock().survivor(Arc::clone(&budget), unit, &mut random);
            Mutex::new(FaultyContents::durable(bytes))
        });
        let survivor = Self::from_state(State::durable(tree, budget), unit);
        if !self.sync_policy().is_at_once() {
            survivor.sync_each_file();
        }
        survivor
    }

    /// Ends the process but not the machine: nothing is lost and nothing becomes durable, open
    /// files fail with EIO, locks are free, and a cut made by [`Self::cut_at_call`] is forgotten.
    /// Without effect after [`Self::power_cut`].
    pub fn restart_process(&self) {
        let mut state = self.0.state.lock();
        if state.off {
            return;
        }
        state.process_run += 1;
        state.faults.resume();
        state.each_file(FileNode::unlock);
    }

    /// Admits a call, or returns why not.
    fn begin(
        &self,
        process_run: Option<u64>,
        kind: CallKind,
        path: &StorePath,
    ) -> io::Result<AdmittedCall<'_>> {
        self.0.stalls.pass(kind, path);
        let mut state = self.0.state.lock();
        if process_run.is_some_and(|process_run| process_run != state.process_run) {
            return Err(os_error(Errno::EIO));
        }
        let (effect, report) = match state.faults.admit(kind, path) {
            Verdict::Proceed => (Effect::Whole, None),
            Verdict::Refuse(errno) => return Err(os_error(errno)),
            Verdict::Shorten(bytes) => (Effect::Short(bytes), Some(Errno::ENOSPC)),
            Verdict::CutAfter => (Effect::Whole, Some(Errno::EIO)),
            Verdict::GiveUp(errno) => (Effect::GiveUp, Some(errno)),
        };
        Ok(AdmittedCall {
            state,
            effect,
            report,
        })
    }
}

/// The effect of a call, whatever error its caller gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Whole,
    /// A write: only this many bytes are stored.
    Short(usize),
    /// A sync: dirty pages count as clean and are not durable.
    GiveUp,
}

/// An admitted call, which has exclusive access to the store.
struct AdmittedCall<'a> {
    state: MutexGuard<'a, State>,
    effect: Effect,
    /// The error that the caller gets, whatever the effect.
    report: Option<Errno>,
}

impl AdmittedCall<'_> {
    fn run<T>(mut self, work: impl FnOnce(&mut State, Effect) -> io::Result<T>) -> io::Result<T> {
        let result = work(&mut self.state, self.effect);
        match self.report {
            Some(errno) => Err(os_error(errno)),
            None => result,
        }
    }

    /// For calls that change names.
    fn change_names(
        self,
        work: impl FnOnce(&mut FaultyTree) -> io::Result<Vec<Change<Mutex<FaultyContents>>>>,
    ) -> io::Result<()> {
        self.run(|state, _| {
            state.names.record(work(&mut state.tree)?);
            Ok(())
        })
    }
}

impl Store for FaultyStore {
    fn open(&self, path: &StorePath, mode: OpenMode) -> io::Result<Arc<dyn StoreFile>> {
        let kind = match mode {
            OpenMode::CreateNew => CallKind::Create,
            OpenMode::Read | OpenMode::ReadWrite => CallKind::Open,
        };
        self.begin(None, kind, path)?.run(|state, _| {
            let node = if mode == OpenMode::CreateNew {
                let contents = FaultyContents::new(Arc::clone(&state.budget));
                let (node, changes) = state.tree.create_file(path, Mutex::new(contents))?;
                state.names.record(changes);
                node
            } else {
                state.tree.file(path)?
            };
            let file: Arc<dyn StoreFile> = Arc::new(FaultyFile {
                store: self.clone(),
                path: path.clone(),
                node,
                process_run: state.process_run,
                writable: mode != OpenMode::Read,
            });
            Ok(file)
        })
    }

    fn rename(&self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        self.begin(None, CallKind::Rename, from)?
            .change_names(|tree| tree.rename(from, to))
    }

    fn link(&self, from: &StorePath, to: &StorePath) -> io::Result<()> {
        self.begin(None, CallKind::Link, from)?
            .change_names(|tree| tree.link(from, to))
    }

    fn adopt(&self, source: &dyn Store, from: &StorePath, to: &StorePath) -> io::Result<Adopted> {
        let (source, from) = adopt::resolve(source, from);
        match (source as &dyn Any).downcast_ref::<Self>() {
            // A rule may refuse links, like a filesystem without them; then the file is copied.
            Some(same) if Arc::ptr_eq(&same.0, &self.0) => match self.link(&from, to) {
                Err(error) if adopt::cannot_link(&error) => {
                    adopt::copy(source, &from, self, to).map(|()| Adopted::Copied)
                }
                other => other.map(|()| Adopted::Linked),
            },
            _ => adopt::copy(source, &from, self, to).map(|()| Adopted::Copied),
        }
    }

    fn unlink(&self, path: &StorePath) -> io::Result<()> {
        self.begin(None, CallKind::Unlink, path)?
            .change_names(|tree| tree.unlink(path))
    }

    fn create_dir(&self, path: &StorePath) -> io::Result<()> {
        self.begin(None, CallKind::CreateDir, path)?
            .change_names(|tree| tree.create_dir(path))
    }

    fn remove_dir(&self, path: &StorePath) -> io::Result<()> {
        self.begin(None, CallKind::RemoveDir, path)?
            .run(|state, _| {
                let removed = state.tree.directory(path)?;
                let changes = state.tree.remove_dir(path)?;
                state.names.record_removal(removed, changes);
                Ok(())
            })
    }

    fn list(&self, dir: &StorePath) -> io::Result<Vec<(String, EntryKind)>> {
        self.begin(None, CallKind::List, dir)?
            .run(|state, _| state.tree.list(dir))
    }

    fn sync_dir(&self, dir: &StorePath) -> io::Result<()> {
        self.begin(None, CallKind::SyncDir, dir)?.run(|state, _| {
            state.names.sync(state.tree.directory(dir)?);
            Ok(())
        })
    }

    fn sync_policy(&self) -> SyncPolicy {
        match self.0.each_file.load(Ordering::SeqCst) {
            true => SyncPolicy::each_file("configured so"),
            false => SyncPolicy::AtOnce,
        }
    }

    fn sync_all(&self) -> io::Result<()> {
        if !self.sync_policy().is_at_once() {
            return sync::sync_tree(self, &StorePath::root());
        }
        self.begin(None, CallKind::SyncAll, &StorePath::root())?
            .run(|state, effect| {
                state.each_file(|node| node.data.lock().end_sync(effect));
                if effect == Effect::Whole {
                    state.names.sync_all();
                }
                Ok(())
            })
    }

    fn info(&self, path: &StorePath) -> io::Result<EntryInfo> {
        self.begin(None, CallKind::Info, path)?.run(|state, _| {
            Ok(match state.tree.entry(path)? {
                Entry::File(node) => file_info(node.data.lock().current(), &node),
                Entry::Directory(_) => DIRECTORY_INFO,
            })
        })
    }

    fn space(&self) -> io::Result<SpaceInfo> {
        self.begin(None, CallKind::Space, &StorePath::root())?
            .run(|state, _| Ok(space_of(&state.budget)))
    }

    fn lock(&self, path: &StorePath) -> io::Result<Box<dyn StoreLock>> {
        self.begin(None, CallKind::Lock, path)?.run(|state, _| {
            let node = state.tree.file(path)?;
            if !node.try_lock() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let lock: Box<dyn StoreLock> = Box::new(FaultyLock {
                store: self.clone(),
                node,
                process_run: state.process_run,
            });
            Ok(lock)
        })
    }
}

#[derive(Debug)]
struct FaultyLock {
    store: FaultyStore,
    node: Arc<FaultyNode>,
    process_run: u64,
}

impl StoreLock for FaultyLock {}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        // The lock of an ended process was freed, and may belong to another one now.
        if self.store.0.state.lock().process_run == self.process_run {
            self.node.unlock();
        }
    }
}

struct FaultyFile {
    store: FaultyStore,
    path: StorePath,
    node: Arc<FaultyNode>,
    process_run: u64,
    writable: bool,
}

impl fmt::Debug for FaultyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyFile")
            .field("path", &self.path)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl FaultyFile {
    /// Runs a call on the file's bytes.
    fn run<T>(
        &self,
        kind: CallKind,
        work: impl FnOnce(&mut FaultyContents, Effect) -> io::Result<T>,
    ) -> io::Result<T> {
        self.store
            .begin(Some(self.process_run), kind, &self.path)?
            .run(|_, effect| work(&mut self.node.data.lock(), effect))
    }

    /// A descriptor opened for reading refuses changes as the kernel's do.
    fn change(
        &self,
        kind: CallKind,
        refusal: Errno,
        work: impl FnOnce(&mut FaultyContents, Effect) -> io::Result<()>,
    ) -> io::Result<()> {
        self.run(kind, |file, effect| {
            if !self.writable {
                return Err(os_error(refusal));
            }
            work(file, effect)
        })
    }
}

impl StoreFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.run(CallKind::Read, |file, _| {
            file.current().read_at(buffer, offset)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(CallKind::Write, Errno::EBADF, |file, effect| {
            let stored = match effect {
                Effect::Short(count) => count.min(bytes.len()),
                _ => bytes.len(),
            };
            file.write_at(&bytes[..stored], offset)
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.run(CallKind::Info, |file, _| Ok(file.current().len_bytes()))
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(CallKind::SetLen, Errno::EINVAL, |file, _| {
            file.set_len(len_bytes)
        })
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.change(CallKind::Punch, Errno::EBADF, |file, _| {
            file.punch(offset, len_bytes)
        })
    }

    fn reserve(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.change(CallKind::Reserve, Errno::EBADF, |file, _| {
            file.reserve(offset, len_bytes)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.run(CallKind::Sync, |file, effect| {
            file.end_sync(effect);
            Ok(())
        })
    }

    fn info(&self) -> io::Result<EntryInfo> {
        self.run(CallKind::Info, |file, _| {
            Ok(file_info(file.current(), &self.node))
        })
    }
}
