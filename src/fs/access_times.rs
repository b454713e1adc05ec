//! Access times.
//!
//! Since the kernel's cache serves reads, the filesystem does not see every one of them. So closing
//! a file that was opened only for reading counts as a read, and so does opening a directory. A
//! READ request counts too.

use std::sync::atomic::{AtomicU8, Ordering};

use super::Filesystem;
use super::types::{NodeId, Timespec, ViewsDirectory};
use serde::{Deserialize, Serialize};

use crate::errno::Errno;
use crate::meta::Batch;
use crate::meta::records::InodeRecord;

/// When reading updates the access time (mount(8)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessTimes {
    /// If it is older than the last change, or than a day: `relatime`.
    #[default]
    Relative,
    /// Every time: `strictatime`.
    Strict,
    /// Never: `noatime`.
    Never,
}

impl AccessTimes {
    fn is_due(self, record: &InodeRecord, now: Timespec) -> bool {
        const DAY_SECS: i64 = 86_400;
        match self {
            Self::Strict => true,
            Self::Never => false,
            Self::Relative => {
                record.atime <= record.mtime
                    || record.atime <= record.ctime
                    || now.secs.saturating_sub(record.atime.secs) >= DAY_SECS
            }
        }
    }
}

/// [`AccessTimes`] that a remount may change.
#[derive(Debug)]
pub(super) struct AccessTimesNow(AtomicU8);

impl AccessTimesNow {
    pub(super) const fn new(times: AccessTimes) -> Self {
        Self(AtomicU8::new(times as u8))
    }

    pub(super) fn set(&self, times: AccessTimes) {
        self.0.store(times as u8, Ordering::SeqCst);
    }

    fn get(&self) -> AccessTimes {
        match self.0.load(Ordering::Relaxed) {
            times if times == AccessTimes::Strict as u8 => AccessTimes::Strict,
            times if times == AccessTimes::Never as u8 => AccessTimes::Never,
            _ => AccessTimes::Relative,
        }
    }
}

impl Filesystem {
    /// Called when a file or directory was read, as far as this is known. True if the access time
    /// was updated, which the kernel does not know.
    ///
    /// # Errors
    /// The inode cannot be read or changed. The read itself is not affected.
    pub fn accessed(&self, node: NodeId) -> Result<bool, Errno> {
        let now = Timespec::now();
        let due = self.access_times.get().is_due(&self.inode(node)?, now);
        let may_change = node.is_live() && ViewsDirectory::of(node).is_none();
        if !due || !may_change || self.is_read_only() || self.meta.check_writable().is_err() {
            return Ok(false);
        }
        let _permit = self.meta.permit();
        let _inode = self.meta.lock_inode(node.ino());
        let mut batch = Batch::new();
        self.amend_inode(&mut batch, node.ino(), |record| record.atime = now)?;
        self.meta.apply(batch)?;
        Ok(true)
    }
}
