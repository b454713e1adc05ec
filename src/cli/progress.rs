//! What is shown while something takes long, and how fast it was.
//!
//! A bar or a spinner appears on standard error if that is a terminal, and only after a second.

use std::io::{self, Read};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::format::size;

/// What is done sooner is shown by being done.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// Something under way.
pub(super) struct Progress {
    bar: ProgressBar,
    begin: Instant,
    done: Option<Sender<()>>,
    shower: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins. `total`: the bytes in all, where they are known and will be counted.
    pub(super) fn start(what: &str, total: Option<u64>) -> Self {
        let hidden = ProgressDrawTarget::hidden();
        let bar = ProgressBar::with_draw_target(total, hidden);
        let template = match total {
            Some(_) => {
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left"
            }
            None => "{spinner} {msg} {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        let (done, on_done) = mpsc::channel();
        let shown = bar.clone();
        let shower = std::thread::Builder::new().name("progress".to_owned());
        let shower = shower.spawn(move || {
            if on_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                // Stays hidden where standard error is no terminal.
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(TICK);
            }
        });
        Self {
            bar,
            begin: Instant::now(),
            done: Some(done),
            // Without a thread it goes on unseen.
            shower: shower.ok(),
        }
    }

    /// So many bytes are done.
    pub(super) fn set(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// So many bytes more.
    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Done with so many bytes: says how long it took and, if that says anything, how fast it was.
    pub(super) fn finish(self, bytes: u64) -> String {
        let seconds = self.begin.elapsed().as_secs_f64();
        if seconds < PATIENCE.as_secs_f64() {
            return format!("{} in {:.0} ms", size(bytes), seconds * 1000.0);
        }
        let rate = size((bytes as f64 / seconds) as u64);
        format!("{} in {seconds:.1} s, {rate}/s", size(bytes))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(shower) = self.shower.take() {
            // It only ever waits and shows.
            let _ = shower.join();
        }
        self.bar.finish_and_clear();
    }
}

/// Counts what is read.
pub(super) struct Counted<'a, R> {
    pub(super) from: R,
    pub(super) progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.progress.add(count as u64);
        Ok(count)
    }
}
