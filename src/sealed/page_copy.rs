//! A sealed file in the geometry of the metadata that receives copied pages. It may be left
//! unfinished and continued later, also by another process.
//!
//! Invariants:
//! - Page 0 in slot A is written only by [`PageCopy::finish`], when everything else is durable.
//!   Without it the file does not open as metadata.
//! - Page 0 in slot B is the *mark*: zeros, sealed when the file is begun. A file is continued only
//!   if its mark opens and consists of zeros, which shows that the file was begun under this key
//!   set and crypto id.
//! - Any other page is unreliable. It may be missing, torn or outdated; the next writer compares
//!   each page with what it should be.
//!
//! A page may be sealed several times under one sequence: each time a nonce is drawn, and the inner
//! layer needs none. The sequence is that of the commit from which the page was copied.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::geometry::{Geometry, META_PAYLOAD_BYTES, META_STRIDE_BYTES, PlainOffset, Slot};
use super::keys::FileKeys;
use super::page_bits::PageBits;
use super::run::{Opener, RunBuffer, Source, Target, run_pages};
use super::{Refusal, SealedError};
use crate::ids::{CryptoId, PageIndex, Sequence};
use crate::layers::KeySet;
use crate::store::StoreFile;

const GEOMETRY: Geometry = Geometry::Meta;

/// An unfinished copy.
pub struct PageCopy {
    file: Arc<dyn StoreFile>,
    keys: FileKeys,
    /// The pages written so far; `None` if an earlier process began the file.
    written: Option<PageBits>,
}

impl std::fmt::Debug for PageCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageCopy")
            .field("file", &self.file)
            .field("crypto", &self.keys.crypto())
            .finish_non_exhaustive()
    }
}

impl PageCopy {
    /// Begins a copy in a file, whose previous contents are discarded.
    ///
    /// # Errors
    /// When the store fails.
    pub fn begin(
        file: Arc<dyn StoreFile>,
        keys: &Arc<KeySet>,
        crypto: CryptoId,
        sequence: Sequence,
    ) -> Result<Self, SealedError> {
        file.set_len(0)?;
        file.write_in_place();
        let this = Self {
            file,
            keys: FileKeys::new(Arc::clone(keys), crypto),
            written: Some(PageBits::default()),
        };
        this.write_run(PageIndex(0), Slot::B, &[0; META_PAYLOAD_BYTES], sequence)?;
        Ok(this)
    }

    /// Continues a copy that was begun under this key set.
    ///
    /// # Errors
    /// [`SealedError::Authentication`] if its mark does not open, [`SealedError::ShortRead`] if
    /// there is no mark, [`SealedError::Io`].
    pub fn resume(
        file: Arc<dyn StoreFile>,
        keys: &Arc<KeySet>,
        crypto: CryptoId,
    ) -> Result<Self, SealedError> {
        let this = Self {
            file,
            keys: FileKeys::new(Arc::clone(keys), crypto),
            written: None,
        };
        let page = PageIndex(0);
        let mut run = RunBuffer::take(GEOMETRY, 1);
        if run.fill(&*this.file, GEOMETRY.sealed_offset(page, Slot::B)?)? < META_STRIDE_BYTES {
            return Err(SealedError::ShortRead { page });
        }
        let mut mark = [0; META_PAYLOAD_BYTES];
        let span = GEOMETRY.span(PlainOffset(0), META_PAYLOAD_BYTES, page);
        let mut opener = Opener::new(&this.keys);
        run.open(0, &mut opener, page, Slot::B, &span, &mut mark)?;
        // If another page 0 opens, the file is the one that has this crypto id, or bytes copied
        // from it. It must not be continued: two files must not be sealed under one crypto id.
        if mark != [0; META_PAYLOAD_BYTES] {
            return Err(SealedError::Authentication {
                page,
                layer: Refusal::Header,
            });
        }
        Ok(this)
    }

    /// The crypto id: its key domain.
    pub fn crypto(&self) -> CryptoId {
        self.keys.crypto()
    }

    /// True if this process began the file.
    pub const fn is_new(&self) -> bool {
        self.written.is_some()
    }

    /// Bytes allocated on the backing filesystem.
    ///
    /// # Errors
    /// When the store fails.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.info()?.allocated_bytes)
    }

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sealed_bytes(&self) -> io::Result<u64> {
        self.file.len()
    }

    /// Reads the pages from `first` on, which is not page 0, into `out`, and returns which of them
    /// exist and open. The bytes of the others in `out` are meaningless.
    ///
    /// # Errors
    /// When the store fails, even for a single page.
    pub fn read(&self, first: PageIndex, out: &mut [u8]) -> Result<Vec<bool>, SealedError> {
        let count = out.len() / META_PAYLOAD_BYTES;
        let pages = first.0..first.0 + count as u64;
        let may_exist = |page: u64| {
            let written = self.written.as_ref();
            written.is_none_or(|written| written.contains(PageIndex(page)))
        };
        let mut opens = vec![false; count];
        if !pages.clone().any(may_exist) {
            return Ok(opens);
        }
        let mut opener = Opener::new(&self.keys);
        let mut next = first;
        while next.0 < pages.end {
            let count = run_pages(next, PageIndex(pages.end));
            let mut run = RunBuffer::take(GEOMETRY, count);
            let read = run.fill(&*self.file, GEOMETRY.sealed_offset(next, Slot::A)?)?;
            for index in 0..count.min(read / META_STRIDE_BYTES) {
                let page = PageIndex(next.0 + index as u64);
                let at = (page.0 - first.0) as usize;
                let offset = PlainOffset(first.0 * META_PAYLOAD_BYTES as u64);
                let span = GEOMETRY.span(offset, out.len(), page);
                opens[at] = match run.open(index, &mut opener, page, Slot::A, &span, out) {
                    Ok(_) => true,
                    Err(SealedError::Authentication { .. }) => false,
                    Err(error) => return Err(error),
                };
            }
            next.0 += count as u64;
        }
        Ok(opens)
    }

    /// Seals whole pages and writes them from `first` on, which is not page 0.
    ///
    /// # Errors
    /// When the store fails. The pages are unreliable then.
    pub fn write(
        &mut self,
        first: PageIndex,
        data: &[u8],
        sequence: Sequence,
    ) -> Result<(), SealedError> {
        let end = first.0 + (data.len() / META_PAYLOAD_BYTES) as u64;
        if first.0 == 0 {
            return Err(SealedError::OutOfRange);
        }
        let (mut next, mut rest) = (first, data);
        while next.0 < end {
            let count = run_pages(next, PageIndex(end));
            let (run, after) = rest.split_at(count * META_PAYLOAD_BYTES);
            self.write_run(next, Slot::A, run, sequence)?;
            next.0 += count as u64;
            rest = after;
        }
        if let Some(written) = &mut self.written {
            written.add(first.0..end);
        }
        Ok(())
    }

    fn write_run(
        &self,
        first: PageIndex,
        slot: Slot,
        data: &[u8],
        sequence: Sequence,
    ) -> Result<(), SealedError> {
        let mut run = RunBuffer::take(GEOMETRY, data.len() / META_PAYLOAD_BYTES);
        let target = Target {
            first,
            slot,
            sequence,
        };
        let sealed = run.seal(&self.keys, target, |index| {
            Source::Elsewhere(&data[index * META_PAYLOAD_BYTES..][..META_PAYLOAD_BYTES])
        })?;
        Ok(sealed.write(&*self.file)?)
    }

    /// Punches pages that the copy does not contain, if the backing filesystem can.
    ///
    /// # Errors
    /// When the store fails.
    pub fn discard(&self, pages: Range<PageIndex>) -> Result<(), SealedError> {
        let start = GEOMETRY.sealed_offset(pages.start, Slot::A)?.0;
        let end = GEOMETRY.sealed_offset(pages.end, Slot::A)?.0;
        Ok(self.file.punch(start, end.saturating_sub(start))?)
    }

    /// Truncates the file to at most this many pages. The length of a continued file is not
    /// trusted.
    ///
    /// # Errors
    /// When the store fails.
    pub fn truncate(&self, pages: u64) -> Result<(), SealedError> {
        let len = GEOMETRY.sealed_len(pages.max(1))?;
        if self.file.len()? > len {
            self.file.set_len(len)?;
        }
        Ok(())
    }

    /// Number of whole pages in the file, including page 0.
    ///
    /// # Errors
    /// When the store fails.
    pub fn pages(&self) -> io::Result<u64> {
        Ok(GEOMETRY.whole_pages(self.file.len()?))
    }

    /// `fdatasync`.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Writes page 0 under the sequence of the commit that everything else belongs to. On return it
    /// is durable, and so is everything before it.
    ///
    /// # Errors
    /// When the store fails. The copy is unfinished then.
    pub fn finish(&self, page_0: &[u8], sequence: Sequence) -> Result<(), SealedError> {
        self.sync()?;
        self.write_run(PageIndex(0), Slot::A, page_0, sequence)?;
        Ok(self.sync()?)
    }
}
