//! Lines of the control socket: how long one may be, and how long one may take.

use std::io::{self, BufRead};
use std::time::Duration;

/// Longest request or answer, in bytes.
pub(super) const LINE_BYTES: u64 = 1 << 20;
/// A peer that says nothing for so long is left.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Reads a line, which must end, and hands it on without its end.
pub(super) fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(whole) => Ok(whole.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// True for what a read of a stream fails with whose time is over.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
