//! Removal of unlinked inodes: small ones at once, larger ones by the committer.

use crate::fs::{Filesystem, FsError};
use crate::ids::Ino;
use crate::meta::View;
use crate::object::ObjectError;

impl Filesystem {
    /// Removes a small orphan at once, and a larger one in the background.
    pub(in crate::fs) fn remove_or_defer(&self, ino: Ino) {
        const PAGES_AT_ONCE_MAX: u64 = 4096;
        if self.is_read_only() {
            // The orphan is removed when the filesystem is writable again, or by the next mount.
            self.pending_removals.lock().push(ino);
            return;
        }
        if self.meta.check_writable().is_err() {
            return;
        }
        let small = matches!(
            self.meta.inode(ino, View::LIVE),
            Ok(Some(record)) if record.pages < PAGES_AT_ONCE_MAX
        );
        if !small {
            self.pending_removals.lock().push(ino);
            self.wake_background();
        } else if let Err(error) = self.remove_inode(ino) {
            if self.is_read_only() {
                // The filesystem has been remounted read-only meanwhile.
                self.pending_removals.lock().push(ino);
                return;
            }
            // The orphan's row stays: the next mount removes it.
            tracing::warn!(ino = ino.0, %error, "an unlinked file could not be removed yet");
        }
    }

    /// Removes an orphan with its contents; a directory with everything below it.
    pub(in crate::fs) fn remove_inode(&self, ino: Ino) -> Result<(), FsError> {
        let file = match self.contents.file(ino) {
            // Removed already.
            Err(ObjectError::Removed) => return Ok(()),
            other => other?,
        };
        self.empty_orphan(ino)?;
        while !self.contents.remove(&file)? {}
        drop(file);
        self.contents.forget(ino);
        Ok(())
    }

    /// Removes all orphans that wait for it.
    pub(in crate::fs) fn remove_pending(&self) {
        // Removing a directory can add its entries.
        while let Some(ino) = self.next_pending_removal() {
            if let Err(error) = self.remove_inode(ino) {
                tracing::warn!(ino = ino.0, %error, "an unlinked file could not be removed yet");
            }
        }
    }

    fn next_pending_removal(&self) -> Option<Ino> {
        self.pending_removals.lock().pop()
    }
}
