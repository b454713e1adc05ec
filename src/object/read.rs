//! Reading contents.

use std::ops::Range;

use super::file::{Extent, File, FileState};
use super::{Contents, ObjectError, chunk_at, chunk_pieces, chunk_start, page_bytes};
use crate::ids::{ChunkIndex, PageIndex};
use crate::meta::page_set::{CHUNK_BYTES, CHUNK_PAGES, PageSet, pages_touching};
use crate::meta::records::PartId;

/// A read of at least this length comes from a sequential reader, be it a program or the kernel ...
const LONG_READ_BYTES: u64 = 64 << 10;
/// ... and with this many segments it alternates between objects.
const READ_AHEAD_SEGMENTS_MIN: usize = 3;
/// Pages behind such a read that are read ahead: half a MiB.
const AHEAD_PAGES: u32 = 128;

/// Pages that are read or written with one call, at most.
pub(crate) const RUN_PAGES: u32 = 256;

/// Where the bytes of a segment come from.
enum Source {
    /// They are zeros.
    Zeros,
    /// Pages of an object.
    Part(PartId),
}

/// A byte range of a chunk with one source.
struct ReadSegment {
    bytes: Range<u64>,
    source: Source,
}

impl Contents {
    /// Reads from `offset` until `out` is full or the file ends. Returns the number of bytes read.
    ///
    /// # Errors
    /// A page cannot be read or does not authenticate, an object is missing, or the metadata cannot
    /// be read.
    pub fn read(&self, file: &File, offset: u64, out: &mut [u8]) -> Result<usize, ObjectError> {
        self.evict_chunks(file);
        let _gate = file.gate.read();
        let size = file.size();
        if offset >= size || out.is_empty() {
            return Ok(0);
        }
        let len = (out.len() as u64).min(size - offset) as usize;
        let mut rest = &mut out[..len];
        for (index, bytes) in chunk_pieces(offset, len as u64) {
            let (piece, after) = rest.split_at_mut((bytes.end - bytes.start) as usize);
            self.read_chunk(file, index, bytes, piece)?;
            rest = after;
        }
        Ok(len)
    }

    fn read_chunk(
        &self,
        file: &File,
        index: ChunkIndex,
        bytes: Range<u64>,
        out: &mut [u8],
    ) -> Result<(), ObjectError> {
        self.load_chunk(file, index)?;
        let start = bytes.start;
        let mut segments = Vec::new();
        {
            let state = file.state.lock();
            if let Some(Extent::Inline(inline)) =
                state.chunks.get(&index).map(|chunk| &chunk.extent)
            {
                let from = inline.len().min(start as usize);
                let have = (inline.len() - from).min(out.len());
                out[..have].copy_from_slice(&inline[from..from + have]);
                out[have..].fill(0);
                return Ok(());
            }
            plan_read(&state, index, bytes, &mut segments);
        }
        self.read_ahead(&segments)?;
        for ReadSegment { bytes, source } in segments {
            let piece = &mut out[(bytes.start - start) as usize..(bytes.end - start) as usize];
            match source {
                Source::Zeros => piece.fill(0),
                Source::Part(id) => self.read_part(id, bytes.start, piece)?,
            }
        }
        // Bytes beyond the size are zeros whatever the last page holds.
        let size_here = file.size().saturating_sub(chunk_start(index));
        if size_here < start + out.len() as u64 {
            out[size_here.saturating_sub(start) as usize..].fill(0);
        }
        Ok(())
    }

    /// Reads ahead if a long read takes pages from several objects in turn. The backing filesystem
    /// sees single pages of each and would otherwise read them one after the other.
    fn read_ahead(&self, segments: &[ReadSegment]) -> Result<(), ObjectError> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
            return Ok(());
        };
        if segments.len() < READ_AHEAD_SEGMENTS_MIN
            || last.bytes.end - first.bytes.start < LONG_READ_BYTES
        {
            return Ok(());
        }
        let mut spans: Vec<(PartId, Range<u32>)> = Vec::new();
        for ReadSegment { bytes, source } in segments {
            let Source::Part(id) = source else { continue };
            let pages = pages_touching(bytes.clone());
            match spans.iter_mut().find(|(one, _)| one == id) {
                Some((_, span)) => span.end = pages.end,
                None => spans.push((*id, pages)),
            }
        }
        for (id, span) in spans {
            // A sequential reader asks for the following pages next.
            let span = span.start..(span.end + AHEAD_PAGES).min(CHUNK_PAGES);
            self.open_object(id)?.will_need(&page_range(&span));
        }
        Ok(())
    }

    /// Reads pages that the part contains.
    pub(super) fn read_part(
        &self,
        id: PartId,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), ObjectError> {
        let object = self.open_object(id)?;
        let pages = pages_touching(offset..offset + out.len() as u64);
        let guard = object.lock_shared(page_range(&pages));
        object
            .read_at(&guard, offset, out)
            .map_err(|source| self.page_error(id.name, source))
    }

    /// The next offset from `offset` on that is data, or, with `hole`, that is a hole. `None` if
    /// the file ends before.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn seek(&self, file: &File, offset: u64, hole: bool) -> Result<Option<u64>, ObjectError> {
        self.evict_chunks(file);
        let _gate = file.gate.read();
        let size = file.size();
        if offset >= size {
            return Ok(None);
        }
        let mut at = offset;
        while at < size {
            let index = chunk_at(at);
            if let Some(next) = self.skip_empty_chunks(file, index)? {
                if hole {
                    return Ok(Some(at));
                }
                at = next.saturating_mul(CHUNK_BYTES);
                continue;
            }
            let base = chunk_start(index);
            let state = file.state.lock();
            let mut page = pages_touching(at - base..at - base + 1).start;
            while page < CHUNK_PAGES && at < size {
                if is_data(&state, index, page) != hole {
                    return Ok(Some(at));
                }
                at = base + page_bytes(page).end;
                page += 1;
            }
        }
        Ok(if hole { Some(size) } else { None })
    }

    /// Index of the next chunk that may not be a hole, if this one is a hole. Ranges without
    /// extents are skipped by the keys of the records, not chunk by chunk.
    fn skip_empty_chunks(
        &self,
        file: &File,
        index: ChunkIndex,
    ) -> Result<Option<u64>, ObjectError> {
        self.load_chunk(file, index)?;
        let in_memory = {
            let state = file.state.lock();
            match state.chunks.get(&index).map(|chunk| &chunk.extent) {
                Some(Extent::Hole) | None => {}
                Some(_) => return Ok(None),
            }
            let later = state
                .chunks
                .iter()
                .filter(|(i, c)| **i > index && c.extent != Extent::Hole);
            later.map(|(i, _)| u64::from(i.0)).min()
        };
        let recorded = self
            .meta
            .next_extent(file.ino, index.0, file.view)?
            .map(|chunk| u64::from(chunk.0));
        let end = file.size().div_ceil(CHUNK_BYTES);
        Ok(Some(
            [in_memory, recorded]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(end)
                .max(u64::from(index.0) + 1),
        ))
    }
}

/// Divides a byte range of a chunk by its sources.
fn plan_read(
    state: &FileState,
    index: ChunkIndex,
    bytes: Range<u64>,
    segments: &mut Vec<ReadSegment>,
) {
    let pages = pages_touching(bytes.clone());
    let chunk = state.chunks.get(&index);
    let mut page = pages.start;
    while page < pages.end {
        let id = chunk.and_then(|chunk| chunk.part_with(page));
        let end = run_end(chunk.map(|chunk| &chunk.extent), page, pages.end);
        let start = page_bytes(page).start.max(bytes.start);
        let stop = page_bytes(end - 1).end.min(bytes.end);
        segments.push(ReadSegment {
            bytes: start..stop,
            source: id.map_or(Source::Zeros, Source::Part),
        });
        page = end;
    }
}

/// The end of the run of pages from `page` on that come from the same part.
fn run_end(extent: Option<&Extent>, page: u32, limit: u32) -> u32 {
    let Some(Extent::Parts { parts, .. }) = extent else {
        return limit;
    };
    let mut end = limit;
    for part in parts {
        end = part.pages.run_end(page, end);
        if part.pages.contains(page) {
            break;
        }
    }
    end
}

fn is_data(state: &FileState, index: ChunkIndex, page: u32) -> bool {
    match state.chunks.get(&index).map(|chunk| &chunk.extent) {
        Some(Extent::Inline(bytes)) => page_bytes(page).start < bytes.len() as u64,
        Some(Extent::Parts { parts, .. }) => parts.iter().any(|part| part.pages.contains(page)),
        _ => false,
    }
}

/// Pages of a chunk as page indices of its sealed file.
pub(crate) fn page_range(pages: &Range<u32>) -> Range<PageIndex> {
    PageIndex(u64::from(pages.start))..PageIndex(u64::from(pages.end))
}

/// The runs of pages of a set within a range, none longer than [`RUN_PAGES`].
pub(crate) fn page_runs(set: &PageSet, pages: Range<u32>) -> Vec<Range<u32>> {
    let mut runs = Vec::new();
    let mut page = pages.start;
    while page < pages.end {
        let present = set.contains(page);
        let limit = if present {
            pages.end.min(page + RUN_PAGES)
        } else {
            pages.end
        };
        let end = set.run_end(page, limit);
        if present {
            runs.push(page..end);
        }
        page = end;
    }
    runs
}
