//! Lines of the control socket: how long one may be, and how long one may take.

use std::io::{self, BufRead};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What who waits says where the mount was not taken away.
pub(crate) const STAYS: &str = "stays";
/// Longest request or answer, in bytes.
pub(super) const LINE_BYTES: u64 = 1 << 20;
/// A peer that says nothing for so long is left.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Answer to `wait`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Closed {
    /// True when everything is on disk.
    #[serde(default)]
    pub closed: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answer to `remount`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    /// True when it was done.
    #[serde(default)]
    pub done: bool,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

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
