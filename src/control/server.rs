//! The daemon's side of the control socket.

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::address::{Address, create_private_directory, directories};
use super::directory::DirectoryId;
use super::line::{LINE_BYTES, RESPONSE_TIMEOUT, read_line};
use super::request::Request;
use super::response::{Closed, Response};
use super::wire::{self, DecodeError};
use crate::audit::{self, Requester};
use crate::diagnostics::{ExitCode, UserError};
use crate::sys::identity::effective_user;
use crate::sys::process::{PeerCredentials, peer_credentials};

/// How long a peer that has stopped waiting for the volume to close still counts as the one that
/// unmounted it.
const DEPARTED_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections that wait until the volume is closed.
#[derive(Debug, Default)]
struct Waiters {
    streams: Vec<UnixStream>,
    /// The last peer that disconnected without `Stays`.
    departed: Option<DepartedPeer>,
}

/// A peer that has stopped waiting.
#[derive(Debug)]
struct DepartedPeer {
    peer: PeerCredentials,
    at: Instant,
}

type Waiting = Arc<Mutex<Waiters>>;

/// The daemon's implementation of the requests.
pub(crate) trait RequestHandler: Send + Sync + 'static {
    /// Writes the responses to a request.
    fn respond(&self, request: &Request, to: &mut dyn Write) -> io::Result<()>;
    /// Proves to the peer that this process holds its volume.
    fn prove(&self, to: &UnixStream) -> io::Result<()>;
}

/// The daemon's side. Dropping it removes the socket.
pub(crate) struct ControlServer {
    names: Mutex<Vec<PathBuf>>,
    socket: SocketId,
    waiting: Waiting,
}

/// Device and inode of a socket. Another daemon may have replaced this one's socket by its own.
#[derive(PartialEq, Eq)]
struct SocketId {
    device: u64,
    inode: u64,
}

impl SocketId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

impl std::fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlServer")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl ControlServer {
    /// Starts answering for a volume whose lock this process holds. An existing socket was left by
    /// a daemon that has ended.
    ///
    /// # Errors
    /// No directory for sockets can be used.
    pub(crate) fn start(volume: DirectoryId, handler: impl RequestHandler) -> io::Result<Self> {
        let name = Address::Volume(volume).socket_name();
        let mut last_error = io::Error::from(io::ErrorKind::NotFound);
        for dir in directories(effective_user()) {
            match create_private_directory(&dir).and_then(|()| listen(&dir.join(&name))) {
                Ok(listener) => return Self::serve(listener, dir.join(&name), handler),
                Err(error) => {
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        tracing::warn!(%error, "a directory for control sockets is not used");
                    }
                    last_error = error;
                }
            }
        }
        Err(last_error)
    }

    fn serve(
        listener: UnixListener,
        path: PathBuf,
        handler: impl RequestHandler,
    ) -> io::Result<Self> {
        let socket = SocketId::of(&fs::symlink_metadata(&path)?);
        let waiting = Waiting::default();
        let (shared_waiting, handler) = (Arc::clone(&waiting), Arc::new(handler));
        let acceptor = std::thread::Builder::new().name("control".to_owned());
        acceptor.spawn(move || {
            for stream in listener.incoming() {
                let (waiting, handler) = (Arc::clone(&shared_waiting), Arc::clone(&handler));
                // One thread each, so that a silent peer does not block the others.
                let thread = std::thread::Builder::new().name("control-peer".to_owned());
                let started = stream
                    .and_then(|stream| thread.spawn(move || answer(&stream, &*handler, &waiting)));
                if let Err(error) = started {
                    tracing::warn!(%error, "control request not answered");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
        Ok(Self {
            names: Mutex::new(vec![path]),
            socket,
            waiting,
        })
    }

    /// Answers under the name of the mount too. An existing socket of that name was left by a
    /// daemon that has ended, whose device number the kernel has reused.
    ///
    /// # Errors
    /// The name cannot be linked to the socket.
    pub(crate) fn publish_mount_name(&self, device: u64) -> io::Result<()> {
        let mut names = self.names.lock();
        let Some(socket) = names.first().cloned() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let name = socket.with_file_name(Address::Mount(device).socket_name());
        remove_if_there(&name)?;
        fs::hard_link(&socket, &name)?;
        names.push(name);
        Ok(())
    }

    /// Stops answering under the name of the mount, which is gone: the kernel may reuse its device
    /// number at any moment, for a mount of another daemon. Peers that wait until the volume is
    /// closed keep waiting.
    pub(crate) fn withdraw_mount_name(&self) {
        let mut names = self.names.lock();
        let own = names.len().min(1);
        let of_mounts = names.split_off(own);
        drop(names);
        of_mounts.iter().for_each(|name| self.remove_name(name));
    }

    /// Removes a name if it still leads to this socket: another daemon on the same read-only medium
    /// may have taken it over.
    fn remove_name(&self, name: &Path) {
        let metadata = fs::symlink_metadata(name);
        if metadata.is_ok_and(|metadata| SocketId::of(&metadata) == self.socket) {
            let _ = fs::remove_file(name);
        }
    }

    /// The first peer that waits until the volume is closed; or one that did so a moment ago, and
    /// was interrupted or stopped waiting.
    pub(crate) fn unmounting_peer(&self) -> Option<PeerCredentials> {
        let waiting = self.waiting.lock();
        let first = waiting.streams.first();
        let departed = waiting.departed.as_ref();
        let departed = departed.filter(|departed| departed.at.elapsed() < DEPARTED_TIMEOUT);
        first
            .and_then(|stream| peer_credentials(stream).ok())
            .or_else(|| departed.map(|departed| departed.peer))
    }

    /// Sends the outcome of closing the volume to all waiting peers.
    pub(crate) fn announce(&self, outcome: &Closed) {
        let Ok(line) = wire::encode(&Response::Closed(outcome.clone())) else {
            return;
        };
        for mut stream in self.waiting.lock().streams.drain(..) {
            // A peer that is gone needs no answer.
            let _ = stream.write_all(&line);
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        for name in self.names.lock().iter() {
            self.remove_name(name);
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    remove_if_there(path)?;
    // The directory is this user's alone, so no other user can connect before the mode is set.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers the requests of one connection until the peer closes it.
fn answer(stream: &UnixStream, handler: &impl RequestHandler, waiting: &Waiting) {
    if let Err(error) = try_answer(stream, handler, waiting) {
        tracing::debug!(%error, "control connection ended");
    }
}

fn try_answer(
    stream: &UnixStream,
    handler: &impl RequestHandler,
    waiting: &Waiting,
) -> io::Result<()> {
    let peer = peer_credentials(stream)?;
    if peer.uid != 0 && peer.uid != effective_user() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let _asked = audit::requested_by(Requester::process(peer.uid, peer.pid as u32));
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    let mut requests = BufReader::new(stream);
    loop {
        let line = read_line(&mut (&mut requests).take(LINE_BYTES))?;
        let request: Request = match wire::decode(line.as_bytes()) {
            Ok(request) => request,
            Err(error) => return send(stream, &Response::Failed(decode_error(error).into())),
        };
        // An operation may stream much, and its reader may be slow.
        let is_stream = matches!(request, Request::Operation(_));
        stream.set_write_timeout((!is_stream).then_some(RESPONSE_TIMEOUT))?;
        match request {
            Request::Prove => handler.prove(stream)?,
            Request::Ping => send(stream, &Response::Alive)?,
            Request::Stays => return Ok(()),
            Request::Wait => {
                let waiter = stream.try_clone()?;
                let descriptor = waiter.as_raw_fd();
                {
                    // With the lock held, so that the outcome is announced after this response.
                    let mut waiting = waiting.lock();
                    send(stream, &Response::Waiting)?;
                    waiting.streams.push(waiter);
                }
                // Wait until the peer disconnects, as it does if its unmount is refused.
                stream.set_read_timeout(None)?;
                let last_line = read_line(&mut (&mut requests).take(LINE_BYTES));
                let mut waiting = waiting.lock();
                waiting
                    .streams
                    .retain(|stream| stream.as_raw_fd() != descriptor);
                let is_stays = |line: &String| wire::decode(line.as_bytes()) == Ok(Request::Stays);
                if !last_line.as_ref().is_ok_and(is_stays) {
                    waiting.departed = Some(DepartedPeer {
                        peer,
                        at: Instant::now(),
                    });
                }
                return last_line.map(drop);
            }
            request => handler.respond(&request, &mut &*stream)?,
        }
    }
}

fn send(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    stream.write_all(&wire::encode(response)?)
}

fn decode_error(error: DecodeError) -> UserError {
    UserError::new(
        ExitCode::System,
        format!("the daemon cannot read the request: {error}"),
    )
    .with_hint(wire::VERSION_HINT)
}

#[cfg(test)]
mod tests {
    use super::super::client::ControlClient;
    use super::super::connection::connect_in;
    use super::super::obstacle::Obstacle;
    use super::super::response::{Claim, Outcome};
    use super::*;

    fn private() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    fn done() -> Response {
        Response::Done(Outcome::Nothing)
    }

    struct Fixed;

    impl RequestHandler for Fixed {
        fn respond(&self, _: &Request, to: &mut dyn Write) -> io::Result<()> {
            to.write_all(&wire::encode(&done())?)
        }

        fn prove(&self, to: &UnixStream) -> io::Result<()> {
            send(to, &Response::Proof(Claim::default()))
        }
    }

    #[test]
    fn requests_are_answered_and_waiters_notified() {
        let dir = private();
        let path = dir.path().join("x.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let server = ControlServer::serve(listener, path.clone(), Fixed).unwrap();
        let uid = effective_user();
        let connect = || {
            let connection = connect_in(dir.path(), "x.sock", uid).unwrap().unwrap();
            ControlClient::from_connection(connection, Address::Mount(0))
        };
        let ask = |request: &Request| connect().ask(request, Some(RESPONSE_TIMEOUT)).unwrap();
        assert_eq!(ask(&Request::Sync), done());
        assert!(matches!(ask(&Request::Prove), Response::Proof(_)));
        for (line, why) in [
            ("ping\n", "does not speak the protocol"),
            (
                "{\"version\":1,\"body\":\"blah\"}\n",
                "does not speak the protocol",
            ),
            ("{\"version\":2,\"body\":{}}\n", "it speaks version 2"),
        ] {
            let mut other = connect();
            other.stream().write_all(line.as_bytes()).unwrap();
            let Response::Failed(refused) = other.receive(Some(RESPONSE_TIMEOUT)).unwrap() else {
                panic!("{line}");
            };
            assert!(refused.message.contains(why), "{line}: {}", refused.message);
        }

        // A silent peer does not block others.
        let _silent = connect();
        let mut waiting = connect();
        assert_eq!(
            waiting.ask(&Request::Sync, Some(RESPONSE_TIMEOUT)).unwrap(),
            done()
        );
        // A peer that waited and left is forgotten.
        let mut leaving = connect();
        leaving.ask(&Request::Wait, Some(RESPONSE_TIMEOUT)).unwrap();
        let all_gone = || {
            while !server.waiting.lock().streams.is_empty() {
                std::thread::yield_now();
            }
        };
        assert_eq!(server.waiting.lock().streams.len(), 1);
        // A peer that sent `Stays` has not unmounted it; one that was interrupted may have.
        leaving.send(&Request::Stays).unwrap();
        all_gone();
        assert_eq!(server.unmounting_peer(), None);
        drop(leaving);
        let mut leaving = connect();
        leaving.ask(&Request::Wait, Some(RESPONSE_TIMEOUT)).unwrap();
        drop(leaving);
        all_gone();
        assert_eq!(
            server.unmounting_peer().unwrap().pid as u32,
            std::process::id()
        );
        server.waiting.lock().departed.as_mut().unwrap().at -= DEPARTED_TIMEOUT;
        assert_eq!(server.unmounting_peer(), None);
        // From the response on, no announcement can be missed.
        assert_eq!(
            waiting.ask(&Request::Wait, Some(RESPONSE_TIMEOUT)).unwrap(),
            Response::Waiting
        );
        server.announce(&Closed {
            is_on_disk: true,
            error: None,
        });
        let closed = waiting.receive(Some(RESPONSE_TIMEOUT)).unwrap();
        assert!(matches!(closed, Response::Closed(closed) if closed.is_on_disk));
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn answers_under_the_name_of_the_mount_until_it_ends() {
        let dir = private();
        let (path, uid) = (dir.path().join("x.sock"), effective_user());
        let server = ControlServer::serve(listen(&path).unwrap(), path.clone(), Fixed).unwrap();
        let device = libc::makedev(0, 77);
        let name = Address::Mount(device).socket_name();
        assert_eq!(name, "mount-0-77.sock");
        // Left by a daemon that was killed.
        drop(UnixListener::bind(dir.path().join(&name)).unwrap());
        let connect = |name: &str| connect_in(dir.path(), name, uid);
        assert_eq!(connect(&name).unwrap_err(), Obstacle::Dead);
        server.publish_mount_name(device).unwrap();
        let connection = connect(&name).unwrap().unwrap();
        let mut client = ControlClient::from_connection(connection, Address::Mount(device));
        assert_eq!(
            client.ask(&Request::Ping, Some(RESPONSE_TIMEOUT)).unwrap(),
            Response::Alive
        );
        // Another daemon takes over the first name and keeps it.
        let second = ControlServer::serve(listen(&path).unwrap(), path.clone(), Fixed).unwrap();
        assert!(connect(&name).unwrap().is_some());
        server.withdraw_mount_name();
        assert!(connect(&name).unwrap().is_none());
        drop(server);
        assert!(connect("x.sock").unwrap().is_some());
        drop(second);
        assert!(connect("x.sock").unwrap().is_none());
    }
}
