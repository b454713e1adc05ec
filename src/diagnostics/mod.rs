//! Messages for people: how a command ends, and notices while it runs.
//!
//! A `UserError` has a message, a hint that names the next step, and an `ExitCode`. It is created
//! where the failure is known, crosses the control socket unchanged, and is printed by the command
//! line. `notice` is for the one message that cannot wait until a command ends: what it waits for.

use std::io::{self, Write};

mod error;
mod io_hints;

pub(crate) use error::{COPY_HINT, OPENED_HINT};
pub(crate) use error::{ExitCode, UserError};

/// Writes one line to standard error. A failure to write is ignored.
pub(crate) fn notice(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "bilayer: {text}");
}
