//! What the command line prints: the one place that writes to standard output.

use std::fmt;
use std::io::{self, Write};

use crate::diagnostics::{ExitCode, UserError};

pub(crate) mod format;
pub(crate) mod progress;
pub(crate) mod status_text;

/// One line of JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), UserError> {
    let line = serde_json::to_string(value)
        .map_err(|error| UserError::new(ExitCode::System, format!("cannot write JSON: {error}")))?;
    print(&(line + "\n"))
}

/// To standard error, if there is anybody who reads it.
pub(super) fn complain(line: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// To standard output. A reader that has gone away (`| head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), UserError> {
    let mut output = io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(UserError::io("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}
