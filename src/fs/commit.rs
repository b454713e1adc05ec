//! When changes become durable: on fsync, by time, under pressure.
//!
//! A commit contains every change applied before it. Files whose contents it must not outrun
//! (renamed over others, truncated and written anew) are synced before its contents are fixed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Filesystem, FsError};
use crate::errno::Errno;
use crate::ids::Ino;
use crate::object::ObjectError;
use crate::planted::{Bug, planted};

/// How often a commit waits for files that became ordered meanwhile before it keeps changes out.
const ORDERED_ROUNDS: u32 = 4;

/// Pages that one turn of the background thread copies to shorten lists of parts: 16 MiB. Between
/// two commits by time that is little beside what a disk can do.
const FLATTENED_PAGES: u32 = 4096;

/// How long what deleted views held is dropped before the next commit.
const PURGE_TURN: Duration = Duration::from_millis(100);

/// How often pages that wait for a commit are looked at again by one who waits for them.
const TRIM_ROUNDS: u32 = 3;

/// What the background thread is asked to do.
#[derive(Debug, Default)]
pub(super) struct Background {
    stop: bool,
    commit: bool,
}

impl Filesystem {
    /// Makes every change applied so far durable. Many callers share one commit.
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

    /// Makes everything durable, contents included, and does what that allows.
    pub(super) fn sync_everything(&self) -> Result<(), FsError> {
        self.contents.sync_all()?;
        if planted(Bug::UnlinkBeforeCommit) || planted(Bug::CutBeforeCommit) {
            self.contents.collect()?;
        }
        self.commit_now()?;
        // Also where an fsync was faster than this: what is new to the keystore is written, no more.
        self.try_to_remember(false);
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

    /// Begins a commit when much is pending; waits for it when very much is. What is pending are
    /// changes of the metadata, and files and objects that were written and wait for their sync.
    pub(super) fn relieve_pressure(&self) -> Result<(), Errno> {
        let pending = self.meta.pending_bytes();
        let files = self.contents.recent_bytes();
        let limit = self.pending_limit();
        let most = limit.saturating_mul(2);
        if pending > most {
            return match self.commit_now().map_err(|error| error.errno()) {
                // Who deletes something makes room. Others are refused where they ask for it.
                Err(errno) if errno.is_full() && pending <= self.options.pending_bytes => Ok(()),
                result => result,
            };
        }
        if files > most {
            return match self.sync_everything().map_err(|error| error.errno()) {
                // Who deletes something makes room.
                Err(errno) if errno.is_full() => Ok(()),
                result => result,
            };
        }
        if pending.max(files) > limit || self.contents.is_sync_due() {
            self.wake_background();
        }
        Ok(())
    }

    /// Bytes of changes beyond which a commit is begun.
    pub(super) fn pending_limit(&self) -> usize {
        let limit = self.options.pending_bytes;
        self.ballast
            .pending_bytes()
            .map_or(limit, |most| most.min(limit))
    }

    /// Has the background thread commit now.
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
                    let turn = catch_unwind(AssertUnwindSafe(|| this.take_turn(stop)));
                    if turn.is_err() {
                        // Without this thread nothing would ever be committed by time.
                        this.meta
                            .latch("a fault of this program in the committing thread");
                    }
                    if stop {
                        break;
                    }
                }
            })?;
        *self.worker.lock() = Some(handle);
        Ok(())
    }

    fn take_turn(&self, stop: bool) {
        self.remove_doomed();
        if stop {
            return;
        }
        if let Err(error) = self.sync_everything() {
            tracing::error!(%error, "a commit in the background failed; changes wait in memory");
        } else if self.purge_some() {
            self.wake_background();
        }
        self.ballast.refill();
        self.tend_lists();
        self.trim_some();
    }

    /// Shortens lists of parts that have become long, until there is something more urgent to do.
    /// What this changes is part of the next commit.
    pub fn tend_lists(&self) {
        if !self.is_read_only() {
            let asked = || {
                let background = self.background.lock();
                background.commit || background.stop
            };
            self.contents.flatten_some(FLATTENED_PAGES, &asked);
        }
    }

    /// Gives back pages that only deleted views saw, for a while.
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

    /// Does now what the background thread does when its time comes.
    ///
    /// # Errors
    /// Not everything could be made durable.
    pub fn tend(&self) -> Result<(), FsError> {
        self.remove_doomed();
        if self.is_read_only() {
            return Ok(());
        }
        self.tend_lists();
        self.sync_everything()
    }

    /// Drops some of what only deleted views saw. True when more is left.
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

    /// Drops all that only deleted views saw and gives its room back, without waiting for the
    /// background.
    ///
    /// # Errors
    /// Not all of it could be.
    pub fn finish_purge(&self) -> Result<(), FsError> {
        while self.purge.lock().step(&self.meta)? {
            if self.meta.pending_bytes() > self.pending_limit() {
                self.commit_now()?;
            }
        }
        self.sync_everything()?;
        // Records first; what they name no more when that is durable.
        let _turn = self.trimming.write();
        for _ in 0..TRIM_ROUNDS {
            if !self.contents.trim_some(&|| false)? {
                break;
            }
            self.sync_everything()?;
        }
        self.sync_everything()
    }

    /// Ends that thread.
    pub(super) fn stop_background(&self) {
        self.stop_checkpoints();
        self.background.lock().stop = true;
        self.wake.notify_one();
        let worker = self.worker.lock().take();
        if let Some(worker) = worker
            && worker.thread().id() != std::thread::current().id()
            && worker.join().is_err()
        {
            tracing::error!("the committing thread ended with a panic");
        }
    }

    /// Starts it again.
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

    /// Removes an orphan at once when it is small, in the background otherwise.
    pub(super) fn remove_or_defer(&self, ino: Ino) {
        const PAGES_AT_ONCE: u64 = 4096;
        if self.is_read_only() {
            // Removed when changes may happen again, else by the next mount.
            self.doomed.lock().push(ino);
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
            self.doomed.lock().push(ino);
            self.wake_background();
        } else if let Err(error) = self.remove_inode(ino) {
            if self.is_read_only() {
                // It has become so meanwhile.
                self.doomed.lock().push(ino);
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

    pub(super) fn remove_doomed(&self) {
        // Removing a directory can doom what was in it.
        while let Some(ino) = self.next_doomed() {
            if let Err(error) = self.remove_inode(ino) {
                tracing::warn!(ino = ino.0, %error, "an unlinked file could not be removed yet");
            }
        }
    }

    fn next_doomed(&self) -> Option<Ino> {
        self.doomed.lock().pop()
    }
}
