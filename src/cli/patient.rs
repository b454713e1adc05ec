//! Reading answers of a daemon that may take as long as they like, while it gives a sign of life.
//!
//! What takes long for a reason (a check, an export) is not cut off; a daemon that is stopped or hangs
//! keeps nobody waiting for ever. After some seconds of silence whoever waits is told for what.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use super::control::{Address, PATIENCE};
use super::locate::is_alive;

/// How often in a row a daemon may leave the question whether it lives unanswered.
const UNANSWERED_MAX: u32 = 3;

/// See the module's first lines.
#[derive(Debug)]
pub(super) struct Patient {
    stream: UnixStream,
    /// Whether the daemon lives is asked whenever the stream's time is over.
    vigil: Option<Vigil>,
}

/// Whom to ask whether the daemon lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vigil {
    pub(super) address: Address,
    pub(super) user: u32,
    pub(super) pid: i32,
}

impl Patient {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            vigil: None,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Waits from now on as long as the daemon lives, or no longer than the stream's own limit.
    pub(super) fn keep(&mut self, vigil: Option<Vigil>) -> io::Result<()> {
        self.vigil = vigil;
        match vigil {
            Some(_) => self.stream.set_read_timeout(Some(PATIENCE)),
            None => Ok(()),
        }
    }
}

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (mut unanswered, mut is_told) = (0, false);
        loop {
            let vigil = match (self.stream.read(into), self.vigil) {
                (Err(error), Some(vigil)) if is_timeout(&error) => vigil,
                (result, _) => return result,
            };
            if !is_told {
                is_told = true;
                let pid = vigil.pid;
                eprintln!("bilayer: waiting for the daemon, process {pid}");
            }
            unanswered = match is_alive(vigil.address, vigil.user) {
                true => 0,
                false => unanswered + 1,
            };
            if unanswered == UNANSWERED_MAX {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// True for what a read of a stream fails with whose time is over.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
