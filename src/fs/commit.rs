//! When changes become durable: on fsync, by time, and under memory pressure.
//!
//! A commit contains every change applied before it. Files whose contents must be durable first
//! (renamed over others, or truncated and written again) are synced before the commit's contents
//! are fixed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Filesystem, FsError};
use crate::errno::Errno;
use crate::ids::Ino;
use crate::object::ObjectError;
use crate::planted::{Bug, planted};

/// How often a commit waits for files that were ordered meanwhile, before it keeps changes out.
const ORDERED_ROUNDS: u32 = 4;

/// Pages that one turn of the background thread copies to shorten lists of parts: 16 MiB, which is
/// little between two commits by time, compared with what a disk can do.
const FLATTENED_PAGES: u32 = 4096;

/// Maximum time for dropping records of deleted views between two commits.
const PURGE_TURN: Duration = Duration::from_millis(100);

/// How often a caller that waits for trimming runs it again after a commit.
const TRIM_ROUNDS: u32 = 3;

/// Requests to the background thread.
#[derive(Debug, Default)]
pub(super) struct Background {
    stop: bool,
    commit: bool,
}

impl Filesystem {
    /// Commits every change applied so far. Many callers share one commit.
    pub(super) fn commit_now(&self) -> Result<(), FsError> {
        let through = self.meta.newest_batch();
        for _ in 0..ORDERED_ROUNDS {
            self.contents.sync_ordered()?;
            if self
                .meta
                .commit(through, &|| self.contents.none_ordered())?
            {
                return Ok(());
            }
        }
        let _permit = self.meta.permit();
        let _namespace = self.namespace.lock();
        loop {
            self.contents.sync_ordered()?;
            if self
                .meta
                .commit(through, &|| self.contents.none_ordered())?
            {
                return Ok(());
            }
        }
    }

    /// Makes everything durable, contents included, and gives back the space that this frees.
    pub(super) fn sync_everything(&self) -> Result<(), FsError> {
        self.contents.sync_all()?;
        if planted(Bug::UnlinkBeforeCommit) || planted(Bug::PunchBeforeCommit) {
            self.contents.collect()?;
        }
        self.commit_now()?;
        // Even if an fsync has committed already: this writes only what is new to the keystore.
        self.record_in_keystore(false);
        self.contents.collect()?;
        Ok(())
    }

    /// Makes everything durable that was changed before (`sync(2)`).
    ///
    /// # Errors
    /// Not everything could be made durable.
    pub fn sync(&self) -> Result<(), FsError> {
        if self.is_read_only() {
            return Ok(());
        }
        self.sync_everything()
    }

    /// Starts a commit if much is pending, and waits for it if very much is. Pending are changes of
    /// the metadata, and written files and objects that wait for their sync.
    pub(super) fn relieve_pressure(&self) -> Result<(), Errno> {
        let pending = self.meta.pending_bytes();
        let files = self.contents.recent_bytes();
        let limit = self.pending_limit();
        let most = limit.saturating_mul(2);
        if pending > most {
            return match self.commit_now().map_err(|error| error.errno()) {
                // A deletion frees space. Other operations are refused where they request space.
                Err(errno) if errno.is_full() && pending <= self.options.pending_bytes => Ok(()),
                result => result,
            };
        }
        if files > most {
            return match self.sync_everything().map_err(|error| error.errno()) {
                // A deletion frees space.
                Err(errno) if errno.is_full() => Ok(()),
                result => result,
            };
        }
        if pending.max(files) > limit || self.contents.is_sync_due() {
            self.wake_background();
        }
        Ok(())
    }

    /// Bytes of changes beyond which a commit is started.
    pub(super) fn pending_limit(&self) -> usize {
        let limit = self.options.pending_bytes;
        self.ballast
            .pending_bytes()
            .map_or(limit, |most| most.min(limit))
    }

    /// Makes the background thread commit now.
    pub(super) fn wake_background(&self) {
        self.background.lock().commit = true;
        self.wake.notify_one();
    }

    /// Starts the thread that commits by time and cleans up.
    pub(super) fn start_background(self: &Arc<Self>) -> Result<(), FsError> {
        if !self.options.background {
            return Ok(());
        }
        let this = Arc::downgrade(self);
        let interval = self.options.commit_interval;
        let handle = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || {
                while let Some(this) = this.upgrade() {
                    let stop = this.wait(interval);
                    let turn = catch_unwind(AssertUnwindSafe(|| this.background_tick(stop)));
                    if turn.is_err() {
                        // Without this thread nothing would be committed by time any more.
                        this.meta
                            .latch("a bug of this program in the committer thread");
                    }
                    if stop {
                        break;
                    }
                }
            })?;
        *self.worker.lock() = Some(handle);
        Ok(())
    }

    fn background_tick(&self, stop: bool) {
        self.remove_pending();
        if stop {
            return;
        }
        if let Err(error) = self.sync_everything() {
            tracing::error!(%error, "a commit in the background failed; changes wait in memory");
        } else if self.purge_some() {
            self.wake_background();
        }
        self.ballast.refill();
        self.compact_parts();
        self.trim_some();
    }

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
    fn trim_some(&self) {
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

    /// Runs the work of the background thread once, now.
    ///
    /// # Errors
    /// Not everything could be made durable.
    pub fn run_maintenance(&self) -> Result<(), FsError> {
        self.remove_pending();
        if self.is_read_only() {
            return Ok(());
        }
        self.compact_parts();
        self.sync_everything()
    }

    /// Drops some records that only deleted views could see. True if more is left.
    pub(super) fn purge_some(&self) -> bool {
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

    /// Stops the background threads.
    pub(super) fn stop_background(&self) {
        self.stop_checkpoints();
        self.background.lock().stop = true;
        self.wake.notify_one();
        let worker = self.worker.lock().take();
        if let Some(worker) = worker
            && worker.thread().id() != std::thread::current().id()
            && worker.join().is_err()
        {
            tracing::error!("the committer thread panicked");
        }
    }

    /// Starts the background threads again.
    pub(super) fn resume_background(self: &Arc<Self>) -> Result<(), FsError> {
        self.background.lock().stop = false;
        self.start_background()?;
        self.start_checkpoints();
        Ok(())
    }

    fn wait(&self, interval: std::time::Duration) -> bool {
        let until = Instant::now() + interval;
        let mut background = self.background.lock();
        while !background.stop && !background.commit {
            if self.wake.wait_until(&mut background, until).timed_out() {
                break;
            }
        }
        background.commit = false;
        background.stop
    }

    // ---- removal of inodes ------------------------------------------------------------------

    /// Removes a small orphan at once, and a larger one in the background.
    pub(super) fn remove_or_defer(&self, ino: Ino) {
        const PAGES_AT_ONCE: u64 = 4096;
        if self.is_read_only() {
            // It is removed when the filesystem is writable again, or by the next mount.
            self.pending_removals.lock().push(ino);
            return;
        }
        if self.meta.check_writable().is_err() {
            return;
        }
        let small = matches!(
            self.meta.inode(ino, crate::meta::View::LIVE),
            Ok(Some(record)) if record.pages < PAGES_AT_ONCE
        );
        if !small {
            self.pending_removals.lock().push(ino);
            self.wake_background();
        } else if let Err(error) = self.remove_inode(ino) {
            if self.is_read_only() {
                // It has been remounted read-only meanwhile.
                self.pending_removals.lock().push(ino);
                return;
            }
            // The orphan's row stays: the next mount removes it.
            tracing::warn!(ino = ino.0, %error, "an unlinked file could not be removed yet");
        }
    }

    pub(super) fn remove_inode(&self, ino: Ino) -> Result<(), FsError> {
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

    pub(super) fn remove_pending(&self) {
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
