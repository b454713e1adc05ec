//! A set of pages of a file, with one bit per page.

use std::ops::Range;

use crate::ids::PageIndex;

/// A set of pages of a file.
#[derive(Clone, Debug, Default)]
pub struct PageBits {
    words: Vec<u64>,
}

impl PageBits {
    /// True if the page is in the set.
    pub fn contains(&self, page: PageIndex) -> bool {
        usize::try_from(page.0 / 64)
            .ok()
            .and_then(|word| self.words.get(word))
            .is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    /// Adds pages.
    pub fn add(&mut self, pages: Range<u64>) {
        for page in pages {
            let Ok(word) = usize::try_from(page / 64) else {
                return;
            };
            if self.words.len() <= word {
                self.words.resize(word + 1, 0);
            }
            self.words[word] |= 1 << (page % 64);
        }
    }

    /// Removes pages.
    pub fn remove(&mut self, pages: Range<u64>) {
        for page in pages {
            let word = usize::try_from(page / 64).ok();
            if let Some(word) = word.and_then(|word| self.words.get_mut(word)) {
                *word &= !(1 << (page % 64));
            }
        }
    }

    /// The lowest page in the set.
    pub fn first(&self) -> Option<u64> {
        let word = self.words.iter().position(|&word| word != 0)?;
        let bit = self.words.get(word)?.trailing_zeros();
        Some(word as u64 * 64 + u64::from(bit))
    }

    /// Upper bound: no page from this one on is in the set.
    pub const fn end(&self) -> u64 {
        self.words.len() as u64 * 64
    }

    /// Removes the pages from `end` on.
    pub fn truncate(&mut self, end: u64) {
        let covered = self.words.len() as u64 * 64;
        self.remove(end..covered);
    }

    /// The ranges of pages in `start..end` that are not in the set.
    pub fn gaps(&self, start: u64, end: u64) -> impl Iterator<Item = Range<u64>> {
        let mut at = start;
        std::iter::from_fn(move || {
            let is_in = |page: &u64| self.contains(PageIndex(*page));
            let first = (at..end).find(|page| !is_in(page))?;
            let last = (first..end).find(is_in).unwrap_or(end);
            at = last;
            Some(first..last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_was_not_added() {
        let mut bits = PageBits::default();
        bits.add(3..5);
        bits.add(63..70);
        let gaps = |start, end| bits.gaps(start, end).collect::<Vec<_>>();
        assert_eq!(gaps(1, 80), [1..3, 5..63, 70..80]);
        assert_eq!(gaps(3, 66), vec![5..63]);
        assert_eq!(gaps(3, 3), []);
    }
}
