//! The contents of one file in memory: sparse pages, shared until written.
//!
//! Invariants: bytes of a page beyond the file's length are zero, so growing needs no clearing; a
//! page that is not in the map reads as zeros; every page in the map is charged to the
//! [`SpaceBudget`]. Copies share pages and use no memory until one side writes.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use super::os_error;
use crate::errno::Errno;

/// Unit of allocation, in bytes.
pub(super) const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

/// One page.
pub(super) type Page = [u8; PAGE_BYTES];

/// Contents of a reserved page until it is written: one allocation for all of them.
static ZERO_PAGE: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE_BYTES]));

/// The space that the files of one tree share.
#[derive(Debug, Default)]
pub(super) struct SpaceBudget {
    limit_pages: Option<u64>,
    used_pages: AtomicU64,
}

impl SpaceBudget {
    /// A budget of this many bytes (whole pages), or without a limit.
    pub(super) fn new(limit_bytes: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            limit_pages: limit_bytes.map(|bytes| bytes / PAGE),
            used_pages: AtomicU64::new(0),
        })
    }

    pub(super) fn limit_bytes(&self) -> Option<u64> {
        self.limit_pages.map(|pages| pages * PAGE)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_pages.load(Ordering::Relaxed) * PAGE
    }

    fn take(&self, pages: u64) -> io::Result<()> {
        let limit = self.limit_pages.unwrap_or(u64::MAX);
        self.used_pages
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(pages)
                    .filter(|&sum| pages == 0 || sum <= limit)
            })
            .map(drop)
            .map_err(|_| os_error(Errno::ENOSPC))
    }

    fn take_unchecked(&self, pages: u64) {
        self.used_pages.fetch_add(pages, Ordering::Relaxed);
    }

    fn give_back(&self, pages: u64) {
        self.used_pages.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// The bytes of one file.
#[derive(Debug)]
pub(super) struct Contents {
    pages: BTreeMap<u64, Arc<Page>>,
    len_bytes: u64,
    budget: Arc<SpaceBudget>,
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.budget.give_back(self.pages.len() as u64);
    }
}

impl Contents {
    pub(super) fn new(budget: Arc<SpaceBudget>) -> Self {
        Self {
            pages: BTreeMap::new(),
            len_bytes: 0,
            budget,
        }
    }

    /// A copy that is charged to another budget, even if that budget exceeds its limit then.
    pub(super) fn copy_into(&self, budget: Arc<SpaceBudget>) -> Self {
        budget.take_unchecked(self.pages.len() as u64);
        Self {
            pages: self.pages.clone(),
            len_bytes: self.len_bytes,
            budget,
        }
    }

    pub(super) const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// The page, or `None` where there is a hole.
    pub(super) fn page(&self, index: u64) -> Option<&Arc<Page>> {
        self.pages.get(&index)
    }

    /// Indexes of the allocated pages in the range.
    pub(super) fn allocated_in(&self, range: Range<u64>) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        self.pages.range(range).map(|(&index, _)| index).collect()
    }

    /// Replaces a whole page, regardless of the budget. The caller keeps the invariant on the bytes
    /// beyond the length, or calls [`Self::set_len`] afterwards.
    pub(super) fn set_page(&mut self, index: u64, page: Option<Arc<Page>>) {
        let (removed, added) = match page {
            Some(page) => (self.pages.insert(index, page), true),
            None => (self.pages.remove(&index), false),
        };
        match (removed.is_some(), added) {
            (false, true) => self.budget.take_unchecked(1),
            (true, false) => self.budget.give_back(1),
            _ => {}
        }
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        end_of_range(offset, buffer.len() as u64)?;
        let available = self.len_bytes.saturating_sub(offset);
        let count = usize::try_from(available).map_or(buffer.len(), |n| n.min(buffer.len()));
        let mut done = 0;
        while done < count {
            let (index, start) = locate(offset + done as u64);
            let take = (PAGE_BYTES - start).min(count - done);
            let part = &mut buffer[done..done + take];
            match self.pages.get(&index) {
                Some(page) => part.copy_from_slice(&page[start..start + take]),
                None => part.fill(0),
            }
            done += take;
        }
        Ok(count)
    }

    /// Writes everything or nothing: after ENOSPC the file is unchanged.
    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = end_of_range(offset, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.allocate(offset / PAGE..end.div_ceil(PAGE))?;
        let mut done = 0;
        while done < bytes.len() {
            let (index, start) = locate(offset + done as u64);
            let take = (PAGE_BYTES - start).min(bytes.len() - done);
            self.edit_page(index, |page| {
                page[start..start + take].copy_from_slice(&bytes[done..done + take]);
            });
            done += take;
        }
        self.len_bytes = self.len_bytes.max(end);
        Ok(())
    }

    pub(super) fn set_len(&mut self, len_bytes: u64) -> io::Result<()> {
        end_of_range(len_bytes, 0)?;
        if len_bytes < self.len_bytes {
            self.trim_to(len_bytes);
        }
        // Pages reserved beyond the end remain when the file grows.
        self.len_bytes = len_bytes;
        Ok(())
    }

    /// Sets the length and clears everything beyond it.
    pub(super) fn trim_to(&mut self, len_bytes: u64) {
        let removed = self.pages.split_off(&len_bytes.div_ceil(PAGE));
        self.budget.give_back(removed.len() as u64);
        let (index, start) = locate(len_bytes);
        if start > 0 {
            self.edit_page(index, |page| page[start..].fill(0));
        }
        self.len_bytes = len_bytes;
    }

    pub(super) fn punch(&mut self, offset: u64, len_bytes: u64) -> io::Result<()> {
        let end = end_of_range(offset, len_bytes)?;
        let (first, first_start) = locate(offset);
        let (last, last_end) = locate(end);
        if first == last {
            self.edit_page(first, |page| page[first_start..last_end].fill(0));
            return Ok(());
        }
        if first_start > 0 {
            self.edit_page(first, |page| page[first_start..].fill(0));
        }
        if last_end > 0 {
            self.edit_page(last, |page| page[..last_end].fill(0));
        }
        for index in self.allocated_in(offset.div_ceil(PAGE)..last) {
            self.set_page(index, None);
        }
        Ok(())
    }

    /// Allocates pages, also beyond the end; the length stays.
    pub(super) fn reserve(&mut self, offset: u64, len_bytes: u64) -> io::Result<()> {
        let end = end_of_range(offset, len_bytes)?;
        self.allocate(offset / PAGE..end.div_ceil(PAGE))
    }

    fn allocate(&mut self, pages: Range<u64>) -> io::Result<()> {
        let present = self.pages.range(pages.clone()).count() as u64;
        let missing = pages.end - pages.start - present;
        self.budget.take(missing)?;
        if missing > 0 {
            for index in pages {
                self.pages
                    .entry(index)
                    .or_insert_with(|| Arc::clone(&ZERO_PAGE));
            }
        }
        Ok(())
    }

    /// Changes an allocated page; a hole stays a hole.
    fn edit_page(&mut self, index: u64, edit: impl FnOnce(&mut Page)) {
        if let Some(page) = self.pages.get_mut(&index) {
            edit(Arc::make_mut(page));
        }
    }
}

/// Page index and offset within the page.
const fn locate(offset: u64) -> (u64, usize) {
    (offset / PAGE, (offset % PAGE) as usize)
}

/// End of a byte range, by the rules of pwrite(2): offsets are signed 64-bit numbers.
pub(super) fn end_of_range(offset: u64, len_bytes: u64) -> io::Result<u64> {
    const MAX: u64 = i64::MAX as u64;
    if offset > MAX {
        return Err(os_error(Errno::EINVAL));
    }
    match offset.checked_add(len_bytes) {
        Some(end) if end <= MAX => Ok(end),
        _ => Err(os_error(Errno::EFBIG)),
    }
}
