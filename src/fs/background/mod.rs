//! Work in the background: the committer thread, and what it does between two commits.
//!
//! The committer commits by time and on request, removes large unlinked files, drops records of
//! deleted views, compacts lists of parts and punches hidden pages. Checkpoints have a thread of
//! their own ([`checkpoints`]).

mod checkpoints;
mod customer_key;
mod keystore_record;
mod platform_keys;
mod purge;
mod reclaim;
mod removal;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Filesystem, FsError};

pub(super) use checkpoints::Checkpoints;
pub(super) use keystore_record::KeystoreState;

/// Requests to the background thread.
#[derive(Debug, Default)]
pub(super) struct Background {
    stop: bool,
    commit: bool,
}

impl Filesystem {
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
                    let stop = this.wait_for_tick(interval);
                    let tick = catch_unwind(AssertUnwindSafe(|| this.background_tick(stop)));
                    if tick.is_err() {
                        // Without this thread nothing would be committed by time any more.
                        this.meta
                            .latch("a bug in the committer thread of this program");
                    }
                    if stop {
                        break;
                    }
                }
            })?;
        *self.worker.lock() = Some(handle);
        Ok(())
    }

    /// Does everything that is due; when stopping, only what must not wait for the next mount.
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

    /// Waits for a request, or that long. True if the thread is to stop.
    fn wait_for_tick(&self, interval: Duration) -> bool {
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
}
