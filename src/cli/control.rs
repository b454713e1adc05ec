//! The daemon's control socket: how other commands ask the process that has a volume mounted.
//!
//! A Unix socket, mode 0600, in a directory of the user's own: `/run/bilayer` for root, else
//! `$XDG_RUNTIME_DIR/bilayer`, `/run/user/UID/bilayer` or `/tmp/bilayer-UID`. Its name is the
//! device and inode of the volume's directory, so that every spelling of the path finds it. Only
//! root and the daemon's own user are answered. Nothing secret passes through it: passphrases are
//! named by their files, and an exported image is sealed.
//!
//! Requests and answers are lines; a connection may carry several:
//!
//! | request | answer |
//! |---|---|
//! | `status` | a JSON object ([`super::status`]) |
//! | `remount ro\|rw atime\|strictatime\|noatime` | `{"done":true}` when it is so and, for `ro`, everything is on disk, or `{"error":"..."}` |
//! | `sync` | `{"done":true}` when everything so far is on disk, or `{"error":"..."}` |
//! | a JSON object with a `verb` | see [`super::wire`] |
//! | `wait` | `{"waiting":true}` at once, and when the volume is closed `{"closed":true}` or `{"error":"..."}`; must be the last one |

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::wire::Answers;
use crate::fuse::mountinfo::identity;
use crate::sys::identity::effective_user;
use crate::sys::process::{PeerCredentials, peer_credentials};

/// Longest request or answer, in bytes.
const LINE_BYTES: u64 = 1 << 20;
/// A peer that says nothing for so long is left.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Answer to `wait`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Closed {
    /// True when everything is on disk.
    #[serde(default)]
    pub closed: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answer to `remount`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// True when it was done.
    #[serde(default)]
    pub done: bool,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Directories in which sockets of that user's daemons may be.
fn directories(uid: u32) -> Vec<PathBuf> {
    if uid == 0 {
        return vec![PathBuf::from("/run/bilayer")];
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let own = own.filter(|dir| dir.is_absolute() && uid == effective_user());
    let system = PathBuf::from(format!("/run/user/{uid}"));
    let shared = PathBuf::from(format!("/tmp/bilayer-{uid}"));
    own.into_iter()
        .chain([system])
        .map(|dir| dir.join("bilayer"))
        .chain([shared])
        .collect()
}

fn socket_name(volume: &Path) -> io::Result<String> {
    let (device, inode) = identity(volume)?;
    Ok(format!("{device:x}-{inode:x}.sock"))
}

/// Makes the directory, or sees to it that the one that is there is this user's alone.
fn own_directory(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir)?;
    if metadata.is_dir() && metadata.uid() == effective_user() && metadata.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{} is not this user's alone", dir.display()),
        ))
    }
}

/// Those who are told when the volume is closed.
type Waiting = Arc<Mutex<Vec<UnixStream>>>;

/// What answers a request: writes to the peer; `None` to what it does not know.
pub trait Respond:
    Fn(&str, &mut dyn Write) -> Option<io::Result<()>> + Send + Sync + 'static
{
}

impl<F> Respond for F where
    F: Fn(&str, &mut dyn Write) -> Option<io::Result<()>> + Send + Sync + 'static
{
}

/// The daemon's side. The socket goes when it is dropped.
pub struct ControlServer {
    path: PathBuf,
    waiting: Waiting,
}

impl std::fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlServer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl ControlServer {
    /// Starts answering for a volume whose lock this process holds; a socket that is there was
    /// left by a daemon that is no more. `respond` writes the answer to every request but `wait`;
    /// `None` to one that it does not know.
    pub fn start(volume: &Path, respond: impl Respond) -> io::Result<Self> {
        let name = socket_name(volume)?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for dir in directories(effective_user()) {
            match own_directory(&dir).and_then(|()| listen(&dir.join(&name))) {
                Ok(listener) => return Self::serve(listener, dir.join(&name), respond),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn serve(listener: UnixListener, path: PathBuf, respond: impl Respond) -> io::Result<Self> {
        let waiting = Waiting::default();
        let (theirs, respond) = (Arc::clone(&waiting), Arc::new(respond));
        let answerer = std::thread::Builder::new().name("control".to_owned());
        answerer.spawn(move || {
            for stream in listener.incoming() {
                let (waiting, respond) = (Arc::clone(&theirs), Arc::clone(&respond));
                // A thread each, so that one who connects and says nothing keeps nobody waiting.
                let thread = std::thread::Builder::new().name("control-peer".to_owned());
                let started = stream
                    .and_then(|stream| thread.spawn(move || answer(&stream, &*respond, &waiting)));
                if let Err(error) = started {
                    tracing::warn!(%error, "control request not answered");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
        Ok(Self { path, waiting })
    }

    /// Tells those who wait that the volume is closed, or why it could not be.
    pub fn announce(&self, outcome: &Closed) {
        let text = serde_json::to_string(outcome).unwrap_or_default() + "\n";
        for mut stream in self.waiting.lock().drain(..) {
            // Who does not wait any more need not be told.
            let _ = stream.write_all(text.as_bytes());
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is this user's alone, so nobody can come in before the mode is set.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers the requests of one connection, until the peer closes it or waits.
fn answer(stream: &UnixStream, respond: &impl Respond, waiting: &Waiting) {
    if let Err(error) = try_answer(stream, respond, waiting) {
        tracing::debug!(%error, "control connection ended");
    }
}

fn try_answer(stream: &UnixStream, respond: &impl Respond, waiting: &Waiting) -> io::Result<()> {
    let peer = peer_credentials(stream)?;
    if peer.uid != 0 && peer.uid != effective_user() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut requests = BufReader::new(stream);
    loop {
        let request = read_line(&mut (&mut requests).take(LINE_BYTES))?;
        // A stream goes as slowly as who takes it.
        let streams = request.starts_with('{');
        stream.set_write_timeout((!streams).then_some(PATIENCE))?;
        match request.as_str() {
            "wait" => {
                let told = stream.try_clone()?;
                let number = told.as_raw_fd();
                {
                    // With the lock held: the outcome is announced behind it.
                    let mut waiting = waiting.lock();
                    (&*stream).write_all(b"{\"waiting\":true}\n")?;
                    waiting.push(told);
                }
                // Who leaves, as one whose unmounting is refused, is not kept.
                stream.set_read_timeout(None)?;
                let left = read_line(&mut (&mut requests).take(LINE_BYTES)).map(drop);
                waiting.lock().retain(|peer| peer.as_raw_fd() != number);
                return left;
            }
            request => match respond(request, &mut &*stream) {
                Some(answered) => answered?,
                None => return (&*stream).write_all(b"{\"error\":\"unknown request\"}\n"),
            },
        }
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(whole) => Ok(whole.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A connection to the daemon that has a volume mounted.
#[derive(Debug)]
pub struct ControlClient {
    stream: BufReader<UnixStream>,
    /// Who answers.
    pub peer: PeerCredentials,
}

impl ControlClient {
    /// Connects to the daemon of that user; `None` when there is none or it cannot be reached.
    /// A socket of anybody else but root or that user is not believed.
    pub fn connect(volume: &Path, uid: u32) -> Option<Self> {
        let name = socket_name(volume).ok()?;
        directories(uid).into_iter().find_map(|dir| {
            let stream = UnixStream::connect(dir.join(&name)).ok()?;
            let peer = peer_credentials(&stream).ok()?;
            let stream = BufReader::new(stream);
            (peer.uid == uid || peer.uid == 0).then_some(Self { stream, peer })
        })
    }

    /// Sends a request and waits for its one line, at most so long.
    pub fn ask(&mut self, request: &str, timeout: Option<Duration>) -> io::Result<String> {
        let mut stream = self.stream.get_ref();
        stream.set_read_timeout(timeout)?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        read_line(&mut (&mut self.stream).take(LINE_BYTES))
    }

    /// Sends a request whose answer is read with [`Answers`], and sets how long each line of it may
    /// take to come.
    pub(super) fn send(&mut self, request: &str, timeout: Option<Duration>) -> io::Result<()> {
        let mut stream = self.stream.get_ref();
        stream.set_read_timeout(timeout)?;
        stream.write_all(format!("{request}\n").as_bytes())
    }

    /// Reads a further line of the answer, however long it takes to come.
    pub fn receive(&mut self) -> io::Result<String> {
        self.stream.get_ref().set_read_timeout(None)?;
        read_line(&mut (&mut self.stream).take(LINE_BYTES))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_and_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let server = ControlServer::serve(
            listener,
            path.clone(),
            |request: &str, to: &mut dyn Write| {
                (request == "status").then(|| to.write_all(b"{\"a\":1}\n"))
            },
        )
        .unwrap();
        let connect = || {
            let stream = UnixStream::connect(&path).unwrap();
            let peer = peer_credentials(&stream).unwrap();
            let stream = BufReader::new(stream);
            ControlClient { stream, peer }
        };
        assert_eq!(
            connect().ask("status", Some(PATIENCE)).unwrap(),
            "{\"a\":1}"
        );
        assert!(
            connect()
                .ask("blah", Some(PATIENCE))
                .unwrap()
                .contains("unknown")
        );

        // Somebody who says nothing keeps nobody waiting.
        let _silent = connect();
        let mut waiting = connect();
        assert_eq!(waiting.ask("status", Some(PATIENCE)).unwrap(), "{\"a\":1}");
        // Nor is somebody kept who waited and left.
        let mut leaving = connect();
        leaving.ask("wait", Some(PATIENCE)).unwrap();
        assert_eq!(server.waiting.lock().len(), 1);
        drop(leaving);
        while !server.waiting.lock().is_empty() {
            std::thread::yield_now();
        }
        // What was answered once it waits: nothing is announced past it from then on.
        assert_eq!(
            waiting.ask("wait", Some(PATIENCE)).unwrap(),
            "{\"waiting\":true}"
        );
        server.announce(&Closed {
            closed: true,
            error: None,
        });
        assert_eq!(waiting.receive().unwrap(), "{\"closed\":true}");
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn does_not_share_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        own_directory(&own).unwrap();
        own_directory(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(own_directory(&own).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(own_directory(&link).is_err());
    }

    #[test]
    fn names_follow_the_directory_and_not_its_spelling() {
        let dir = tempfile::tempdir().unwrap();
        let again = dir.path().join(".");
        assert_eq!(
            socket_name(dir.path()).unwrap(),
            socket_name(&again).unwrap()
        );
        assert_ne!(
            socket_name(dir.path()).unwrap(),
            socket_name(Path::new("/")).unwrap()
        );
        assert!(ControlClient::connect(dir.path(), effective_user()).is_none());
    }
}
