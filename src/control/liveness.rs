//! Reading answers of a daemon that may take as long as they like, while it gives a sign of life.
//!
//! What takes long for a reason (a check, an export) is not cut off; a daemon that is stopped or hangs
//! keeps nobody waiting for ever. After some seconds of silence whoever waits is told for what.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::address::Address;
use super::connection::connect;
use super::line::{LINE_BYTES, RESPONSE_TIMEOUT, is_timeout, read_line};
use super::request::Request;
use super::wire;
use crate::diagnostics::notice;
use crate::sys::deadline::within;

/// How often in a row a daemon may leave the question whether it lives unanswered.
const UNANSWERED_PINGS_MAX: u32 = 3;

/// See the module's first lines.
#[derive(Debug)]
pub(super) struct WaitingStream {
    stream: UnixStream,
    /// Whether the daemon lives is asked whenever the stream's time is over.
    probe: Option<LivenessProbe>,
}

/// Whom to ask whether the daemon lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct LivenessProbe {
    pub(crate) address: Address,
    pub(crate) user: u32,
    pub(crate) pid: i32,
}

impl WaitingStream {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            probe: None,
        }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Waits from now on as long as the daemon lives, or no longer than the stream's own limit.
    pub(super) fn wait_while_alive(&mut self, probe: Option<LivenessProbe>) -> io::Result<()> {
        self.probe = probe;
        match probe {
            Some(_) => self.stream.set_read_timeout(Some(RESPONSE_TIMEOUT)),
            None => Ok(()),
        }
    }
}

impl Read for WaitingStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (mut unanswered, mut noticed) = (0, false);
        loop {
            let probe = match (self.stream.read(into), self.probe) {
                (Err(error), Some(probe)) if is_timeout(&error) => probe,
                (result, _) => return result,
            };
            if !noticed {
                noticed = true;
                let pid = probe.pid;
                notice(format_args!("waiting for the daemon, process {pid}"));
            }
            unanswered = match is_alive(probe.address, probe.user) {
                true => 0,
                false => unanswered + 1,
            };
            if unanswered == UNANSWERED_PINGS_MAX {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// True when a daemon answers anything at all.
pub(crate) fn is_alive(address: Address, user: u32) -> bool {
    let asked = within(RESPONSE_TIMEOUT, move || {
        let connection = connect(address, user, &mut Vec::new())?;
        let mut stream = &connection.stream;
        stream.set_read_timeout(Some(RESPONSE_TIMEOUT)).ok()?;
        stream.write_all(&wire::encode(&Request::Ping).ok()?).ok()?;
        read_line(&mut BufReader::new(stream.take(LINE_BYTES))).ok()
    });
    asked.flatten().is_some()
}
