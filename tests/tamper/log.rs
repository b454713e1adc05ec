//! The program's log lines during one case.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Once;

thread_local! {
    /// The lines of this thread's current case; `None` if it tries none.
    static LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From here on this thread's lines are kept.
pub fn begin() {
    static START: Once = Once::new();
    START.call_once(|| {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_max_level(tracing::Level::WARN)
            .with_writer(|| Lines)
            .init();
        // As in the program; it also saves the time of a backtrace.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if LINES.with_borrow(Option::is_some) {
                tracing::error!("{panic}");
            } else {
                usual(panic);
            }
        }));
    });
    LINES.set(Some(Vec::new()));
}

/// The lines logged since then.
pub fn end() -> String {
    let lines = LINES.take().unwrap_or_default();
    String::from_utf8_lossy(&lines).into_owned()
}
