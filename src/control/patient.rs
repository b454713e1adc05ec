//! Reading answers of a daemon that may take as long as they like, while it gives a sign of life.
//!
//! What takes long for a reason (a check, an export) is not cut off; a daemon that is stopped or hangs
//! keeps nobody waiting for ever. After some seconds of silence whoever waits is told for what.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::address::Address;
use super::connection::connect;
use super::line::{LINE_BYTES, PATIENCE, is_timeout, read_line};
use super::request::Request;
use super::wire;
use crate::diagnostics::notice;
use crate::sys::deadline::within;

/// How often in a row a daemon may leave the question whether it lives unanswered.
const UNANSWERED_MAX: u32 = 3;

/// See the module's first lines.
#[derive(Debug)]
pub(crate) struct Patient {
    stream: UnixStream,
    /// Whether the daemon lives is asked whenever the stream's time is over.
    vigil: Option<Vigil>,
}

/// Whom to ask whether the daemon lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vigil {
    pub(crate) address: Address,
    pub(crate) user: u32,
    pub(crate) pid: i32,
}

impl Patient {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            vigil: None,
        }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Waits from now on as long as the daemon lives, or no longer than the stream's own limit.
    pub(crate) fn keep(&mut self, vigil: Option<Vigil>) -> io::Result<()> {
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
                notice(format_args!("waiting for the daemon, process {pid}"));
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

/// True when a daemon answers anything at all.
pub(crate) fn is_alive(address: Address, user: u32) -> bool {
    let asked = within(PATIENCE, move || {
        let connection = connect(address, user, &mut Vec::new())?;
        let mut stream = &connection.stream;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(&wire::encode(&Request::Ping).ok()?).ok()?;
        read_line(&mut BufReader::new(stream.take(LINE_BYTES))).ok()
    });
    asked.flatten().is_some()
}
