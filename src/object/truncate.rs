//! Removal of contents: truncate, punch, and removal of whole files.
//!
//! The records change at once and in one batch. Objects that they no longer name are unlinked, and
//! pages are punched, only after the commit of that batch ([`super::collect`]), so that a power cut
//! before it leaves the old contents intact.

use std::ops::Range;

use super::collect::DeferredPunch;
use super::file::{Chunk, Extent, File, FileState};
use super::write::{Attempt, WriteBlocker, evict_clean_chunks};
use super::{Contents, ObjectError, chunk_at, chunk_start, page_bytes};
use crate::ids::ChunkIndex;
use crate::meta::Batch;
use crate::meta::page_set::{CHUNK_BYTES, CHUNK_PAGES, pages_touching, pages_within};
use crate::meta::records::{InodeRecord, ObjectName, Timespec};

/// Extents that are removed in one batch. A larger file takes several batches.
const EXTENTS_PER_BATCH: usize = 16_384;

/// What happens to the space of pages that are removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreedSpace {
    /// It returns to the backing filesystem.
    Released,
    /// It stays reserved for the file.
    Reserved,
}

impl Contents {
    /// Sets the length in bytes. `amend` changes other fields of the inode in the same batch.
    ///
    /// # Errors
    /// [`ObjectError::TooLarge`] beyond [`FILE_BYTES_MAX`](super::FILE_BYTES_MAX),
    /// [`ObjectError::Removed`] if the file was removed meanwhile, or an error of reading and
    /// sealing the last page.
    pub fn truncate(
        &self,
        file: &File,
        size: u64,
        amend: &mut dyn FnMut(&mut InodeRecord),
    ) -> Result<(), ObjectError> {
        if size > super::FILE_BYTES_MAX {
            return Err(ObjectError::TooLarge);
        }
        self.with_exclusive_gate(file, &mut || {
            let current = file.size();
            if size < current || (size == current && self.reserves_beyond(file, size)?) {
                return self.shrink(file, size, amend).map(Attempt::Done);
            }
            self.grow(file, size, amend)
        })
    }

    /// Extends the file to at least this length. If it was shorter, `amend` changes other fields of
    /// the inode in the same batch.
    ///
    /// # Errors
    /// [`ObjectError::TooLarge`] beyond [`FILE_BYTES_MAX`](super::FILE_BYTES_MAX),
    /// [`ObjectError::Removed`] if the file was removed meanwhile, or an error of reading and
    /// sealing the last page.
    pub fn extend(
        &self,
        file: &File,
        size: u64,
        amend: &mut dyn FnMut(&mut InodeRecord),
    ) -> Result<(), ObjectError> {
        if size > super::FILE_BYTES_MAX {
            return Err(ObjectError::TooLarge);
        }
        self.with_exclusive_gate(file, &mut || match size <= file.size() {
            true => Ok(Attempt::Done(())),
            false => self.grow(file, size, amend),
        })
    }

    /// Sets a length that is not smaller than the current one. The caller holds the gate
    /// exclusively.
    fn grow(
        &self,
        file: &File,
        size: u64,
        amend: &mut dyn FnMut(&mut InodeRecord),
    ) -> Result<Attempt<()>, ObjectError> {
        // Bytes from the old end to the new one read as zeros, whatever the last page contains.
        if let Some(blocker) = self.zero_tail(file, size)? {
            return Ok(Attempt::Blocked(blocker));
        }
        let _inode = self.meta.lock_inode(file.ino);
        let state = &mut *file.state.lock();
        state.size = size;
        if state.is_synced() {
            state.durable_size = size;
        }
        let mut batch = Batch::new();
        self.amend(file, state, &mut batch, amend)?;
        self.meta.apply(batch)?;
        Ok(Attempt::Done(()))
    }

    /// Sets a length that is not larger, and releases the space that is reserved beyond it. The
    /// caller holds the gate exclusively.
    fn shrink(
        &self,
        file: &File,
        size: u64,
        amend: &mut dyn FnMut(&mut InodeRecord),
    ) -> Result<(), ObjectError> {
        // No chunk follows the last possible one.
        let first_gone = u32::try_from(size.div_ceil(CHUNK_BYTES))
            .ok()
            .map(ChunkIndex);
        let boundary = (!size.is_multiple_of(CHUNK_BYTES)).then_some(chunk_at(size));
        if let Some(index) = boundary {
            self.load_chunk(file, index)?;
        }
        let _inode = self.meta.lock_inode(file.ino);
        let state = &mut *file.state.lock();
        let mut batch = Batch::new();
        let mut punch = None;
        if let Some(first_gone) = first_gone {
            self.drop_chunks(file, state, first_gone, usize::MAX, &mut batch)?;
        }
        if let Some(index) = boundary {
            let within = size % CHUNK_BYTES;
            let gone = pages_touching(0..within).end..CHUNK_PAGES;
            punch =
                self.remove_pages(file, state, index, gone, FreedSpace::Released, &mut batch)?;
            if let Some(chunk) = state.chunks.get_mut(&index) {
                truncate_inline(chunk, within as usize);
            }
        }
        state.size = size;
        state.syncing_size = state.syncing_size.min(size);
        state.durable_size = state.durable_size.min(size);
        if state.is_synced() {
            state.durable_size = size;
        }
        self.amend(file, state, &mut batch, amend)?;
        let number = self.meta.apply(batch)?;
        self.punch_after(number, punch);
        Ok(())
    }

    /// True if space is reserved beyond the end of the file.
    fn reserves_beyond(&self, file: &File, size: u64) -> Result<bool, ObjectError> {
        let Ok(last) = u32::try_from(size / CHUNK_BYTES).map(ChunkIndex) else {
            return Ok(false);
        };
        self.load_chunk(file, last)?;
        let end_page = pages_touching(0..size % CHUNK_BYTES).end;
        let here = file
            .state
            .lock()
            .chunks
            .get(&last)
            .is_some_and(|chunk| chunk.reserved.end() > end_page);
        Ok(here
            || self
                .next_chunk(file, ChunkIndex(last.0.saturating_add(1)))?
                .is_some())
    }

    /// Publishes the state together with further changes of the inode.
    fn amend(
        &self,
        file: &File,
        state: &mut FileState,
        batch: &mut Batch,
        amend: &mut dyn FnMut(&mut InodeRecord),
    ) -> Result<(), ObjectError> {
        self.publish(file, state, batch)?;
        let Some(mut inode) = self.meta.inode_after(batch, file.ino)? else {
            return Ok(());
        };
        amend(&mut inode);
        Ok(self.meta.put_inode(batch, file.ino, &inode)?)
    }

    /// Makes the range read as zeros. Whole pages are removed; in pages that the range covers only
    /// in part, its bytes are overwritten. `space` determines what happens to the space.
    ///
    /// # Errors
    /// [`ObjectError::Removed`] if the file was removed meanwhile, or an error of reading and
    /// sealing the pages at the edges.
    pub fn punch(
        &self,
        file: &File,
        bytes: Range<u64>,
        space: FreedSpace,
        now: Timespec,
    ) -> Result<(), ObjectError> {
        self.with_exclusive_gate(file, &mut || {
            let end = bytes.end.min(file.size());
            if bytes.start >= end {
                return Ok(Attempt::Done(()));
            }
            if let Some(blocker) = self.zero_edges(file, bytes.start..end)? {
                return Ok(Attempt::Blocked(blocker));
            }
            self.punch_pages(file, &bytes, end, space, now)
                .map(Attempt::Done)
        })
    }

    /// Removes the whole pages of the range, up to the end of the file. The caller holds the gate
    /// exclusively.
    fn punch_pages(
        &self,
        file: &File,
        bytes: &Range<u64>,
        end: u64,
        space: FreedSpace,
        now: Timespec,
    ) -> Result<(), ObjectError> {
        // If the file ends in the range, its last page counts as whole.
        let reaches_end = bytes.end >= file.size();
        let mut rest = bytes.start..end;
        // Holes are skipped: a file may be large and sparse.
        while let Some(index) = self.next_chunk(file, chunk_at(rest.start))? {
            let base = chunk_start(index);
            let piece = rest.start.max(base)..end.min(base + CHUNK_BYTES);
            if piece.is_empty() {
                break;
            }
            rest.start = piece.end;
            let piece = piece.start - base..piece.end - base;
            evict_clean_chunks(&mut file.state.lock());
            self.load_chunk(file, index)?;
            let mut gone = pages_within(piece.clone());
            if reaches_end && chunk_start(index) + piece.end >= end {
                gone.end = pages_touching(piece.clone()).end.max(gone.start);
            }
            let _inode = self.meta.lock_inode(file.ino);
            let state = &mut *file.state.lock();
            let mut batch = Batch::new();
            let punch = self.remove_pages(file, state, index, gone, space, &mut batch)?;
            if let Some(chunk) = state.chunks.get_mut(&index) {
                zero_inline(chunk, &piece);
            }
            state.written = Some(now);
            self.publish(file, state, &mut batch)?;
            let number = self.meta.apply(batch)?;
            self.punch_after(number, punch);
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The first chunk from `from` on that may hold something.
    pub(super) fn next_chunk(
        &self,
        file: &File,
        from: ChunkIndex,
    ) -> Result<Option<ChunkIndex>, ObjectError> {
        let in_memory = {
            let state = file.state.lock();
            let mut later = state.chunks.range(from..);
            let next = later.find(|(_, chunk)| chunk.extent != Extent::Hole);
            next.map(|(index, _)| *index)
        };
        let recorded = self.meta.extents(file.ino, from, file.view, 1)?;
        let recorded = recorded.first().map(|(index, _)| *index);
        Ok([in_memory, recorded].into_iter().flatten().min())
    }

    /// Overwrites with zeros those bytes of the range that lie in partly covered pages, which are
    /// its first and its last one. The gate must be held.
    fn zero_edges(
        &self,
        file: &File,
        bytes: Range<u64>,
    ) -> Result<Option<WriteBlocker>, ObjectError> {
        const ZEROS: [u8; crate::sealed::PAYLOAD_BYTES] = [0; crate::sealed::PAYLOAD_BYTES];
        for at in [bytes.start, bytes.end - 1] {
            let (index, within) = (chunk_at(at), at % CHUNK_BYTES);
            let base = chunk_start(index);
            let page = pages_touching(within..within + 1).start;
            let whole = page_bytes(page);
            let part = bytes.start.max(base + whole.start)..bytes.end.min(base + whole.end);
            if part.end - part.start == whole.end - whole.start
                || self.is_hole(file, index, page)?
            {
                continue;
            }
            let zeros = &ZEROS[..(part.end - part.start) as usize];
            let within = part.start - base..part.end - base;
            let blocked = self.write_chunk_gated(file, index, &within, zeros, None)?;
            if blocked.is_some() {
                return Ok(blocked);
            }
        }
        Ok(None)
    }

    fn is_hole(&self, file: &File, index: ChunkIndex, page: u32) -> Result<bool, ObjectError> {
        self.load_chunk(file, index)?;
        let state = file.state.lock();
        // Inline bytes are zeroed in place, with the gate held exclusively.
        Ok(state
            .chunks
            .get(&index)
            .is_none_or(|chunk| chunk.part_with(page).is_none()))
    }

    /// Removes pages from a chunk in memory; the caller publishes. Returns what to punch on the
    /// disk once that is durable.
    fn remove_pages(
        &self,
        file: &File,
        state: &mut FileState,
        index: ChunkIndex,
        gone: Range<u32>,
        space: FreedSpace,
        batch: &mut Batch,
    ) -> Result<Option<DeferredPunch>, ObjectError> {
        let Some(chunk) = state.chunks.get_mut(&index) else {
            return Ok(None);
        };
        let before = chunk.pages();
        let in_place = self.is_writable(chunk);
        let backed = chunk.backed();
        let keeps_space = space == FreedSpace::Reserved && in_place;
        let Extent::Parts { parts, .. } = &mut chunk.extent else {
            return Ok(None);
        };
        let punch = parts.first().filter(|_| in_place && !keeps_space);
        let punch = punch.map(|part| DeferredPunch {
            ino: file.ino,
            index,
            id: part.id,
            pages: gone.clone(),
        });
        let mut dropped = Vec::new();
        for part in parts.iter_mut() {
            part.pages.remove(gone.clone());
        }
        let mut position = 0;
        parts.retain(|part| {
            position += 1;
            let keep = position == 1 || !part.pages.is_empty();
            if !keep {
                dropped.push(part.id.name);
            }
            keep
        });
        for set in [&mut chunk.durable, &mut chunk.unsynced, &mut chunk.syncing] {
            set.remove(gone.clone());
        }
        chunk.reserved.remove(gone.clone());
        if keeps_space {
            let pages = gone.clone().filter(|page| backed.contains(*page));
            pages.for_each(|page| chunk.reserved.insert(page..page + 1));
        }
        chunk.changed = true;
        let is_emptied = gone.start == 0 && chunk.pages() == 0;
        if is_emptied && let Extent::Parts { parts, .. } = &chunk.extent {
            dropped.extend(parts.iter().map(|part| part.id.name));
            let published = chunk.published_pages;
            *chunk = Chunk::from_record(chunk.generation, None, CHUNK_PAGES);
            chunk.published_pages = published;
            chunk.changed = true;
        }
        let less = chunk.pages().cast_signed() - before.cast_signed();
        self.account(state, less);
        self.discard(file, index, dropped, batch)?;
        Ok(punch)
    }

    /// Removes whole chunks from `first` on, at most `limit` recorded ones. True if no chunk is
    /// left.
    fn drop_chunks(
        &self,
        file: &File,
        state: &mut FileState,
        first: ChunkIndex,
        limit: usize,
        batch: &mut Batch,
    ) -> Result<bool, ObjectError> {
        let recorded = self.meta.extents(file.ino, first, file.view, limit)?;
        let complete = recorded.len() < limit;
        let mut gone = 0;
        for (index, record) in recorded {
            let chunk = state.chunks.remove(&index);
            let (names, pages, published) = match chunk {
                Some(chunk) => (names_of(&chunk), chunk.pages(), chunk.published_pages),
                None => (record.names(), record.pages(), record.pages()),
            };
            self.discard(file, index, names, batch)?;
            self.meta.put_extent(batch, file.ino, index, None)?;
            batch.used_pages -= published.cast_signed();
            self.account(state, -pages.cast_signed());
            gone += published;
        }
        if let Some(mut inode) = self.meta.inode_after(batch, file.ino)? {
            inode.pages = inode.pages.saturating_sub(gone);
            self.meta.put_inode(batch, file.ino, &inode)?;
        }
        if complete {
            let rest: Vec<ChunkIndex> = state
                .chunks
                .keys()
                .copied()
                .filter(|index| *index >= first)
                .collect();
            for index in rest {
                let Some(chunk) = state.chunks.remove(&index) else {
                    continue;
                };
                self.account(state, -chunk.pages().cast_signed());
                self.discard(file, index, names_of(&chunk), batch)?;
            }
        }
        Ok(complete)
    }

    /// Queues the objects of a replaced chunk for removal.
    pub(super) fn discard_chunk(
        &self,
        file: &File,
        index: ChunkIndex,
        chunk: &Chunk,
        batch: &mut Batch,
    ) -> Result<(), ObjectError> {
        self.discard(file, index, names_of(chunk), batch)
    }

    /// Queues objects for removal unless another version of the extent names them.
    pub(super) fn discard(
        &self,
        file: &File,
        index: ChunkIndex,
        mut names: Vec<ObjectName>,
        batch: &mut Batch,
    ) -> Result<(), ObjectError> {
        if !names.is_empty() {
            let kept = self.meta.older_names(file.ino, index)?;
            names.retain(|name| !kept.contains(name));
        }
        for name in names {
            self.meta.put_garbage(batch, name)?;
        }
        Ok(())
    }

    /// Removes everything that belongs to an inode without names, in batches of bounded size.
    /// Returns false if something is left for another call.
    ///
    /// # Errors
    /// The metadata cannot be read or changed.
    pub fn remove(&self, file: &File) -> Result<bool, ObjectError> {
        let _permit = self.meta.permit();
        let _gate = file.gate.write();
        let _inode = self.meta.lock_inode(file.ino);
        let state = &mut *file.state.lock();
        // A restore may have given it a name again since its removal was decided.
        if let Some(record) = self.meta.inode(file.ino, file.view)?
            && record.nlink > 0
        {
            return Ok(true);
        }
        let mut batch = Batch::new();
        let complete =
            self.drop_chunks(file, state, ChunkIndex(0), EXTENTS_PER_BATCH, &mut batch)?;
        if complete {
            for name in self.meta.xattr_names(file.ino, file.view)? {
                self.meta.put_xattr(&mut batch, file.ino, &name, None)?;
            }
            self.meta.remove_inode(&mut batch, file.ino)?;
            self.meta.remove_orphan(&mut batch, file.ino);
            batch.inodes -= 1;
            state.removed = true;
        }
        self.meta.apply(batch)?;
        Ok(complete)
    }
}

/// The objects of a chunk in memory.
fn names_of(chunk: &Chunk) -> Vec<ObjectName> {
    match &chunk.extent {
        Extent::Parts { parts, .. } => parts.iter().map(|part| part.id.name).collect(),
        _ => Vec::new(),
    }
}

fn truncate_inline(chunk: &mut Chunk, len: usize) {
    if let Extent::Inline(bytes) = &mut chunk.extent {
        bytes.truncate(len);
        chunk.changed = true;
    }
    if let Some(bytes) = &mut chunk.fallback {
        bytes.truncate(len);
        chunk.changed = true;
    }
}

/// Zeroes inline bytes. A fallback stays as it is: it holds the contents from before the writes
/// that moved the bytes into an object, and zeros in it could become durable before those writes.
fn zero_inline(chunk: &mut Chunk, bytes: &Range<u64>) {
    if let Extent::Inline(inline) = &mut chunk.extent {
        let end = inline.len().min(bytes.end as usize);
        if let Some(zeroed) = inline.get_mut(bytes.start as usize..end) {
            zeroed.fill(0);
            chunk.changed = true;
        }
    }
}
