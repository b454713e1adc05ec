//! The threads that do what takes long, so that the reading thread is back at once.
//!
//! Two lanes: *contents* (READ and WRITE) and *lengthy* (fsync, truncate, copies, ...).
//! One worker takes contents only. So a WRITE always finds a worker, however many lengthy jobs
//! wait for something, and an invalidation that waits for a WRITE cannot deadlock with them.
//! Within these limits the older job goes first.
//!
//! Bounds: the kernel sends at most `max_background` requests beyond those that a caller sleeps
//! for, and the bytes copied out of WRITE requests are limited here: beyond
//! [`QUEUED_BYTES_LIMIT`] the reading thread waits for the workers.
//!
//! A job that panics answers EIO (its reply is dropped), is logged and ends nothing else.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use parking_lot::{Condvar, Mutex};

/// Bytes of WRITE requests that may wait for a worker.
pub(super) const QUEUED_BYTES_LIMIT: usize = 32 << 20;

/// Which workers take a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// READ and WRITE: every worker.
    Contents,
    /// Everything else: all workers but the one kept for contents.
    Lengthy,
}

struct Job {
    ticket: u64,
    bytes: usize,
    run: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct Queues {
    contents: VecDeque<Job>,
    lengthy: VecDeque<Job>,
    next_ticket: u64,
    queued_bytes: usize,
    /// Workers of both lanes that sleep and that nobody has been sent to wake. Whoever wakes one
    /// subtracts it, so that two jobs never count on the same sleeper.
    idle: usize,
    /// Jobs being run.
    running: usize,
    closing: bool,
}

impl Queues {
    fn take(&mut self, lengthy_too: bool) -> Option<Job> {
        let oldest = |queue: &VecDeque<Job>| queue.front().map_or(u64::MAX, |job| job.ticket);
        let job = if lengthy_too && oldest(&self.lengthy) < oldest(&self.contents) {
            self.lengthy.pop_front()
        } else {
            self.contents.pop_front()
        }?;
        self.queued_bytes -= job.bytes;
        self.running += 1;
        Some(job)
    }
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    /// Wakes workers of both lanes.
    any: Condvar,
    /// Wakes the worker kept for contents.
    contents_only: Condvar,
    /// Wakes the reading thread.
    room: Condvar,
}

/// The pool.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl Workers {
    /// As many as the machine has CPUs, at most 8, at least 2.
    pub(super) fn default_count() -> usize {
        std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 8))
    }

    /// Starts the threads, at least two.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for number in 0..count.max(2) {
            let shared = Arc::clone(&shared);
            let thread = Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || work(&shared, number > 0))?;
            threads.push(thread);
        }
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// Hands a job over. `bytes` is what it holds in memory; waits while too much of that is
    /// queued.
    pub(super) fn submit(&self, lane: Lane, bytes: usize, run: impl FnOnce() + Send + 'static) {
        let mut queues = self.shared.queues.lock();
        while queues.queued_bytes > 0 && queues.queued_bytes + bytes > QUEUED_BYTES_LIMIT {
            self.shared.room.wait(&mut queues);
        }
        let job = Job {
            ticket: queues.next_ticket,
            bytes,
            run: Box::new(run),
        };
        queues.next_ticket += 1;
        queues.queued_bytes += bytes;
        match lane {
            Lane::Contents => queues.contents.push_back(job),
            Lane::Lengthy => queues.lengthy.push_back(job),
        }
        if queues.idle > 0 {
            queues.idle -= 1;
            self.shared.any.notify_one();
        } else if lane == Lane::Contents {
            self.shared.contents_only.notify_one();
        }
    }

    /// True when no job is queued or running.
    pub(super) fn at_rest(&self) -> bool {
        let queues = self.shared.queues.lock();
        queues.running == 0 && queues.contents.is_empty() && queues.lengthy.is_empty()
    }

    /// Does what is queued, then ends the threads. No job may be handed over afterwards.
    pub(super) fn finish(&self) {
        self.shared.queues.lock().closing = true;
        self.shared.any.notify_all();
        self.shared.contents_only.notify_all();
        for thread in self.threads.lock().drain(..) {
            // A worker does not panic: it catches what its jobs do.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, lengthy_too: bool) {
    let mut queues = shared.queues.lock();
    loop {
        if let Some(job) = queues.take(lengthy_too) {
            if job.bytes > 0 {
                shared.room.notify_one();
            }
            drop(queues);
            run_guarded("worker", job.run);
            queues = shared.queues.lock();
            queues.running -= 1;
        } else if queues.closing {
            return;
        } else if lengthy_too {
            queues.idle += 1;
            shared.any.wait(&mut queues);
        } else {
            shared.contents_only.wait(&mut queues);
        }
    }
}

/// Runs what answers a request. A panic is logged and ends here; the reply that the body owned is
/// dropped by the unwinding, which answers EIO.
pub(super) fn run_guarded(what: &str, body: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        tracing::error!(
            what,
            message,
            "a request failed by a fault of this program; answered EIO"
        );
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's own buffer of that length, whose contents are undefined.
pub(super) fn with_scratch<T>(len: usize, body: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        body(&mut buffer[..len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_write_finds_a_worker_whatever_lengthy_jobs_wait_for() {
        for count in [0, 2, 5] {
            let workers = Workers::start(count).unwrap();
            let (written, wait_for_write) = channel::<()>();
            let wait_for_write = Arc::new(Mutex::new(wait_for_write));
            let (done, all_done) = channel();
            for _ in 0..20 {
                let (wait, done) = (Arc::clone(&wait_for_write), done.clone());
                workers.submit(Lane::Lengthy, 0, move || {
                    wait.lock().recv_timeout(LONG).unwrap();
                    done.send(()).unwrap();
                });
            }
            for _ in 0..20 {
                let written = written.clone();
                workers.submit(Lane::Contents, 1, move || written.send(()).unwrap());
            }
            for _ in 0..20 {
                all_done.recv_timeout(LONG).unwrap();
            }
            workers.finish();
            assert!(workers.at_rest());
        }
    }

    #[test]
    fn a_panic_ends_nothing_but_its_job() {
        let workers = Workers::start(2).unwrap();
        for lane in [Lane::Contents, Lane::Lengthy] {
            for _ in 0..8 {
                workers.submit(lane, 10, || panic!("on purpose"));
            }
        }
        let (done, wait) = channel();
        workers.submit(Lane::Lengthy, 0, move || done.send(()).unwrap());
        wait.recv_timeout(LONG).unwrap();
        workers.finish();
    }

    #[test]
    fn finish_does_what_is_queued() {
        let workers = Workers::start(3).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        for number in 0..1000 {
            let done = Arc::clone(&done);
            let lane = if number % 3 == 0 {
                Lane::Lengthy
            } else {
                Lane::Contents
            };
            workers.submit(lane, 100, move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        workers.finish();
        assert_eq!(done.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn queued_bytes_are_bounded() {
        let workers = Arc::new(Workers::start(2).unwrap());
        let (go, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let most = Arc::new(AtomicUsize::new(0));
        let submitter = {
            let (workers, most) = (Arc::clone(&workers), Arc::clone(&most));
            std::thread::spawn(move || {
                for _ in 0..12 {
                    let gate = Arc::clone(&gate);
                    workers.submit(Lane::Contents, QUEUED_BYTES_LIMIT / 4, move || {
                        gate.lock().recv_timeout(LONG).unwrap();
                    });
                    most.fetch_max(workers.shared.queues.lock().queued_bytes, Ordering::Relaxed);
                }
            })
        };
        for _ in 0..12 {
            go.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        submitter.join().unwrap();
        workers.finish();
        assert!(most.load(Ordering::Relaxed) <= QUEUED_BYTES_LIMIT);
    }

    #[test]
    fn scratch_is_reused() {
        with_scratch(10, |buffer| buffer.fill(7));
        with_scratch(5, |buffer| assert_eq!(buffer, [7; 5]));
        with_scratch(20, |buffer| assert_eq!(buffer.len(), 20));
    }
}
