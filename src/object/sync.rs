//! Making contents durable, and recording that in the metadata.
//!
//! Order: mark the unsynced pages as covered by this sync (`Chunk::syncing`); fdatasync the
//! objects; `sync_dir` new names; publish records that name the pages that are durable now. The
//! caller commits those records. Pages that are removed meanwhile are unmarked too, so that no
//! record names them again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::file::{Chunk, Extent, File, FileState};
use super::{Contents, ObjectError, bytes_in_chunk};
use crate::ids::ChunkIndex;
use crate::meta::page_set::PageSet;
use crate::meta::records::{ExtentRecord, PAGES_MAX, PartId};
use crate::meta::{Batch, ExclusivePermit, View};
use crate::planted::{Bug, planted};

/// Chunks and their newest parts that one sync covers.
type Covered = Vec<(ChunkIndex, PartId)>;

impl Contents {
    /// Makes everything written to the file so far durable and publishes it.
    ///
    /// # Errors
    /// An object could not be synced, which ends all writing, or the metadata cannot be changed.
    pub fn sync_file(&self, file: &File) -> Result<(), ObjectError> {
        if file.view != View::LIVE {
            // The contents of a kept view are durable, and its length is independent of the live
            // file's.
            return Ok(());
        }
        let _one = file.syncing.lock();
        let covered = self.begin_sync(file);
        self.sync_covered(&covered)?;
        self.finish_sync(file, &covered)
    }

    /// Makes everything written so far to any file durable and publishes it.
    ///
    /// # Errors
    /// An object could not be synced, which ends all writing, or the metadata cannot be changed.
    pub fn sync_all(&self) -> Result<(), ObjectError> {
        let recent = self.recent.swap(0, Ordering::Relaxed);
        self.sync_dirty_files().inspect_err(|_| {
            // They are still in memory.
            self.recent.fetch_add(recent, Ordering::Relaxed);
        })
    }

    fn sync_dirty_files(&self) -> Result<(), ObjectError> {
        let dirty = self.dirty_files();
        let guards: Vec<_> = dirty.iter().map(|file| file.syncing.lock_arc()).collect();
        self.sync_files(&dirty)?;
        drop(guards);
        let inos: Vec<_> = dirty.iter().map(|file| file.ino).collect();
        drop(dirty);
        inos.into_iter().for_each(|ino| self.forget(ino));
        Ok(())
    }

    /// Makes everything written to any file durable and publishes it, under the exclusive permit.
    /// It does not wait for other syncs that are under way: this sync covers the same pages, and
    /// the others then have nothing left to publish.
    ///
    /// # Errors
    /// An object could not be synced, which ends all writing, or the metadata cannot be changed.
    pub fn sync_paused(&self, _permit: &ExclusivePermit<'_>) -> Result<(), ObjectError> {
        self.sync_files(&self.dirty_files())
    }

    /// Syncs these files at once and publishes them.
    fn sync_files(&self, files: &[Arc<File>]) -> Result<(), ObjectError> {
        let covered: Vec<Covered> = files.iter().map(|file| self.begin_sync(file)).collect();
        self.sync_covered(&covered.concat())?;
        for (file, covered) in files.iter().zip(&covered) {
            self.finish_sync(file, covered)?;
        }
        Ok(())
    }

    /// Number of pages that a sync would have to cover.
    pub fn unsynced_pages(&self) -> u64 {
        let files: Vec<Arc<File>> = self.files.lock().values().cloned().collect();
        let pages = |file: Arc<File>| {
            let state = file.state.lock();
            let chunks = state.chunks.values();
            let pages = chunks.map(|chunk| u64::from(chunk.unsynced.len() + chunk.syncing.len()));
            pages.sum::<u64>()
        };
        files.into_iter().map(pages).sum()
    }

    fn dirty_files(&self) -> Vec<Arc<File>> {
        let mut dirty: Vec<Arc<File>> = self.files.lock().values().cloned().collect();
        dirty.retain(|file| file.state.lock().is_dirty());
        dirty.sort_by_key(|file| file.ino);
        dirty
    }

    /// Makes the ordered files durable ([`Self::order_before_commit`]).
    ///
    /// # Errors
    /// An object could not be synced, which ends all writing, or the metadata cannot be changed.
    pub fn sync_ordered(&self) -> Result<(), ObjectError> {
        // A file stays in the set until it is synced, so that other commits wait for it meanwhile.
        let ordered = self.ordered.lock().clone();
        for (ino, requests) in ordered {
            if let Some(file) = self.live_file(ino) {
                self.sync_file(&file)?;
                drop(file);
                self.forget(ino);
            }
            let mut ordered = self.ordered.lock();
            if ordered.get(&ino) == Some(&requests) {
                ordered.remove(&ino);
            }
        }
        Ok(())
    }

    /// Publishes a file without unsynced pages: a small one, or one of which only the length has
    /// changed.
    ///
    /// # Errors
    /// The metadata cannot be read or changed.
    pub fn publish_synced(&self, file: &File) -> Result<(), ObjectError> {
        let _permit = self.meta.permit();
        let _inode = self.meta.lock_inode(file.ino);
        let state = &mut *file.state.lock();
        if !state.is_synced() || !state.is_dirty() {
            return Ok(());
        }
        state.durable_size = state.size;
        let mut batch = Batch::new();
        self.publish(file, state, &mut batch)?;
        self.meta.apply(batch)?;
        Ok(())
    }

    /// Adds records of the durable forms of all changed chunks, and of the inode, to the batch.
    /// The inode's lock must be held.
    pub(super) fn publish(
        &self,
        file: &File,
        state: &mut FileState,
        batch: &mut Batch,
    ) -> Result<(), ObjectError> {
        let Some(mut inode) = self.meta.inode_after(batch, file.ino)? else {
            return Ok(());
        };
        let generation = self.meta.generation();
        let shared_up_to = self.meta.newest_shared();
        let size = state.durable_size;
        for (index, chunk) in state.chunks.iter_mut().filter(|(_, chunk)| chunk.changed) {
            let len = bytes_in_chunk(size, *index);
            if chunk.generation <= shared_up_to
                && let Extent::Parts { shared, .. } = &mut chunk.extent
            {
                // The record gets a newer generation, while its newest part remains visible to
                // others.
                *shared = true;
            }
            let record = chunk.durable_record(len);
            self.meta
                .put_extent(batch, file.ino, *index, record.as_ref())?;
            let pages = record.as_ref().map_or(0, ExtentRecord::pages);
            let more = pages.cast_signed() - chunk.published_pages.cast_signed();
            batch.used_pages += more;
            // A record with more pages could not be decoded.
            inode.pages = inode.pages.saturating_add_signed(more).min(PAGES_MAX);
            chunk.published_pages = pages;
            chunk.generation = generation;
            // Pages beyond the durable size are published together with a larger size.
            chunk.changed = chunk.exceeds(len);
        }
        inode.size = state.durable_size;
        if let Some(written) = state.written.take() {
            inode.mtime = written;
            // The record may have been changed after the write.
            inode.ctime = inode.ctime.max(written);
        }
        self.meta.put_inode(batch, file.ino, &inode)?;
        Ok(())
    }

    /// Marks the unsynced pages as covered by this sync. The gate keeps out operations that
    /// restructure chunks.
    fn begin_sync(&self, file: &File) -> Covered {
        let _permit = self.meta.permit_holding_locks();
        let _gate = file.gate.read();
        let state = &mut *file.state.lock();
        state.syncing_size = state.size;
        let mut covered = Vec::new();
        for (index, chunk) in &mut state.chunks {
            let Some(id) = chunk.newest().map(|part| part.id) else {
                continue;
            };
            if chunk.needs_sync() {
                let unsynced = std::mem::replace(&mut chunk.unsynced, PageSet::new());
                chunk.syncing.union(&unsynced);
                chunk.allocated = false;
                covered.push((*index, id));
            }
        }
        covered
    }

    fn sync_covered(&self, covered: &Covered) -> Result<(), ObjectError> {
        let result = self.flush_objects(covered);
        if let Err(error) = &result
            && !planted(Bug::FailedSyncForgotten)
        {
            // The kernel does not report which pages it dropped, so no record may rely on any of
            // them.
            self.meta
                .latch(&format!("contents could not be made durable: {error}"));
        }
        result
    }

    fn flush_objects(&self, covered: &Covered) -> Result<(), ObjectError> {
        if covered.is_empty() {
            return Ok(());
        }
        if planted(Bug::CommitBeforeDataSync) {
            return self.objects.sync_names();
        }
        self.objects.sync(covered.iter().map(|(_, id)| id.name))?;
        self.objects.sync_names()
    }

    fn finish_sync(&self, file: &File, covered: &Covered) -> Result<(), ObjectError> {
        let _permit = self.meta.permit_holding_locks();
        let _inode = self.meta.lock_inode(file.ino);
        let state = &mut *file.state.lock();
        if state.removed {
            return Ok(());
        }
        for (index, id) in covered {
            let Some(chunk) = state.chunks.get_mut(index) else {
                continue;
            };
            if chunk.newest().is_some_and(|part| part.id == *id) {
                mark_durable(chunk);
            }
        }
        // A concurrent truncate has limited both sizes. If the file grew meanwhile, a larger size
        // may have been published already.
        let has_grown = state.syncing_size > state.durable_size;
        state.durable_size = state.durable_size.max(state.syncing_size);
        if !has_grown && !state.is_dirty() {
            // Another sync has published all of it.
            return Ok(());
        }
        let mut batch = Batch::new();
        self.publish(file, state, &mut batch)?;
        self.meta.apply(batch)?;
        Ok(())
    }
}

fn mark_durable(chunk: &mut Chunk) {
    let syncing = std::mem::replace(&mut chunk.syncing, PageSet::new());
    let before = chunk.durable.clone();
    chunk.durable.union(&syncing);
    chunk.reserved.subtract(&chunk.durable);
    chunk.changed |= !chunk.named || chunk.fallback.is_some() || chunk.durable != before;
    chunk.named = true;
    chunk.fallback = None;
}
