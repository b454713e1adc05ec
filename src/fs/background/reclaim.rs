//! Reclaiming space on a full disk: space of removed files is freed before an operation fails with
//! ENOSPC.
//!
//! The objects of a removed file are unlinked in the background, after the commit that removes its
//! names, and space that only deleted views used is freed after that. Until then the space is still
//! used, although programs expect it to be free. So an operation that gets ENOSPC does this work
//! itself and tries again. Operations that get ENOSPC at the same time share one reclaim. The older
//! one of two checkpoints is removed too.
//!
//! The caller must hold nothing that a commit waits for: no inode lock, no file's gate, not the
//! namespace.

use crate::errno::Errno;
use crate::fs::{Filesystem, FsError};

/// Maximum number of turns of the purge that an operation waits for.
const PURGE_TURNS_MAX: u32 = 20;

impl Filesystem {
    /// Runs a change. If there is no space for it, reclaims space and runs it once more. The change
    /// must be one that can be run twice.
    pub(in crate::fs) fn retry_after_reclaim<T, E: Into<Errno>>(
        &self,
        mut change: impl FnMut() -> Result<T, E>,
    ) -> Result<T, Errno> {
        let reclaims_before = *self.reclaims.lock();
        match change().map_err(Into::into) {
            Err(errno) if errno.is_full() && self.reclaim_space(reclaims_before, errno) => {
                change().map_err(Into::into)
            }
            result => result,
        }
    }

    /// True while removed files or deleted views still use space that can be reclaimed.
    pub fn has_reclaimable_space(&self) -> bool {
        !self.meta.leaving_views().is_empty()
            || !self.pending_removals.lock().is_empty()
            || self.contents.has_garbage().unwrap_or(false)
    }

    /// Reclaims space, unless another thread has done so since `reclaims_before` was read. True if
    /// there may be space now.
    fn reclaim_space(&self, reclaims_before: u64, errno: Errno) -> bool {
        let mut reclaims = self.reclaims.lock();
        if *reclaims != reclaims_before {
            return true;
        }
        let is_reclaimable = self.has_reclaimable_space();
        let removed_checkpoint = self.free_checkpoint_space(errno);
        if !is_reclaimable && !removed_checkpoint {
            return false;
        }
        self.remove_pending();
        let mut turns = 0;
        while turns < PURGE_TURNS_MAX && self.purge_some() {
            turns += 1;
        }
        // Objects whose removal is committed can be unlinked even without space for a commit. That
        // may free the space for it.
        let freed = self.contents.collect().is_ok();
        let committed = self.commit_now().is_ok();
        let freed = self.contents.collect().is_ok() || freed || removed_checkpoint;
        self.ballast.allow_refill();
        tracing::info!(
            committed,
            freed,
            "the disk is full: space of removed files was reclaimed"
        );
        *reclaims += 1;
        freed
    }

    /// Commits every change applied so far, and reclaims space if there is none for that.
    ///
    /// # Errors
    /// The commit failed, and again after space was reclaimed.
    pub(in crate::fs) fn commit_with_reclaim(&self) -> Result<(), FsError> {
        let committed =
            self.retry_after_reclaim(|| self.commit_now().map_err(|error| error.errno()));
        // Commits again to return the full error.
        committed.or_else(|_| self.commit_now())
    }
}
