//! The signals by which somebody ends a command (Ctrl-C, `kill`, a closed terminal), noted instead
//! of fatal while there is something to put right first: a terminal without echo, a file that is
//! half written.
//!
//! While a [`Watch`] lives, SIGINT, SIGQUIT, SIGTERM and SIGHUP are noted, and [`arrived`] says so.
//! What is under way ends then with an error, so that everything is cleared as after any other
//! failure, and at last the process ends by the very signal ([`exit_by_signal`]), which is what its
//! caller looks for. A second signal a second later ends it at once: whatever it waits for may
//! never come.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

const SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP];
/// From when on a further signal is not noted but fatal, in milliseconds.
const PATIENCE_MS: i64 = 1000;
/// How soon a wait notices a signal that came to another thread, or just before it.
const TICK: Duration = Duration::from_millis(50);

/// Number of the first signal that came; 0 for none.
static ARRIVED: AtomicI32 = AtomicI32::new(0);
/// When it came, in milliseconds of the monotonic clock.
static ARRIVED_MS: AtomicI64 = AtomicI64::new(0);
static WATCHES: Mutex<Watches> = Mutex::new(Watches {
    count: 0,
    before: [None; SIGNALS.len()],
});

struct Watches {
    count: usize,
    /// What became of each signal before; none where it is ignored, and stays so (`nohup`).
    before: [Option<libc::sigaction>; SIGNALS.len()],
}

/// While it lives the signals are noted. There may be several.
#[must_use = "the signals are noted only while it lives"]
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// Begins.
    pub fn begin() -> Self {
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

/// Has a signal noted; what became of it before, or none where it is ignored.
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

/// The signal that has come while somebody watched.
pub fn arrived() -> Option<i32> {
    Some(ARRIVED.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// What a call ends with that a signal has ended. Not of the kind `Interrupted`, after which calls
/// are made again.
pub fn interrupted() -> io::Error {
    io::Error::other("interrupted")
}

/// Waits until there is something to read, or the end of it.
///
/// # Errors
/// [`interrupted`] when a signal has come that was watched for.
pub fn wait_readable(from: BorrowedFd<'_>) -> io::Result<()> {
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

/// Ends the process by the signal that has come, if one has. Called when everything is cleared.
pub fn exit_by_signal() {
    if let Some(signal) = arrived() {
        // SAFETY: plain numbers; no memory is passed.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}
