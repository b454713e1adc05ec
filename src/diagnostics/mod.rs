//! Messages for people: how a command ends, and notices while it runs.
//!
//! A `UserError` has a message, a hint that names what to do next, and an `ExitCode`. It is
//! made where the failure is known, crosses the control socket unchanged, and is printed by the
//! command line. `notice` is for the one thing that cannot wait for a command's end: why nothing
//! happens.

use std::io::{self, Write};

mod error;
mod io_hints;

pub(crate) use error::{COPY_HINT, OPENED_HINT};
pub(crate) use error::{ExitCode, UserError};

/// Writes one line to standard error, if anybody reads it.
pub(crate) fn notice(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "bilayer: {text}");
}
