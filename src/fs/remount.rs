//! Changing a filesystem that is in use from writable to read-only and back (`mount -o remount`).
//!
//! The kernel is the first to refuse changes: it has seen to it that no file is open for writing
//! and that none that lost its last name is open. Then everything is made durable, the volume is
//! marked clean, and nothing is written any more, neither times of access nor what closing and
//! forgetting would remove. Views and restores, of which the kernel knows nothing, are waited for,
//! and none begins meanwhile. From the instant in which the volume is marked clean the metadata
//! refuse every change, whoever is late with one. Writable again: marked as in use, durably, before
//! the first change.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{AccessTimes, Filesystem, FsError};
use crate::errno::Errno;
use crate::store::os_error;

impl Filesystem {
    /// True while nothing may change: by the way it was opened, or for now.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only || self.held.load(Ordering::SeqCst)
    }

    /// Lets nothing change any more. Everything is durable when this returns, and the volume is
    /// marked clean: after a power cut there is nothing to recover.
    ///
    /// # Errors
    /// Not everything could be made durable; then it stays writable.
    pub fn make_read_only(self: &Arc<Self>) -> Result<(), FsError> {
        let _turn = self.remounting.lock();
        let _alone = self.long_changes.write();
        if self.is_read_only() {
            return Ok(());
        }
        self.held.store(true, Ordering::SeqCst);
        self.stop_background();
        let settled = self.settle();
        if settled.is_err() {
            // It may be marked in memory, and goes on being used.
            self.meta.set_clean(false);
            self.held.store(false, Ordering::SeqCst);
            self.resume_background()?;
        }
        settled
    }

    fn settle(&self) -> Result<(), FsError> {
        self.remove_doomed();
        self.sync_everything()?;
        {
            // Whoever is in the middle of a change comes to its end first.
            let _pause = self.settle_contents()?;
            self.contents.objects().sync_unlinked()?;
            self.meta.hold_clean();
            // All contents are durable, so this waits for none.
            self.meta.commit(self.meta.newest_batch(), &|| true)?;
        }
        // Not as clean: the database is open, and its next use begins with looking for that.
        self.try_to_remember(false);
        Ok(())
    }

    /// Lets changes happen again.
    ///
    /// # Errors
    /// EROFS where it was opened read-only; else the volume could not be marked as in use, and
    /// nothing may change still.
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
        self.try_to_remember(false);
        self.resume_background()?;
        self.held.store(false, Ordering::SeqCst);
        // What was closed meanwhile waits to be removed.
        self.wake_background();
        Ok(())
    }

    /// When reading changes the time of last access, from now on.
    pub fn set_access_times(&self, access_times: AccessTimes) {
        self.access_times.set(access_times);
    }
}
