//! When checkpoints of the metadata are made, and the spare copy of the superblock beside them.
//!
//! A background thread makes one if the interval has passed, something has changed since the last
//! one, and a hundred times the duration of the last one has passed. It works a quarter of the time
//! and sleeps the rest, so it takes no more than that from others. When the volume is closed
//! cleanly, it continues for a short time. An unfinished checkpoint stays, and the next mount
//! continues it. A failure is logged once and does not affect the filesystem.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::errno::Errno;
use crate::fs::Filesystem;
use crate::fs::types::Timespec;
use crate::meta::checkpoint::{self, Checkpoint, CheckpointError, Written};
use crate::meta::commit::BatchNumber;

/// The inverse of the maximum share of time spent on checkpoints.
const TIME_SHARE: u32 = 100;
/// Minimum time of work between two sleeps.
const WORK_TIME_MIN: Duration = Duration::from_millis(10);
/// A sleep lasts this many times as long as the work before it.
const SLEEP_FACTOR: u32 = 3;
/// Delay of the first checkpoint after a mount, if there is none or an old one.
const FIRST_DELAY: Duration = Duration::from_secs(30);
/// Maximum time spent on a checkpoint while closing.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// State of the checkpoints.
#[derive(Debug, Default)]
struct CheckpointState {
    newest: Option<Checkpoint>,
    /// The newest batch that the newest checkpoint contains.
    through: Option<BatchNumber>,
    /// The last attempt failed, and this was logged.
    warned: bool,
    /// There is no spare superblock, and this was logged.
    warned_of_spare: bool,
}

/// Requests to the thread.
#[derive(Debug, Default)]
struct ThreadControl {
    stop: Mutex<bool>,
    wake: Condvar,
}

impl ThreadControl {
    /// Waits that long, or until the thread is to stop. True in the latter case.
    fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut stop = self.stop.lock();
        while !*stop {
            if self.wake.wait_until(&mut stop, until).timed_out() {
                break;
            }
        }
        *stop
    }
}

/// The thread that makes checkpoints.
#[derive(Debug)]
struct CheckpointThread {
    control: Arc<ThreadControl>,
    handle: JoinHandle<()>,
}

/// The checkpoints of a filesystem in use.
#[derive(Debug, Default)]
pub(in crate::fs) struct Checkpoints {
    state: Mutex<CheckpointState>,
    thread: Mutex<Option<CheckpointThread>>,
}

impl Filesystem {
    /// Looks for existing checkpoints, and starts to make more.
    pub(in crate::fs) fn begin_checkpoints(self: &Arc<Self>) {
        if self.options.checkpoint_interval.is_none() {
            return;
        }
        let (store, active) = (&*self.volume.store, self.volume.keys.active());
        let newest = checkpoint::resume_unfinished(store, active)
            .and_then(|_| checkpoint::newest(store, active))
            .inspect_err(|error| tracing::warn!(%error, "the checkpoints cannot be read"));
        if let Some((newest, rows)) = newest.ok().flatten() {
            let mut state = self.checkpoints.state.lock();
            state.newest = Some(newest);
            let newest_batch = self.meta.newest_batch();
            let is_current = self.meta.has_rows_of(&rows).unwrap_or(false);
            state.through = is_current.then_some(newest_batch);
        }
        self.update_spare();
        self.start_checkpoints();
    }

    /// Updates the spare copy of the superblock. The first failure is logged.
    fn update_spare(&self) {
        let written = self.volume.keep_spare();
        let failed = written.is_err();
        let warned = std::mem::replace(&mut self.checkpoints.state.lock().warned_of_spare, failed);
        if let Err(error) = written
            && !warned
        {
            tracing::warn!(%error, "there is no spare copy of volume.json");
        }
    }

    pub(in crate::fs) fn start_checkpoints(self: &Arc<Self>) {
        let Some(interval) = self.options.checkpoint_interval else {
            return;
        };
        if !self.options.background {
            return;
        }
        let of_thread = Arc::new(ThreadControl::default());
        let (this, control) = (Arc::downgrade(self), Arc::clone(&of_thread));
        let mut wait = match self.checkpoint_age() {
            Some(age) if age < interval => interval - age,
            _ => interval.min(FIRST_DELAY),
        };
        let work = move || {
            while !control.wait(wait) {
                let Some(this) = this.upgrade() else {
                    return;
                };
                let begin = Instant::now();
                if this.checkpoint_is_behind() {
                    this.try_checkpoint(&mut throttled(|time| control.wait(time)));
                }
                wait = interval.max(begin.elapsed() * TIME_SHARE);
            }
        };
        let thread = std::thread::Builder::new().name("checkpoints".into());
        match thread.spawn(work) {
            Ok(handle) => {
                let control = of_thread;
                *self.checkpoints.thread.lock() = Some(CheckpointThread { control, handle });
            }
            Err(error) => tracing::warn!(%error, "no checkpoints will be made"),
        }
    }

    pub(in crate::fs) fn stop_checkpoints(&self) {
        let Some(CheckpointThread { control, handle }) = self.checkpoints.thread.lock().take()
        else {
            return;
        };
        *control.stop.lock() = true;
        control.wake.notify_all();
        if handle.thread().id() != std::thread::current().id() && handle.join().is_err() {
            tracing::error!("the checkpoint thread panicked");
        }
    }

    /// Age of the newest checkpoint. `None` for one with a time in the future.
    pub(in crate::fs) fn checkpoint_age(&self) -> Option<Duration> {
        let created = self.checkpoints.state.lock().newest?.created;
        let seconds = Timespec::now().secs.checked_sub(created.secs)?;
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }

    /// True if there are changes that the newest checkpoint does not contain.
    pub(in crate::fs) fn checkpoint_is_behind(&self) -> bool {
        let through = self.checkpoints.state.lock().through;
        through.is_none_or(|through| through < self.meta.newest_batch())
    }

    /// Makes a checkpoint while closing, or as much of it as a short time allows.
    pub(in crate::fs) fn checkpoint_on_close(&self) {
        if self.options.checkpoint_interval.is_some() {
            let begin = Instant::now();
            self.try_checkpoint(&mut || begin.elapsed() < CLOSE_TIME_MAX);
        }
    }

    fn try_checkpoint(&self, may_continue: &mut dyn FnMut() -> bool) {
        self.update_spare();
        match self.write_checkpoint(may_continue) {
            Ok(made) => {
                tracing::debug!(
                    bytes = made.checkpoint.bytes,
                    sequence = made.checkpoint.sequence.0,
                    copied_pages = made.copied_pages,
                    kept_pages = made.kept_pages,
                    renewals = made.renewals,
                    "a checkpoint of the metadata was made"
                );
                self.checkpoints.state.lock().warned = false;
            }
            Err(CheckpointError::Stopped) => {
                tracing::debug!("a checkpoint of the metadata is not finished yet");
            }
            Err(error) if !std::mem::replace(&mut self.checkpoints.state.lock().warned, true) => {
                match error {
                    CheckpointError::Damaged { .. } => tracing::error!(
                        %error,
                        "no checkpoint: the metadata is damaged; unmount the volume and check it"
                    ),
                    error => tracing::warn!(%error, "no checkpoint of the metadata could be made"),
                }
            }
            Err(_) => {}
        }
    }

    /// Makes a checkpoint of the last commit now.
    ///
    /// # Errors
    /// No checkpoint was made. The filesystem is not affected.
    pub fn checkpoint_now(&self) -> Result<Checkpoint, CheckpointError> {
        self.volume.keep_spare()?;
        Ok(self.write_checkpoint(&mut || true)?.checkpoint)
    }

    /// Makes a checkpoint at the pace of the background thread, unless `stop` returns true before
    /// it is finished.
    ///
    /// # Errors
    /// [`CheckpointError::Stopped`] if `stop` ended it; otherwise no checkpoint could be made. The
    /// filesystem is not affected.
    pub fn checkpoint_throttled(
        &self,
        stop: &dyn Fn() -> bool,
    ) -> Result<Checkpoint, CheckpointError> {
        let written = self.write_checkpoint(&mut throttled(|time| {
            std::thread::sleep(time);
            stop()
        }));
        Ok(written?.checkpoint)
    }

    fn write_checkpoint(
        &self,
        may_continue: &mut dyn FnMut() -> bool,
    ) -> Result<Written, CheckpointError> {
        let (store, active) = (&*self.volume.store, self.volume.keys.active());
        let made = self.meta.write_checkpoint(store, active, may_continue)?;
        let mut state = self.checkpoints.state.lock();
        state.newest = Some(made.checkpoint);
        // Applied changes that are not committed count as new changes the next time.
        state.through = Some(made.through);
        Ok(made)
    }

    /// Frees space on a full disk: removes the unfinished checkpoint, and then the older of two if
    /// that was not enough. True if one was removed.
    pub(in crate::fs) fn free_checkpoint_space(&self, errno: Errno) -> bool {
        let (store, active) = (&*self.volume.store, self.volume.keys.active());
        // Only if the disk or a quota is full, and not the volume's own size.
        let is_short = || errno == Errno::EDQUOT || checkpoint::is_short(store).unwrap_or(false);
        if !is_short() {
            return false;
        }
        let removed_unfinished = self
            .meta
            .discard_unfinished_checkpoint(store)
            .unwrap_or(false);
        // If checkpoints are disabled, existing ones stay.
        let may_remove = self.options.checkpoint_interval.is_some() && is_short();
        let removed_oldest =
            may_remove && checkpoint::discard_oldest(store, active, 1).unwrap_or(false);
        removed_unfinished || removed_oldest
    }

    /// Bytes that checkpoints of the metadata take on the backing filesystem, an unfinished one
    /// included; `None` if they cannot be read.
    pub fn checkpoint_bytes(&self) -> Option<u64> {
        checkpoint::allocated_bytes(&*self.volume.store).ok()
    }
}

/// Returns a closure that a long operation calls between its steps, to learn whether to continue.
/// The closure sleeps when it is time to. `wait` waits that long and returns true to stop.
fn throttled(wait: impl Fn(Duration) -> bool) -> impl FnMut() -> bool {
    let mut awake = Instant::now();
    move || {
        let worked = awake.elapsed();
        if worked < WORK_TIME_MIN {
            return !wait(Duration::ZERO);
        }
        let stop = wait(worked * SLEEP_FACTOR);
        awake = Instant::now();
        !stop
    }
}
