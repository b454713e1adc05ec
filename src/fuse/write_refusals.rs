//! Refusal of writes that cannot be stored because the volume is full.
//!
//! With writeback, a write(2) returns when the kernel has the bytes. The kernel sends them much
//! later, and if there is no space for them then, no process gets the error. So such a file is
//! marked here, and its attributes are invalidated in the kernel. Before the kernel accepts the
//! next write it asks for them, passing the open file, and an error there becomes the error of that
//! write. For stat(2), reads and seeks the kernel does not pass the open file, so they still work.
//!
//! The offset of the next write is not known: it may overwrite existing bytes, for which there is
//! always space. So a write is accepted again after [`RETRY_AFTER`]. A WRITE that succeeds ends the
//! refusal, another one that fails starts it again.
//!
//! An empty file has no bytes to overwrite. If a file is created, or truncated to zero, within that
//! time after a failed WRITE, its writes are refused at once unless there is space for another
//! WRITE like the failed one. So a program that fills a volume with many files and never checks
//! gets an error for the next file.
//!
//! Source: `fuse_cache_write_iter`, `fuse_update_get_attr` of Linux.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::INodeNo;
use parking_lot::Mutex;

use super::notify::Notices;
use crate::errno::Errno;
use crate::fs::Filesystem;
use crate::fs::types::NodeId;

/// Time after a failed WRITE during which all writes are refused while there is no space.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Maximum delay of the answer to a failed WRITE until the kernel has dropped the attributes. This
/// normally takes microseconds.
const REPLY_DELAY_MAX: Duration = Duration::from_millis(100);

/// Free space beyond the bytes of a failed WRITE before another one is accepted.
const HEADROOM_BYTES: u64 = 128 << 10;

/// The files whose writes are refused.
#[derive(Debug)]
pub(super) struct WriteRefusals {
    notices: Arc<Notices>,
    marks: Marks,
}

impl WriteRefusals {
    pub(super) fn new(notices: Arc<Notices>) -> Self {
        Self {
            notices,
            marks: Marks::default(),
        }
    }

    /// Records the result of a WRITE of `len` bytes from the kernel's cache. Called before the
    /// reply: until then the bytes count as dirty, and afterwards the kernel accepts as many more.
    pub(super) fn record_result(
        &self,
        fs: &Filesystem,
        ino: INodeNo,
        len: usize,
        written: Result<usize, Errno>,
    ) {
        match written {
            Ok(_) => self.marks.clear(NodeId(ino.0)),
            Err(errno) => {
                self.marks
                    .failed(NodeId(ino.0), len as u64, errno, || free_bytes(fs));
                if self.marks.has(NodeId(ino.0)) {
                    self.notices.forget_attributes_within(ino, REPLY_DELAY_MAX);
                }
            }
        }
    }

    /// Notes that a file is empty now. True if the kernel must ask before its next write.
    pub(super) fn note_empty(&self, fs: &Filesystem, node: NodeId) -> bool {
        self.marks.note_empty(node, || free_bytes(fs))
    }

    /// Makes the kernel ask before it accepts the next write of a marked file. Called after each
    /// reply that contains attributes.
    pub(super) fn invalidate_if_refused(&self, ino: INodeNo) {
        if self.marks.has(NodeId(ino.0)) {
            self.notices.forget_attributes_soon(ino);
        }
    }

    /// The error for a write that the kernel is about to accept, if it is refused.
    pub(super) fn refusal(&self, fs: &Filesystem, node: NodeId) -> Option<Errno> {
        self.marks.refusal(node, || free_bytes(fs))
    }

    /// Removes the mark of a file that is no longer in use.
    pub(super) fn clear(&self, node: NodeId) {
        self.marks.clear(node);
    }
}

/// Free bytes, if known: unlimited if a WRITE would first reclaim space of removed files.
fn free_bytes(fs: &Filesystem) -> Option<u64> {
    if fs.has_reclaimable_space() {
        return Some(u64::MAX);
    }
    let space = fs.statfs().ok()?;
    Some(space.blocks_available * u64::from(space.block_bytes))
}

#[derive(Debug, Default)]
struct Marks {
    marked: Mutex<HashMap<NodeId, Mark>>,
    /// The mark of the newest WRITE for which there was no space.
    newest: Mutex<Option<Mark>>,
    /// Whether there is one.
    was_full: AtomicBool,
    /// Number of marks. While it is zero, as it mostly is, the lock is not taken.
    count: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    errno: Errno,
    /// Length of the failed WRITE in bytes. `None` if it failed while there were enough free bytes:
    /// then something else was missing, such as inodes or a quota, and free bytes prove nothing.
    len: Option<u64>,
    /// When a write is accepted again.
    retry_at: Instant,
}

impl Mark {
    /// True if there is space for a WRITE of that length.
    fn fits(&self, free: Option<u64>) -> bool {
        self.len.is_some_and(|len| fits(len, free))
    }
}

fn fits(len: u64, free: Option<u64>) -> bool {
    free.is_some_and(|free| free > len.saturating_add(HEADROOM_BYTES))
}

impl Marks {
    /// `free`: free bytes after the failure, if known.
    fn failed(&self, node: NodeId, len: u64, errno: Errno, free: impl FnOnce() -> Option<u64>) {
        let refused = [Errno::ENOSPC, Errno::EDQUOT, Errno::EFBIG, Errno::EROFS];
        if refused.contains(&errno) {
            let mark = Mark {
                errno,
                len: Some(len).filter(|&len| !fits(len, free())),
                retry_at: Instant::now() + RETRY_AFTER,
            };
            let mut marked = self.marked.lock();
            marked.insert(node, mark);
            self.count.store(marked.len(), Ordering::Release);
            drop(marked);
            if [Errno::ENOSPC, Errno::EDQUOT].contains(&errno) {
                *self.newest.lock() = Some(mark);
                self.was_full.store(true, Ordering::Release);
            }
        }
    }

    /// Notes that the file is empty. True if it is marked.
    fn note_empty(&self, node: NodeId, free: impl FnOnce() -> Option<u64>) -> bool {
        if !self.was_full.load(Ordering::Acquire) {
            return false;
        }
        let mut newest = self.newest.lock();
        let Some(mark) = *newest else {
            return false;
        };
        if Instant::now() >= mark.retry_at || mark.fits(free()) {
            *newest = None;
            self.was_full.store(false, Ordering::Release);
            return false;
        }
        drop(newest);
        let mut marked = self.marked.lock();
        marked.insert(node, mark);
        self.count.store(marked.len(), Ordering::Release);
        true
    }

    fn clear(&self, node: NodeId) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut marked = self.marked.lock();
            marked.remove(&node);
            self.count.store(marked.len(), Ordering::Release);
        }
    }

    fn has(&self, node: NodeId) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.marked.lock().contains_key(&node)
    }

    /// `free`: free bytes, if known.
    fn refusal(&self, node: NodeId, free: impl FnOnce() -> Option<u64>) -> Option<Errno> {
        if !self.has(node) {
            return None;
        }
        let mark = *self.marked.lock().get(&node)?;
        match mark.errno {
            // This error concerns one offset, and the next write may have another.
            Errno::EFBIG => self.clear(node),
            Errno::EROFS => {}
            _ if mark.fits(free()) => {
                self.clear(node);
                return None;
            }
            _ if Instant::now() >= mark.retry_at => return None,
            _ => {}
        }
        Some(mark.errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: NodeId = NodeId(7);

    #[test]
    fn refuses_until_there_is_space() {
        let files = Marks::default();
        assert_eq!(files.refusal(FILE, || Some(1 << 20)), None);
        for errno in [Errno::ENOSPC, Errno::EDQUOT] {
            files.failed(FILE, 1 << 20, errno, || Some(1 << 20));
            assert_eq!(files.refusal(FILE, || Some(1 << 20)), Some(errno));
            assert_eq!(files.refusal(FILE, || Some(1 << 20)), Some(errno));
            assert_eq!(files.refusal(NodeId(8), || Some(1 << 20)), None);
            assert_eq!(files.refusal(FILE, || Some(2 << 20)), None);
            assert!(!files.has(FILE));
        }
        files.failed(FILE, 1 << 20, Errno::ENOSPC, || Some(1 << 20));
        files.clear(FILE);
        assert_eq!(files.refusal(FILE, || Some(1 << 20)), None);
    }

    #[test]
    fn an_empty_file_is_refused_where_another_had_no_space() {
        let files = Marks::default();
        let empty = NodeId(8);
        assert!(!files.note_empty(empty, || Some(0)));
        files.failed(FILE, 1 << 20, Errno::EFBIG, || Some(1 << 20));
        assert!(!files.note_empty(empty, || Some(0)));
        files.failed(FILE, 1 << 20, Errno::ENOSPC, || Some(1 << 20));
        assert!(files.note_empty(empty, || Some(1 << 20)));
        let refusal = files.refusal(empty, || Some(1 << 20));
        assert_eq!(refusal, Some(Errno::ENOSPC));
        assert_eq!(files.refusal(empty, || Some(2 << 20)), None);
        assert!(!files.note_empty(empty, || Some(2 << 20)));
        assert!(
            !files.note_empty(empty, || Some(0)),
            "there was space meanwhile"
        );
        files.failed(FILE, 1 << 20, Errno::ENOSPC, || Some(1 << 20));
        files.newest.lock().as_mut().unwrap().retry_at = Instant::now();
        assert!(
            !files.note_empty(empty, || Some(0)),
            "it may be tried again"
        );
    }

    #[test]
    fn a_write_too_far_out_is_reported_once() {
        let files = Marks::default();
        files.failed(FILE, 1 << 20, Errno::EFBIG, || Some(1 << 20));
        assert_eq!(files.refusal(FILE, || Some(2 << 20)), Some(Errno::EFBIG));
        assert_eq!(files.refusal(FILE, || Some(2 << 20)), None);
        files.failed(FILE, 1 << 20, Errno::EIO, || Some(1 << 20));
        assert!(!files.has(FILE));
    }

    /// Inodes of the disk below, or a quota: bytes are free, and nothing can be written.
    #[test]
    fn free_bytes_prove_nothing_where_a_write_failed_in_spite_of_them() {
        let files = Marks::default();
        for free in [Some(1 << 30), Some(u64::MAX)] {
            files.failed(FILE, 1 << 20, Errno::ENOSPC, || free);
            assert_eq!(files.refusal(FILE, || free), Some(Errno::ENOSPC));
            assert!(files.note_empty(NodeId(8), || free));
            assert_eq!(files.refusal(NodeId(8), || free), Some(Errno::ENOSPC));
            files.marked.lock().get_mut(&FILE).unwrap().retry_at = Instant::now();
            assert_eq!(files.refusal(FILE, || free), None);
        }
    }

    #[test]
    fn accepts_a_write_again_after_a_while() {
        let files = Marks::default();
        files.failed(FILE, 1 << 20, Errno::ENOSPC, || Some(1 << 20));
        files.marked.lock().get_mut(&FILE).unwrap().retry_at = Instant::now();
        assert_eq!(files.refusal(FILE, || Some(1 << 20)), None);
        assert!(files.has(FILE));
    }
}
