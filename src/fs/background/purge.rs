//! Dropping what only deleted views could see, and compacting lists of parts.

use std::time::{Duration, Instant};

use crate::fs::{Filesystem, FsError};

/// Pages that one turn of the background thread copies to shorten lists of parts: 16 MiB, which is
/// little between two commits by time, compared with what a disk can do.
const FLATTENED_PAGES: u32 = 4096;

/// Maximum time for dropping records of deleted views between two commits.
const PURGE_TURN: Duration = Duration::from_millis(100);

/// How often a caller that waits for trimming runs it again after a commit.
const TRIM_ROUNDS: u32 = 3;

impl Filesystem {
    /// Shortens long lists of parts until something more urgent is requested. The changes are part
    /// of the next commit.
    pub fn compact_parts(&self) {
        if !self.is_read_only() {
            let asked = || {
                let background = self.background.lock();
                background.commit || background.stop
            };
            self.contents.flatten_some(FLATTENED_PAGES, &asked);
        }
    }

    /// Gives back pages that only deleted views could see, for a limited time.
    pub(super) fn trim_some(&self) {
        if self.is_read_only() || self.meta.check_writable().is_err() {
            return;
        }
        let Some(_turn) = self.trimming.try_write() else {
            return;
        };
        let begin = Instant::now();
        let enough = || begin.elapsed() >= PURGE_TURN;
        if let Err(error) = self.contents.trim_some(&enough) {
            tracing::error!(%error, "pages of deleted snapshots could not be given back yet");
        } else if enough() {
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
        while begin.elapsed() < PURGE_TURN {
            match purge.step(&self.meta) {
                Ok(true) if self.meta.pending_bytes() > self.pending_limit() => return true,
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    tracing::error!(%error, "what deleted snapshots held could not be dropped yet");
                    return false;
                }
            }
        }
        true
    }

    /// Drops everything that only deleted views could see and gives its space back, without waiting
    /// for the background thread.
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
        let _turn = self.trimming.write();
        for _ in 0..TRIM_ROUNDS {
            if !self.contents.trim_some(&|| false)? {
                break;
            }
            self.sync_everything()?;
        }
        self.sync_everything()
    }
}
