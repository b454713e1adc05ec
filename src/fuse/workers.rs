//! Worker threads for requests that take long, so that the reading thread is free again at once.
//!
//! There are two pools. *Contents* (READ and WRITE) is CPU work and has a fixed number of threads.
//! *Lengthy* work (fsync, truncate, copies, ...) waits for disks and for other requests: it has one
//! thread for each job up to [`LENGTHY_MAX`], started on demand and ended after being idle for
//! [`IDLE`]. So a WRITE always finds a thread, however many lengthy jobs are blocked; an
//! invalidation that waits for a WRITE cannot deadlock with them; and many fsyncs at a time share
//! one commit. The thread that was busy last is woken first: its caches are warm, and one caller is
//! served by one thread.
//!
//! Small READs and WRITEs go before large ones, but only [`SMALL_IN_A_ROW`] of them: bulk requests
//! must neither delay what others wait for nor starve. Small ones also have a thread of their own,
//! since Linux pauses threads that have written much to the backing filesystem, for up to 200 ms:
//! when it is a large one's turn, and none is started for [`PATIENCE`], that thread goes on.
//!
//! Bounds: the kernel sends at most `max_background` requests beyond those that a process waits
//! for. Once [`QUEUED_BYTES_LIMIT`] of WRITEs are queued, the reading thread serves the next one
//! itself and never waits for the others.
//!
//! A job that panics answers EIO (its reply is dropped), is logged, and ends nothing else.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Maximum bytes of queued WRITE requests: normally everything that the kernel sends in the
/// background.
pub(super) const QUEUED_BYTES_LIMIT: usize = 96 << 20;
/// Maximum number of threads for lengthy work. Those that wait for the same flush take no CPU.
const LENGTHY_MAX: usize = 32;
/// A thread for lengthy work ends after it was idle for this time; one stays.
const IDLE: Duration = Duration::from_secs(10);
/// READs and WRITEs up to this size go before larger ones ...
const SMALL_BYTES: usize = 128 << 10;
/// ... except that a larger one follows after this number, so that somebody who creates small files
/// without pause leaves half of the CPUs to the writer of a large one ...
const SMALL_IN_A_ROW: u32 = 16;
/// ... unless all threads are busy with large ones for this time: then a few more small ones go.
const PATIENCE: Duration = Duration::from_millis(2);

/// The pool that runs a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// READ and WRITE, with their length in bytes.
    Contents(usize),
    /// Everything else.
    Lengthy,
}

struct Job {
    bytes: usize,
    run: Box<dyn FnOnce() + Send>,
}

/// A pool's queues and its sleeping threads, the last one to fall asleep at the end.
#[derive(Default)]
struct Pool {
    small: VecDeque<Job>,
    large: VecDeque<Job>,
    small_in_a_row: u32,
    /// When the last small one was taken.
    small_taken_at: Option<Instant>,
    asleep: Vec<Arc<Condvar>>,
    /// Sleeping threads that take only small jobs.
    small_asleep: Vec<Arc<Condvar>>,
    threads: usize,
}

impl Pool {
    fn take(&mut self, small_only: bool) -> Option<Job> {
        if small_only && self.is_large_due() && self.is_patience_over() {
            self.small_in_a_row -= SMALL_IN_A_ROW / 4;
        }
        if !self.is_large_due()
            && let Some(job) = self.small.pop_front()
        {
            self.small_in_a_row = SMALL_IN_A_ROW.min(self.small_in_a_row + 1);
            self.small_taken_at = Some(Instant::now());
            return Some(job);
        }
        if small_only {
            return None;
        }
        self.small_in_a_row = 0;
        if !self.small.is_empty()
            && let Some(sleeper) = self.small_asleep.pop()
        {
            sleeper.notify_one();
        }
        self.large.pop_front()
    }

    fn is_large_due(&self) -> bool {
        self.small_in_a_row >= SMALL_IN_A_ROW && !self.large.is_empty()
    }

    /// True if no small job was taken within [`PATIENCE`].
    fn is_patience_over(&self) -> bool {
        self.small_taken_at
            .is_none_or(|taken_at| taken_at.elapsed() >= PATIENCE)
    }

    fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    /// Wakes a thread for a small job. True if one was woken.
    fn wake_for_small(&mut self) -> bool {
        match self.small_asleep.pop() {
            Some(sleeper) => {
                sleeper.notify_one();
                true
            }
            None => self.wake(),
        }
    }

    /// Wakes a thread. True if one was woken.
    fn wake(&mut self) -> bool {
        let sleeper = self.asleep.pop();
        sleeper.is_some_and(|sleeper| {
            sleeper.notify_one();
            true
        })
    }
}

#[derive(Default)]
struct Queues {
    contents: Pool,
    lengthy: Pool,
    queued_bytes: usize,
    /// Number of running jobs.
    running: usize,
    closing: bool,
}

impl Queues {
    fn pool(&mut self, kind: Kind) -> &mut Pool {
        match kind {
            Kind::Contents | Kind::Small => &mut self.contents,
            Kind::Lengthy => &mut self.lengthy,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Contents,
    /// Only small jobs of the contents pool.
    Small,
    Lengthy,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
}

/// Both pools.
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
    /// As many as the machine has CPUs, between 2 and 8.
    pub(super) fn default_count() -> usize {
        std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 8))
    }

    /// Starts `count` threads for contents (at least one), one more for small ones, and one for
    /// lengthy work.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let this = Self {
            shared: Arc::default(),
            threads: Mutex::default(),
        };
        for _ in 0..count.max(1) {
            this.start_one(Kind::Contents)?;
        }
        this.start_one(Kind::Small)?;
        this.start_one(Kind::Lengthy)?;
        Ok(this)
    }

    fn start_one(&self, kind: Kind) -> io::Result<()> {
        let number = {
            let mut queues = self.shared.queues.lock();
            let pool = queues.pool(kind);
            pool.threads += 1;
            pool.threads
        };
        let shared = Arc::clone(&self.shared);
        let name = match kind {
            Kind::Contents => format!("contents-{number}"),
            Kind::Small => "small-contents".to_owned(),
            Kind::Lengthy => format!("lengthy-{number}"),
        };
        let started = Builder::new().name(name).spawn(move || work(&shared, kind));
        match started {
            Ok(thread) => {
                let mut threads = self.threads.lock();
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
                Ok(())
            }
            Err(error) => {
                self.shared.queues.lock().pool(kind).threads -= 1;
                Err(error)
            }
        }
    }

    /// Submits a job. `bytes` is the memory that it holds.
    pub(super) fn submit(&self, lane: Lane, bytes: usize, run: impl FnOnce() + Send + 'static) {
        let run: Box<dyn FnOnce() + Send> = Box::new(run);
        let mut queues = self.shared.queues.lock();
        if queues.queued_bytes > 0 && queues.queued_bytes + bytes > QUEUED_BYTES_LIMIT {
            drop(queues);
            return run();
        }
        queues.queued_bytes += bytes;
        let job = Job { bytes, run };
        match lane {
            Lane::Contents(len) => {
                let pool = &mut queues.contents;
                if len <= SMALL_BYTES {
                    pool.small.push_back(job);
                    pool.wake_for_small();
                    return;
                }
                pool.large.push_back(job);
                pool.wake();
            }
            Lane::Lengthy => {
                let pool = &mut queues.lengthy;
                pool.small.push_back(job);
                let is_more_needed = !pool.wake() && pool.threads < LENGTHY_MAX;
                drop(queues);
                if is_more_needed && let Err(error) = self.start_one(Kind::Lengthy) {
                    tracing::debug!(%error, "no further thread could be started");
                }
            }
        }
    }

    /// True if no job is queued or running.
    pub(super) fn is_idle(&self) -> bool {
        let queues = self.shared.queues.lock();
        queues.running == 0 && queues.contents.is_empty() && queues.lengthy.is_empty()
    }

    /// Finishes queued jobs, then ends the threads. No job may be submitted afterwards.
    pub(super) fn finish(&self) {
        {
            let mut queues = self.shared.queues.lock();
            queues.closing = true;
            while queues.contents.wake_for_small() || queues.lengthy.wake() {}
        }
        for thread in self.threads.lock().drain(..) {
            // A worker does not panic: it catches what its jobs do.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, kind: Kind) {
    let wake = Arc::new(Condvar::new());
    let mut queues = shared.queues.lock();
    loop {
        if let Some(job) = queues.pool(kind).take(kind == Kind::Small) {
            queues.queued_bytes -= job.bytes;
            queues.running += 1;
            drop(queues);
            run_guarded("worker", job.run);
            queues = shared.queues.lock();
            queues.running -= 1;
            continue;
        }
        if queues.closing {
            return;
        }
        let pool = queues.pool(kind);
        let asleep = match kind {
            Kind::Small => &mut pool.small_asleep,
            _ => &mut pool.asleep,
        };
        asleep.push(Arc::clone(&wake));
        let limit = match kind {
            Kind::Small if !pool.small.is_empty() => Some(PATIENCE),
            Kind::Contents | Kind::Small => None,
            Kind::Lengthy => Some(IDLE),
        };
        let timed_out = match limit {
            Some(limit) => wake.wait_for(&mut queues, limit).timed_out(),
            None => {
                wake.wait(&mut queues);
                false
            }
        };
        // A thread that is woken has been removed from the list. One that times out removes itself.
        let pool = queues.pool(kind);
        pool.asleep.retain(|sleeper| !Arc::ptr_eq(sleeper, &wake));
        pool.small_asleep
            .retain(|sleeper| !Arc::ptr_eq(sleeper, &wake));
        if timed_out && kind == Kind::Lengthy && pool.threads > 1 && pool.is_empty() {
            pool.threads -= 1;
            return;
        }
    }
}

/// Runs the body of a request. A panic is logged and caught. The unwinding drops the reply that the
/// body owns, which answers EIO.
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
            "a bug of this program failed a request; answered EIO"
        );
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's own buffer of that length, with undefined contents.
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
                workers.submit(Lane::Contents(1), 1, move || written.send(()).unwrap());
            }
            for _ in 0..20 {
                all_done.recv_timeout(LONG).unwrap();
            }
            workers.finish();
            assert!(workers.is_idle());
        }
    }

    #[test]
    fn a_panic_ends_nothing_but_its_job() {
        let workers = Workers::start(2).unwrap();
        for lane in [Lane::Contents(10), Lane::Lengthy] {
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
                Lane::Contents(number)
            };
            workers.submit(lane, 100, move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        workers.finish();
        assert_eq!(done.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn submitters_never_wait_and_memory_is_bounded() {
        let workers = Workers::start(2).unwrap();
        let (go, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let done = Arc::new(AtomicUsize::new(0));
        const SIZE: usize = QUEUED_BYTES_LIMIT / 4;
        // Two are started and four wait; then each runs on the thread that submits it.
        for number in 0..6 {
            let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
            workers.submit(Lane::Contents(SIZE), SIZE, move || {
                gate.lock().recv_timeout(LONG).unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            });
            while number < 2 && workers.shared.queues.lock().running <= number {
                std::thread::yield_now();
            }
        }
        let here = std::thread::current().id();
        for _ in 0..3 {
            let (sender, receiver) = channel();
            workers.submit(Lane::Contents(SIZE), SIZE, move || {
                sender.send(std::thread::current().id()).unwrap();
            });
            assert_eq!(receiver.try_recv(), Ok(here));
        }
        assert!(workers.shared.queues.lock().queued_bytes <= QUEUED_BYTES_LIMIT);
        (0..6).for_each(|_| go.send(()).unwrap());
        workers.finish();
        assert_eq!(done.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn lengthy_jobs_wait_beside_one_another() {
        let workers = Workers::start(2).unwrap();
        let meet = Arc::new(std::sync::Barrier::new(LENGTHY_MAX));
        let (done, all_done) = channel();
        for _ in 0..LENGTHY_MAX {
            let (meet, done) = (Arc::clone(&meet), done.clone());
            workers.submit(Lane::Lengthy, 0, move || {
                meet.wait();
                done.send(()).unwrap();
            });
        }
        for _ in 0..LENGTHY_MAX {
            all_done.recv_timeout(LONG).unwrap();
        }
        workers.finish();
    }

    #[test]
    fn small_ones_go_first_and_large_ones_go_too() {
        let mut pool = with_both(30);
        let order: Vec<usize> = std::iter::from_fn(|| pool.take(false))
            .map(|job| job.bytes)
            .collect();
        let first: Vec<usize> = (0..16)
            .chain([1_000])
            .chain(16..30)
            .chain([1_001])
            .collect();
        assert_eq!(order[..32], first);
        assert_eq!(order.len(), 60);
    }

    #[test]
    fn the_thread_of_small_ones_waits_its_turn_but_not_for_ever() {
        let mut pool = with_both(30);
        let mut taken = || std::iter::from_fn(|| pool.take(true)).count();
        // Patience may be over meanwhile on a busy machine.
        let first = taken();
        assert!(first >= SMALL_IN_A_ROW as usize);
        std::thread::sleep(PATIENCE);
        assert!(first == 30 || taken() >= SMALL_IN_A_ROW as usize / 4);
        pool.large.clear();
        std::iter::from_fn(|| pool.take(true)).for_each(drop);
        assert!(pool.small.is_empty());
    }

    /// So many small jobs, numbered in `bytes` from 0, and large ones, from 1000.
    fn with_both(count: usize) -> Pool {
        let mut pool = Pool::default();
        for number in 0..count {
            let job = |bytes| Job {
                bytes,
                run: Box::new(|| ()),
            };
            pool.large.push_back(job(1_000 + number));
            pool.small.push_back(job(number));
        }
        pool
    }

    #[test]
    fn scratch_is_reused() {
        with_scratch(10, |buffer| buffer.fill(7));
        with_scratch(5, |buffer| assert_eq!(buffer, [7; 5]));
        with_scratch(20, |buffer| assert_eq!(buffer.len(), 20));
    }
}
