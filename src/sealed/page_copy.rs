//! A sealed file in the geometry of the metadata into which pages of another one are copied, and
//! which may be left unfinished and taken up again later, by another process too.
//!
//! Invariants:
//! - Page 0 in slot A is written by [`PageCopy::finish`] alone, when everything else is durable.
//!   Without it the file is no copy of anything.
//! - Page 0 in slot B is the *mark*: zeros, sealed when the file is begun. Only a file whose mark
//!   opens and is zeros is taken up again: it shows that the file was begun under this key set and
//!   crypto id.
//! - Any other page is of no worth by itself. It may be missing, torn or of an earlier time; whoever
//!   goes on compares each with what it is to be.
//!
//! A page may be sealed several times under one sequence: the nonce is drawn for each, and the
//! inner layer has none to repeat. The sequence says which commit the page was copied from.

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

/// A copy in the making.
pub struct PageCopy {
    file: Arc<dyn StoreFile>,
    keys: FileKeys,
    /// Pages that were written, where the file was begun by this process.
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
    /// Begins one in a file, of which nothing stays.
    ///
    /// # Errors
    /// Those of the store.
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

    /// Goes on with one that was begun under this key set.
    ///
    /// # Errors
    /// [`SealedError::Authentication`] when its mark does not open, [`SealedError::ShortRead`] when
    /// there is none, [`SealedError::Io`].
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
        // Any other page 0 that opens is not of a copy, but of the file that has this crypto id:
        // two files must not be sealed under one.
        if mark != [0; META_PAYLOAD_BYTES] {
            return Err(SealedError::Authentication {
                page,
                layer: Refusal::Header,
            });
        }
        Ok(this)
    }

    /// Domain of its keys.
    pub fn crypto(&self) -> CryptoId {
        self.keys.crypto()
    }

    /// True where this process has begun it, and nothing was written but what it wrote.
    pub const fn is_new(&self) -> bool {
        self.written.is_some()
    }

    /// Bytes that it takes on the backing filesystem.
    ///
    /// # Errors
    /// Those of the store.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.info()?.allocated_bytes)
    }

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// Those of the store.
    pub fn sealed_bytes(&self) -> io::Result<u64> {
        self.file.len()
    }

    /// Fills `out` with the pages from `first` on, not page 0, and says which of them are there and
    /// open. What `out` has of the others says nothing.
    ///
    /// # Errors
    /// Those of the store, also for one page alone.
    pub fn read(&self, first: PageIndex, out: &mut [u8]) -> Result<Vec<bool>, SealedError> {
        let count = out.len() / META_PAYLOAD_BYTES;
        let pages = first.0..first.0 + count as u64;
        let may_be_there = |page: u64| {
            let written = self.written.as_ref();
            written.is_none_or(|written| written.contains(PageIndex(page)))
        };
        let mut opens = vec![false; count];
        if !pages.clone().any(may_be_there) {
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
    /// Those of the store. The pages are of no worth then.
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

    /// Gives pages back that the copy does not have, as far as the backing filesystem can.
    ///
    /// # Errors
    /// Those of the store.
    pub fn discard(&self, pages: Range<PageIndex>) -> Result<(), SealedError> {
        let start = GEOMETRY.sealed_offset(pages.start, Slot::A)?.0;
        let end = GEOMETRY.sealed_offset(pages.end, Slot::A)?.0;
        Ok(self.file.punch(start, end.saturating_sub(start))?)
    }

    /// Cuts off what lies behind so many pages. The length of a file that is taken up again is
    /// whatever somebody has made it.
    ///
    /// # Errors
    /// Those of the store.
    pub fn truncate(&self, pages: u64) -> Result<(), SealedError> {
        let len = GEOMETRY.sealed_len(pages.max(1))?;
        if self.file.len()? > len {
            self.file.set_len(len)?;
        }
        Ok(())
    }

    /// Pages that the file is long enough for, page 0 among them.
    ///
    /// # Errors
    /// Those of the store.
    pub fn pages(&self) -> io::Result<u64> {
        Ok(GEOMETRY.whole_pages(self.file.len()?))
    }

    /// `fdatasync`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Writes page 0, under the sequence of the commit that everything else is of. Durable on
    /// return, with everything before it.
    ///
    /// # Errors
    /// Those of the store. It is unfinished then.
    pub fn finish(&self, page_0: &[u8], sequence: Sequence) -> Result<(), SealedError> {
        self.sync()?;
        self.write_run(PageIndex(0), Slot::A, page_0, sequence)?;
        Ok(self.sync()?)
    }
}
