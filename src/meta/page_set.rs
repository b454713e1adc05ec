//! The set of pages that a part holds of one chunk.
//!
//! A chunk of 4 MiB is 1041 pages of 4032 bytes (a quarter of the last one is used), so a set is a
//! fixed bitmap of 17 words and needs no allocation. The encoding is the length of the prefix if
//! the set is a prefix (the common case), and the bitmap otherwise.

use std::ops::Range;

/// Bytes of a file per chunk.
pub const CHUNK_BYTES: u64 = 4 << 20;
/// Plain bytes per page of contents.
pub const PAYLOAD_BYTES: u64 = crate::sealed::PAYLOAD_BYTES as u64;
/// Pages per chunk.
pub const CHUNK_PAGES: u32 = CHUNK_BYTES.div_ceil(PAYLOAD_BYTES) as u32;

const WORDS: usize = (CHUNK_PAGES as usize).div_ceil(64);
const KIND_PREFIX: u8 = 0;
const KIND_BITMAP: u8 = 1;

/// The number of pages that hold this many bytes of contents in files of whole chunks.
pub fn pages_of_capacity(bytes: u64) -> u64 {
    let pages = u128::from(bytes) * u128::from(CHUNK_PAGES);
    u64::try_from(pages.div_ceil(u128::from(CHUNK_BYTES))).unwrap_or(u64::MAX)
}

/// The number of pages that contents of this many pages and records of this many bytes count
/// towards a volume's limit.
pub fn pages_taken(pages: u64, record_bytes: u64) -> u64 {
    pages.saturating_add(record_bytes.div_ceil(PAYLOAD_BYTES))
}

/// The number of bytes of contents that this many pages can hold in files of whole chunks.
pub fn capacity_of_pages(pages: u64) -> u64 {
    let bytes = u128::from(pages) * u128::from(CHUNK_BYTES);
    u64::try_from(bytes / u128::from(CHUNK_PAGES)).unwrap_or(u64::MAX)
}

/// Pages of one chunk, by index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PageSet {
    words: [u64; WORDS],
}

impl PageSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// True if `page` is in the set.
    pub fn contains(&self, page: u32) -> bool {
        self.words
            .get(page as usize / 64)
            .is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds the pages.
    pub fn insert(&mut self, pages: Range<u32>) {
        self.each_word(pages, |word, mask| *word |= mask);
    }

    /// Removes the pages.
    pub fn remove(&mut self, pages: Range<u32>) {
        self.each_word(pages, |word, mask| *word &= !mask);
    }

    /// Adds all pages of `other`.
    pub fn union(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(other.words) {
            *word |= more;
        }
    }

    /// Removes all pages of `other`.
    pub fn subtract(&mut self, other: &Self) {
        for (word, less) in self.words.iter_mut().zip(other.words) {
            *word &= !less;
        }
    }

    /// Number of pages.
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// True if the set is empty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// One past the highest page; 0 for the empty set.
    pub fn end(&self) -> u32 {
        for (index, word) in self.words.iter().enumerate().rev() {
            if *word != 0 {
                return index as u32 * 64 + 64 - word.leading_zeros();
            }
        }
        0
    }

    /// The runs of pages in the set, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let end = self.end();
        let mut page = 0;
        std::iter::from_fn(move || {
            while page < end {
                let start = page;
                page = self.run_end(page, end);
                if self.contains(start) {
                    return Some(start..page);
                }
            }
            None
        })
    }

    /// The end of the run that begins at `start`, at most `limit`. All pages of the run are in the
    /// set if `start` is, and none otherwise.
    pub fn run_end(&self, start: u32, limit: u32) -> u32 {
        let inside = self.contains(start);
        let mut page = start;
        while page < limit {
            let word = self.words.get(page as usize / 64).copied().unwrap_or(0);
            let differing = if inside { !word } else { word } >> (page % 64);
            if differing != 0 {
                return (page + differing.trailing_zeros()).min(limit);
            }
            page = (page / 64 + 1) * 64;
        }
        limit
    }

    /// Appends the encoding to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let end = self.end();
        if self.len() == end {
            out.push(KIND_PREFIX);
            out.extend_from_slice(&(end as u16).to_le_bytes());
        } else {
            out.push(KIND_BITMAP);
            for word in self.words {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Decodes from the start of `bytes`; returns the set and what follows it.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (kind, rest) = bytes.split_first()?;
        let mut set = Self::new();
        match *kind {
            KIND_PREFIX => {
                let (end, rest) = rest.split_first_chunk::<2>()?;
                let end = u32::from(u16::from_le_bytes(*end));
                if end > CHUNK_PAGES {
                    return None;
                }
                set.insert(0..end);
                Some((set, rest))
            }
            KIND_BITMAP => {
                let mut rest = rest;
                for word in &mut set.words {
                    let (bytes, after) = rest.split_first_chunk::<8>()?;
                    *word = u64::from_le_bytes(*bytes);
                    rest = after;
                }
                // Each set has one encoding: a prefix must use the short one.
                let ours = set.end() <= CHUNK_PAGES && set.len() != set.end();
                ours.then_some((set, rest))
            }
            _ => None,
        }
    }

    fn each_word(&mut self, pages: Range<u32>, mut change: impl FnMut(&mut u64, u64)) {
        let end = pages.end.min(CHUNK_PAGES);
        let mut page = pages.start;
        while page < end {
            let stop = ((page / 64 + 1) * 64).min(end);
            let count = stop - page;
            let mask = (u64::MAX >> (64 - count)) << (page % 64);
            if let Some(word) = self.words.get_mut(page as usize / 64) {
                change(word, mask);
            }
            page = stop;
        }
    }
}

/// The pages that the byte range `bytes` of a chunk overlaps.
pub fn pages_touching(bytes: Range<u64>) -> Range<u32> {
    if bytes.is_empty() {
        let page = (bytes.start / PAYLOAD_BYTES) as u32;
        return page..page;
    }
    (bytes.start / PAYLOAD_BYTES) as u32..bytes.end.div_ceil(PAYLOAD_BYTES) as u32
}

/// The pages that lie entirely within the byte range `bytes` of a chunk. The last page ends with
/// the chunk.
pub fn pages_within(bytes: Range<u64>) -> Range<u32> {
    let start = bytes.start.div_ceil(PAYLOAD_BYTES) as u32;
    let end = if bytes.end >= CHUNK_BYTES {
        CHUNK_PAGES
    } else {
        (bytes.end / PAYLOAD_BYTES) as u32
    };
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(
            ops in prop::collection::vec(
                (any::<bool>(), 0..CHUNK_PAGES, 0..CHUNK_PAGES),
                0..12,
            ),
        ) {
            let mut set = PageSet::new();
            let mut model = BTreeSet::new();
            for (add, a, b) in ops {
                let range = a.min(b)..a.max(b);
                if add {
                    set.insert(range.clone());
                    model.extend(range);
                } else {
                    set.remove(range.clone());
                    model.retain(|page| !range.contains(page));
                }
            }
            prop_assert_eq!(set.len() as usize, model.len());
            prop_assert_eq!(set.end(), model.last().map_or(0, |last| last + 1));
            for page in 0..CHUNK_PAGES {
                prop_assert_eq!(set.contains(page), model.contains(&page));
            }
            let mut page = 0;
            while page < CHUNK_PAGES {
                let end = set.run_end(page, CHUNK_PAGES);
                prop_assert!(end > page);
                prop_assert!((page..end).all(|p| model.contains(&p) == model.contains(&page)));
                prop_assert!(end == CHUNK_PAGES || model.contains(&end) != model.contains(&page));
                page = end;
            }
            let mut bytes = Vec::new();
            set.encode(&mut bytes);
            prop_assert_eq!(PageSet::decode(&bytes), Some((set, &[][..])));
        }
    }

    #[test]
    fn refuses_pages_beyond_the_chunk() {
        assert_eq!(PageSet::decode(&[KIND_PREFIX, 0x12, 0x04]), None);
        assert_eq!(PageSet::decode(&[KIND_BITMAP; 137]).map(|_| ()), None);
        // A bitmap of an empty set, and of a set that is a prefix.
        let mut prefix = [0; 137];
        prefix[0] = KIND_BITMAP;
        assert_eq!(PageSet::decode(&prefix).map(|_| ()), None);
        prefix[1] = 0x0F;
        assert_eq!(PageSet::decode(&prefix).map(|_| ()), None);
        prefix[1] = 0x0E;
        assert!(PageSet::decode(&prefix).is_some());
        assert_eq!(PageSet::decode(&[9]), None);
        assert_eq!(PageSet::decode(&[]), None);
    }
}
