//! The asker's side of the control socket.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::address::Address;
use super::connection::{Connection, connect};
use super::line::{LINE_BYTES, read_line};
use super::obstacle::Obstacle;
use super::patient::{Patient, Vigil};
use super::request::{Operation, Request};
use super::response::{Outcome, Receiver, Response};
use super::wire::{self, Answers};
use crate::diagnostics::UserError;
use crate::sys::process::PeerCredentials;

/// A connection to the daemon that has a volume mounted.
#[derive(Debug)]
pub(crate) struct ControlClient {
    stream: BufReader<Patient>,
    /// What it was found by.
    address: Address,
    /// Who answers.
    pub peer: PeerCredentials,
}

impl ControlClient {
    /// Connects to a socket of that user's; `None` when there is none. What is in the way is added
    /// to `obstacles`. A connection proves nothing yet.
    pub(crate) fn connect(
        address: Address,
        uid: u32,
        obstacles: &mut Vec<Obstacle>,
    ) -> Option<Self> {
        let connection = connect(address, uid, obstacles)?;
        Some(Self::over(connection, address))
    }

    pub(super) fn over(connection: Connection, address: Address) -> Self {
        Self {
            peer: connection.peer,
            stream: BufReader::new(Patient::new(connection.stream)),
            address,
        }
    }

    /// The connection itself, of which nothing has been read ahead.
    pub(crate) fn stream(&self) -> &UnixStream {
        self.stream.get_ref().stream()
    }

    /// Sends a request to which there is no response.
    pub(crate) fn say(&self, request: &Request) -> io::Result<()> {
        self.stream().write_all(&wire::encode(request)?)
    }

    /// How long reading may take; `None`: as long as the daemon lives.
    fn set_limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let (user, pid) = (self.peer.uid, self.peer.pid);
        let address = self.address;
        self.stream().set_read_timeout(limit)?;
        self.stream
            .get_mut()
            .keep(limit.is_none().then_some(Vigil { address, user, pid }))
    }

    /// Sends a request and waits for its one response, at most so long, or as long as the daemon
    /// lives.
    pub(crate) fn ask(
        &mut self,
        request: &Request,
        timeout: Option<Duration>,
    ) -> io::Result<Response> {
        self.set_limit(timeout)?;
        self.say(request)?;
        self.next_response()
    }

    /// Asks for something to be done with the volume, and hands on what comes before the outcome. Each
    /// line of it may take so long to come.
    pub(crate) fn perform(
        &mut self,
        operation: &Operation,
        timeout: Option<Duration>,
        to: &mut dyn Receiver,
    ) -> Result<Outcome, UserError> {
        let request = Request::Operation(operation.clone());
        self.set_limit(timeout)
            .and_then(|()| self.say(&request))
            .map_err(|error| UserError::io(operation.doing(), &error))?;
        wire::receive(self, operation, to)
    }

    /// Reads a further response, which may take so long to come.
    pub(crate) fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Response> {
        self.set_limit(timeout)?;
        self.next_response()
    }

    fn next_response(&mut self) -> io::Result<Response> {
        let line = self.line()?;
        Ok(wire::decode(line.as_bytes())?)
    }
}

impl Answers for ControlClient {
    fn line(&mut self) -> io::Result<String> {
        read_line(&mut (&mut self.stream).take(LINE_BYTES))
    }

    fn raw(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
