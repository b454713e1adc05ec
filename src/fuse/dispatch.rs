//! Decides which thread serves a request.
//!
//! All requests arrive at the one reading thread. A request that may take long is submitted to the
//! workers together with its reply; every other one is served inline. A panic is logged and
//! answered with EIO; the mount stays in use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Request;
use parking_lot::Mutex;

use super::cpu_follower::{CpuFollower, KernelScheduler};
use super::workers::{Lane, Workers, run_guarded};
use crate::fs::Filesystem;

/// READs and WRITEs up to this size may be served inline: two sealed pages cost less than waking a
/// worker.
const SERVED_INLINE_BYTES: usize = 8 << 10;
/// An inline READ or WRITE that takes longer has accessed the disk ...
const INLINE_TIME_MAX: Duration = Duration::from_micros(300);
/// ... and the workers serve this number of later ones.
const INLINE_PENALTY: u32 = 64;

/// Dispatches requests to the reading thread or the workers.
pub(super) struct Dispatch {
    filesystem: Arc<Filesystem>,
    workers: Arc<Workers>,
    follower: Option<Mutex<CpuFollower<KernelScheduler>>>,
    /// Number of READs and WRITEs that are not served inline next.
    inline_penalty: Mutex<u32>,
}

impl Dispatch {
    /// `follow_caller`: the reading thread stays on its caller's CPU, if the machine has several.
    pub(super) fn new(
        filesystem: Arc<Filesystem>,
        workers: Arc<Workers>,
        follow_caller: bool,
    ) -> Self {
        let scheduler = follow_caller.then(KernelScheduler::with_a_choice).flatten();
        Self {
            filesystem,
            workers,
            follower: scheduler.map(|scheduler| Mutex::new(CpuFollower::new(scheduler))),
            inline_penalty: Mutex::new(0),
        }
    }

    /// Serves a request on the reading thread.
    pub(super) fn inline(&self, what: &str, request: &Request, body: impl FnOnce(&Filesystem)) {
        self.follow(request);
        run_guarded(what, || body(&self.filesystem));
    }

    /// Serves a request on a worker. `held_bytes` is the memory that the body holds.
    pub(super) fn submit(
        &self,
        what: &'static str,
        request: &Request,
        lane: Lane,
        held_bytes: usize,
        body: impl FnOnce(&Filesystem) + Send + 'static,
    ) {
        self.follow(request);
        let filesystem = Arc::clone(&self.filesystem);
        run_guarded(what, || {
            self.workers
                .submit(lane, held_bytes, move || body(&filesystem));
        });
    }

    fn follow(&self, request: &Request) {
        if let Some(follower) = &self.follower {
            follower.lock().request_from(request.pid());
        }
    }

    /// Decides whether a READ or WRITE of this size is served inline: if it is small, no worker is
    /// busy (otherwise a worker on another CPU is the better choice), and none of the last ones was
    /// slow.
    fn admit_inline(&self, bytes: usize) -> bool {
        if bytes > SERVED_INLINE_BYTES {
            return false;
        }
        let mut penalty = self.inline_penalty.lock();
        if *penalty > 0 {
            *penalty -= 1;
            return false;
        }
        self.workers.is_idle()
    }

    /// Serves a READ or WRITE of that many bytes inline or on a worker. `held_bytes` is the memory
    /// that the body holds.
    pub(super) fn contents(
        &self,
        what: &'static str,
        request: &Request,
        bytes: usize,
        held_bytes: usize,
        body: impl FnOnce(&Filesystem) + Send + 'static,
    ) {
        if self.admit_inline(bytes) {
            let start = Instant::now();
            self.inline(what, request, body);
            if start.elapsed() > INLINE_TIME_MAX {
                *self.inline_penalty.lock() = INLINE_PENALTY;
            }
        } else {
            self.submit(what, request, Lane::Contents(bytes), held_bytes, body);
        }
    }
}
