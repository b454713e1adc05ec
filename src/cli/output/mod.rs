//! Printing: the only module that writes to standard output.

use std::fmt;
use std::io::{self, Write};

use crate::diagnostics::{ExitCode, UserError};

pub(crate) mod format;
pub(crate) mod progress;
pub(crate) mod status_text;

/// Prints a value as one line of JSON.
///
/// # Errors
/// The value cannot be serialized, or standard output cannot be written.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), UserError> {
    let line = serde_json::to_string(value)
        .map_err(|error| UserError::new(ExitCode::System, format!("cannot write JSON: {error}")))?;
    print(&(line + "\n"))
}

/// Prints a line to standard error; a failure to print is ignored.
pub(super) fn print_error(line: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints to standard output. False if nobody reads it any more.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn print_unless_closed(text: &str) -> Result<bool, UserError> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(UserError::io("cannot write to standard output", &error)),
    }
}

/// Prints to standard output. A closed pipe (`| head`) is no failure.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn print(text: &str) -> Result<(), UserError> {
    print_unless_closed(text).map(|_| ())
}
