//! Runs: adjacent pages that are written or read with one call.
//!
//! A run has at most [`RUN_PAGES`] pages, all in one segment. Its buffer comes from a pool shared
//! by all files and threads, so nothing is allocated per page. Whole pages are encrypted from the
//! caller's bytes and decrypted into them. A buffer that has held plaintext (of a page that is
//! covered in part) is wiped before it returns to the pool.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use zeroize::Zeroize;

use super::geometry::{Geometry, HEADER_BYTES, META_STRIDE_BYTES, SealedOffset, Slot, Span};
use super::keys::{FileKeys, SegmentKeys};
use super::page::{Nonce, OuterOpened, PageContext, Plain, Received, Sealed};
use super::{Refusal, SealedError};
use crate::ids::{PageIndex, Sequence};
use crate::layers::derivation::SEGMENT_PAGES;
use crate::layers::{Segment, TAG_BYTES};
use crate::store::StoreFile;
use crate::sys::wipe::StackWipe;

/// Limit on the pages of one call.
pub(super) const RUN_PAGES: usize = 256;

/// Limit on the pooled buffers; more exist only while more threads need them at once.
const POOLED_BUFFERS: usize = 8;

static POOL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Number of pages of the next run, from `first` on and before `end`.
pub(super) fn run_pages(first: PageIndex, end: PageIndex) -> usize {
    let to_segment_end = SEGMENT_PAGES - first.0 % SEGMENT_PAGES;
    let pages = (end.0 - first.0).min(to_segment_end).min(RUN_PAGES as u64);
    pages as usize
}

/// A buffer for one run.
pub(super) struct RunBuffer {
    bytes: Box<[u8]>,
    geometry: Geometry,
    pages: usize,
    holds_plaintext: bool,
}

impl RunBuffer {
    /// A buffer for this many pages, at most [`RUN_PAGES`].
    pub(super) fn take(geometry: Geometry, pages: usize) -> Self {
        let pooled = POOL.lock().pop();
        Self {
            bytes: pooled.unwrap_or_else(|| vec![0; RUN_PAGES * META_STRIDE_BYTES].into()),
            geometry,
            pages: pages.min(RUN_PAGES),
            holds_plaintext: false,
        }
    }

    fn used(&mut self) -> &mut [u8] {
        let used = self.pages * self.geometry.stride_bytes();
        &mut self.bytes[..used]
    }

    fn page(&mut self, index: usize) -> &mut [u8] {
        let start = index * self.geometry.stride_bytes();
        &mut self.bytes[start..start + self.geometry.page_bytes()]
    }

    /// The buffer for the plaintext of a page that the caller's bytes cover in part.
    pub(super) fn payload(&mut self, index: usize) -> &mut [u8] {
        self.holds_plaintext = true;
        &mut self.page(index)[HEADER_BYTES..]
    }

    /// Reads the run. Returns the number of bytes read, which is smaller at the end of the file.
    pub(super) fn fill(&mut self, file: &dyn StoreFile, from: SealedOffset) -> io::Result<usize> {
        file.read_at(self.used(), from.0)
    }

    /// Opens a page that [`fill`](Self::fill) has read and copies its span into `out`, the caller's
    /// whole buffer.
    pub(super) fn open(
        &mut self,
        index: usize,
        opener: &mut Opener<'_>,
        page: PageIndex,
        slot: Slot,
        span: &Span,
        out: &mut [u8],
    ) -> Result<Opened, SealedError> {
        let geometry = self.geometry;
        let refused = |layer| SealedError::Authentication { page, layer };
        let (opened, keys) = opener.outer(self.page(index), page, slot)?;
        let result = Opened {
            sequence: opened.sequence(),
            outer_tag: opened.outer_tag,
        };
        let out = &mut out[span.caller.clone()];
        if span.is_whole(geometry) {
            opened.open_customer_into(&keys, out).map_err(refused)?;
        } else {
            let payload = opened.open_customer(&keys).map_err(refused)?;
            out.copy_from_slice(&payload[span.within.clone()]);
            payload.zeroize();
        }
        Ok(result)
    }

    /// Verifies both layers of every page of a run of contents that starts at `first`, without
    /// decrypting the inner layer. The buffer's contents are useless afterwards.
    fn verify(&mut self, opener: &mut Opener<'_>, first: PageIndex) -> Result<(), SealedError> {
        for index in 0..self.pages {
            self.verify_page(index, opener, PageIndex(first.0 + index as u64))?;
        }
        Ok(())
    }

    /// Verifies both layers of one page of the run.
    pub(super) fn verify_page(
        &mut self,
        index: usize,
        opener: &mut Opener<'_>,
        page: PageIndex,
    ) -> Result<(), SealedError> {
        let (opened, keys) = opener.outer(self.page(index), page, Slot::A)?;
        opened
            .verify_customer(&keys)
            .map_err(|layer| SealedError::Authentication { page, layer })
    }

    /// Verifies both layers of pages that were sealed elsewhere, as many as the run has.
    pub(super) fn verify_received<'data>(
        &mut self,
        sealed: &'data [u8],
        opener: &mut Opener<'_>,
        first: PageIndex,
    ) -> Result<VerifiedRun<'data>, SealedError> {
        self.used().copy_from_slice(sealed);
        self.verify(opener, first)?;
        Ok(VerifiedRun(sealed))
    }

    /// Seals all pages. `source` returns where the plaintext of each page is.
    pub(super) fn seal<'data>(
        &mut self,
        keys: &FileKeys,
        target: Target,
        source: impl Fn(usize) -> Source<'data>,
    ) -> Result<SealedRun<'_>, SealedError> {
        let _wipe = StackWipe;
        let segment = keys.of_page(target.first)?;
        let mut nonces = [Nonce::default(); RUN_PAGES];
        let nonces = &mut nonces[..self.pages];
        getrandom::fill(nonces.as_flattened_mut())
            .map_err(|error| SealedError::Nonce(io::Error::other(error.to_string())))?;

        let offset = self.geometry.sealed_offset(target.first, target.slot)?;
        let mut first_tag = None;
        for (index, nonce) in nonces.iter().enumerate() {
            let context = PageContext {
                key_set: segment.key_set,
                crypto: keys.crypto(),
                page: PageIndex(target.first.0 + index as u64),
                slot: target.slot,
                epoch: segment.epoch,
                sequence: target.sequence,
            };
            let page = self.page(index);
            let plain = match source(index) {
                Source::InPlace => Plain::in_place(page),
                Source::Elsewhere(payload) => Plain::from_elsewhere(page, payload),
            };
            let sealed: Sealed<'_> = plain
                .seal_customer(&segment, &context)
                .and_then(|sealed| sealed.seal_infrastructure(&segment, nonce))
                .ok_or(SealedError::Cipher { page: context.page })?;
            first_tag.get_or_insert(sealed.outer_tag());
        }
        self.holds_plaintext = false;
        self.clear_padding();
        Ok(SealedRun {
            bytes: self.used(),
            offset,
            first_tag: first_tag.unwrap_or_default(),
        })
    }

    /// Writes zeros between the pages, since a pooled buffer may hold anything.
    fn clear_padding(&mut self) {
        let (page, stride) = (self.geometry.page_bytes(), self.geometry.stride_bytes());
        if page < stride {
            for page_and_padding in self.used().chunks_exact_mut(stride) {
                page_and_padding[page..].fill(0);
            }
        }
    }
}

impl Drop for RunBuffer {
    fn drop(&mut self) {
        if self.holds_plaintext {
            self.used().zeroize();
        }
        let bytes = std::mem::take(&mut self.bytes);
        let mut pool = POOL.lock();
        if pool.len() < POOLED_BUFFERS {
            pool.push(bytes);
        }
    }
}

/// Position and sequence under which a run is sealed.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) first: PageIndex,
    pub(super) slot: Slot,
    pub(super) sequence: Sequence,
}

/// Where the plaintext of a page is.
pub(super) enum Source<'a> {
    /// In the run's buffer.
    InPlace,
    /// In the caller's buffer: a whole payload.
    Elsewhere(&'a [u8]),
}

/// The header of an opened page, authenticated by both layers.
#[derive(Clone, Copy)]
pub(super) struct Opened {
    pub(super) sequence: Sequence,
    pub(super) outer_tag: [u8; TAG_BYTES],
}

/// A run whose pages are all sealed by both layers.
pub(super) struct SealedRun<'a> {
    bytes: &'a [u8],
    offset: SealedOffset,
    first_tag: [u8; TAG_BYTES],
}

/// A run that was sealed elsewhere and whose pages were all verified under both layers.
pub(super) struct VerifiedRun<'a>(&'a [u8]);

impl VerifiedRun<'_> {
    /// Writes the run unchanged.
    pub(super) fn write(&self, file: &dyn StoreFile, at: SealedOffset) -> io::Result<()> {
        file.write_at(self.0, at.0)
    }
}

impl SealedRun<'_> {
    /// Writes the run. This and [`VerifiedRun::write`] are the only places that write to a sealed
    /// file.
    pub(super) fn write(&self, file: &dyn StoreFile) -> io::Result<()> {
        file.write_at(self.bytes, self.offset.0)
    }

    /// The run as it would be written.
    pub(super) const fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// The outer tag of the run's first page.
    pub(super) const fn first_tag(&self) -> [u8; TAG_BYTES] {
        self.first_tag
    }
}

/// Looks up the keys of successive pages, which mostly have the same keys.
pub(super) struct Opener<'a> {
    keys: &'a FileKeys,
    last: Option<Arc<SegmentKeys>>,
    /// Wipes what the ciphers leave on the stack.
    _wipe: StackWipe,
}

impl<'a> Opener<'a> {
    pub(super) const fn new(keys: &'a FileKeys) -> Self {
        Self {
            keys,
            last: None,
            _wipe: StackWipe,
        }
    }

    /// Opens the outer layer of a page.
    fn outer<'page>(
        &mut self,
        bytes: &'page mut [u8],
        page: PageIndex,
        slot: Slot,
    ) -> Result<(OuterOpened<'page>, Arc<SegmentKeys>), SealedError> {
        let refused = |layer| SealedError::Authentication { page, layer };
        let received = Received::parse(bytes).map_err(refused)?;
        // The opener determines the key set, never the page.
        if received.epoch() != self.keys.epoch() {
            return Err(refused(Refusal::Header));
        }
        let keys = self.segment(page)?;
        let opened = received
            .open_infrastructure(&keys, self.keys.crypto(), page, slot)
            .map_err(refused)?;
        Ok((opened, keys))
    }

    fn segment(&mut self, page: PageIndex) -> Result<Arc<SegmentKeys>, SealedError> {
        match &self.last {
            Some(keys) if keys.segment == Segment::of(page) => Ok(Arc::clone(keys)),
            _ => {
                let keys = self.keys.of_page(page)?;
                self.last = Some(Arc::clone(&keys));
                Ok(keys)
            }
        }
    }
}
