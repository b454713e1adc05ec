//! Which thread answers a request.
//!
//! All requests come in by the one reading thread. What may take long goes to the workers together
//! with its reply; everything else is answered inline. A panic answers EIO and is logged; the mount
//! goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Request;
use parking_lot::Mutex;

use super::follow::{Follower, ThisMachine};
use super::workers::{Lane, Workers, run_guarded};
use crate::fs::Filesystem;

/// READs and WRITEs up to this many bytes may be done inline: two sealed pages cost less than
/// waking a worker.
const INLINE_BYTES: usize = 8 << 10;
/// An inline READ or WRITE slower than this met the disk ...
const INLINE_SLOW: Duration = Duration::from_micros(300);
/// ... and so many after it go to the workers.
const INLINE_PENALTY: u32 = 64;

/// See the module's first lines.
pub(super) struct Dispatch {
    filesystem: Arc<Filesystem>,
    workers: Arc<Workers>,
    follower: Option<Mutex<Follower<ThisMachine>>>,
    inline_penalty: Mutex<u32>,
}

impl Dispatch {
    /// `follow_caller`: the reading thread stays on its caller's CPU, where there is a choice.
    pub(super) fn new(
        filesystem: Arc<Filesystem>,
        workers: Arc<Workers>,
        follow_caller: bool,
    ) -> Self {
        let machine = follow_caller.then(ThisMachine::with_a_choice).flatten();
        Self {
            filesystem,
            workers,
            follower: machine.map(|machine| Mutex::new(Follower::new(machine))),
            inline_penalty: Mutex::new(0),
        }
    }

    /// Answers a request on the reading thread.
    pub(super) fn inline(&self, what: &str, request: &Request, body: impl FnOnce(&Filesystem)) {
        self.follow(request);
        run_guarded(what, || body(&self.filesystem));
    }

    /// Has a request answered by a worker. `bytes` is what the body holds in memory.
    pub(super) fn hand_over(
        &self,
        what: &'static str,
        request: &Request,
        (lane, bytes): (Lane, usize),
        body: impl FnOnce(&Filesystem) + Send + 'static,
    ) {
        self.follow(request);
        let filesystem = Arc::clone(&self.filesystem);
        run_guarded(what, || {
            self.workers.submit(lane, bytes, move || body(&filesystem));
        });
    }

    fn follow(&self, request: &Request) {
        if let Some(follower) = &self.follower {
            follower.lock().request_from(request.pid());
        }
    }

    /// Whether a READ or WRITE of this size is done inline now: small, nobody at work beside it
    /// (then a worker on another CPU is the better choice), and none of the last ones was slow.
    fn inline_now(&self, bytes: usize) -> bool {
        if bytes > INLINE_BYTES {
            return false;
        }
        let mut penalty = self.inline_penalty.lock();
        if *penalty > 0 {
            *penalty -= 1;
            return false;
        }
        self.workers.at_rest()
    }

    /// Does contents work inline or hands it over.
    pub(super) fn contents(
        &self,
        what: &'static str,
        request: &Request,
        (bytes, held_bytes): (usize, usize),
        body: impl FnOnce(&Filesystem) + Send + 'static,
    ) {
        if self.inline_now(bytes) {
            let start = Instant::now();
            self.inline(what, request, body);
            if start.elapsed() > INLINE_SLOW {
                *self.inline_penalty.lock() = INLINE_PENALTY;
            }
        } else {
            self.hand_over(what, request, (Lane::Contents(bytes), held_bytes), body);
        }
    }
}
