//! Formatting, opening and closing a filesystem.
//!
//! Order at opening: recover the database; if the volume was not closed cleanly, remove objects
//! that no extent names; remove orphans; mark the volume as in use, durably, before the first
//! object is created. Order at closing: make everything durable, unlink what is unreachable, mark
//! the volume clean, close the database, inform the platform keystore.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Condvar, Mutex, RwLock};

use super::access_times::AccessTimesNow;
use super::references::References;
use super::types::{FileKind, Owner, Timespec};
use super::{Filesystem, FilesystemOptions, FsError};
use crate::audit::Record;
use crate::ids::{Epoch, FolderNumber, Generation, Ino, Sequence};
use crate::layers::KeySet;
use crate::meta::keys::{self, Table};
use crate::meta::page_set::PageSet;
use crate::meta::records::{ExtentRecord, InodeRecord, ObjectName};
use crate::meta::{Batch, Meta, MetaError};
use crate::object::Contents;
use crate::planted::{Bug, planted};
use crate::sealed::{MetaFile, PAGE_BYTES, SealedError};
use crate::store::ballast::{Ballast, WithBallast};
use crate::store::read_only::{ReadOnlyStore, ScratchFile};
use crate::store::{OpenMode, Store, StoreFile, StorePath};
use crate::volume::{FreshVolume, META_NAME, Volume};

/// The use of a volume's space, and its state, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Inodes.
    pub inodes: u64,
    /// Bytes in use, of sealed pages and of records.
    pub used_bytes: u64,
    /// Bytes of sealed pages in use.
    pub contents_bytes: u64,
    /// Bytes of the sealed pages of all views that are under read-only key sets: other holders of
    /// such a set can forge them. `None` if there is no such set, or the pages cannot be counted.
    pub read_only_set_bytes: Option<u64>,
    /// Limit of the bytes in use, if there is one.
    pub limit_bytes: Option<u64>,
    /// The live generation.
    pub generation: u64,
    /// The newest commit.
    pub sequence: u64,
    /// Why writing has ended, if it has.
    pub latched: Option<String>,
    /// Whether damage was found while reading.
    pub damaged: bool,
    /// Why the platform keystore does not have the newest commits, if that is so.
    pub keystore_failure: Option<String>,
    /// Age of the newest checkpoint of the metadata, if one is known.
    pub checkpoint_age_seconds: Option<u64>,
    /// The head of the audit that the volume knows, if it knows one.
    pub audit_head: Option<AuditHead>,
}

/// The head of an audit log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AuditHead {
    /// Id of its chain, in hexadecimal digits.
    pub chain: String,
    /// Number of its records.
    pub count: u64,
    /// Hash of the last one, in hexadecimal digits.
    pub head: String,
}

/// Upper bound of the folders that may have been created since the last commit.
const FOLDERS_AHEAD: u64 = 1 << 20;

/// The key set of the metadata: the active one. The epoch that the file claims is ignored.
fn metadata_set(volume: &Volume, file: &dyn StoreFile) -> Arc<KeySet> {
    let active = volume.keys.active();
    if planted(Bug::PageUnderAnySet) {
        let mut epoch = [0; 4];
        let claimed = file.read_at(&mut epoch, 44).ok();
        let claimed = claimed.and_then(|_| volume.keys.get(Epoch(u32::from_le_bytes(epoch))));
        return Arc::clone(claimed.unwrap_or(active));
    }
    Arc::clone(active)
}

impl Filesystem {
    /// Creates an empty filesystem whose root directory belongs to `owner`.
    ///
    /// # Errors
    /// The metadata file cannot be created or written.
    pub fn format(fresh: &FreshVolume, owner: Owner) -> Result<(), FsError> {
        let file = fresh
            .store
            .open(&StorePath::new(META_NAME), OpenMode::CreateNew)?;
        let file = MetaFile::create(file, fresh.keys.active(), fresh.meta_crypto)?;
        let now = Timespec::now();
        let root = InodeRecord {
            kind: FileKind::Directory,
            perm: 0o755,
            nlink: 2,
            uid: owner.uid,
            gid: owner.gid,
            rdev: 0,
            size: 0,
            pages: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            parent: Ino::ROOT,
            target: Vec::new(),
        };
        Ok(Meta::format(file, fresh.size_bytes.unwrap_or(0), &root)?)
    }

    /// Opens the filesystem of a volume, with recovery if it was not closed cleanly.
    ///
    /// # Errors
    /// The metadata cannot be read or does not authenticate, the volume is older than the
    /// keystore's record, it may not be written to, or recovery fails.
    pub fn open(volume: Volume, options: FilesystemOptions) -> Result<Arc<Self>, FsError> {
        let id = volume.header().volume_id();
        Self::open_unaudited(volume, options)
            .inspect_err(|error| Record::new("open-filesystem").volume(id).refused(error))
    }

    fn open_unaudited(volume: Volume, options: FilesystemOptions) -> Result<Arc<Self>, FsError> {
        if !options.read_only {
            volume.check_writer()?;
        }
        let store: Arc<dyn Store> = match options.read_only {
            true => Arc::new(ReadOnlyStore::over(Arc::clone(&volume.store))),
            false => Arc::clone(&volume.store),
        };
        let file = store.open(&StorePath::new(META_NAME), OpenMode::ReadWrite);
        // The error names what cannot be opened.
        let mut file = file.map_err(SealedError::from)?;
        if options.read_only {
            file = Arc::new(ScratchFile::over(file)?);
        }
        let set = metadata_set(&volume, &*file);
        let ballast = Arc::new(Ballast::of(Arc::clone(&store)));
        if !options.read_only {
            file = Arc::new(WithBallast::over(file, Arc::clone(&ballast)));
        }
        let file = MetaFile::open(file, &set, volume.header().meta_crypto())?;
        match volume.check_rollback(&file.slots()) {
            // Read-only: nothing is written, and no record says that this is the volume.
            Err(older) if options.read_only && volume.accepts_restored => {
                tracing::warn!(%older, "opened read-only, as requested");
            }
            Err(older) if options.read_only && volume.is_copy() => {
                tracing::warn!(%older, "an older copy of the volume is opened read-only");
            }
            result => result?,
        }
        let meta = Arc::new(Meta::open(file, options.meta_cache_bytes)?);
        if options.read_only && meta.counters().restoring != Generation(0) {
            return Err(FsError::HalfRestored);
        }
        let limit_bytes = meta.counters().limit_bytes;
        if limit_bytes > 0 {
            ballast.limit(limit_bytes);
        }
        if !options.read_only {
            meta.set_ballast(Arc::clone(&ballast));
        }
        let keys = Arc::clone(&volume.keys);
        let contents = Contents::new(Arc::clone(&meta), store, keys, options.open_objects);
        let access_times = AccessTimesNow::new(options.access_times);
        let this = Arc::new(Self {
            volume,
            options,
            meta,
            contents,
            ballast,
            namespace: Mutex::new(()),
            references: References::default(),
            open_files: RwLock::new(HashMap::new()),
            open_directories: Mutex::new(HashMap::new()),
            next_handle: AtomicU64::new(1),
            pending_removals: Mutex::default(),
            reclaims: Mutex::default(),
            background: Mutex::default(),
            wake: Condvar::new(),
            worker: Mutex::new(None),
            checkpoints: super::background::Checkpoints::default(),
            remounted_read_only: AtomicBool::new(false),
            was_shut_down: AtomicBool::new(false),
            remounting: Mutex::new(()),
            long_changes: RwLock::new(()),
            access_times,
            viewing: Mutex::default(),
            restoring: Mutex::default(),
            purge: Mutex::default(),
            trimming: RwLock::default(),
            cache: RwLock::default(),
            keystore: super::background::KeystoreState::default(),
            noted_audit_head: Mutex::default(),
        });
        if !this.options.read_only {
            tracing::info!(
                "what is written is synced {}",
                this.volume.store.sync_policy()
            );
            this.recover_and_mark_in_use()?;
            this.rewrap_at_open();
            this.start_background()?;
            this.begin_checkpoints();
        }
        Ok(this)
    }

    /// Accepts a volume that is older than the platform keystore's record: a new incarnation
    /// begins. A volume that is not older is not changed.
    ///
    /// # Errors
    /// The metadata cannot be read or rewritten.
    pub fn accept_restored(volume: Volume, meta_cache_bytes: usize) -> Result<Volume, FsError> {
        let store = &*volume.store;
        let file = store.open(&StorePath::new(META_NAME), OpenMode::Read)?;
        // Writes of the database when it opens stay in memory: an attempt that fails must not make
        // the old metadata look newer than it is.
        let file: Arc<dyn StoreFile> = Arc::new(ScratchFile::over(file)?);
        let file = MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto())?;
        let slots = file.slots();
        match volume.check_rollback(&slots) {
            // If the original comes back, both copies could be used: only one of them may be the
            // volume.
            Ok(()) if volume.replaces_original() => {
                tracing::warn!("it replaces the original, as requested");
            }
            Ok(()) => {
                tracing::warn!("the volume is not older than its record: nothing to accept");
                return Ok(volume);
            }
            Err(older) => tracing::warn!(%older, "accepted, as requested"),
        }
        let known = volume.record.as_ref().map_or(Sequence(0), |r| r.sequence);
        let meta = Meta::open(file, meta_cache_bytes)?;
        let first = Sequence(meta.sequence().max(known).0.saturating_add(1));
        let newest = slots
            .iter()
            .map(|slot| slot.sequence)
            .max()
            .unwrap_or_default();
        let renewed = volume.renew(newest, first, &mut |file| Ok(meta.copy_committed(file)?))?;
        meta.close()?;
        Ok(renewed)
    }

    fn recover_and_mark_in_use(&self) -> Result<(), FsError> {
        self.meta.file().reserve_holes();
        if !self.meta.counters().clean {
            tracing::info!(
                "the volume was not closed cleanly: looking for objects that nothing names"
            );
            // If the process that wrote the volume died, its pages may be in the kernel's memory
            // only. They are read from now on, so an fsync must make them durable.
            if !planted(Bug::NoSyncAfterKill) {
                self.volume.store.sync_all()?;
            }
            self.remove_unnamed_objects()?;
        }
        self.finish_restore()?;
        // A folder number far beyond the known ones was not allocated by this program.
        let known = self.meta.counters().folder.0;
        let folders = self.contents.objects().folders()?.into_iter();
        let newest = folders
            .filter(|folder| folder.0 <= known.saturating_add(FOLDERS_AHEAD))
            .max();
        self.contents
            .objects()
            .begin_after(newest.unwrap_or(FolderNumber(0)));
        for (key, _) in self.meta.rows(Table::Orphan)? {
            let ino = keys::number_of(&key).ok_or(MetaError::Corrupt("orphan"))?;
            if self
                .meta
                .inode(Ino(ino), crate::meta::View::LIVE)?
                .is_some()
            {
                self.remove_inode(Ino(ino))?;
            } else {
                let mut batch = Batch::new();
                self.meta.remove_orphan(&mut batch, Ino(ino));
                self.meta.apply(batch)?;
            }
        }
        self.remove_pending();
        self.meta.set_clean(planted(Bug::NotMarkedInUse));
        self.commit_now()?;
        self.contents.collect()?;
        self.ballast.refill();
        self.record_in_keystore(false);
        Ok(())
    }

    /// Unlinks objects that no extent names: they were created, but not committed, before an
    /// unclean stop.
    fn remove_unnamed_objects(&self) -> Result<(), FsError> {
        let mut named: HashSet<ObjectName> = HashSet::new();
        self.meta.visit_extents(&mut |_, extent| {
            if let ExtentRecord::Parts { parts, .. } = extent {
                named.extend(parts.iter().map(|part| part.id.name));
            }
        })?;
        let mut removed = 0u64;
        for name in self.contents.objects().names()? {
            if named.contains(&name) {
                continue;
            }
            match self.contents.objects().unlink(name) {
                Ok(()) => removed += 1,
                Err(error) => {
                    tracing::warn!(object = %name.object, %error, "an object could not be removed");
                }
            }
        }
        if removed > 0 {
            tracing::info!(removed, "removed objects that were never committed");
        }
        Ok(())
    }

    /// Commits everything and marks the volume clean. Calling it again does nothing.
    ///
    /// # Errors
    /// Not everything could be made durable, or only the keystore's record could not be written
    /// ([`FsError::is_all_on_disk`]).
    pub fn close(&self) -> Result<(), FsError> {
        // Waits for changes of views, and lets no further one begin.
        let _alone = self.long_changes.write();
        self.stop_background();
        let stopped = self.meta.latched();
        let result = match &stopped {
            _ if self.options.read_only || self.is_shut_down() => Ok(()),
            Some(reason) => Err(FsError::Stopped(reason.clone())),
            None => self.close_clean(),
        };
        let closed = self.meta.close();
        if !self.options.read_only && stopped.is_none() {
            self.ballast.refill();
        }
        result?;
        closed?;
        if !self.options.read_only && stopped.is_none() {
            self.record_close_in_keystore()?;
        }
        Ok(())
    }

    fn close_clean(&self) -> Result<(), FsError> {
        self.meta.release();
        self.meta.expect_unmount();
        // The kernel does not send its last forgets at an unmount, so unlinked files are removed
        // now.
        for (key, _) in self.meta.rows(Table::Orphan)? {
            let ino = keys::number_of(&key).ok_or(MetaError::Corrupt("orphan"))?;
            self.remove_inode(Ino(ino))?;
        }
        self.remove_pending();
        self.sync_everything()?;
        self.contents.objects().sync_unlinked()?;
        // The next mount begins with a commit too.
        self.ballast.allow_refill();
        self.ballast.refill();
        let behind = self.checkpoint_is_behind();
        self.meta.hold_clean();
        self.commit_now()?;
        self.contents.objects().remove_empty_folders()?;
        if behind {
            self.checkpoint_on_close();
        }
        Ok(())
    }

    /// The use of the volume's space, and its state.
    pub fn usage(&self) -> Usage {
        let counters = self.meta.counters();
        let contents_bytes = self.contents.used_pages() * PAGE_BYTES as u64;
        Usage {
            inodes: counters.inodes,
            used_bytes: contents_bytes + counters.record_bytes,
            contents_bytes,
            read_only_set_bytes: self.read_only_set_bytes(),
            limit_bytes: (counters.limit_bytes > 0).then_some(counters.limit_bytes),
            generation: counters.generation.0,
            sequence: self.meta.sequence().0,
            latched: self.meta.latched(),
            damaged: self.meta.is_damaged() || self.contents.is_damaged(),
            keystore_failure: self.keystore_failure(),
            checkpoint_age_seconds: self.checkpoint_age().map(|age| age.as_secs()),
            audit_head: self.audit_head().ok().flatten().map(|head| AuditHead {
                chain: hex::encode(head.chain.0),
                count: head.count,
                head: hex::encode(head.hash),
            }),
        }
    }

    /// See [`Usage::read_only_set_bytes`].
    fn read_only_set_bytes(&self) -> Option<u64> {
        let active = self.volume.keys.active().epoch;
        if self.volume.keys.iter().all(|set| set.epoch == active) {
            return None;
        }
        let mut pages = 0;
        let visited = self.meta.visit_extents(&mut |_, extent| {
            let ExtentRecord::Parts { parts, .. } = extent else {
                return;
            };
            // A page is read from the first part that contains it.
            let mut newer = PageSet::new();
            for part in parts {
                if part.id.epoch != active {
                    let mut read_from_it = part.pages.clone();
                    read_from_it.subtract(&newer);
                    pages += u64::from(read_from_it.len());
                }
                newer.union(&part.pages);
            }
        });
        visited.ok().map(|()| pages * PAGE_BYTES as u64)
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }
}
