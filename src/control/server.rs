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

use super::address::{Address, directories, own_directory};
use super::directory::DirectoryId;
use super::line::{LINE_BYTES, PATIENCE, read_line};
use super::request::Request;
use super::response::{Closed, Response};
use super::wire::{self, Unreadable};
use crate::audit::{self, Requester};
use crate::diagnostics::{ExitCode, UserError};
use crate::sys::identity::effective_user;
use crate::sys::process::{PeerCredentials, peer_credentials};

/// How long who waited for the volume's end, and left, is taken to be who has unmounted it.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Those who are told when the volume is closed.
#[derive(Debug, Default)]
struct Waiters {
    streams: Vec<UnixStream>,
    /// The last one that left without a word, and when.
    left: Option<(PeerCredentials, Instant)>,
}

type Waiting = Arc<Mutex<Waiters>>;

/// What a daemon answers with.
pub(crate) trait Answer: Send + Sync + 'static {
    /// Writes the responses to a request.
    fn respond(&self, request: &Request, to: &mut dyn Write) -> io::Result<()>;
    /// Proves to the peer that this process has its volume.
    fn prove(&self, to: &UnixStream) -> io::Result<()>;
}

/// The daemon's side. The socket goes when it is dropped.
pub(crate) struct ControlServer {
    names: Mutex<Vec<PathBuf>>,
    /// Device and inode of the socket, which another daemon may have put one of its own in place of.
    socket: (u64, u64),
    waiting: Waiting,
}

impl std::fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlServer")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl ControlServer {
    /// Starts answering for a volume whose lock this process holds; a socket that is there was
    /// left by a daemon that is no more.
    pub(crate) fn start(volume: DirectoryId, answer: impl Answer) -> io::Result<Self> {
        let name = Address::Volume(volume).socket_name();
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for dir in directories(effective_user()) {
            match own_directory(&dir).and_then(|()| listen(&dir.join(&name))) {
                Ok(listener) => return Self::serve(listener, dir.join(&name), answer),
                Err(error) => {
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        tracing::warn!(%error, "a directory for control sockets is not used");
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    fn serve(listener: UnixListener, path: PathBuf, with: impl Answer) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(&path)?;
        let waiting = Waiting::default();
        let (theirs, with) = (Arc::clone(&waiting), Arc::new(with));
        let answerer = std::thread::Builder::new().name("control".to_owned());
        answerer.spawn(move || {
            for stream in listener.incoming() {
                let (waiting, with) = (Arc::clone(&theirs), Arc::clone(&with));
                // A thread each, so that one who connects and says nothing keeps nobody waiting.
                let thread = std::thread::Builder::new().name("control-peer".to_owned());
                let started = stream
                    .and_then(|stream| thread.spawn(move || answer(&stream, &*with, &waiting)));
                if let Err(error) = started {
                    tracing::warn!(%error, "control request not answered");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
        Ok(Self {
            names: Mutex::new(vec![path]),
            socket: (metadata.dev(), metadata.ino()),
            waiting,
        })
    }

    /// Answers under the name of the mount too. One that is there was left by a daemon that is no
    /// more: its device number has been given again.
    pub(crate) fn answer_for_mount(&self, device: u64) -> io::Result<()> {
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

    /// The mount has gone: its device number may be given to another one at any moment, for which
    /// this daemon must not speak. Who waits for the volume's end goes on waiting.
    pub(crate) fn answer_for_no_mount(&self) {
        let mut names = self.names.lock();
        let own = names.len().min(1);
        let of_mounts = names.split_off(own);
        drop(names);
        of_mounts.iter().for_each(|name| self.remove_name(name));
    }

    /// Takes a name away that is this one's still: whoever shares a read-only medium with this one may
    /// have taken it over.
    fn remove_name(&self, name: &Path) {
        let found = fs::symlink_metadata(name);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.socket) {
            let _ = fs::remove_file(name);
        }
    }

    /// Who waits for the volume's end, the first of them; or who did a moment ago, and was
    /// interrupted or did not want to wait to the end.
    pub(crate) fn waits(&self) -> Option<PeerCredentials> {
        let waiting = self.waiting.lock();
        let waits = waiting.streams.first();
        let waits = waits.and_then(|stream| peer_credentials(stream).ok());
        let left = waiting.left.as_ref();
        let left = left.filter(|(_, when)| when.elapsed() < REMEMBERED);
        waits.or_else(|| left.map(|(peer, _)| *peer))
    }

    /// Tells those who wait that the volume is closed, or why it could not be.
    pub(crate) fn announce(&self, outcome: &Closed) {
        let Ok(line) = wire::encode(&Response::Closed(outcome.clone())) else {
            return;
        };
        for mut stream in self.waiting.lock().streams.drain(..) {
            // Who does not wait any more need not be told.
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
    // The directory is this user's alone, so nobody can come in before the mode is set.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers the requests of one connection, until the peer closes it or waits.
fn answer(stream: &UnixStream, with: &impl Answer, waiting: &Waiting) {
    if let Err(error) = try_answer(stream, with, waiting) {
        tracing::debug!(%error, "control connection ended");
    }
}

fn try_answer(stream: &UnixStream, with: &impl Answer, waiting: &Waiting) -> io::Result<()> {
    let peer = peer_credentials(stream)?;
    if peer.uid != 0 && peer.uid != effective_user() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let _asked = audit::requested_by(Requester::process(peer.uid, peer.pid as u32));
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut requests = BufReader::new(stream);
    loop {
        let line = read_line(&mut (&mut requests).take(LINE_BYTES))?;
        let request: Request = match wire::decode(line.as_bytes()) {
            Ok(request) => request,
            Err(error) => return say(stream, &Response::Failed(unreadable(error).into())),
        };
        // A stream goes as slowly as its reader.
        let streams = matches!(request, Request::Operation(_));
        stream.set_write_timeout((!streams).then_some(PATIENCE))?;
        match request {
            Request::Prove => with.prove(stream)?,
            Request::Ping => say(stream, &Response::Alive)?,
            Request::Stays => return Ok(()),
            Request::Wait => {
                let told = stream.try_clone()?;
                let number = told.as_raw_fd();
                {
                    // With the lock held: the outcome is announced behind it.
                    let mut waiting = waiting.lock();
                    say(stream, &Response::Waiting)?;
                    waiting.streams.push(told);
                }
                // Who leaves, as one whose unmounting is refused, is not kept.
                stream.set_read_timeout(None)?;
                let said = read_line(&mut (&mut requests).take(LINE_BYTES));
                let mut waiting = waiting.lock();
                waiting
                    .streams
                    .retain(|stream| stream.as_raw_fd() != number);
                let stays = |said: &String| wire::decode(said.as_bytes()) == Ok(Request::Stays);
                if !said.as_ref().is_ok_and(stays) {
                    waiting.left = Some((peer, Instant::now()));
                }
                return said.map(drop);
            }
            request => with.respond(&request, &mut &*stream)?,
        }
    }
}

fn say(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    stream.write_all(&wire::encode(response)?)
}

fn unreadable(error: Unreadable) -> UserError {
    UserError::new(
        ExitCode::System,
        format!("the daemon cannot read the request: {error}"),
    )
    .with_hint(wire::OTHER_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::ControlClient;
    use crate::control::connection::connect_in;
    use crate::control::obstacle::Obstacle;
    use crate::control::response::{Claim, Outcome};

    fn private() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    fn done() -> Response {
        Response::Done(Outcome::Nothing)
    }

    struct Fixed;

    impl Answer for Fixed {
        fn respond(&self, _: &Request, to: &mut dyn Write) -> io::Result<()> {
            to.write_all(&wire::encode(&done())?)
        }

        fn prove(&self, to: &UnixStream) -> io::Result<()> {
            say(to, &Response::Proof(Claim::default()))
        }
    }

    #[test]
    fn asks_and_waits() {
        let dir = private();
        let path = dir.path().join("x.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let server = ControlServer::serve(listener, path.clone(), Fixed).unwrap();
        let uid = effective_user();
        let connect = || {
            let connection = connect_in(dir.path(), "x.sock", uid).unwrap().unwrap();
            ControlClient::over(connection, Address::Mount(0))
        };
        let ask = |request: &Request| connect().ask(request, Some(PATIENCE)).unwrap();
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
            let Response::Failed(refused) = other.receive(Some(PATIENCE)).unwrap() else {
                panic!("{line}");
            };
            assert!(refused.message.contains(why), "{line}: {}", refused.message);
        }

        // Somebody who says nothing keeps nobody waiting.
        let _silent = connect();
        let mut waiting = connect();
        assert_eq!(waiting.ask(&Request::Sync, Some(PATIENCE)).unwrap(), done());
        // Nor is somebody kept who waited and left.
        let mut leaving = connect();
        leaving.ask(&Request::Wait, Some(PATIENCE)).unwrap();
        let all_left = || {
            while !server.waiting.lock().streams.is_empty() {
                std::thread::yield_now();
            }
        };
        assert_eq!(server.waiting.lock().streams.len(), 1);
        // Whose unmounting was refused has not unmounted it; who was interrupted may have.
        leaving.say(&Request::Stays).unwrap();
        all_left();
        assert_eq!(server.waits(), None);
        drop(leaving);
        let mut leaving = connect();
        leaving.ask(&Request::Wait, Some(PATIENCE)).unwrap();
        drop(leaving);
        all_left();
        assert_eq!(server.waits().unwrap().pid as u32, std::process::id());
        server.waiting.lock().left.as_mut().unwrap().1 -= REMEMBERED;
        assert_eq!(server.waits(), None);
        // What was answered once it waits: nothing is announced past it from then on.
        assert_eq!(
            waiting.ask(&Request::Wait, Some(PATIENCE)).unwrap(),
            Response::Waiting
        );
        server.announce(&Closed {
            is_on_disk: true,
            error: None,
        });
        let closed = waiting.receive(Some(PATIENCE)).unwrap();
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
        server.answer_for_mount(device).unwrap();
        let connection = connect(&name).unwrap().unwrap();
        let mut client = ControlClient::over(connection, Address::Mount(device));
        assert_eq!(
            client.ask(&Request::Ping, Some(PATIENCE)).unwrap(),
            Response::Alive
        );
        // Another daemon takes over the first name, and keeps it.
        let second = ControlServer::serve(listen(&path).unwrap(), path.clone(), Fixed).unwrap();
        assert!(connect(&name).unwrap().is_some());
        server.answer_for_no_mount();
        assert!(connect(&name).unwrap().is_none());
        drop(server);
        assert!(connect("x.sock").unwrap().is_some());
        drop(second);
        assert!(connect("x.sock").unwrap().is_none());
    }
}
