//! Copying within the volume: the objects of whole chunks are linked, and the rest is copied as
//! bytes.
//!
//! A linked chunk is marked `shared` in both files before either may be written again. So two files
//! never write different contents under one crypto id. Order: the source is durable; the links and
//! their names are durable; then both records change in one batch.

use super::file::{Chunk, Extent, File};
use super::read::SeekWhence;
use super::truncate::FreedSpace;
use super::write::Attempt;
use super::{Contents, FILE_BYTES_MAX, ObjectError, chunk_at, chunk_start};
use std::sync::Arc;

use crate::meta::page_set::{CHUNK_BYTES, CHUNK_PAGES, PageSet, pages_touching};
use crate::meta::records::{ObjectName, Part, Timespec, taken};
use crate::meta::{Batch, View};
use crate::planted::{Bug, planted};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// A last chunk that is shorter is copied as bytes, since a link costs a sync.
const LINK_BYTES_MIN: u64 = 1 << 20;

/// A range to copy: offsets in the source and in the target, and the length, in bytes.
#[derive(Clone, Copy, Debug)]
struct CopyRange {
    source: u64,
    target: u64,
    len: u64,
}

/// Progress of a copy.
#[derive(Default)]
struct Copied {
    bytes: u64,
    source_synced: bool,
    buffer: Vec<u8>,
}

impl Contents {
    /// Copies up to `len` bytes and returns the number of bytes copied. It is smaller at the end of
    /// the source, and if copying fails after some bytes.
    ///
    /// # Errors
    /// [`ObjectError::TooLarge`] if the target would exceed [`FILE_BYTES_MAX`], or an error of the
    /// first piece.
    pub fn copy(
        &self,
        from: &File,
        from_offset: u64,
        to: &File,
        to_offset: u64,
        len: u64,
        now: Timespec,
    ) -> Result<u64, ObjectError> {
        let len = len.min(from.size().saturating_sub(from_offset));
        to_offset
            .checked_add(len)
            .filter(|end| *end <= FILE_BYTES_MAX)
            .ok_or(ObjectError::TooLarge)?;
        let mut copied = Copied::default();
        while copied.bytes < len {
            let at = copied.bytes;
            let rest = CopyRange {
                source: from_offset + at,
                target: to_offset + at,
                len: len - at,
            };
            match self.copy_piece(from, to, rest, now, &mut copied) {
                Ok(0) => break,
                Ok(more) => copied.bytes += more,
                // The caller must get the number of bytes copied so far. Otherwise the kernel's
                // cache would continue to show the old contents.
                Err(_) if at > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(copied.bytes)
    }

    /// Copies the first bytes of a range and returns how many; 0 at the end of the source.
    fn copy_piece(
        &self,
        from: &File,
        to: &File,
        range: CopyRange,
        now: Timespec,
        copied: &mut Copied,
    ) -> Result<u64, ObjectError> {
        let CopyRange {
            source,
            target,
            len,
        } = range;
        if self.may_link(from, to, range) {
            if !copied.source_synced {
                self.sync_file(from)?;
                copied.source_synced = true;
            }
            let piece = len.min(CHUNK_BYTES);
            if self.link_chunk(
                from,
                to,
                CopyRange {
                    len: piece,
                    ..range
                },
                now,
            )? {
                return Ok(piece);
            }
        }
        let hole_bytes = match self.seek(from, source, SeekWhence::Data)? {
            Some(data) => (data - source).min(len),
            None => len,
        };
        if hole_bytes >= COPY_BYTES as u64 {
            self.copy_hole(to, target..target + hole_bytes, now)?;
            return Ok(hole_bytes);
        }
        let buffer = &mut copied.buffer;
        buffer.resize(COPY_BYTES, 0);
        let piece_len = (COPY_BYTES as u64 - target % COPY_BYTES as u64).min(len) as usize;
        let count = self.read(from, source, &mut buffer[..piece_len])?;
        self.write(to, target, &buffer[..count], Some(now))?;
        Ok(count as u64)
    }

    /// Makes the target range a hole, as the source has one.
    fn copy_hole(
        &self,
        to: &File,
        bytes: std::ops::Range<u64>,
        now: Timespec,
    ) -> Result<(), ObjectError> {
        // Space that the target had reserved or used stays reserved for it, as if zeros had been
        // written.
        self.punch(to, bytes.clone(), FreedSpace::Reserved, now)?;
        self.extend(to, bytes.end, &mut |record| record.mtime = now)
    }

    /// True if the range covers a whole chunk of both files, or the last one of both.
    fn may_link(&self, from: &File, to: &File, range: CopyRange) -> bool {
        let CopyRange {
            source,
            target,
            len: rest,
        } = range;
        let aligned = source.is_multiple_of(CHUNK_BYTES) && target.is_multiple_of(CHUNK_BYTES);
        let whole = rest >= CHUNK_BYTES;
        let last =
            rest >= LINK_BYTES_MIN && source + rest == from.size() && target + rest >= to.size();
        aligned && (whole || last) && (from.ino, source) != (to.ino, target)
    }

    /// Links the objects of one chunk. False if its bytes must be copied instead.
    fn link_chunk(
        &self,
        from: &File,
        to: &File,
        range: CopyRange,
        now: Timespec,
    ) -> Result<bool, ObjectError> {
        if from.ino == to.ino {
            return Ok(false);
        }
        loop {
            match self.try_link_chunk(from, to, range, now)? {
                Attempt::Done(linked) => return Ok(linked),
                Attempt::Blocked(blocker) => self.resolve(to, &blocker)?,
            }
        }
    }

    fn try_link_chunk(
        &self,
        from: &File,
        to: &File,
        range: CopyRange,
        now: Timespec,
    ) -> Result<Attempt<bool>, ObjectError> {
        const NOT_LINKED: Attempt<bool> = Attempt::Done(false);
        let (source, target) = (chunk_at(range.source), chunk_at(range.target));
        // A kept view does not change, but the live file may use the same parts.
        let live = self.live_file_of(from)?;
        let changing = live.as_deref().unwrap_or(from);
        let (first, second) = if from.ino < to.ino {
            (changing, to)
        } else {
            (to, changing)
        };
        let _permit = self.meta.permit();
        let _first = first.gate.write();
        let _second = second.gate.write();
        // Either file may have changed since it was checked.
        let is_in_source = from.size() >= range.source + range.len;
        if !is_in_source || !self.may_link(from, to, range) {
            return Ok(NOT_LINKED);
        }
        // Both gates stay held until the file is longer. Otherwise bytes that a concurrent truncate
        // leaves behind would become visible.
        if let Some(blocker) = self.zero_tail(to, range.target)? {
            return Ok(Attempt::Blocked(blocker));
        }
        self.load_chunk(changing, source)?;
        self.load_chunk(to, target)?;
        let parts = if from.view == View::LIVE {
            let state = from.state.lock();
            state.chunks.get(&source).and_then(parts_to_link)
        } else {
            // Read the record again: hidden pages may have been given back since it was last read.
            let record = self.meta.extent(from.ino, source, from.view)?;
            parts_to_link(&Self::chunk_of(source, from.size(), record))
        };
        let Some(parts) = parts else {
            return Ok(NOT_LINKED);
        };
        let is_reserved = |chunk: &Chunk| !chunk.reserved.is_empty();
        if to.state.lock().chunks.get(&target).is_some_and(is_reserved) {
            return Ok(NOT_LINKED);
        }
        let Some(parts) = self.link_parts(visible_parts(parts))? else {
            return Ok(NOT_LINKED);
        };
        let names: Vec<_> = parts.iter().map(|part| part.id.name).collect();
        if let Err(error) = self.record_link(changing, to, range, parts, now) {
            self.unlink_all(names.into_iter())?;
            return Err(error);
        }
        Ok(Attempt::Done(true))
    }

    /// The live file that belongs to a file of a kept view. `None` for a live file, or if there is
    /// no live one any more.
    fn live_file_of(&self, file: &File) -> Result<Option<Arc<File>>, ObjectError> {
        if file.view == View::LIVE {
            return Ok(None);
        }
        match self.file(file.ino) {
            Err(ObjectError::Removed) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Links all parts under second, durable names. `None` if the backing filesystem allows no more
    /// links.
    fn link_parts(&self, mut parts: Vec<Part>) -> Result<Option<Vec<Part>>, ObjectError> {
        for index in 0..parts.len() {
            match self.objects.link(&self.meta, parts[index].id.name) {
                Ok(name) => parts[index].id.name = name,
                Err(error) => {
                    self.unlink_all(parts.iter().take(index).map(|part| part.id.name))?;
                    return match error {
                        ObjectError::Io(error) if cannot_link(&error) => Ok(None),
                        error => Err(error),
                    };
                }
            }
        }
        if let Err(error) = self.objects.sync_names() {
            self.unlink_all(parts.iter().map(|part| part.id.name))?;
            return Err(error);
        }
        Ok(Some(parts))
    }

    fn unlink_all(&self, mut names: impl Iterator<Item = ObjectName>) -> Result<(), ObjectError> {
        names.try_for_each(|name| self.objects.unlink(name))
    }

    /// Records linked parts in the target, and marks those of the source as shared.
    fn record_link(
        &self,
        from: &File,
        to: &File,
        range: CopyRange,
        parts: Vec<Part>,
        now: Timespec,
    ) -> Result<(), ObjectError> {
        let (source, target) = (chunk_at(range.source), chunk_at(range.target));
        let len = range.len;
        let old = to.state.lock().chunks.get(&target).map_or(0, Chunk::pages);
        let new = u64::from(taken(&parts, &PageSet::new()).len());
        self.check_space(new.cast_signed() - old.cast_signed())?;
        let _inodes = self.meta.lock_inodes(&[from.ino, to.ino]);
        let mut batch = Batch::new();
        {
            let state = &mut *from.state.lock();
            let Some(chunk) = state.chunks.get_mut(&source) else {
                return Err(ObjectError::Removed);
            };
            let newest = chunk.newest().map(|part| part.id.crypto);
            let is_linked = parts.iter().any(|part| Some(part.id.crypto) == newest);
            let is_linked = is_linked && !planted(Bug::CloneNotMarkedShared);
            if from.view == View::LIVE && is_linked {
                if let Extent::Parts { shared, .. } = &mut chunk.extent {
                    *shared = true;
                }
                chunk.changed = true;
                self.publish(from, state, &mut batch)?;
            }
        }
        let state = &mut *to.state.lock();
        let Some(old) = state.chunks.remove(&target) else {
            return Err(ObjectError::Removed);
        };
        self.discard_chunk(to, target, &old, &mut batch)?;
        let mut chunk = Chunk::from_record(
            self.meta.generation(),
            Some(crate::meta::records::ExtentRecord::Parts {
                shared: true,
                parts,
                reserved: PageSet::new(),
            }),
            pages_touching(0..len).end.min(CHUNK_PAGES),
        );
        chunk.published_pages = old.published_pages;
        chunk.changed = true;
        let more = chunk.pages().cast_signed() - old.pages().cast_signed();
        state.chunks.insert(target, chunk);
        self.account(state, more);
        state.size = state.size.max(chunk_start(target) + len);
        if state.is_synced() {
            state.durable_size = state.size;
        }
        state.written = Some(now);
        self.publish(to, state, &mut batch)?;
        self.meta.apply(batch)?;
        Ok(())
    }
}

/// The parts without hidden pages, which may have been given back already, and without parts of
/// which nothing is left.
pub(crate) fn visible_parts(mut parts: Vec<Part>) -> Vec<Part> {
    let mut hidden = PageSet::new();
    for part in &mut parts {
        let pages = part.pages.clone();
        part.pages.subtract(&hidden);
        hidden.union(&pages);
    }
    parts.retain(|part| !part.pages.is_empty());
    parts
}

/// The parts of a chunk, if they may be linked as they are.
fn parts_to_link(chunk: &Chunk) -> Option<Vec<Part>> {
    match &chunk.extent {
        // A linked part is not written in place any more, so a reservation in it would be lost.
        Extent::Parts { parts, .. } if !chunk.needs_sync() && chunk.reserved.is_empty() => {
            Some(parts.clone())
        }
        _ => None,
    }
}

/// True for errors that mean that this file cannot be linked, and not that the store failed.
fn cannot_link(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::TooManyLinks | ErrorKind::Unsupported | ErrorKind::PermissionDenied
    )
}
