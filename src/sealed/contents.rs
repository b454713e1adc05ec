//! Objects with contents: pages of 4096 bytes, each rewritten in place as a whole.
//!
//! One page is the unit of atomicity: an interrupted overwrite leaves the old page or the new one,
//! both authentic. Which pages are present is known to the caller (from the extents in `meta`); a
//! page that is read here must exist and open.
//!
//! The kernel reports a failed write once, to a sync of the descriptor through which it was
//! written. So the object tracks whether it has been written since its last sync
//! ([`ContentsFile::is_unsynced`]), and must not be closed before the next one. Syncs of one object
//! exclude each other, and after a failed one all later ones fail.
//!
//! Locks: every call takes a guard for the pages that it accesses. A read-modify-write holds one
//! exclusive guard throughout.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::geometry::{Geometry, PlainOffset, Slot};
use super::keys::FileKeys;
use super::range_lock::{PageGuard, RangeLocks};
use super::run::{Opener, RunBuffer, Source, Target, run_pages};
use super::{PAGE_BYTES, PAYLOAD_BYTES, SealedError};
use crate::errno::Errno;
use crate::ids::{CryptoId, PageIndex, Sequence};
use crate::layers::KeySet;
use crate::planted::{Bug, planted};
use crate::store::{StoreFile, os_error};

const GEOMETRY: Geometry = Geometry::Contents;

/// Provides the old plaintext of a page that is about to be partly overwritten.
pub type OldPlaintext<'a> =
    dyn FnMut(PageIndex, &mut [u8; PAYLOAD_BYTES]) -> Result<(), SealedError> + 'a;

/// Random access to one contents object. All offsets are plain byte offsets within the object.
pub struct ContentsFile {
    file: Arc<dyn StoreFile>,
    keys: FileKeys,
    locks: RangeLocks,
    /// Number of finished calls that may have written something.
    writes: AtomicU64,
    /// Number of these calls that a successful sync covers.
    durable_writes: AtomicU64,
    /// Held during a sync; true after a failed one.
    sync_failed: Mutex<bool>,
}

/// Counts a call that may write, when it ends, whether it succeeded or not.
struct Writing<'a>(&'a AtomicU64);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for ContentsFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentsFile")
            .field("file", &self.file)
            .field("crypto", &self.keys.crypto())
            .finish_non_exhaustive()
    }
}

impl ContentsFile {
    /// Opens the object in `file` under one key set. Derives the keys of its first 2048 pages now
    /// and others on demand. If a derivation fails, the first read or write reports it.
    pub fn new(file: Arc<dyn StoreFile>, keys: &Arc<KeySet>, crypto: CryptoId) -> Self {
        Self {
            file,
            keys: FileKeys::new(Arc::clone(keys), crypto),
            locks: RangeLocks::default(),
            writes: AtomicU64::new(0),
            durable_writes: AtomicU64::new(0),
            sync_failed: Mutex::new(false),
        }
    }

    /// The backing file.
    pub fn file(&self) -> &Arc<dyn StoreFile> {
        &self.file
    }

    /// Locks the pages for reading.
    pub fn lock_shared(&self, pages: Range<PageIndex>) -> PageGuard<'_> {
        self.locks.lock_shared(pages)
    }

    /// Locks the pages for writing.
    pub fn lock_exclusive(&self, pages: Range<PageIndex>) -> PageGuard<'_> {
        self.locks.lock_exclusive(pages)
    }

    /// The pages that a byte range overlaps, which are the pages to lock.
    ///
    /// # Errors
    /// [`SealedError::OutOfRange`] if the end overflows.
    pub fn pages(offset: u64, len_bytes: usize) -> Result<Range<PageIndex>, SealedError> {
        GEOMETRY.pages(PlainOffset(offset), len_bytes)
    }

    /// Starts reading pages ahead. Does not wait and needs no lock.
    pub fn will_need(&self, pages: &Range<PageIndex>) {
        if let (Ok(start), Ok(end)) = (
            GEOMETRY.sealed_offset(pages.start, Slot::A),
            GEOMETRY.sealed_offset(pages.end, Slot::A),
        ) {
            self.file.will_need(start.0, end.0.saturating_sub(start.0));
        }
    }

    /// Reads into `out` from `offset`. Every overlapped page must exist and open.
    ///
    /// # Errors
    /// [`SealedError::Authentication`], [`SealedError::ShortRead`], [`SealedError::Io`]. The
    /// contents of `out` are unspecified then, but never anything except this object's own bytes.
    pub fn read_at(
        &self,
        guard: &PageGuard<'_>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), SealedError> {
        let offset = PlainOffset(offset);
        let pages = GEOMETRY.pages(offset, out.len())?;
        self.check_locked(guard, &pages)?;
        let mut opener = Opener::new(&self.keys);
        let mut next = pages.start;
        while next < pages.end {
            let count = run_pages(next, pages.end);
            let mut run = RunBuffer::take(GEOMETRY, count);
            let read = run.fill(&*self.file, GEOMETRY.sealed_offset(next, Slot::A)?)?;
            for index in 0..count {
                let page = PageIndex(next.0 + index as u64);
                if read < (index + 1) * PAGE_BYTES {
                    return Err(SealedError::ShortRead { page });
                }
                let span = GEOMETRY.span(offset, out.len(), page);
                run.open(index, &mut opener, page, Slot::A, &span, out)?;
            }
            next.0 += count as u64;
        }
        Ok(())
    }

    /// Seals and writes every page that `data` overlaps, at most 256 with one call of the store.
    /// For a partly covered page, `base` is called first to provide the page's old plaintext.
    ///
    /// # Errors
    /// Errors of `base`, [`SealedError::Io`], [`SealedError::Nonce`]. Pages of earlier runs are
    /// written then; those of the failed run may be.
    pub fn write_at(
        &self,
        guard: &PageGuard<'_>,
        offset: u64,
        data: &[u8],
        sequence: Sequence,
        base: &mut OldPlaintext<'_>,
    ) -> Result<(), SealedError> {
        let offset = PlainOffset(offset);
        let pages = GEOMETRY.pages(offset, data.len())?;
        self.check_exclusive(guard, &pages)?;
        let _writing = Writing(&self.writes);
        let mut next = pages.start;
        while next < pages.end {
            let count = run_pages(next, pages.end);
            let span_of = |index: usize| {
                let page = PageIndex(next.0 + index as u64);
                (page, GEOMETRY.span(offset, data.len(), page))
            };
            let mut run = RunBuffer::take(GEOMETRY, count);
            for index in 0..count {
                let (page, span) = span_of(index);
                if span.is_whole(GEOMETRY) {
                    continue;
                }
                if let Some(payload) = run.payload(index).first_chunk_mut() {
                    base(page, payload)?;
                    payload[span.within].copy_from_slice(&data[span.caller]);
                }
            }
            let target = Target {
                first: next,
                slot: Slot::A,
                sequence,
            };
            let sealed = run.seal(&self.keys, target, |index| {
                let (_, span) = span_of(index);
                if span.is_whole(GEOMETRY) {
                    Source::Elsewhere(&data[span.caller])
                } else {
                    Source::InPlace
                }
            })?;
            sealed.write(&*self.file)?;
            next.0 += count as u64;
        }
        Ok(())
    }

    /// Verifies both layers of pages, and calls `refused` for each page that is not the expected
    /// page of this object or could not be read. No plaintext is left behind.
    ///
    /// # Errors
    /// [`SealedError::NotLocked`] if the pages are not locked, and [`SealedError::OutOfRange`] for
    /// pages beyond the largest file.
    pub fn verify(
        &self,
        guard: &PageGuard<'_>,
        pages: Range<PageIndex>,
        refused: &mut dyn FnMut(PageIndex, SealedError),
    ) -> Result<(), SealedError> {
        self.check_locked(guard, &pages)?;
        let mut opener = Opener::new(&self.keys);
        let mut next = pages.start;
        while next < pages.end {
            let mut count = run_pages(next, pages.end);
            let mut run = RunBuffer::take(GEOMETRY, count);
            let offset = GEOMETRY.sealed_offset(next, Slot::A)?;
            let mut read = run.fill(&*self.file, offset);
            if read.is_err() && count > 1 {
                // An unreadable page does not prevent the others from being verified.
                count = 1;
                run = RunBuffer::take(GEOMETRY, count);
                read = run.fill(&*self.file, offset);
            }
            match read {
                Ok(read) => {
                    for index in 0..count {
                        let page = PageIndex(next.0 + index as u64);
                        let verified = if read < (index + 1) * PAGE_BYTES {
                            Err(SealedError::ShortRead { page })
                        } else {
                            run.verify_page(index, &mut opener, page)
                        };
                        if let Err(error) = verified {
                            refused(page, error);
                        }
                    }
                }
                Err(error) => refused(next, error.into()),
            }
            next.0 += count as u64;
        }
        Ok(())
    }

    /// Writes pages that were sealed for this object elsewhere, unchanged. Each run is written
    /// after both layers of all its pages were verified.
    ///
    /// # Errors
    /// Errors of verifying and writing the pages; [`SealedError::OutOfRange`] if `sealed` does not
    /// consist of that number of whole pages.
    pub fn write_sealed(
        &self,
        guard: &PageGuard<'_>,
        pages: Range<PageIndex>,
        sealed: &[u8],
    ) -> Result<(), SealedError> {
        self.check_exclusive(guard, &pages)?;
        check_length(&pages, sealed)?;
        let _writing = Writing(&self.writes);
        let mut opener = Opener::new(&self.keys);
        let (mut next, mut sealed) = (pages.start, sealed);
        while next < pages.end {
            let count = run_pages(next, pages.end);
            let (now, later) = sealed.split_at(count * PAGE_BYTES);
            let mut run = RunBuffer::take(GEOMETRY, count);
            let verified = run.verify_received(now, &mut opener, next)?;
            verified.write(&*self.file, GEOMETRY.sealed_offset(next, Slot::A)?)?;
            next.0 += count as u64;
            sealed = later;
        }
        Ok(())
    }

    /// Truncates the file to this many pages; a shorter file is unchanged. `guard` must be
    /// exclusive and cover all removed pages.
    ///
    /// # Errors
    /// [`SealedError::Io`] if the store fails, and [`SealedError::NotLocked`].
    pub fn set_len_pages(&self, guard: &PageGuard<'_>, pages: u64) -> Result<(), SealedError> {
        let now_bytes = self.file.len()?;
        let now_pages = now_bytes.div_ceil(PAGE_BYTES as u64);
        let removed = PageIndex(pages)..PageIndex(now_pages.max(pages));
        self.check_exclusive(guard, &removed)?;
        let len_bytes = GEOMETRY.sealed_len(pages)?;
        if len_bytes < now_bytes {
            self.file.set_len(len_bytes)?;
        }
        Ok(())
    }

    /// Punches the pages, which do not open afterwards. `guard` must be exclusive and cover them.
    ///
    /// # Errors
    /// [`SealedError::Io`] if the store fails, and [`SealedError::NotLocked`].
    pub fn punch(&self, guard: &PageGuard<'_>, pages: Range<PageIndex>) -> Result<(), SealedError> {
        self.check_exclusive(guard, &pages)?;
        if pages.is_empty() {
            return Ok(());
        }
        let start = GEOMETRY.sealed_offset(pages.start, Slot::A)?;
        let end = GEOMETRY.sealed_offset(pages.end, Slot::A)?;
        Ok(self.file.punch(start.0, end.0 - start.0)?)
    }

    /// Preallocates space for the pages, so that writing them needs no more. The file becomes at
    /// least long enough to contain them, so that [`Self::punch`] frees the space. `guard` must be
    /// exclusive and cover the pages and all that may follow them: nobody else may extend the file
    /// meanwhile.
    ///
    /// # Errors
    /// [`SealedError::Io`] if the store fails, and [`SealedError::NotLocked`].
    pub fn reserve(
        &self,
        guard: &PageGuard<'_>,
        pages: Range<PageIndex>,
    ) -> Result<(), SealedError> {
        self.check_exclusive(guard, &pages)?;
        let start = GEOMETRY.sealed_offset(pages.start, Slot::A)?;
        let end = GEOMETRY.sealed_offset(pages.end, Slot::A)?;
        let _writing = Writing(&self.writes);
        self.file.reserve(start.0, end.0 - start.0)?;
        if self.file.len()? < end.0 {
            self.file.set_len(end.0)?;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`SealedError::Io`]; data written since the last success may be lost then.
    pub fn sync(&self) -> Result<(), SealedError> {
        let mut failed = self.sync_failed.lock();
        if *failed && !planted(Bug::FailedSyncForgotten) {
            return Err(os_error(Errno::EIO).into());
        }
        let covered = self.writes();
        if let Err(error) = self.file.sync() {
            *failed = true;
            return Err(error.into());
        }
        self.mark_synced(covered);
        Ok(())
    }

    /// True if something was written that no sync has covered. Closing the object now might hide a
    /// failed write. Punched pages do not count.
    pub fn is_unsynced(&self) -> bool {
        self.durable_writes.load(Ordering::SeqCst) != self.writes()
    }

    /// Number of writes so far, which a sync of the whole store that begins now covers.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Records that a sync of the whole store covered this many writes.
    pub fn mark_synced(&self, writes: u64) {
        self.durable_writes.fetch_max(writes, Ordering::SeqCst);
    }

    fn check_locked(
        &self,
        guard: &PageGuard<'_>,
        pages: &Range<PageIndex>,
    ) -> Result<(), SealedError> {
        let covers = guard.covers(&self.locks, pages);
        covers.then_some(()).ok_or(SealedError::NotLocked)
    }

    fn check_exclusive(
        &self,
        guard: &PageGuard<'_>,
        pages: &Range<PageIndex>,
    ) -> Result<(), SealedError> {
        self.check_locked(guard, pages)?;
        let is_exclusive = guard.is_exclusive();
        is_exclusive.then_some(()).ok_or(SealedError::NotLocked)
    }
}

fn check_length(pages: &Range<PageIndex>, bytes: &[u8]) -> Result<(), SealedError> {
    let count = pages.end.0.saturating_sub(pages.start.0);
    let fits = count.checked_mul(PAGE_BYTES as u64) == Some(bytes.len() as u64);
    fits.then_some(()).ok_or(SealedError::OutOfRange)
}
