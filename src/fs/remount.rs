//! Remounting a filesystem that is in use as read-only, and as writable again (`mount -o remount`).
//!
//! The kernel refuses changes first: it has made sure that no file is open for writing and that no
//! unlinked file is open. Then everything is made durable, the volume is marked clean, and nothing
//! is written any more: access times stay as they are, and orphans wait to be removed. The kernel
//! does not know of views and restores, so the filesystem waits for those under way and begins no
//! other. From the moment the volume is marked clean, the metadata refuses every late change. To
//! become writable again, the volume is marked as in use, durably, before the first change.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{AccessTimes, Filesystem, FsError};
use crate::errno::Errno;
use crate::store::os_error;

impl Filesystem {
    /// True while nothing may change, because the filesystem was opened or remounted read-only.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only || self.remounted_read_only.load(Ordering::SeqCst)
    }

    /// Makes the filesystem read-only. On return everything is durable and the volume is marked
    /// clean: after a power cut there is nothing to recover.
    ///
    /// # Errors
    /// Not everything could be made durable; the filesystem stays writable.
    pub fn make_read_only(self: &Arc<Self>) -> Result<(), FsError> {
        let _turn = self.remounting.lock();
        let _alone = self.long_changes.write();
        if self.is_read_only() {
            return Ok(());
        }
        self.remounted_read_only.store(true, Ordering::SeqCst);
        self.stop_background();
        let quiesced = self.quiesce();
        if quiesced.is_err() {
            // The volume stays in use, and may be marked clean in memory.
            self.meta.set_clean(false);
            self.remounted_read_only.store(false, Ordering::SeqCst);
            self.resume_background()?;
        }
        quiesced
    }

    fn quiesce(&self) -> Result<(), FsError> {
        self.remove_pending();
        self.sync_everything()?;
        {
            // Changes that are under way finish first.
            let _pause = self.sync_and_pause()?;
            self.contents.objects().sync_unlinked()?;
            self.meta.hold_clean();
            // All contents are durable, so this commit waits for none.
            self.meta.commit(self.meta.newest_batch(), &|| true)?;
        }
        // Not as clean: the database is open, and opening it again begins with recovery.
        self.record_in_keystore(false);
        Ok(())
    }

    /// Makes the filesystem writable again.
    ///
    /// # Errors
    /// EROFS if it was opened read-only; otherwise the volume could not be marked as in use, and it
    /// stays read-only.
    pub fn make_writable(self: &Arc<Self>) -> Result<(), FsError> {
        let _turn = self.remounting.lock();
        if self.options.read_only {
            return Err(FsError::Io(os_error(Errno::EROFS)));
        }
        if !self.is_read_only() {
            return Ok(());
        }
        self.meta.set_clean(false);
        self.commit_now()?;
        self.record_in_keystore(false);
        self.resume_background()?;
        self.remounted_read_only.store(false, Ordering::SeqCst);
        // Files that were closed meanwhile wait to be removed.
        self.wake_background();
        Ok(())
    }

    /// Sets when reading updates the access time, from now on.
    pub fn set_access_times(&self, access_times: AccessTimes) {
        self.access_times.set(access_times);
    }
}
