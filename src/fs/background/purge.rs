//! Dropping records and pages that only deleted views could see, and compacting lists of parts.

use std::time::{Duration, Instant};

use crate::fs::{Filesystem, FsError};

/// Pages that one tick of the background thread copies to shorten lists of parts: 16 MiB, which a
/// disk writes in a small part of the time between two commits.
const FLATTENED_PAGES_MAX: u32 = 4096;

/// Maximum time for dropping records or pages of deleted views between two commits.
const TURN_TIME_MAX: Duration = Duration::from_millis(100);

/// How often a caller that waits for trimming runs it again after a commit.
const TRIM_ROUNDS: u32 = 3;

impl Filesystem {
    /// Shortens long lists of parts until something more urgent is requested. The changes are part
    /// of the next commit.
    pub fn compact_parts(&self) {
        if !self.is_read_only() {
            let is_interrupted = || {
                let background = self.background.lock();
                background.commit || background.stop
            };
            self.contents
                .flatten_some(FLATTENED_PAGES_MAX, &is_interrupted);
        }
    }

    /// Punches pages that only deleted views could see, for a limited time.
    pub(super) fn trim_some(&self) {
        if self.is_read_only() || self.meta.check_writable().is_err() {
            return;
        }
        let Some(_trimming) = self.trimming.try_write() else {
            return;
        };
        let begin = Instant::now();
        let is_time_over = || begin.elapsed() >= TURN_TIME_MAX;
        if let Err(error) = self.contents.trim_some(&is_time_over) {
            tracing::error!(%error, "pages of deleted snapshots could not be freed yet");
        } else if is_time_over() {
            self.wake_background();
        }
    }

    /// Drops some records that only deleted views could see. True if more is left.
    pub(in crate::fs) fn purge_some(&self) -> bool {
        if self.is_read_only() || self.meta.check_writable().is_err() {
            return false;
        }
        let begin = Instant::now();
        let mut purge = self.purge.lock();
        while begin.elapsed() < TURN_TIME_MAX {
            match purge.step(&self.meta) {
                Ok(true) if self.meta.pending_bytes() > self.pending_limit() => return true,
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    tracing::error!(%error, "records of deleted snapshots are not dropped yet");
                    return false;
                }
            }
        }
        true
    }

    /// Drops everything that only deleted views could see and frees its space, without waiting for
    /// the background thread.
    ///
    /// # Errors
    /// Something could not be dropped or made durable.
    pub fn finish_purge(&self) -> Result<(), FsError> {
        while self.purge.lock().step(&self.meta)? {
            if self.meta.pending_bytes() > self.pending_limit() {
                self.commit_now()?;
            }
        }
        self.sync_everything()?;
        // First the records change; once that is durable, the pages that they no longer name are
        // punched.
        let _trimming = self.trimming.write();
        for _ in 0..TRIM_ROUNDS {
            if !self.contents.trim_some(&|| false)? {
                break;
            }
            self.sync_everything()?;
        }
        self.sync_everything()
    }
}
