//! The signals that end a command (Ctrl-C, `kill`, a closed terminal), noted instead of fatal while
//! something has to be restored first: a terminal without echo, a partly written file.
//!
//! While a [`Watch`] exists, SIGINT, SIGQUIT, SIGTERM and SIGHUP are noted, and [`arrived`] reports
//! them. The current work then ends with an error, so that everything is cleaned up as after any
//! other failure, and finally the process ends by that same signal ([`exit_by_signal`]), which is
//! what its caller expects. A second signal at least a second later ends the process at once: it
//! may be waiting for something that never happens.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

const SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP];
/// Time after which another signal is fatal, in milliseconds.
const PATIENCE_MS: i64 = 1000;
/// Time within which a wait notices a signal that was delivered to another thread, or just before
/// the wait began.
const TICK: Duration = Duration::from_millis(50);

/// Number of the first signal that arrived; 0 for none.
static ARRIVED: AtomicI32 = AtomicI32::new(0);
/// When it arrived, in milliseconds of the monotonic clock.
static ARRIVED_MS: AtomicI64 = AtomicI64::new(0);
static WATCHES: Mutex<Watches> = Mutex::new(Watches {
    count: 0,
    before: [None; SIGNALS.len()],
});

struct Watches {
    count: usize,
    /// The previous action of each signal; `None` if it is ignored and stays so (`nohup`).
    before: [Option<libc::sigaction>; SIGNALS.len()],
}

/// While this exists, the signals are noted. There may be several.
#[must_use = "the signals are noted only while it lives"]
#[derive(Debug)]
pub(crate) struct Watch(());

impl Watch {
    /// Begins to note the signals.
    pub(crate) fn begin() -> Self {
        let mut watches = WATCHES.lock();
        if watches.count == 0 {
            for (signal, before) in SIGNALS.iter().zip(&mut watches.before) {
                *before = note(*signal);
            }
        }
        watches.count += 1;
        Self(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = WATCHES.lock();
        watches.count -= 1;
        if watches.count > 0 {
            return;
        }
        for (signal, before) in SIGNALS.iter().zip(&mut watches.before) {
            if let Some(before) = before.take() {
                // SAFETY: what is set is what `sigaction` gave for this very signal.
                unsafe { libc::sigaction(*signal, &before, ptr::null_mut()) };
            }
        }
    }
}

/// Installs the handler that notes a signal. Returns the previous action, or `None` if the signal
/// is ignored and stays so.
fn note(signal: libc::c_int) -> Option<libc::sigaction> {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null pointer asks only; the other is to memory of the right type, for which all
    // zeroes are a value.
    let before = unsafe {
        libc::sigaction(signal, ptr::null(), before.as_mut_ptr());
        before.assume_init()
    };
    if before.sa_sigaction == libc::SIG_IGN {
        return None;
    }
    // Without SA_RESTART: a call that waits returns.
    // SAFETY: all zeroes are a value of the type; the handler has the signature that is asked for
    // without SA_SIGINFO, and calls nothing but what signal-safety(7) lists.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, ptr::null_mut());
    }
    Some(before)
}

extern "C" fn on_signal(signal: libc::c_int) {
    let now = monotonic_ms();
    let first = ARRIVED.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    if first.is_ok() {
        ARRIVED_MS.store(now, Ordering::SeqCst);
    } else if now - ARRIVED_MS.load(Ordering::SeqCst) >= PATIENCE_MS {
        // SAFETY: plain numbers; both are async-signal-safe. The signal is delivered when this
        // handler returns.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

fn monotonic_ms() -> i64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec; the call is async-signal-safe.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// The signal that arrived during a watch, if any.
pub(crate) fn arrived() -> Option<i32> {
    Some(ARRIVED.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// The error of a call that a signal has ended. It is not of the kind `Interrupted`, after which
/// calls are repeated.
pub(crate) fn interrupted() -> io::Error {
    io::Error::other("interrupted")
}

/// Waits until there is something to read, or the end of input.
///
/// # Errors
/// [`interrupted`] if a watched signal has arrived, and errors of `poll`.
pub(crate) fn wait_readable(from: BorrowedFd<'_>) -> io::Result<()> {
    let mut wanted = libc::pollfd {
        fd: from.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        if arrived().is_some() {
            return Err(interrupted());
        }
        // SAFETY: one live entry, as the count says.
        match unsafe { libc::poll(&mut wanted, 1, TICK.as_millis() as libc::c_int) } {
            0 => {}
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            _ => return Ok(()),
        }
    }
}

/// Ends the process by the signal that has arrived, if any. Call it after all cleanup.
pub(crate) fn exit_by_signal() {
    if let Some(signal) = arrived() {
        // SAFETY: plain numbers; no memory is passed.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}
