//! Lines of the control socket: how long one may be, and how long one may take.

use std::io::{self, BufRead};
use std::time::Duration;

/// Longest request or answer, in bytes.
pub(super) const LINE_BYTES: u64 = 1 << 20;
/// How long a peer may stay silent before the connection is given up.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads one complete line and returns it without its newline.
///
/// # Errors
/// The stream failed or ended within the line.
pub(super) fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(whole) => Ok(whole.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// True if a read failed because the stream's timeout expired.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
