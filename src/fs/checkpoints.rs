//! When checkpoints of the metadata are made, and the spare copy of the superblock beside them.
//!
//! A thread of its own makes one when the interval is over, something was changed since the last
//! one, and a hundred times as long has gone by as the last one took. It works for a quarter of the
//! time and sleeps for the rest, so that it takes no more than that from anybody. At a clean end
//! the work goes on for a short time. What is not finished then stays, and the next use goes on
//! with it. No failure of any of this is one of the filesystem's: it is said in the log, once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Filesystem;
use super::types::Timespec;
use crate::errno::Errno;
use crate::meta::checkpoint::{self, Checkpoint, CheckpointError, Written};
use crate::meta::commit::BatchNumber;
use crate::volume::spare;

/// No more than one part in so many of the time is spent on checkpoints.
const TIME_SHARE: u32 = 100;
/// A turn of work, and how often as long it sleeps after it.
const SLICE: Duration = Duration::from_millis(10);
const SLEEPS: u32 = 3;
/// A use that begins with an old checkpoint, or none, makes one after so long.
const FIRST_AFTER: Duration = Duration::from_secs(30);
/// At the end it is worked on for so long.
const AT_END: Duration = Duration::from_secs(2);

/// What is known of the checkpoints.
#[derive(Debug, Default)]
struct Known {
    newest: Option<Checkpoint>,
    /// It has all that was changed up to this batch.
    through: Option<BatchNumber>,
    warned: bool,
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Orders {
    stop: Mutex<bool>,
    wake: Condvar,
}

impl Orders {
    /// Waits for so long, or until it is to stop: true then.
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

/// Checkpoints of a filesystem in use.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    known: Mutex<Known>,
    worker: Mutex<Option<(Arc<Orders>, std::thread::JoinHandle<()>)>>,
}

impl Filesystem {
    /// Finds out what there is, and begins to make more.
    pub(super) fn begin_checkpoints(self: &Arc<Self>) {
        if self.options.checkpoint_interval.is_none() {
            return;
        }
        let (store, active) = (&*self.volume.store, self.volume.keys.active());
        let found = checkpoint::resume_unfinished(store, active)
            .and_then(|_| checkpoint::newest(store, active))
            .inspect_err(|error| tracing::warn!(%error, "the checkpoints cannot be read"));
        if let Some((newest, rows)) = found.ok().flatten() {
            let mut known = self.checkpoints.known.lock();
            known.newest = Some(newest);
            let newest_batch = self.meta.newest_batch();
            let is_current = self.meta.has_rows_of(&rows).unwrap_or(false);
            known.through = is_current.then_some(newest_batch);
        }
        self.keep_spare();
        self.start_checkpoints();
    }

    fn write_spare(&self) -> std::io::Result<()> {
        let volume = &self.volume;
        spare::keep(&*volume.store, &volume.keys, &volume.header)
    }

    fn keep_spare(&self) {
        if let Err(error) = self.write_spare() {
            tracing::warn!(%error, "there is no spare copy of volume.json");
        }
    }

    pub(super) fn start_checkpoints(self: &Arc<Self>) {
        let Some(interval) = self.options.checkpoint_interval else {
            return;
        };
        if !self.options.background {
            return;
        }
        let orders = Arc::new(Orders::default());
        let (this, told) = (Arc::downgrade(self), Arc::clone(&orders));
        let mut wait = match self.checkpoint_age() {
            Some(age) if age < interval => interval - age,
            _ => interval.min(FIRST_AFTER),
        };
        let work = move || {
            while !told.wait(wait) {
                let Some(this) = this.upgrade() else {
                    return;
                };
                let begin = Instant::now();
                if this.checkpoint_is_behind() {
                    this.try_checkpoint(&mut in_turns(|time| told.wait(time)));
                }
                wait = interval.max(begin.elapsed() * TIME_SHARE);
            }
        };
        let thread = std::thread::Builder::new().name("checkpoints".into());
        match thread.spawn(work) {
            Ok(handle) => *self.checkpoints.worker.lock() = Some((orders, handle)),
            Err(error) => tracing::warn!(%error, "no checkpoints will be made"),
        }
    }

    pub(super) fn stop_checkpoints(&self) {
        let Some((orders, worker)) = self.checkpoints.worker.lock().take() else {
            return;
        };
        *orders.stop.lock() = true;
        orders.wake.notify_all();
        if worker.thread().id() != std::thread::current().id() && worker.join().is_err() {
            tracing::error!("the thread that makes checkpoints ended with a panic");
        }
    }

    /// Age of the newest checkpoint; one from the future has none.
    pub(super) fn checkpoint_age(&self) -> Option<Duration> {
        let created = self.checkpoints.known.lock().newest?.created;
        let seconds = Timespec::now().secs.checked_sub(created.secs)?;
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }

    /// True when something was changed that the newest checkpoint does not have.
    pub(super) fn checkpoint_is_behind(&self) -> bool {
        let through = self.checkpoints.known.lock().through;
        through.is_none_or(|through| through < self.meta.newest_batch())
    }

    /// At a clean end: makes one, or as much of it as is done in a short time.
    pub(super) fn checkpoint_at_end(&self) {
        if self.options.checkpoint_interval.is_some() {
            let begin = Instant::now();
            self.try_checkpoint(&mut || begin.elapsed() < AT_END);
        }
    }

    fn try_checkpoint(&self, go_on: &mut dyn FnMut() -> bool) {
        self.keep_spare();
        match self.write_checkpoint(go_on) {
            Ok(made) => {
                tracing::debug!(
                    bytes = made.checkpoint.bytes,
                    sequence = made.checkpoint.sequence.0,
                    copied_pages = made.copied_pages,
                    kept_pages = made.kept_pages,
                    renewals = made.renewals,
                    "a checkpoint of the metadata was made"
                );
                self.checkpoints.known.lock().warned = false;
            }
            Err(CheckpointError::Stopped) => {
                tracing::debug!("a checkpoint of the metadata is not finished yet");
            }
            Err(error) if !std::mem::replace(&mut self.checkpoints.known.lock().warned, true) => {
                match error {
                    CheckpointError::Damaged { .. } => tracing::error!(
                        %error,
                        "no checkpoint: the metadata are damaged; unmount the volume and check it"
                    ),
                    error => tracing::warn!(%error, "no checkpoint of the metadata could be made"),
                }
            }
            Err(_) => {}
        }
    }

    /// Makes a checkpoint of what is committed now, without waiting for its time.
    ///
    /// # Errors
    /// None was made. The filesystem goes on as it did.
    pub fn checkpoint_now(&self) -> Result<Checkpoint, CheckpointError> {
        self.write_spare()?;
        Ok(self.write_checkpoint(&mut || true)?.checkpoint)
    }

    /// The same in the pace of the background, unless `stop` says so before it is done.
    ///
    /// # Errors
    /// As [`Self::checkpoint_now`].
    pub fn checkpoint_in_turns(
        &self,
        stop: &dyn Fn() -> bool,
    ) -> Result<Checkpoint, CheckpointError> {
        let written = self.write_checkpoint(&mut in_turns(|time| {
            std::thread::sleep(time);
            stop()
        }));
        Ok(written?.checkpoint)
    }

    fn write_checkpoint(
        &self,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Written, CheckpointError> {
        let (store, active) = (&*self.volume.store, self.volume.keys.active());
        let made = self.meta.write_checkpoint(store, active, go_on)?;
        let mut known = self.checkpoints.known.lock();
        known.newest = Some(made.checkpoint);
        // What is applied and not committed counts as changed again the next time.
        known.through = Some(made.through);
        Ok(made)
    }

    /// On a full disk: takes the unfinished checkpoint away, and the older one if there is no room
    /// yet. True when there was any.
    pub(super) fn checkpoint_gives_way(&self, errno: Errno) -> bool {
        let (store, active) = (&*self.volume.store, self.volume.keys.active());
        // Where the disk or a quota is full, and not the volume's own size.
        let is_short = || errno == Errno::EDQUOT || checkpoint::is_short(store).unwrap_or(false);
        if !is_short() {
            return false;
        }
        let gave_up = self
            .meta
            .discard_unfinished_checkpoint(store)
            .unwrap_or(false);
        // Where none are made those that there are stay.
        let may_go = self.options.checkpoint_interval.is_some() && is_short();
        let gave_way = may_go && checkpoint::discard_oldest(store, active, 1).unwrap_or(false);
        gave_up || gave_way
    }

    /// Bytes that checkpoints of the metadata take on the backing filesystem, one that is not
    /// finished among them; `None` where they cannot be looked at.
    pub fn checkpoint_bytes(&self) -> Option<u64> {
        checkpoint::allocated_bytes(&*self.volume.store).ok()
    }
}

/// Work in turns, with sleep in between: what it returns is asked whether to go on. `wait` waits
/// for so long and says whether to stop.
fn in_turns(wait: impl Fn(Duration) -> bool) -> impl FnMut() -> bool {
    let mut awake = Instant::now();
    move || {
        let worked = awake.elapsed();
        if worked < SLICE {
            return !wait(Duration::ZERO);
        }
        let stop = wait(worked * SLEEPS);
        awake = Instant::now();
        !stop
    }
}
