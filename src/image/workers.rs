//! Threads that do one kind of work on many items, and return the results in the order of the
//! items.
//!
//! Invariants: at most [`ITEMS_PER_THREAD`] items for each thread are in flight, including results
//! that wait for an earlier one, so memory does not grow with the number of items. A worker that
//! panics fails the whole operation and never blocks it. When the driver returns early, a worker
//! finishes its current item and no other.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, available_parallelism, scope};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::ImageError;

/// Maximum number of threads. More of them would wait for the disk.
const THREADS_MAX: usize = 16;
/// Items in flight for each thread: one that is processed, one that is queued, and one whose result
/// waits to be taken.
const ITEMS_PER_THREAD: usize = 3;

/// Memory of one worker for plaintext, kept from item to item; wiped when the worker ends.
pub(super) type Scratch = Zeroizing<Vec<u8>>;

/// The work on one item.
pub(super) type Work<'a, J, R> = dyn Fn(&mut Scratch, J) -> Result<R, ImageError> + Sync + 'a;

/// An item or a result, with the number of the item.
type Numbered<T> = (u64, T);

/// The result of an item; `None` if the worker panicked.
type WorkResult<R> = Option<Result<R, ImageError>>;

/// The driver's side of the threads.
pub(super) struct Workers<J, R> {
    items: SyncSender<Numbered<J>>,
    results: Receiver<Numbered<WorkResult<R>>>,
    /// Results that arrived before those of earlier items.
    ahead: BTreeMap<u64, R>,
    /// Number of items submitted so far.
    submitted: u64,
    /// Number of results returned so far.
    returned: u64,
    /// Maximum difference of the two.
    window: u64,
}

/// Runs `drive` with threads that do `work`, one for each CPU.
///
/// # Errors
/// An error of `drive`, which receives those of `work`; or no thread could be started.
pub(super) fn with_workers<J: Send, R: Send, T>(
    work: &Work<'_, J, R>,
    drive: impl FnOnce(&mut Workers<J, R>) -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    let threads = available_parallelism().map_or(1, usize::from);
    let threads = threads.min(THREADS_MAX);
    let window = threads * ITEMS_PER_THREAD;
    let (items, to_do) = sync_channel(window);
    let (done, results) = channel();
    let to_do = Mutex::new(to_do);
    scope(|scope| {
        let mut started = 0;
        let mut spawn_error = None;
        for _ in 0..threads {
            let (to_do, done) = (&to_do, done.clone());
            let thread = Builder::new().name("image-worker".to_owned());
            match thread.spawn_scoped(scope, move || worker_loop(work, to_do, &done)) {
                Ok(_) => started += 1,
                // Fewer threads are sufficient.
                Err(error) => spawn_error = Some(error),
            }
        }
        drop(done);
        if let (0, Some(error)) = (started, spawn_error) {
            return Err(ImageError::io("cannot start a thread")(error));
        }
        let mut workers = Workers {
            items,
            results,
            ahead: BTreeMap::new(),
            submitted: 0,
            returned: 0,
            window: window as u64,
        };
        drive(&mut workers)
    })
}

/// One thread: runs until there are no more items, or the driver has returned.
fn worker_loop<J, R>(
    work: &Work<'_, J, R>,
    to_do: &Mutex<Receiver<Numbered<J>>>,
    done: &Sender<Numbered<WorkResult<R>>>,
) {
    let mut scratch = Scratch::default();
    loop {
        // The lock is held while waiting for an item: the other threads would only wait for one
        // too.
        let next = to_do.lock().recv();
        let Ok((number, item)) = next else {
            return;
        };
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut scratch, item)));
        if done.send((number, result.ok())).is_err() {
            return;
        }
    }
}

impl<J, R> Workers<J, R> {
    /// Submits an item, after waiting until few enough are in flight. Passes the results that are
    /// next in order to `take`.
    ///
    /// # Errors
    /// The first error of the work or of `take`.
    pub(super) fn submit(
        &mut self,
        item: J,
        take: &mut dyn FnMut(R) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        while self.submitted - self.returned >= self.window {
            self.receive(take)?;
        }
        let number = self.submitted;
        self.submitted += 1;
        self.items.send((number, item)).map_err(|_| ended())
    }

    /// Waits for all submitted items.
    ///
    /// # Errors
    /// The first error of the work or of `take`.
    pub(super) fn finish(
        &mut self,
        take: &mut dyn FnMut(R) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        while self.returned < self.submitted {
            self.receive(take)?;
        }
        Ok(())
    }

    /// Waits for one result.
    fn receive(
        &mut self,
        take: &mut dyn FnMut(R) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let (number, result) = self.results.recv().map_err(|_| ended())?;
        let result = result.ok_or_else(ended)??;
        self.ahead.insert(number, result);
        while let Some(next) = self.ahead.remove(&self.returned) {
            self.returned += 1;
            take(next)?;
        }
        Ok(())
    }
}

/// The error after a thread panicked.
fn ended() -> ImageError {
    ImageError::io("a thread failed")(io::Error::other("see the log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    /// Submits `count` items, and returns the results.
    fn run(count: u64, work: &Work<'_, u64, u64>) -> (Result<(), ImageError>, Vec<u64>) {
        let mut taken = Vec::new();
        let result = with_workers(work, |workers| {
            let mut take = |result| {
                taken.push(result);
                Ok(())
            };
            for item in 0..count {
                workers.submit(item, &mut take)?;
            }
            workers.finish(&mut take)
        });
        (result, taken)
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let (result, taken) = run(500, &|_, item| {
            // Earlier items take longer.
            std::thread::sleep(Duration::from_micros(item % 7 * 50));
            Ok(item * 2)
        });
        assert!(result.is_ok());
        assert_eq!(taken, (0..500).map(|item| item * 2).collect::<Vec<_>>());
    }

    #[test]
    fn few_items_are_in_flight_at_once() {
        let begun = AtomicU64::new(0);
        let (mut taken, mut most) = (0, 0);
        let work: &Work<'_, u64, u64> = &|_, item| {
            begun.fetch_add(1, Ordering::SeqCst);
            // All others wait for the first one.
            std::thread::sleep(Duration::from_millis(if item == 0 { 100 } else { 0 }));
            Ok(item)
        };
        let window = with_workers(work, |workers| {
            let mut take = |_| {
                taken += 1;
                most = most.max(begun.load(Ordering::SeqCst) - taken);
                Ok(())
            };
            for item in 0..1000 {
                workers.submit(item, &mut take)?;
            }
            workers.finish(&mut take)?;
            Ok(workers.window)
        });
        assert!(most <= window.expect("done"), "{most}");
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let begun = AtomicU64::new(0);
        let (result, taken) = run(10_000, &|_, item| {
            begun.fetch_add(1, Ordering::SeqCst);
            match item {
                40 => Err(ImageError::io("testing")(io::Error::other("refused"))),
                _ => Ok(item),
            }
        });
        let error = result.expect_err("refused").to_string();
        assert_eq!(error, "testing: refused");
        assert!(taken.len() <= 40 && begun.load(Ordering::SeqCst) < 1000);
    }

    #[test]
    fn a_panic_is_an_error() {
        let (result, _) = run(100, &|_, item| {
            assert_ne!(item, 40, "on purpose");
            Ok(item)
        });
        assert!(result.expect_err("panicked").to_string().contains("thread"));
    }
}
