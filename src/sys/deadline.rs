//! Runs work that may never end, on a filesystem or with a process that does not respond.

use std::sync::mpsc;
use std::time::Duration;

use super::process::{EndSignals, close_descriptors_of_this_thread};

/// How long work may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Deadlines {
    /// Time until a notice says that the work takes long.
    pub note: Duration,
    /// Time until the work is abandoned.
    pub give_up: Duration,
}

/// Runs work in a thread, which is abandoned when it takes too long; `None` in that case.
///
/// The thread receives none of the signals that end this process, because it may still exist when
/// another thread begins to wait for them.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let deadlines = Deadlines {
        note: limit,
        give_up: limit,
    };
    within_notifying(deadlines, || {}, work)
}

/// Runs work in a thread, and calls `note` once if it takes longer than the first deadline. `None`
/// if it takes longer than the second one; the thread is abandoned then.
pub(crate) fn within_notifying<T: Send + 'static>(
    deadlines: Deadlines,
    note: impl FnOnce(),
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("asking".to_owned());
    let started = thread.spawn(move || {
        if let Err(error) = EndSignals::block() {
            tracing::debug!(%error, "a waiting thread may receive signals");
        }
        // After the limit there is no receiver.
        let _ = sender.send(work());
    });
    started.ok()?;
    let note_after = deadlines.note.min(deadlines.give_up);
    match receiver.recv_timeout(note_after) {
        Ok(value) => Some(value),
        Err(mpsc::RecvTimeoutError::Disconnected) => None,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            note();
            receiver
                .recv_timeout(deadlines.give_up.saturating_sub(deadlines.note))
                .ok()
        }
    }
}

/// Runs work in a thread that shares none of this process's descriptors, so that an abandoned
/// thread keeps no lock and no file of them open. Paths in `/proc/self/fd` do not lead to the
/// descriptors that it opens; those in `/proc/thread-self/fd` do.
pub(crate) fn isolated_within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    within(limit, move || {
        if let Err(error) = close_descriptors_of_this_thread() {
            tracing::debug!(%error, "a waiting thread keeps descriptors open");
        }
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn work_that_never_ends_is_abandoned() {
        assert_eq!(within(LONG, || 1), Some(1));
        let (_keep, ended) = mpsc::channel::<()>();
        let begin = Instant::now();
        let limit = Duration::from_millis(30);
        assert!(within(limit, move || ended.recv()).is_none());
        assert!(begin.elapsed() < LONG);
    }

    #[test]
    fn a_thread_apart_has_no_descriptors() {
        let file = tempfile::tempfile().unwrap();
        let open = || std::fs::read_dir("/proc/thread-self/fd").map(Iterator::count);
        let apart = isolated_within(LONG, open).unwrap().unwrap();
        // The descriptor of the listed directory.
        assert_eq!(apart, 1);
        assert!(open().unwrap() > 3);
        drop(file);
    }
}
