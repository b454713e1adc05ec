//! Reading contents.

use std::ops::Range;

use super::file::{Extent, File, FileState};
use super::{Contents, ObjectError, chunk_at, chunk_pieces, chunk_start, page_bytes};
use crate::ids::{ChunkIndex, PageIndex};
use crate::meta::page_set::{CHUNK_BYTES, CHUNK_PAGES, PageSet, pages_touching};
use crate::meta::records::PartId;

/// Pages are read ahead if a read has at least this length, as sequential readers (programs and the
/// kernel) use ...
const READ_AHEAD_BYTES_MIN: u64 = 64 << 10;
/// ... and at least this many segments, which means that it alternates between objects.
const READ_AHEAD_SEGMENTS_MIN: usize = 3;
/// Pages after such a read that are read ahead: half a MiB.
const READ_AHEAD_PAGES: u32 = 128;

/// Limit on the pages that are read or written with one call.
pub(crate) const RUN_PAGES: u32 = 256;

/// The source of the bytes of a segment.
enum Source {
    /// They are zeros.
    Zeros,
    /// Pages of an object.
    Part(PartId),
}

/// A byte range of a chunk whose bytes have one source.
struct ReadSegment {
    bytes: Range<u64>,
    source: Source,
}

/// The `whence` values of `lseek` that a filesystem handles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekWhence {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
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
                let count = (inline.len() - from).min(out.len());
                out[..count].copy_from_slice(&inline[from..from + count]);
                out[count..].fill(0);
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
            || last.bytes.end - first.bytes.start < READ_AHEAD_BYTES_MIN
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
            // A sequential reader reads the following pages next.
            let span = span.start..(span.end + READ_AHEAD_PAGES).min(CHUNK_PAGES);
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

    /// The next offset from `offset` on at which there is data, or a hole. The end of the file
    /// counts as a hole. `None` if the file has no such offset.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn seek(
        &self,
        file: &File,
        offset: u64,
        whence: SeekWhence,
    ) -> Result<Option<u64>, ObjectError> {
        let hole = whence == SeekWhence::Hole;
        self.evict_chunks(file);
        let _gate = file.gate.read();
        let size = file.size();
        if offset >= size {
            return Ok(None);
        }
        let mut at = offset;
        while at < size {
            let index = chunk_at(at);
            if let Some(next) = self.next_after_hole(file, index)? {
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

    /// If this chunk is a hole, the index of the next chunk that may hold something, or that after
    /// the end of the file. Ranges without extents are skipped by the keys of the records, not
    /// chunk by chunk.
    fn next_after_hole(&self, file: &File, index: ChunkIndex) -> Result<Option<u64>, ObjectError> {
        self.load_chunk(file, index)?;
        match file
            .state
            .lock()
            .chunks
            .get(&index)
            .map(|chunk| &chunk.extent)
        {
            Some(Extent::Hole) | None => {}
            Some(_) => return Ok(None),
        }
        let next = match index.0.checked_add(1) {
            Some(next) => self.next_chunk(file, ChunkIndex(next))?,
            None => None,
        };
        let end = file.size().div_ceil(CHUNK_BYTES);
        let next = next.map_or(end, |next| u64::from(next.0));
        Ok(Some(next.max(u64::from(index.0) + 1)))
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
