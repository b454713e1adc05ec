//! Who still needs an inode: the kernel (lookups not yet forgotten) and open files. What a kept view
//! shows stays without that; of those it is counted how much is open in them.

use std::collections::HashMap;

use parking_lot::{Mutex, RwLock};

use super::types::NodeId;
use crate::ids::{Ino, ViewId};

#[derive(Debug, Default)]
struct Count {
    lookups: u64,
    opens: u64,
    writers: u64,
    orphan: bool,
}

impl Count {
    fn is_unused(&self) -> bool {
        self.lookups == 0 && self.opens == 0
    }
}

/// References to inodes of the live view, and to kept views.
#[derive(Debug, Default)]
pub(super) struct References {
    live: Mutex<HashMap<Ino, Count>>,
    /// Open files and directories of kept views.
    kept: Mutex<HashMap<ViewId, u64>>,
    /// How often inodes became something that the kernel must not take for what it knew.
    renewed: RwLock<HashMap<Ino, u64>>,
}

impl References {
    /// The kernel learned of the inode.
    pub(super) fn looked_up(&self, node: NodeId) {
        if node.is_live() {
            self.live.lock().entry(node.ino()).or_default().lookups += 1;
        }
    }

    /// The inode was opened.
    pub(super) fn opened(&self, node: NodeId, writable: bool) {
        if !node.is_live() {
            *self.kept.lock().entry(node.view()).or_default() += 1;
            return;
        }
        let mut counts = self.live.lock();
        let count = counts.entry(node.ino()).or_default();
        count.opens += 1;
        count.writers += u64::from(writable);
    }

    /// The kernel forgot some lookups. True when the inode is an orphan that nobody needs now.
    pub(super) fn forgotten(&self, node: NodeId, lookups: u64) -> bool {
        node.is_live()
            && self.release(node.ino(), |count| {
                count.lookups = count.lookups.saturating_sub(lookups);
            })
    }

    /// An open file was closed. True when the inode is an orphan that nobody needs now.
    pub(super) fn closed(&self, node: NodeId, writable: bool) -> bool {
        if !node.is_live() {
            let mut kept = self.kept.lock();
            if let Some(count) = kept.get_mut(&node.view()) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    kept.remove(&node.view());
                }
            }
            return false;
        }
        self.release(node.ino(), |count| {
            count.opens = count.opens.saturating_sub(1);
            count.writers = count.writers.saturating_sub(u64::from(writable));
        })
    }

    /// The inode lost its last name. True when nobody needs it.
    pub(super) fn orphaned(&self, ino: Ino) -> bool {
        let mut counts = self.live.lock();
        match counts.get_mut(&ino) {
            Some(count) => {
                count.orphan = true;
                false
            }
            None => true,
        }
    }

    /// True when somebody has the inode open for writing.
    pub(super) fn has_writers(&self, node: NodeId) -> bool {
        let counts = self.live.lock();
        let count = counts.get(&node.ino()).filter(|_| node.is_live());
        count.is_some_and(|count| count.writers > 0)
    }

    /// True when the kernel knows the inode.
    pub(super) fn is_known(&self, ino: Ino) -> bool {
        self.live.lock().contains_key(&ino)
    }

    /// Has the kernel take the inode for another one when it next looks it up: what it knows of it
    /// is used by nobody but those who have it open, who get EIO then.
    pub(super) fn renew(&self, ino: Ino) {
        *self.renewed.write().entry(ino).or_default() += 1;
    }

    /// How often that was.
    pub(super) fn generation(&self, node: NodeId) -> u64 {
        let renewed = self.renewed.read();
        let count = renewed.get(&node.ino()).filter(|_| node.is_live());
        count.copied().unwrap_or(0)
    }

    /// Inodes that somebody has open for writing.
    pub(super) fn writers(&self) -> Vec<NodeId> {
        let counts = self.live.lock();
        let writers = counts.iter().filter(|(_, count)| count.writers > 0);
        writers.filter_map(|(ino, _)| NodeId::live(*ino)).collect()
    }

    /// The inode has a name again.
    pub(super) fn named_again(&self, ino: Ino) {
        if let Some(count) = self.live.lock().get_mut(&ino) {
            count.orphan = false;
        }
    }

    /// True when a file or directory of the kept view is open.
    pub(super) fn view_in_use(&self, view: ViewId) -> bool {
        self.kept.lock().contains_key(&view)
    }

    fn release(&self, ino: Ino, change: impl FnOnce(&mut Count)) -> bool {
        let mut counts = self.live.lock();
        let Some(count) = counts.get_mut(&ino) else {
            return false;
        };
        change(count);
        if !count.is_unused() {
            return false;
        }
        let orphan = count.orphan;
        counts.remove(&ino);
        orphan
    }
}
