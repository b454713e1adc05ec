//! Files whose writes are refused, because what the kernel has taken already cannot be kept.
//!
//! With writeback a write(2) ends when the kernel has the bytes; that there is no room for them
//! shows when it sends them, much later and to nobody in particular. So a file for which that has
//! happened is remembered here, and its attributes are taken away from the kernel. It asks for them
//! before it takes the next write, naming the open file, and an error there becomes that write's.
//! stat(2), reads and seeks do not ask in that way, and go on.
//!
//! The kernel does not say where the next write is to go: it may be into what exists, for which
//! there is always room. So a file is let try again after [`PATIENCE`]; one WRITE that succeeds
//! ends the refusal, another that fails begins it anew.
//!
//! An empty file has nothing to write over. One that is made, or truncated to nothing, within that
//! time of a WRITE that failed is refused at once if there is no room for another like that:
//! somebody who fills a volume with many files and never asks is told by the next one.
//!
//! Source: `fuse_cache_write_iter`, `fuse_update_get_attr` of Linux.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::INodeNo;
use parking_lot::Mutex;

use super::dirty::DirtyLimits;
use super::notify::Notices;
use crate::errno::Errno;
use crate::fs::Filesystem;
use crate::fs::types::NodeId;

/// So long after a WRITE that failed all writes are refused while there is no room.
const PATIENCE: Duration = Duration::from_secs(1);

/// So long the answer to such a WRITE waits for the kernel to forget attributes. As a rule that
/// takes microseconds.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// What must be free beside the bytes of a WRITE that failed, before it may succeed.
const BESIDE_BYTES: u64 = 128 << 10;

/// The files that are remembered, and who is told of them.
#[derive(Debug)]
pub(super) struct FullFiles {
    notices: Arc<Notices>,
    /// What the kernel may hold back meanwhile.
    pub(super) limits: Arc<DirtyLimits>,
    marks: Marks,
}

impl FullFiles {
    pub(super) fn new(notices: Arc<Notices>, limits: Arc<DirtyLimits>) -> Self {
        Self {
            notices,
            limits,
            marks: Marks::default(),
        }
    }

    /// How a WRITE of so many bytes, which the kernel had taken, went. To be called before the
    /// answer: until then the bytes count as held back, and after it the kernel takes as many more.
    pub(super) fn note(&self, ino: INodeNo, len: usize, written: Result<usize, Errno>) {
        match written {
            Ok(_) => self.marks.end(NodeId(ino.0)),
            Err(errno) => {
                self.marks.failed(NodeId(ino.0), len as u64, errno);
                if self.marks.has(NodeId(ino.0)) {
                    self.notices.forget_attributes_within(ino, ANSWER_TIME);
                }
            }
        }
    }

    /// A file is empty now. True when its next write is to be asked about.
    pub(super) fn emptied(&self, fs: &Filesystem, node: NodeId) -> bool {
        self.marks.emptied(node, || room(fs))
    }

    /// Has the kernel ask before it takes the next write of a file that is remembered. To be called
    /// after each answer from which it learns attributes.
    pub(super) fn ask_again(&self, ino: INodeNo) {
        if self.marks.has(NodeId(ino.0)) {
            self.notices.forget_attributes_soon(ino);
        }
    }

    /// The error of a write that the kernel is about to take.
    pub(super) fn refusal(&self, fs: &Filesystem, node: NodeId) -> Option<Errno> {
        self.marks.refusal(node, || room(fs))
    }

    /// Nobody uses the file any more.
    pub(super) fn end(&self, node: NodeId) {
        self.marks.end(node);
    }
}

/// The bytes that are free, where that can be told: any number, where a WRITE would first have
/// removed files give back what they took.
fn room(fs: &Filesystem) -> Option<u64> {
    if fs.gives_room_back() {
        return Some(u64::MAX);
    }
    let space = fs.statfs().ok()?;
    Some(space.blocks_available * u64::from(space.block_bytes))
}

#[derive(Debug, Default)]
struct Marks {
    marked: Mutex<HashMap<NodeId, Mark>>,
    /// Of the newest WRITE for which there was no room.
    newest: Mutex<Option<Mark>>,
    /// There is one.
    was_full: AtomicBool,
    /// How many they are; most of the time none, and nobody takes the lock.
    count: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    errno: Errno,
    /// Bytes of the WRITE.
    len: u64,
    /// When a write is let through again.
    again_at: Instant,
}

impl Mark {
    /// Whether there is room for a WRITE like that one.
    fn fits(&self, room: Option<u64>) -> bool {
        room.is_some_and(|room| room > self.len.saturating_add(BESIDE_BYTES))
    }
}

impl Marks {
    fn failed(&self, node: NodeId, len: u64, errno: Errno) {
        let told = [Errno::ENOSPC, Errno::EDQUOT, Errno::EFBIG, Errno::EROFS];
        if told.contains(&errno) {
            let mut marked = self.marked.lock();
            let again_at = Instant::now() + PATIENCE;
            let mark = Mark {
                errno,
                len,
                again_at,
            };
            marked.insert(node, mark);
            self.count.store(marked.len(), Ordering::Release);
            drop(marked);
            if [Errno::ENOSPC, Errno::EDQUOT].contains(&errno) {
                *self.newest.lock() = Some(mark);
                self.was_full.store(true, Ordering::Release);
            }
        }
    }

    /// Nothing can be written over in that file. True when it is remembered.
    fn emptied(&self, node: NodeId, room: impl FnOnce() -> Option<u64>) -> bool {
        if !self.was_full.load(Ordering::Acquire) {
            return false;
        }
        let mut newest = self.newest.lock();
        let Some(mark) = *newest else {
            return false;
        };
        if Instant::now() >= mark.again_at || mark.fits(room()) {
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

    fn end(&self, node: NodeId) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut marked = self.marked.lock();
            marked.remove(&node);
            self.count.store(marked.len(), Ordering::Release);
        }
    }

    fn has(&self, node: NodeId) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.marked.lock().contains_key(&node)
    }

    /// `room`: the bytes that are free, where that can be told.
    fn refusal(&self, node: NodeId, room: impl FnOnce() -> Option<u64>) -> Option<Errno> {
        if !self.has(node) {
            return None;
        }
        let mark = *self.marked.lock().get(&node)?;
        match mark.errno {
            // Of one place in the file, and the next write may go to another.
            Errno::EFBIG => self.end(node),
            Errno::EROFS => {}
            _ if mark.fits(room()) => {
                self.end(node);
                return None;
            }
            _ if Instant::now() >= mark.again_at => return None,
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
    fn refuses_until_there_is_room() {
        let files = Marks::default();
        assert_eq!(files.refusal(FILE, || Some(1 << 20)), None);
        for errno in [Errno::ENOSPC, Errno::EDQUOT] {
            files.failed(FILE, 1 << 20, errno);
            assert_eq!(files.refusal(FILE, || Some(1 << 20)), Some(errno));
            assert_eq!(files.refusal(FILE, || Some(1 << 20)), Some(errno));
            assert_eq!(files.refusal(NodeId(8), || Some(1 << 20)), None);
            assert_eq!(files.refusal(FILE, || Some(2 << 20)), None);
            assert!(!files.has(FILE));
        }
        files.failed(FILE, 1 << 20, Errno::ENOSPC);
        files.end(FILE);
        assert_eq!(files.refusal(FILE, || Some(1 << 20)), None);
    }

    #[test]
    fn an_empty_file_is_refused_where_another_had_no_room() {
        let files = Marks::default();
        let empty = NodeId(8);
        assert!(!files.emptied(empty, || Some(0)));
        files.failed(FILE, 1 << 20, Errno::EFBIG);
        assert!(!files.emptied(empty, || Some(0)));
        files.failed(FILE, 1 << 20, Errno::ENOSPC);
        assert!(files.emptied(empty, || Some(1 << 20)));
        let refusal = files.refusal(empty, || Some(1 << 20));
        assert_eq!(refusal, Some(Errno::ENOSPC));
        assert_eq!(files.refusal(empty, || Some(2 << 20)), None);
        assert!(!files.emptied(empty, || Some(2 << 20)));
        assert!(
            !files.emptied(empty, || Some(0)),
            "there was room meanwhile"
        );
        files.failed(FILE, 1 << 20, Errno::ENOSPC);
        files.newest.lock().as_mut().unwrap().again_at = Instant::now();
        assert!(!files.emptied(empty, || Some(0)), "it may be tried again");
    }

    #[test]
    fn what_was_too_far_out_is_told_once() {
        let files = Marks::default();
        files.failed(FILE, 1 << 20, Errno::EFBIG);
        assert_eq!(files.refusal(FILE, || Some(2 << 20)), Some(Errno::EFBIG));
        assert_eq!(files.refusal(FILE, || Some(2 << 20)), None);
        files.failed(FILE, 1 << 20, Errno::EIO);
        assert!(!files.has(FILE));
    }

    #[test]
    fn lets_one_try_again() {
        let files = Marks::default();
        files.failed(FILE, 1 << 20, Errno::ENOSPC);
        files.marked.lock().get_mut(&FILE).unwrap().again_at = Instant::now();
        assert_eq!(files.refusal(FILE, || Some(1 << 20)), None);
        assert!(files.has(FILE));
    }
}
