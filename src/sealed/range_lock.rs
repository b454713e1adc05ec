//! Locks on ranges of pages: many readers or one writer per page.
//!
//! Two writers may write to one page (a partial write reads the page first), and a reader must not
//! see a half-written page. So a range is locked during I/O and cryptography.
//!
//! Fairness: requests are numbered in order of arrival, and each waits for every earlier
//! conflicting request, granted or still waiting. So readers cannot starve a writer, nor can
//! writers starve one another. A holder must not request a second overlapping range: it would wait
//! for itself.
//!
//! Without contention, locking and releasing cost one short mutex each and no allocation.

use std::ops::Range;

use parking_lot::{Condvar, Mutex};

use crate::ids::PageIndex;

/// The locks of one file.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next_ticket: u64,
    waiting: usize,
    /// Granted and waiting requests, in the order of their tickets.
    requests: Vec<Request>,
}

#[derive(Clone, Debug)]
struct Request {
    ticket: u64,
    pages: Range<u64>,
    exclusive: bool,
}

impl Request {
    fn conflicts(&self, other: &Self) -> bool {
        (self.exclusive || other.exclusive)
            && !self.pages.is_empty()
            && !other.pages.is_empty()
            && self.pages.start < other.pages.end
            && other.pages.start < self.pages.end
    }
}

impl RangeLocks {
    /// Locks the pages shared: waits for earlier exclusive requests that overlap.
    pub(super) fn lock_shared(&self, pages: Range<PageIndex>) -> PageGuard<'_> {
        self.lock(pages, false)
    }

    /// Locks the pages exclusively: waits for all earlier requests that overlap.
    pub(super) fn lock_exclusive(&self, pages: Range<PageIndex>) -> PageGuard<'_> {
        self.lock(pages, true)
    }

    fn lock(&self, pages: Range<PageIndex>, exclusive: bool) -> PageGuard<'_> {
        let mut state = self.state.lock();
        let request = Request {
            ticket: state.next_ticket,
            pages: pages.start.0..pages.end.0,
            exclusive,
        };
        state.next_ticket += 1;
        state.requests.push(request.clone());
        while state
            .requests
            .iter()
            .take_while(|earlier| earlier.ticket < request.ticket)
            .any(|earlier| earlier.conflicts(&request))
        {
            state.waiting += 1;
            self.released.wait(&mut state);
            state.waiting -= 1;
        }
        PageGuard {
            locks: self,
            request,
        }
    }

    fn release(&self, ticket: u64) {
        let mut state = self.state.lock();
        // `remove` and not `swap_remove`: fairness needs the order of the tickets.
        if let Some(at) = state.requests.iter().position(|held| held.ticket == ticket) {
            state.requests.remove(at);
        }
        if state.waiting > 0 {
            self.released.notify_all();
        }
    }
}

/// A held range of pages; dropping it releases them.
#[derive(Debug)]
#[must_use = "the pages are released when this is dropped"]
pub struct PageGuard<'a> {
    locks: &'a RangeLocks,
    request: Request,
}

impl PageGuard<'_> {
    /// The pages held.
    pub fn pages(&self) -> Range<PageIndex> {
        PageIndex(self.request.pages.start)..PageIndex(self.request.pages.end)
    }

    /// True if no other guard holds any of them.
    pub const fn is_exclusive(&self) -> bool {
        self.request.exclusive
    }

    /// True if this guard belongs to `locks` and covers all of `pages`.
    pub(super) fn covers(&self, locks: &RangeLocks, pages: &Range<PageIndex>) -> bool {
        std::ptr::eq(self.locks, locks)
            && (pages.is_empty()
                || self.request.pages.start <= pages.start.0
                    && pages.end.0 <= self.request.pages.end)
    }
}

impl Drop for PageGuard<'_> {
    fn drop(&mut self) {
        self.locks.release(self.request.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
    use std::thread;
    use std::time::Duration;

    fn pages(range: Range<u64>) -> Range<PageIndex> {
        PageIndex(range.start)..PageIndex(range.end)
    }

    #[test]
    fn shared_locks_may_overlap_and_disjoint_exclusive_locks_do_not_wait() {
        let locks = RangeLocks::default();
        let _one = locks.lock_shared(pages(0..10));
        let _two = locks.lock_shared(pages(5..15));
        let _three = locks.lock_exclusive(pages(15..16));
        let _empty = locks.lock_exclusive(pages(3..3));
    }

    #[test]
    fn a_waiting_writer_is_not_overtaken_by_readers() {
        let locks = RangeLocks::default();
        let written = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = locks.lock_shared(pages(0..4));
            scope.spawn(|| {
                let _writer = locks.lock_exclusive(pages(2..3));
                written.store(true, Ordering::SeqCst);
            });
            while locks.state.lock().waiting == 0 {
                thread::yield_now();
            }
            let late = scope.spawn(|| {
                let _reader = locks.lock_shared(pages(0..4));
                assert!(written.load(Ordering::SeqCst), "the writer asked first");
            });
            thread::sleep(Duration::from_millis(20));
            assert!(!written.load(Ordering::SeqCst));
            drop(reader);
            late.join().expect("late reader");
        });
        assert!(locks.state.lock().requests.is_empty());
    }

    #[test]
    fn many_threads_exclude_one_another_page_by_page() {
        let locks = RangeLocks::default();
        let held: Vec<AtomicI64> = (0..16).map(|_| AtomicI64::new(0)).collect();
        thread::scope(|scope| {
            for worker in 0..6u64 {
                let (locks, held) = (&locks, &held);
                scope.spawn(move || {
                    let mut random = worker * 7 + 1;
                    for _ in 0..2000 {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        let start = (random >> 33) % 16;
                        let end = (start + 1 + (random >> 40) % 4).min(16);
                        let exclusive = random >> 63 == 1;
                        let change = if exclusive { -1000 } else { 1 };
                        let _guard = locks.lock(pages(start..end), exclusive);
                        for page in &held[start as usize..end as usize] {
                            let before = page.fetch_add(change, Ordering::SeqCst);
                            assert!(if exclusive { before == 0 } else { before >= 0 });
                        }
                        for page in &held[start as usize..end as usize] {
                            page.fetch_sub(change, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
    }
}
