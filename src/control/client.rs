//! The command's side of the control socket.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::address::Address;
use super::connection::{Connection, connect};
use super::line::{LINE_BYTES, read_line};
use super::liveness::{LivenessProbe, WaitingStream};
use super::obstacle::Obstacle;
use super::request::{Operation, Request};
use super::response::{Outcome, Receiver, Response};
use super::wire::{self, ResponseSource};
use crate::diagnostics::UserError;
use crate::sys::process::PeerCredentials;

/// A connection to the daemon that has a volume mounted.
#[derive(Debug)]
pub(crate) struct ControlClient {
    stream: BufReader<WaitingStream>,
    /// The address under which the daemon was found.
    address: Address,
    /// The process that answers.
    pub(crate) peer: PeerCredentials,
}

impl ControlClient {
    /// Connects to a socket of user `uid`; `None` if there is none. Adds the reasons for a failure
    /// to `obstacles`. A connection proves nothing by itself.
    pub(crate) fn connect(
        address: Address,
        uid: u32,
        obstacles: &mut Vec<Obstacle>,
    ) -> Option<Self> {
        let connection = connect(address, uid, obstacles)?;
        Some(Self::from_connection(connection, address))
    }

    pub(super) fn from_connection(connection: Connection, address: Address) -> Self {
        Self {
            peer: connection.peer,
            stream: BufReader::new(WaitingStream::new(connection.stream)),
            address,
        }
    }

    /// The connection itself. Nothing has been read ahead.
    pub(crate) fn stream(&self) -> &UnixStream {
        self.stream.get_ref().stream()
    }

    /// Sends a request to which there is no response.
    ///
    /// # Errors
    /// The daemon has closed the connection.
    pub(crate) fn send(&self, request: &Request) -> io::Result<()> {
        self.stream().write_all(&wire::encode(request)?)
    }

    /// Limits how long reading may take; `None`: as long as the daemon lives.
    fn set_timeout(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let (user, pid) = (self.peer.uid, self.peer.pid);
        let address = self.address;
        self.stream().set_read_timeout(limit)?;
        self.stream
            .get_mut()
            .wait_while_alive(
                limit
                    .is_none()
                    .then_some(LivenessProbe { address, user, pid }),
            )
    }

    /// Sends a request and waits for its one response: until the timeout, or, without one, as long
    /// as the daemon lives.
    ///
    /// # Errors
    /// The connection failed, the time is over, or the response cannot be decoded.
    pub(crate) fn ask(
        &mut self,
        request: &Request,
        timeout: Option<Duration>,
    ) -> io::Result<Response> {
        self.set_timeout(timeout)?;
        self.send(request)?;
        self.next_response()
    }

    /// Requests an operation and passes every intermediate response to `to`. The timeout applies to
    /// each response.
    ///
    /// # Errors
    /// The daemon's failure; or the connection failed, the daemon is silent, or of another version.
    pub(crate) fn perform(
        &mut self,
        operation: &Operation,
        timeout: Option<Duration>,
        to: &mut dyn Receiver,
    ) -> Result<Outcome, UserError> {
        let request = Request::Operation(operation.clone());
        self.set_timeout(timeout)
            .and_then(|()| self.send(&request))
            .map_err(|error| UserError::io(operation.doing(), &error))?;
        wire::receive(self, operation, to)
    }

    /// Reads a further response, until the timeout.
    ///
    /// # Errors
    /// The connection failed, the time is over, or the response cannot be decoded.
    pub(crate) fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Response> {
        self.set_timeout(timeout)?;
        self.next_response()
    }

    fn next_response(&mut self) -> io::Result<Response> {
        let line = self.read_line()?;
        Ok(wire::decode(line.as_bytes())?)
    }
}

impl ResponseSource for ControlClient {
    fn read_line(&mut self) -> io::Result<String> {
        read_line(&mut (&mut self.stream).take(LINE_BYTES))
    }

    fn read_bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
