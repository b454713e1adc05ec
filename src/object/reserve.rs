//! Reserving space (`fallocate(2)` without a hole).
//!
//! A reservation has two parts. Reserved pages count as used, so that nothing else takes them
//! within the volume's limit. And the object that they would be written to has blocks for them, if
//! the backing filesystem supports that. Reserved pages read as zeros until they are written.

use std::ops::Range;

use super::collect::absent_runs;
use super::file::{Chunk, File};
use super::read::page_range;
use super::write::WriteTarget;
use super::{Contents, ObjectError, chunk_pieces};
use crate::ids::ChunkIndex;
use crate::meta::page_set::{CHUNK_BYTES, CHUNK_PAGES, PAYLOAD_BYTES, PageSet, pages_touching};
use crate::meta::records::PartId;
use crate::sealed::PAGE_BYTES;

/// The pages that a reservation still needs.
#[derive(Default)]
struct Missing {
    /// Pages that do not count as used yet.
    counted: u64,
    /// Pages without blocks on the backing filesystem.
    on_disk: u64,
}

impl Contents {
    /// Reserves space for a range, so that writing it later does not fail on a full disk. If it
    /// fails half-way, the space that was reserved by then stays reserved, as on other filesystems.
    ///
    /// # Errors
    /// [`ObjectError::TooLarge`] beyond [`FILE_BYTES_MAX`](super::FILE_BYTES_MAX),
    /// [`ObjectError::Full`] if there is not enough space, or an error of the backing store.
    pub fn reserve(&self, file: &File, bytes: Range<u64>) -> Result<(), ObjectError> {
        if bytes.end > super::FILE_BYTES_MAX {
            return Err(ObjectError::TooLarge);
        }
        // Inline contents count as many bytes as they have, so no space can be reserved for them.
        if self.limit_pages.is_none() && self.fits_record(file, bytes.end)? {
            return Ok(());
        }
        let len = bytes.end.saturating_sub(bytes.start);
        self.check_reservation(file, bytes.start, len)?;
        for (index, piece) in chunk_pieces(bytes.start, len) {
            let pages = pages_touching(piece);
            while !self.reserve_pages(file, index, self.part_for(file, index)?, &pages)? {}
        }
        Ok(())
    }

    /// True if contents that end at `end` are stored in the metadata.
    fn fits_record(&self, file: &File, end: u64) -> Result<bool, ObjectError> {
        if end > CHUNK_BYTES {
            return Ok(false);
        }
        let _gate = file.gate.read();
        self.load_chunk(file, ChunkIndex(0))?;
        Ok(matches!(
            self.write_target(file, ChunkIndex(0), end)?,
            WriteTarget::Inline
        ))
    }

    /// Refuses a reservation that cannot be met, before thousands of objects are created for it.
    fn check_reservation(&self, file: &File, offset: u64, len: u64) -> Result<(), ObjectError> {
        let available = self.objects.store().space()?.available_bytes / PAGE_BYTES as u64;
        // A lower bound, whatever pages the file has.
        let least = (len / PAYLOAD_BYTES).saturating_sub(file.state.lock().pages);
        self.check_space(least.cast_signed())?;
        if least > available {
            return Err(ObjectError::Full);
        }
        let mut missing = Missing::default();
        for (index, piece) in chunk_pieces(offset, len) {
            self.add_missing(file, index, &pages_touching(piece), &mut missing)?;
            self.check_space(missing.counted.cast_signed())?;
            if missing.on_disk > available {
                return Err(ObjectError::Full);
            }
        }
        Ok(())
    }

    /// Adds the pages that one chunk needs. The chunk is not loaded into the state: the range may
    /// have more chunks than should stay in memory.
    fn add_missing(
        &self,
        file: &File,
        index: ChunkIndex,
        pages: &Range<u32>,
        missing: &mut Missing,
    ) -> Result<(), ObjectError> {
        let mut count = |chunk: &Chunk| {
            let backed = if self.is_writable(chunk) {
                chunk.backed()
            } else {
                PageSet::new()
            };
            let taken = chunk.taken();
            let absent = |set: &PageSet| pages.clone().filter(|p| !set.contains(*p)).count() as u64;
            missing.counted += absent(&taken);
            missing.on_disk += absent(&backed);
        };
        let size = {
            let state = file.state.lock();
            if let Some(chunk) = state.chunks.get(&index) {
                count(chunk);
                return Ok(());
            }
            state.size
        };
        let record = self.meta.extent(file.ino, index, file.view)?;
        count(&Self::chunk_of(index, size, record));
        Ok(())
    }

    /// Reserves pages in one part. False if it is no longer the one to write to.
    fn reserve_pages(
        &self,
        file: &File,
        index: ChunkIndex,
        id: PartId,
        pages: &Range<u32>,
    ) -> Result<bool, ObjectError> {
        let _permit = self.meta.permit();
        let _gate = file.gate.read();
        self.load_chunk(file, index)?;
        let is_current = |chunk: &&Chunk| {
            chunk.newest().is_some_and(|part| part.id == id) && self.is_writable(chunk)
        };
        // Checked before it is opened: a part that left the chunk may be gone from the disk.
        if !file
            .state
            .lock()
            .chunks
            .get(&index)
            .as_ref()
            .is_some_and(is_current)
        {
            return Ok(false);
        }
        let object = self.objects.open(id)?;
        // The pages that follow are locked too: a concurrent write to them would extend the object.
        let guard = object.lock_exclusive(page_range(&(pages.start..CHUNK_PAGES)));
        let (runs, taken) = match file.state.lock().chunks.get(&index).filter(is_current) {
            Some(chunk) => (absent_runs(&chunk.backed(), pages.clone()), chunk.taken()),
            None => return Ok(false),
        };
        let absent = runs.iter().cloned().flatten();
        let more = absent.filter(|page| !taken.contains(*page)).count();
        self.check_space(more as i64)?;
        for run in &runs {
            object
                .reserve(&guard, page_range(run))
                .map_err(|source| ObjectError::Page {
                    object: id.name,
                    source,
                })?;
        }
        let state = &mut *file.state.lock();
        let Some(chunk) = state.chunks.get_mut(&index) else {
            return Ok(false);
        };
        let before = chunk.pages();
        runs.into_iter().for_each(|run| chunk.reserved.insert(run));
        chunk.allocated = true;
        chunk.changed = true;
        let more = chunk.pages().cast_signed() - before.cast_signed();
        self.account(state, more);
        Ok(true)
    }
}
