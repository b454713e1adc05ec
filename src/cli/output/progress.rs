//! Progress of long operations, and their throughput.
//!
//! A bar or a spinner appears on standard error if that is a terminal, and only after a second.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::format::size;
use crate::image;
use crate::sys::interrupt;

/// Operations that take less time show no progress.
const SHOW_AFTER: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// An operation in progress.
pub(crate) struct Progress {
    bar: ProgressBar,
    begin: Instant,
    done: Option<Sender<()>>,
    display: Option<JoinHandle<()>>,
}

/// The size and duration of a finished operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Took {
    bytes: u64,
    time: Duration,
}

impl Took {
    /// The duration in whole milliseconds.
    pub(crate) fn milliseconds(&self) -> u64 {
        u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX)
    }

    /// The throughput.
    pub(in crate::cli) fn bytes_per_second(&self) -> u64 {
        let seconds = self.time.as_secs_f64().max(1e-6);
        (self.bytes as f64 / seconds) as u64
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64();
        write!(f, "{} in ", size(self.bytes))?;
        if seconds < SHOW_AFTER.as_secs_f64() {
            write!(f, "{:.0} ms", seconds * 1000.0)?;
        } else {
            write!(f, "{seconds:.1} s")?;
        }
        write!(f, ", {}/s", size(self.bytes_per_second()))
    }
}

impl Progress {
    /// Starts the display of an operation, such as "exporting"; `total_bytes` is `None` if its size
    /// is not known yet.
    pub(crate) fn start(operation: &str, total_bytes: Option<u64>) -> Self {
        let hidden = ProgressDrawTarget::hidden();
        let bar = ProgressBar::with_draw_target(total_bytes, hidden);
        set_template(&bar, total_bytes.is_some());
        bar.set_message(operation.to_owned());
        let (done, on_done) = mpsc::channel();
        let shown = bar.clone();
        let display = std::thread::Builder::new().name("progress".to_owned());
        let display = display.spawn(move || {
            if on_done.recv_timeout(SHOW_AFTER) == Err(RecvTimeoutError::Timeout) {
                // It stays hidden if standard error is no terminal.
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(TICK);
            }
        });
        Self {
            bar,
            begin: Instant::now(),
            done: Some(done),
            // Without a thread the operation continues without a display.
            display: display.ok(),
        }
    }

    /// Sets the total size once it is known.
    pub(in crate::cli) fn set_total(&self, bytes: u64) {
        if self.bar.length() != Some(bytes) {
            self.bar.set_length(bytes);
            set_template(&self.bar, true);
        }
    }

    /// Sets how many bytes are done.
    pub(crate) fn set(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// Adds to the bytes that are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Ends the display of an operation that processed this many bytes.
    pub(crate) fn finish(self, bytes: u64) -> Took {
        Took {
            bytes,
            time: self.begin.elapsed(),
        }
    }
}

/// A bar if the total size is known, else a spinner.
fn set_template(bar: &ProgressBar, bounded: bool) {
    let template = if bounded {
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left"
    } else {
        "{spinner} {msg} {elapsed}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

impl image::Progress for Progress {
    fn begin(&self, total_bytes: u64) {
        self.set_total(total_bytes);
    }

    fn advance(&self, bytes: u64) {
        self.add(bytes);
    }

    fn cancelled(&self) -> bool {
        interrupt::arrived().is_some()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(display) = self.display.take() {
            // It cannot fail: it only waits and shows the bar.
            let _ = display.join();
        }
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_duration_and_throughput_are_shown() {
        let took = |bytes, milliseconds| Took {
            bytes,
            time: Duration::from_millis(milliseconds),
        };
        assert_eq!(
            took(64 << 20, 250).to_string(),
            "64.0 MiB in 250 ms, 256.0 MiB/s"
        );
        assert_eq!(
            took(3 << 30, 2000).to_string(),
            "3.0 GiB in 2.0 s, 1.5 GiB/s"
        );
        assert_eq!(took(1 << 20, 500).bytes_per_second(), 2 << 20);
        assert_eq!(took(0, 0).bytes_per_second(), 0);
    }

    #[test]
    fn a_spinner_becomes_a_bar() {
        let progress = Progress::start("testing", None);
        assert_eq!(progress.bar.length(), None);
        image::Progress::begin(&progress, 100);
        image::Progress::advance(&progress, 30);
        assert_eq!(progress.bar.length(), Some(100));
        assert_eq!(progress.bar.position(), 30);
    }
}
