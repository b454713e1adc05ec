//! Who still needs an inode: the kernel (lookups not yet forgotten) and open files.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::ids::Ino;

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

/// References to inodes of the live view.
#[derive(Debug, Default)]
pub(super) struct References(Mutex<HashMap<Ino, Count>>);

impl References {
    /// The kernel learned of the inode.
    pub(super) fn looked_up(&self, ino: Ino) {
        self.0.lock().entry(ino).or_default().lookups += 1;
    }

    /// The inode was opened.
    pub(super) fn opened(&self, ino: Ino, writable: bool) {
        let mut counts = self.0.lock();
        let count = counts.entry(ino).or_default();
        count.opens += 1;
        count.writers += u64::from(writable);
    }

    /// The kernel forgot some lookups. True when the inode is an orphan that nobody needs now.
    pub(super) fn forgotten(&self, ino: Ino, lookups: u64) -> bool {
        self.release(ino, |count| {
            count.lookups = count.lookups.saturating_sub(lookups);
        })
    }

    /// An open file was closed. True when the inode is an orphan that nobody needs now.
    pub(super) fn closed(&self, ino: Ino, writable: bool) -> bool {
        self.release(ino, |count| {
            count.opens = count.opens.saturating_sub(1);
            count.writers = count.writers.saturating_sub(u64::from(writable));
        })
    }

    /// The inode lost its last name. True when nobody needs it.
    pub(super) fn orphaned(&self, ino: Ino) -> bool {
        let mut counts = self.0.lock();
        match counts.get_mut(&ino) {
            Some(count) => {
                count.orphan = true;
                false
            }
            None => true,
        }
    }

    /// True when somebody has the inode open for writing.
    pub(super) fn has_writers(&self, ino: Ino) -> bool {
        self.0
            .lock()
            .get(&ino)
            .is_some_and(|count| count.writers > 0)
    }

    fn release(&self, ino: Ino, change: impl FnOnce(&mut Count)) -> bool {
        let mut counts = self.0.lock();
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
