//! Positions of plain bytes in sealed files: pure arithmetic for both geometries.
//!
//! ```text
//! contents   page i at i · 4096                      64 header, 4032 payload
//! meta       slot A of page 0 at 0, slot B at 4608
//!            page i ≥ 1 at (i + 1) · 4608            64 header, 4096 payload, 448 zero
//! ```
//! Plain and sealed offsets are different types. Everything that could overflow is checked, since
//! offsets come from callers.

use std::ops::Range;

use super::SealedError;
use crate::ids::PageIndex;

/// Bytes of a page's header, in both geometries.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes of a page of contents on disk.
pub const PAGE_BYTES: usize = 4096;
/// Plain bytes of a page of contents.
pub const PAYLOAD_BYTES: usize = PAGE_BYTES - HEADER_BYTES;
/// Distance between two `meta` pages on disk: nine sectors of 512 bytes, so that no page shares a
/// sector with its neighbour.
pub const META_STRIDE_BYTES: usize = 4608;
/// Plain bytes of a `meta` page: one page of the database.
pub const META_PAYLOAD_BYTES: usize = 4096;

const _: () = assert!(PAYLOAD_BYTES == 4032 && PAYLOAD_BYTES.is_multiple_of(16));
const _: () =
    assert!(META_PAYLOAD_BYTES.is_multiple_of(16) && META_STRIDE_BYTES.is_multiple_of(512));
const _: () = assert!(HEADER_BYTES + META_PAYLOAD_BYTES <= META_STRIDE_BYTES);

/// Offset of a byte of plaintext within its sealed file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PlainOffset(pub(super) u64);

/// Offset of a byte within the backing file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SealedOffset(pub(super) u64);

/// One of the two positions of `meta`'s page 0. Every other page is in slot A.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The other slot.
    pub(super) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 0 or 1, as it is authenticated and as it indexes an array.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// The layout of the pages of a sealed file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Geometry {
    /// Objects with contents.
    Contents,
    /// The metadata database.
    Meta,
}

impl Geometry {
    /// Plain bytes of a page.
    pub(super) const fn payload_bytes(self) -> usize {
        match self {
            Self::Contents => PAYLOAD_BYTES,
            Self::Meta => META_PAYLOAD_BYTES,
        }
    }

    /// Distance between two pages on disk.
    pub(super) const fn stride_bytes(self) -> usize {
        match self {
            Self::Contents => PAGE_BYTES,
            Self::Meta => META_STRIDE_BYTES,
        }
    }

    /// Bytes of header and payload, without the zeros after them.
    pub(super) const fn page_bytes(self) -> usize {
        HEADER_BYTES + self.payload_bytes()
    }

    /// Offset of a page on disk.
    ///
    /// # Errors
    /// [`SealedError::OutOfRange`] if the offset overflows.
    pub(super) fn sealed_offset(
        self,
        page: PageIndex,
        slot: Slot,
    ) -> Result<SealedOffset, SealedError> {
        let position = match (self, page.0) {
            (Self::Contents, index) => Some(index),
            (Self::Meta, 0) => Some(u64::from(slot.number())),
            (Self::Meta, index) => index.checked_add(1),
        };
        position
            .and_then(|position| position.checked_mul(self.stride_bytes() as u64))
            // The kernel uses signed file offsets.
            .filter(|offset| *offset <= i64::MAX as u64 - (1 << 32))
            .map(SealedOffset)
            .ok_or(SealedError::OutOfRange)
    }

    /// Length on disk of a file of this many pages.
    ///
    /// # Errors
    /// [`SealedError::OutOfRange`] if the length overflows.
    pub(super) fn sealed_len(self, pages: u64) -> Result<u64, SealedError> {
        if pages == 0 {
            return Ok(0);
        }
        self.sealed_offset(PageIndex(pages), Slot::A)
            .map(|end| end.0)
    }

    /// Number of whole pages in a file of this length on disk. Bytes after the last whole page come
    /// from an interrupted write.
    pub(super) const fn whole_pages(self, sealed_len: u64) -> u64 {
        let strides = sealed_len / self.stride_bytes() as u64;
        match self {
            Self::Contents => strides,
            Self::Meta => strides.saturating_sub(1),
        }
    }

    /// The pages that a range of plain bytes overlaps.
    ///
    /// # Errors
    /// [`SealedError::OutOfRange`] if the end overflows.
    pub(super) fn pages(
        self,
        offset: PlainOffset,
        len: usize,
    ) -> Result<Range<PageIndex>, SealedError> {
        let payload = self.payload_bytes() as u64;
        let end = offset
            .0
            .checked_add(len as u64)
            .ok_or(SealedError::OutOfRange)?;
        let first = offset.0 / payload;
        let end = if len == 0 {
            first
        } else {
            end.div_ceil(payload)
        };
        Ok(PageIndex(first)..PageIndex(end))
    }

    /// The part of one page that a range of plain bytes overlaps. The page must be one of
    /// [`pages`](Self::pages).
    pub(super) fn span(self, offset: PlainOffset, len: usize, page: PageIndex) -> Span {
        let payload = self.payload_bytes() as u64;
        let page_start = page.0 * payload;
        let start = offset.0.max(page_start);
        let end = (offset.0 + len as u64).min(page_start + payload).max(start);
        // Both differences are at most the length of a page or of the caller's buffer.
        let within = (start - page_start) as usize..(end - page_start) as usize;
        let caller = (start - offset.0) as usize..(end - offset.0) as usize;
        Span { within, caller }
    }
}

/// The overlap of a page and of a caller's range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// Bytes of the page's payload.
    pub(super) within: Range<usize>,
    /// The same bytes in the caller's buffer.
    pub(super) caller: Range<usize>,
}

impl Span {
    /// True if the range covers the whole page.
    pub(super) fn is_whole(&self, geometry: Geometry) -> bool {
        self.within == (0..geometry.payload_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn offsets_on_disk() {
        let at = |geometry: Geometry, page, slot| {
            geometry
                .sealed_offset(PageIndex(page), slot)
                .map(|offset| offset.0)
                .ok()
        };
        assert_eq!(at(Geometry::Contents, 3, Slot::A), Some(3 * 4096));
        assert_eq!(at(Geometry::Meta, 0, Slot::A), Some(0));
        assert_eq!(at(Geometry::Meta, 0, Slot::B), Some(4608));
        assert_eq!(at(Geometry::Meta, 1, Slot::A), Some(2 * 4608));
        assert_eq!(at(Geometry::Contents, u64::MAX, Slot::A), None);
        assert_eq!(at(Geometry::Meta, u64::MAX, Slot::A), None);
        assert_eq!(at(Geometry::Contents, (1 << 51) - 1, Slot::A), None);
    }

    #[test]
    fn lengths_on_disk() {
        for pages in 0..10 {
            for geometry in [Geometry::Contents, Geometry::Meta] {
                let len = geometry.sealed_len(pages).expect("in range");
                assert_eq!(geometry.whole_pages(len), pages);
                let with_partial = geometry.whole_pages(len + geometry.stride_bytes() as u64 - 1);
                assert_eq!(with_partial, pages, "a partial page does not count");
            }
        }
    }

    #[test]
    fn an_empty_range_overlaps_no_page() {
        let pages = Geometry::Contents
            .pages(PlainOffset(4032 * 5 + 1), 0)
            .expect("in range");
        assert!(pages.is_empty());
        assert!(Geometry::Contents.pages(PlainOffset(u64::MAX), 1).is_err());
    }

    proptest! {
        #[test]
        fn spans_tile_the_range(meta: bool, offset in 0u64..1 << 40, len in 0usize..40_000) {
            let geometry = if meta { Geometry::Meta } else { Geometry::Contents };
            let payload = geometry.payload_bytes();
            let pages = geometry.pages(PlainOffset(offset), len).expect("in range");
            let mut done = 0;
            for page in pages.start.0..pages.end.0 {
                let span = geometry.span(PlainOffset(offset), len, PageIndex(page));
                prop_assert_eq!(span.caller.start, done);
                prop_assert_eq!(span.caller.len(), span.within.len());
                prop_assert!(!span.caller.is_empty() && span.within.end <= payload);
                prop_assert_eq!(
                    page * payload as u64 + span.within.start as u64,
                    offset + done as u64
                );
                done = span.caller.end;
            }
            prop_assert_eq!(done, len);
        }
    }
}
