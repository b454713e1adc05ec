//! Failed assertions: their positions and messages, without printing them.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};

/// A failed assertion, or a panic of the program.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    /// File and line.
    pub place: String,
    pub message: String,
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Failure> = RefCell::default();
}

/// Installs a hook that keeps the panics of threads that request it, and does not print them.
pub fn install() {
    let loud = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            return loud(info);
        }
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        let failure = Failure {
            place: info.location().map(ToString::to_string).unwrap_or_default(),
            message: text.unwrap_or("no message").to_owned(),
        };
        LAST.set(failure);
    }));
}

/// Runs code that may panic, and keeps its message.
pub fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result
}

/// Runs code that may panic. Returns its failure.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    quietly(work).map_err(|_| LAST.take())
}
