//! References to inodes: lookups that the kernel has not forgotten, and open files. Inodes of a
//! kept view do not need them; for each view, only the number of open files is counted.
//!
//! The kernel forgets an inode when it needs the memory, so there may be millions. They are spread
//! over [`SHARDS`] tables: none is so large that others wait while it grows, each shrinks when the
//! kernel has forgotten many inodes, and open inodes are kept apart from those that are merely
//! known (16 bytes for an inode, plus the slack of the table).

use std::collections::{HashMap, HashSet};

use parking_lot::{Mutex, RwLock};

use super::types::NodeId;
use crate::ids::{Ino, ViewId};

/// Number of tables of inodes; a power of two.
const SHARDS: usize = 256;
/// Minimum capacity of a table when it shrinks.
const CAPACITY_MIN: usize = 64;

/// For what a file or directory is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Only for reading.
    Read,
    /// For writing.
    Write,
}

/// How often an inode is open.
#[derive(Clone, Copy, Debug, Default)]
struct OpenCounts {
    opens: u32,
    writers: u32,
}

/// References to some of the inodes.
#[derive(Debug, Default)]
struct Shard {
    /// Lookups that the kernel has not forgotten. A count that saturates stays.
    lookups: HashMap<Ino, u32>,
    open: HashMap<Ino, OpenCounts>,
    /// Inodes that have lost their last name.
    orphans: HashSet<Ino>,
}

impl Shard {
    fn is_known(&self, ino: Ino) -> bool {
        self.lookups.contains_key(&ino) || self.open.contains_key(&ino)
    }

    fn forget(&mut self, ino: Ino, lookups: u64) {
        let Some(count) = self.lookups.get_mut(&ino) else {
            return;
        };
        if *count < u32::MAX {
            let less = u32::try_from(lookups).unwrap_or(u32::MAX);
            *count = count.saturating_sub(less);
        }
        if *count == 0 {
            self.lookups.remove(&ino);
            let len = self.lookups.len();
            if len.max(CAPACITY_MIN) < self.lookups.capacity() / 4 {
                self.lookups.shrink_to(2 * len.max(CAPACITY_MIN));
            }
        }
    }

    fn close(&mut self, ino: Ino, access: Access) {
        if let Some(count) = self.open.get_mut(&ino) {
            count.opens = count.opens.saturating_sub(1);
            count.writers = count
                .writers
                .saturating_sub(u32::from(access == Access::Write));
            if count.opens == 0 {
                self.open.remove(&ino);
            }
        }
    }

    /// True for an orphan without references; it is removed from the orphans.
    fn take_unused_orphan(&mut self, ino: Ino) -> bool {
        !self.is_known(ino) && self.orphans.remove(&ino)
    }
}

/// References to inodes of the live view, and to kept views.
#[derive(Debug)]
pub(super) struct References {
    live: Box<[Mutex<Shard>]>,
    /// Number of open files and directories of each kept view.
    open_in_views: Mutex<HashMap<ViewId, u64>>,
    /// How often each inode was replaced, which gives it another generation in replies to the
    /// kernel.
    replacements: RwLock<HashMap<Ino, u64>>,
}

impl Default for References {
    fn default() -> Self {
        Self {
            live: (0..SHARDS).map(|_| Mutex::default()).collect(),
            open_in_views: Mutex::default(),
            replacements: RwLock::default(),
        }
    }
}

impl References {
    /// Inode numbers are allocated in order, so inodes that are used together are spread over
    /// shards.
    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.live[ino.0 as usize % SHARDS]
    }

    /// The kernel learned of the inode.
    pub(super) fn looked_up(&self, node: NodeId) {
        if node.is_live() {
            let mut shard = self.shard(node.ino()).lock();
            let count = shard.lookups.entry(node.ino()).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// The inode was opened.
    pub(super) fn opened(&self, node: NodeId, access: Access) {
        if !node.is_live() {
            *self.open_in_views.lock().entry(node.view()).or_default() += 1;
            return;
        }
        let mut shard = self.shard(node.ino()).lock();
        let count = shard.open.entry(node.ino()).or_default();
        count.opens += 1;
        count.writers += u32::from(access == Access::Write);
    }

    /// The kernel forgot some lookups. True if the inode is an orphan without references now.
    pub(super) fn forgotten(&self, node: NodeId, lookups: u64) -> bool {
        if !node.is_live() {
            return false;
        }
        let mut shard = self.shard(node.ino()).lock();
        shard.forget(node.ino(), lookups);
        shard.take_unused_orphan(node.ino())
    }

    /// An open file was closed. True if the inode is an orphan without references now.
    pub(super) fn closed(&self, node: NodeId, access: Access) -> bool {
        if node.is_live() {
            let mut shard = self.shard(node.ino()).lock();
            shard.close(node.ino(), access);
            return shard.take_unused_orphan(node.ino());
        }
        let mut open = self.open_in_views.lock();
        if let Some(count) = open.get_mut(&node.view()) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&node.view());
            }
        }
        false
    }

    /// The inode lost its last name. True if it has no references.
    pub(super) fn orphaned(&self, ino: Ino) -> bool {
        let mut shard = self.shard(ino).lock();
        let is_known = shard.is_known(ino);
        if is_known {
            shard.orphans.insert(ino);
        }
        !is_known
    }

    /// True if the inode is open for writing.
    pub(super) fn has_writers(&self, node: NodeId) -> bool {
        let shard = self.shard(node.ino()).lock();
        let count = shard.open.get(&node.ino()).filter(|_| node.is_live());
        count.is_some_and(|count| count.writers > 0)
    }

    /// True if the inode is referenced.
    pub(super) fn is_known(&self, ino: Ino) -> bool {
        self.shard(ino).lock().is_known(ino)
    }

    /// Raises the generation of an inode, so that the kernel treats it as another file at its next
    /// lookup. Programs that have the inode open get EIO from then on.
    pub(super) fn replaced(&self, ino: Ino) {
        *self.replacements.write().entry(ino).or_default() += 1;
    }

    /// The generation of an inode: how often it was replaced.
    pub(super) fn generation(&self, node: NodeId) -> u64 {
        let replacements = self.replacements.read();
        let count = replacements.get(&node.ino()).filter(|_| node.is_live());
        count.copied().unwrap_or(0)
    }

    /// Inodes that are open for writing.
    pub(super) fn writers(&self) -> Vec<NodeId> {
        let mut writers = Vec::new();
        for shard in &self.live {
            let shard = shard.lock();
            let open = shard.open.iter().filter(|(_, count)| count.writers > 0);
            writers.extend(open.filter_map(|(ino, _)| NodeId::live(*ino)));
        }
        writers
    }

    /// The inode has a name again.
    pub(super) fn named_again(&self, ino: Ino) {
        self.shard(ino).lock().orphans.remove(&ino);
    }

    /// True if a file or directory of the kept view is open.
    pub(super) fn view_in_use(&self, view: ViewId) -> bool {
        self.open_in_views.lock().contains_key(&view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::live(Ino(number)).unwrap()
    }

    #[test]
    fn an_orphan_is_removed_with_its_last_reference() {
        let references = References::default();
        let file = node(300);
        assert!(references.orphaned(file.ino()));
        references.looked_up(file);
        references.looked_up(file);
        references.opened(file, Access::Write);
        assert!(references.has_writers(file) && references.is_known(file.ino()));
        assert_eq!(references.writers(), [file]);
        assert!(!references.orphaned(file.ino()));
        assert!(!references.forgotten(file, 2));
        assert!(references.closed(file, Access::Write));
        assert!(!references.is_known(file.ino()) && !references.has_writers(file));
        // With a name again it is not removed.
        references.looked_up(file);
        assert!(!references.orphaned(file.ino()));
        references.named_again(file.ino());
        assert!(!references.forgotten(file, u64::MAX));
    }

    #[test]
    fn memory_is_freed_when_the_kernel_forgets() {
        let references = References::default();
        const INODES: u64 = 100_000;
        (1..INODES).for_each(|ino| references.looked_up(node(ino)));
        let capacity = |references: &References| -> usize {
            let shards = references.live.iter();
            shards.map(|shard| shard.lock().lookups.capacity()).sum()
        };
        let most = capacity(&references);
        assert!(most < 3 * INODES as usize, "{most}");
        (1..INODES).for_each(|ino| assert!(!references.forgotten(node(ino), 1)));
        assert!(
            capacity(&references) <= SHARDS * 4 * CAPACITY_MIN,
            "{}",
            capacity(&references)
        );
    }
}
