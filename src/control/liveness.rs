//! Reading responses that may take any time, as long as the daemon is alive.
//!
//! A long operation (a check, an export) is not interrupted, and a command does not wait for ever
//! for a daemon that is stopped or hangs. After some seconds of silence a notice says what the
//! command waits for.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::address::Address;
use super::connection::connect;
use super::line::{LINE_BYTES, RESPONSE_TIMEOUT, is_timeout, read_line};
use super::request::Request;
use super::wire;
use crate::diagnostics::notice;
use crate::sys::deadline::within;

/// How many pings in a row a daemon may leave unanswered.
pub(crate) const UNANSWERED_PINGS_MAX: u32 = 3;

/// A stream that can wait as long as the daemon is alive.
#[derive(Debug)]
pub(super) struct WaitingStream {
    stream: UnixStream,
    /// The daemon to ping whenever the stream's timeout expires.
    probe: Option<LivenessProbe>,
}

/// The daemon to ping.
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

    /// From now on reads wait as long as the daemon of `probe` lives; without one, until the
    /// stream's own timeout.
    ///
    /// # Errors
    /// The timeout of the stream cannot be set.
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

/// True if the daemon answers a ping with any line.
pub(crate) fn is_alive(address: Address, user: u32) -> bool {
    let answer = within(RESPONSE_TIMEOUT, move || {
        let connection = connect(address, user, &mut Vec::new())?;
        let mut stream = &connection.stream;
        stream.set_read_timeout(Some(RESPONSE_TIMEOUT)).ok()?;
        stream.write_all(&wire::encode(&Request::Ping).ok()?).ok()?;
        read_line(&mut BufReader::new(stream.take(LINE_BYTES))).ok()
    });
    answer.flatten().is_some()
}
