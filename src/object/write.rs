//! Writing contents.
//!
//! A page that a write covers only in part is read, changed and sealed again under its page lock.
//! The page becomes present before the lock is released, so that the next writer of the same page
//! builds on it. Bytes beyond the size are zeros in every page that is sealed, but a truncated file
//! keeps the old bytes of its last page. So every operation that extends a file first zeroes the
//! tail of that page, and holds the gate from then until the file is longer. A write holds it
//! shared, since its page locks order it among other writes; every other operation holds it
//! exclusively.

use std::ops::Range;

use super::file::{Chunk, Extent, File, FileState};
use super::read::page_range;
use super::{
    CHUNK_BYTES, Contents, FILE_BYTES_MAX, INLINE_BYTES, ObjectError, chunk_at, chunk_pieces,
    chunk_start, page_bytes,
};
use crate::ids::{ChunkIndex, Generation, PageIndex};
use crate::meta::page_set::{CHUNK_PAGES, PageSet, pages_touching};
use crate::meta::records::{PARTS_MAX, Part, PartId, Timespec};
use crate::sealed::{ContentsFile, PAYLOAD_BYTES, PageGuard, SealedError};

/// Something that must be resolved before a chunk can be written.
pub(super) struct WriteBlocker {
    index: ChunkIndex,
    kind: BlockerKind,
}

/// Outcome of an attempt to change contents.
pub(super) enum Attempt<T> {
    /// The change was made.
    Done(T),
    /// Nothing was changed: this has to be resolved first, with the gate released.
    Blocked(WriteBlocker),
}

pub(super) enum BlockerKind {
    /// The chunk's inline bytes must be moved into an object.
    Inline,
    /// The chunk's list of parts is full.
    TooManyParts,
    /// The chunk's newest part must not be written any more, but is not durable yet.
    Unsynced,
}

/// The destination of a write to a chunk.
pub(super) enum WriteTarget {
    /// The extent's record.
    Inline,
    /// This part.
    Part(PartId),
    /// A new part, which has to be added first.
    NewPart,
    /// None yet: this has to be resolved first, with the gate released.
    Blocked(BlockerKind),
}

/// A part whose page lock is held.
struct LockedPart<'a> {
    object: &'a ContentsFile,
    guard: &'a PageGuard<'a>,
    id: PartId,
}

impl Contents {
    /// Writes all of `data` at `offset`. `now` is the time of the write; `None` if the kernel
    /// maintains the times itself.
    ///
    /// # Errors
    /// [`ObjectError::TooLarge`] beyond [`FILE_BYTES_MAX`], [`ObjectError::Full`] at the volume's
    /// limit, or an error of reading, sealing and writing pages. Earlier chunks of the range may
    /// have been written.
    pub fn write(
        &self,
        file: &File,
        offset: u64,
        data: &[u8],
        now: Option<Timespec>,
    ) -> Result<(), ObjectError> {
        let end = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= FILE_BYTES_MAX);
        end.ok_or(ObjectError::TooLarge)?;
        self.evict_chunks(file);
        let mut done = 0;
        for (index, bytes) in chunk_pieces(offset, data.len() as u64) {
            let piece = &data[done..done + (bytes.end - bytes.start) as usize];
            done += piece.len();
            while let Some(blocker) = self.write_chunk(file, index, &bytes, piece, now)? {
                self.resolve(file, &blocker)?;
            }
        }
        Ok(())
    }

    /// Writes within one chunk, or returns what has to be resolved first.
    fn write_chunk(
        &self,
        file: &File,
        index: ChunkIndex,
        bytes: &Range<u64>,
        data: &[u8],
        now: Option<Timespec>,
    ) -> Result<Option<WriteBlocker>, ObjectError> {
        let _permit = self.meta.permit();
        let _gate = file.gate.read();
        self.write_chunk_gated(file, index, bytes, data, now)
    }

    /// Writes within one chunk, or returns what has to be resolved first. The gate must be held.
    pub(super) fn write_chunk_gated(
        &self,
        file: &File,
        index: ChunkIndex,
        bytes: &Range<u64>,
        data: &[u8],
        now: Option<Timespec>,
    ) -> Result<Option<WriteBlocker>, ObjectError> {
        let start = chunk_start(index) + bytes.start;
        if let Some(blocker) = self.zero_tail(file, start)? {
            return Ok(Some(blocker));
        }
        self.load_chunk(file, index)?;
        loop {
            match self.write_target(file, index, bytes.end)? {
                WriteTarget::Inline => {
                    self.check_inline(file, index, bytes.end)?;
                    if write_inline(file, index, bytes, data, now) {
                        return Ok(None);
                    }
                }
                WriteTarget::Part(id) => {
                    self.write_pages(file, index, id, bytes.start, data, now)?;
                    return Ok(None);
                }
                WriteTarget::NewPart => self.add_part(file, index)?,
                WriteTarget::Blocked(kind) => return Ok(Some(WriteBlocker { index, kind })),
            }
        }
    }

    /// Zeroes the bytes beyond the size in the last page, if the file is about to grow past them.
    /// The gate must be held until the file has grown.
    pub(super) fn zero_tail(
        &self,
        file: &File,
        beyond: u64,
    ) -> Result<Option<WriteBlocker>, ObjectError> {
        let size = file.size();
        let (index, within) = (chunk_at(size), size % CHUNK_BYTES);
        let page = (within / PAYLOAD_BYTES as u64) as u32;
        if beyond <= size || within == page_bytes(page).start {
            return Ok(None);
        }
        self.load_chunk(file, index)?;
        if file
            .state
            .lock()
            .chunks
            .get(&index)
            .and_then(|c| c.part_with(page))
            .is_none()
        {
            return Ok(None);
        }
        loop {
            match self.write_target(file, index, CHUNK_BYTES)? {
                WriteTarget::Part(id) => {
                    // An empty write seals the page as it reads: with zeros beyond the size.
                    self.write_pages(file, index, id, within, &[], None)?;
                    return Ok(None);
                }
                WriteTarget::NewPart => self.add_part(file, index)?,
                WriteTarget::Inline => return Ok(None),
                WriteTarget::Blocked(kind) => return Ok(Some(WriteBlocker { index, kind })),
            }
        }
    }

    /// Runs a change with the gate held exclusively. If the change is blocked, resolves that and
    /// runs it again from its beginning.
    pub(super) fn with_exclusive_gate<T>(
        &self,
        file: &File,
        change: &mut dyn FnMut() -> Result<Attempt<T>, ObjectError>,
    ) -> Result<T, ObjectError> {
        loop {
            let blocker = {
                let _permit = self.meta.permit();
                let _gate = file.gate.write();
                match change()? {
                    Attempt::Done(value) => return Ok(value),
                    Attempt::Blocked(blocker) => blocker,
                }
            };
            self.resolve(file, &blocker)?;
        }
    }

    /// The part of a chunk that may be written in place. Adds one if there is none.
    pub(super) fn part_for(&self, file: &File, index: ChunkIndex) -> Result<PartId, ObjectError> {
        loop {
            let blocker = {
                let _permit = self.meta.permit();
                let _gate = file.gate.read();
                self.load_chunk(file, index)?;
                match self.write_target(file, index, CHUNK_BYTES)? {
                    WriteTarget::Part(id) => return Ok(id),
                    WriteTarget::NewPart => {
                        self.add_part(file, index)?;
                        continue;
                    }
                    WriteTarget::Inline => WriteBlocker {
                        index,
                        kind: BlockerKind::Inline,
                    },
                    WriteTarget::Blocked(kind) => WriteBlocker { index, kind },
                }
            };
            self.resolve(file, &blocker)?;
        }
    }

    /// The destination of a write that ends at `end` within the chunk.
    pub(super) fn write_target(
        &self,
        file: &File,
        index: ChunkIndex,
        end: u64,
    ) -> Result<WriteTarget, ObjectError> {
        let state = file.state.lock();
        if state.removed {
            return Err(ObjectError::Removed);
        }
        let small = index == ChunkIndex(0) && end <= INLINE_BYTES;
        let Some(chunk) = state.chunks.get(&index) else {
            return Err(ObjectError::Removed);
        };
        Ok(match &chunk.extent {
            Extent::Hole if small && state.size <= INLINE_BYTES => WriteTarget::Inline,
            Extent::Hole => WriteTarget::NewPart,
            Extent::Inline(_) if small => WriteTarget::Inline,
            Extent::Inline(_) => WriteTarget::Blocked(BlockerKind::Inline),
            Extent::Parts { parts, .. } => match parts.first() {
                Some(part) if self.is_writable(chunk) => WriteTarget::Part(part.id),
                _ if chunk.needs_sync() => WriteTarget::Blocked(BlockerKind::Unsynced),
                _ if parts.len() >= PARTS_MAX => WriteTarget::Blocked(BlockerKind::TooManyParts),
                _ => WriteTarget::NewPart,
            },
        })
    }

    /// Adds an empty part on top of the chunk, unless another thread has just done so. The chunk's
    /// reserved pages get space in it.
    fn add_part(&self, file: &File, index: ChunkIndex) -> Result<(), ObjectError> {
        let _growing = file.growing.lock();
        if !matches!(
            self.write_target(file, index, CHUNK_BYTES)?,
            WriteTarget::NewPart
        ) {
            return Ok(());
        }
        self.meta.check_ballast()?;
        let id = self.objects.create(&self.meta)?;
        if let Err(error) = self.move_reservation(file, index, id) {
            self.objects.unlink(id.name)?;
            return Err(error);
        }
        let mut state = file.state.lock();
        let Some(chunk) = state.chunks.get_mut(&index) else {
            return Err(ObjectError::Removed);
        };
        let reserved_pages = std::mem::take(&mut chunk.reserved);
        push_part(chunk, id, self.meta.generation());
        chunk.allocated = !reserved_pages.is_empty();
        chunk.reserved = reserved_pages;
        self.queue_new_part(file, index, chunk);
        Ok(())
    }

    /// Reserves space in a new object for the chunk's reserved pages.
    fn move_reservation(
        &self,
        file: &File,
        index: ChunkIndex,
        id: PartId,
    ) -> Result<(), ObjectError> {
        let reserved_pages = match file.state.lock().chunks.get(&index) {
            Some(chunk) if !chunk.reserved.is_empty() => chunk.reserved.clone(),
            _ => return Ok(()),
        };
        let object = self.open_object(id)?;
        let guard = object.lock_exclusive(page_range(&(0..CHUNK_PAGES)));
        for run in reserved_pages.runs() {
            object
                .reserve(&guard, page_range(&run))
                .map_err(|source| ObjectError::Page {
                    object: id.name,
                    source,
                })?;
        }
        Ok(())
    }

    /// Seals pages and writes them to the chunk's newest part `id`. Without data, seals the
    /// present contents of the page at `start`. The gate must be held.
    fn write_pages(
        &self,
        file: &File,
        index: ChunkIndex,
        id: PartId,
        start: u64,
        data: &[u8],
        now: Option<Timespec>,
    ) -> Result<(), ObjectError> {
        self.meta.check_ballast_to_overwrite()?;
        let object = self.open_object(id)?;
        let end = start + data.len() as u64;
        let pages = pages_touching(start..end.max(start + 1));
        let guard = object.lock_exclusive(page_range(&pages));
        self.check_pages(file, index, &pages)?;
        let sequence = self.meta.sequence();
        let mut base_error = None;
        let mut base = |page: PageIndex, payload: &mut [u8; PAYLOAD_BYTES]| {
            let locked = LockedPart {
                object: &object,
                guard: &guard,
                id,
            };
            self.read_visible_page(file, index, page.0 as u32, &locked, payload)
                .map_err(|error| {
                    base_error = Some(error);
                    SealedError::Io(std::io::Error::other("the rest of the page cannot be read"))
                })
        };
        let written = if data.is_empty() {
            let mut payload = [0; PAYLOAD_BYTES];
            let page = PageIndex(u64::from(pages.start));
            base(page, &mut payload).and_then(|()| {
                object.write_at(
                    &guard,
                    page_bytes(pages.start).start,
                    &payload,
                    sequence,
                    &mut |_, _| Ok(()),
                )
            })
        } else {
            object.write_at(&guard, start, data, sequence, &mut base)
        };
        if let Err(source) = written {
            return Err(base_error.unwrap_or_else(|| ObjectError::Page {
                object: id.name,
                source,
            }));
        }
        let end = (!data.is_empty()).then_some(chunk_start(index) + end);
        self.mark_present(file, index, &pages, end, now);
        // Marked present before the page lock is released: the next writer of these pages builds on
        // them.
        drop(guard);
        Ok(())
    }

    /// Marks written pages as present; they are not durable yet. The file becomes at least as long
    /// as `end`.
    fn mark_present(
        &self,
        file: &File,
        index: ChunkIndex,
        pages: &Range<u32>,
        end: Option<u64>,
        now: Option<Timespec>,
    ) {
        let state = &mut *file.state.lock();
        let Some(chunk) = state.chunks.get_mut(&index) else {
            return;
        };
        let before = chunk.pages();
        if let Extent::Parts { parts, .. } = &mut chunk.extent
            && let Some(part) = parts.first_mut()
        {
            part.pages.insert(pages.clone());
        }
        chunk.unsynced.insert(pages.clone());
        let more = chunk.pages().cast_signed() - before.cast_signed();
        state.size = state.size.max(end.unwrap_or(0));
        state.written = now.or(state.written);
        self.account(state, more);
    }

    /// Refuses pages beyond the volume's limit.
    fn check_pages(
        &self,
        file: &File,
        index: ChunkIndex,
        pages: &Range<u32>,
    ) -> Result<(), ObjectError> {
        if self.limit_pages.is_none() {
            return Ok(());
        }
        let taken = file.state.lock().chunks.get(&index).map(Chunk::taken);
        let taken = taken.unwrap_or_default();
        let more = pages.clone().filter(|page| !taken.contains(*page)).count();
        self.check_space(more as i64)
    }

    /// Refuses bytes of a small file beyond the volume's limit.
    fn check_inline(&self, file: &File, index: ChunkIndex, end: u64) -> Result<(), ObjectError> {
        if self.limit_pages.is_none() {
            return Ok(());
        }
        let current_len = match file.state.lock().chunks.get(&index).map(|c| &c.extent) {
            Some(Extent::Inline(bytes)) => bytes.len() as u64,
            _ => 0,
        };
        self.check_space_for_records(end.cast_signed() - current_len.cast_signed(), 0)
    }

    /// Reads a page as a reader sees it: from the newest part that contains it, with zeros beyond
    /// the size. `locked` is the newest part, whose page lock is held.
    fn read_visible_page(
        &self,
        file: &File,
        index: ChunkIndex,
        page: u32,
        locked: &LockedPart<'_>,
        payload: &mut [u8; PAYLOAD_BYTES],
    ) -> Result<(), ObjectError> {
        let bytes = page_bytes(page);
        let source = file
            .state
            .lock()
            .chunks
            .get(&index)
            .and_then(|chunk| chunk.part_with(page));
        let LockedPart { object, guard, id } = *locked;
        match source {
            None => payload.fill(0),
            Some(part) if part == id => object
                .read_at(guard, bytes.start, payload)
                .map_err(|source| self.page_error(id.name, source))?,
            Some(part) => self.read_part(part, bytes.start, payload)?,
        }
        let size_here = file
            .size()
            .saturating_sub(chunk_start(index))
            .min(bytes.end);
        payload[size_here.saturating_sub(bytes.start) as usize..].fill(0);
        Ok(())
    }

    /// Resolves what blocks a write. The gate must not be held.
    pub(super) fn resolve(&self, file: &File, blocker: &WriteBlocker) -> Result<(), ObjectError> {
        match blocker.kind {
            BlockerKind::Unsynced => self.sync_file(file),
            BlockerKind::Inline => self.inline_to_object(file, blocker.index),
            BlockerKind::TooManyParts => self.flatten_now(file, blocker.index),
        }
    }

    /// Moves a chunk's inline bytes into an object, which a write past the inline limit requires.
    pub(super) fn inline_to_object(
        &self,
        file: &File,
        index: ChunkIndex,
    ) -> Result<(), ObjectError> {
        let _permit = self.meta.permit();
        let _gate = file.gate.write();
        let bytes = match file
            .state
            .lock()
            .chunks
            .get(&index)
            .map(|chunk| &chunk.extent)
        {
            Some(Extent::Inline(bytes)) => bytes.clone(),
            _ => return Ok(()),
        };
        let id = self.objects.create(&self.meta)?;
        {
            let state = &mut *file.state.lock();
            let Some(chunk) = state.chunks.get_mut(&index) else {
                return Ok(());
            };
            chunk.extent = Extent::Hole;
            push_part(chunk, id, self.meta.generation());
            // The record keeps the bytes until the pages are durable.
            chunk.fallback = Some(bytes.clone());
        }
        let written = if bytes.is_empty() {
            Ok(())
        } else {
            self.write_pages(file, index, id, 0, &bytes, None)
        };
        if written.is_err() {
            let state = &mut *file.state.lock();
            if let Some(chunk) = state.chunks.get_mut(&index) {
                chunk.extent = Extent::Inline(bytes);
                chunk.fallback = None;
                chunk.named = true;
                chunk.unsynced = PageSet::new();
            }
            self.objects.unlink(id.name)?;
        }
        written
    }

    /// Evicts clean chunks from memory if there are many. Takes the gate exclusively: a thread that
    /// holds the gate relies on the chunks it loaded.
    pub(super) fn evict_chunks(&self, file: &File) {
        if file.state.lock().chunks.len() < super::CHUNKS_KEPT {
            return;
        }
        if let Some(_gate) = file.gate.try_write() {
            evict_clean_chunks(&mut file.state.lock());
        }
    }
}

/// Evicts clean chunks if there are many. The caller holds the gate exclusively.
pub(super) fn evict_clean_chunks(state: &mut FileState) {
    if state.chunks.len() >= super::CHUNKS_KEPT {
        state
            .chunks
            .retain(|_, chunk| chunk.changed || chunk.needs_sync());
    }
}

/// Writes bytes into the record of a small file. False if the chunk is no longer inline.
fn write_inline(
    file: &File,
    index: ChunkIndex,
    bytes: &Range<u64>,
    data: &[u8],
    now: Option<Timespec>,
) -> bool {
    let state = &mut *file.state.lock();
    let Some(chunk) = state.chunks.get_mut(&index) else {
        return false;
    };
    if chunk.extent == Extent::Hole {
        chunk.extent = Extent::Inline(Vec::new());
    }
    let Extent::Inline(inline) = &mut chunk.extent else {
        return false;
    };
    if inline.len() < bytes.end as usize {
        inline.resize(bytes.end as usize, 0);
    }
    inline[bytes.start as usize..bytes.end as usize].copy_from_slice(data);
    chunk.changed = true;
    state.size = state.size.max(bytes.end);
    state.written = now.or(state.written);
    true
}

/// Adds an empty part on top, as of the live generation.
fn push_part(chunk: &mut Chunk, id: PartId, generation: Generation) {
    let part = Part {
        id,
        pages: PageSet::new(),
    };
    chunk.generation = generation;
    match &mut chunk.extent {
        Extent::Parts { parts, shared } => {
            parts.insert(0, part);
            *shared = false;
        }
        other => {
            *other = Extent::Parts {
                shared: false,
                parts: vec![part],
            }
        }
    }
    chunk.named = false;
    chunk.durable = PageSet::new();
    chunk.unsynced = PageSet::new();
    chunk.syncing = PageSet::new();
    chunk.reserved = PageSet::new();
    chunk.changed = true;
}
