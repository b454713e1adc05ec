//! The daemon's control socket: how other commands ask the process that has a volume mounted.
//!
//! A Unix socket, mode 0600, in a directory of the user's own: `/run/bilayer` for root, else
//! `$XDG_RUNTIME_DIR/bilayer`, `/run/user/UID/bilayer` or `/tmp/bilayer-UID`. It has two names: the
//! device and inode of the volume's directory, so that every spelling of the path finds it, and the
//! device number of the mount, which stays what it is whatever is renamed or bound elsewhere. Only
//! root and the daemon's own user are answered. Nothing secret passes through it: passphrases are
//! named by their files, and an exported image is sealed.
//!
//! A name proves nothing: whoever connects has the daemon prove what it has ([`super::proof`]).
//! What stands in the way of finding a daemon, a directory that is not its user's alone or a socket
//! of somebody else, is collected and told ([`Obstacle`]).
//!
//! Requests and answers are lines; a connection may carry several:
//!
//! | request | answer |
//! |---|---|
//! | `prove` | a JSON object and two descriptors ([`super::proof`]) |
//! | `ping` | `{"done":true}`, whatever else the daemon does |
//! | `status` | a JSON object ([`super::status`]) |
//! | `remount ro\|rw atime\|strictatime\|noatime` | `{"done":true}` when it is so and, for `ro`, everything is on disk, or `{"error":"..."}` |
//! | `sync` | `{"done":true}` when everything so far is on disk, or `{"error":"..."}` |
//! | a JSON object with a `verb` | see [`super::wire`] |
//! | `wait` | `{"waiting":true}` at once, and when the volume is closed `{"closed":true}` or `{"error":"..."}`; only `stays` may follow |
//! | `stays`, behind `wait` | none: the mount was not taken away, and who waited leaves |

use std::fs::{self, DirBuilder, Metadata};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::health::DEAD;
use super::patient::{Patient, Vigil};
use super::proof::DirectoryId;
use super::wire::Answers;
use crate::audit::{self, Requester};
use crate::fuse::mountinfo::device_name;
use crate::sys::identity::effective_user;
use crate::sys::process::{PeerCredentials, peer_credentials};

/// What who waits says where the mount was not taken away.
pub(super) const STAYS: &str = "stays";
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

/// What a daemon is looked for by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    /// The volume's directory.
    Volume(DirectoryId),
    /// The device number of the mount.
    Mount(u64),
}

impl Address {
    fn socket_name(self) -> String {
        match self {
            Self::Volume(id) => format!("{:x}-{:x}.sock", id.device, id.inode),
            Self::Mount(device) => format!("mount-{}.sock", device_name(device).replace(':', "-")),
        }
    }
}

/// Why a daemon of some user could not be asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Obstacle {
    /// The directory for sockets is not its user's alone: somebody else may have made what is in it.
    #[error(
        "{} should be user {wanted}'s alone, and {found}: nothing in it is believed",
        .dir.display()
    )]
    Squatted {
        /// Which directory.
        dir: PathBuf,
        /// Whose it should be.
        wanted: u32,
        /// What it is instead.
        found: String,
    },
    /// Only that user and root are answered.
    #[error("daemons of user {0} do not answer this user")]
    Denied(u32),
    /// The socket is somebody else's.
    #[error("{} is a socket of user {found}, not of user {wanted}", .path.display())]
    Foreign {
        /// Which socket.
        path: PathBuf,
        /// Whose it should be.
        wanted: u32,
        /// Whose it is.
        found: u32,
    },
    /// The process that made the socket is no more.
    #[error("{DEAD}")]
    Dead,
    /// It is there and says nothing.
    #[error("the daemon does not answer")]
    Silent,
    /// It is about to end, and has the volume no more.
    #[error("the daemon is ending")]
    Closing,
    /// It answered and did not prove that it has the volume.
    #[error("the process that answers has not proved that it has the volume: {0}")]
    Unproven(String),
}

impl Obstacle {
    /// What to do about it.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Squatted { dir, .. } => format!(
                "see who made it: ls -ld {0}; then remove it: rm -r {0}; and mount the volume again",
                dir.display()
            ),
            Self::Foreign { path, .. } => format!("see who made it: ls -l {}", path.display()),
            Self::Denied(_) => "root and the user who mounted it may ask".to_owned(),
            Self::Closing => "wait until it has ended, and try again".to_owned(),
            Self::Dead => "bilayer unmount DIR && bilayer mount VOLUME DIR".to_owned(),
            Self::Silent => {
                "look at the daemon and its log; bilayer unmount --force ends it".to_owned()
            }
            Self::Unproven(_) => {
                "unmount it and mount it again; what was mounted by an older version does not \
                 prove itself"
                    .to_owned()
            }
        }
    }
}

/// What of a directory for sockets of `uid` is not as it must be.
fn squatted(dir: &Path, metadata: &Metadata, uid: u32) -> Option<Obstacle> {
    let found = if !metadata.is_dir() {
        "is no directory".to_owned()
    } else if metadata.uid() != uid {
        format!("belongs to user {}", metadata.uid())
    } else if metadata.mode() & 0o077 != 0 {
        format!("has mode {:04o}", metadata.mode() & 0o7777)
    } else {
        return None;
    };
    Some(Obstacle::Squatted {
        dir: dir.to_path_buf(),
        wanted: uid,
        found,
    })
}

/// Makes the directory, or sees to it that the one that is there is this user's alone.
fn own_directory(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match squatted(dir, &fs::symlink_metadata(dir)?, effective_user()) {
        None => Ok(()),
        Some(obstacle) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{obstacle}; {}", obstacle.hint()),
        )),
    }
}

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
pub trait Answer: Send + Sync + 'static {
    /// Writes the answer to a request; `None` to one that is unknown.
    fn respond(&self, request: &str, to: &mut dyn Write) -> Option<io::Result<()>>;
    /// Proves to the peer that this process has its volume.
    fn prove(&self, to: &UnixStream) -> io::Result<()>;
}

/// The daemon's side. The socket goes when it is dropped.
pub struct ControlServer {
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
    pub fn start(volume: DirectoryId, answer: impl Answer) -> io::Result<Self> {
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
    pub fn answer_for_mount(&self, device: u64) -> io::Result<()> {
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
    pub fn answer_for_no_mount(&self) {
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
    pub fn waits(&self) -> Option<PeerCredentials> {
        let waiting = self.waiting.lock();
        let waits = waiting.streams.first();
        let waits = waits.and_then(|stream| peer_credentials(stream).ok());
        let left = waiting.left.as_ref();
        let left = left.filter(|(_, when)| when.elapsed() < REMEMBERED);
        waits.or_else(|| left.map(|(peer, _)| *peer))
    }

    /// Tells those who wait that the volume is closed, or why it could not be.
    pub fn announce(&self, outcome: &Closed) {
        let text = serde_json::to_string(outcome).unwrap_or_default() + "\n";
        for mut stream in self.waiting.lock().streams.drain(..) {
            // Who does not wait any more need not be told.
            let _ = stream.write_all(text.as_bytes());
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
        let request = read_line(&mut (&mut requests).take(LINE_BYTES))?;
        // A stream goes as slowly as who takes it.
        let streams = request.starts_with('{');
        stream.set_write_timeout((!streams).then_some(PATIENCE))?;
        match request.as_str() {
            "prove" => with.prove(stream)?,
            "ping" => (&*stream).write_all(b"{\"done\":true}\n")?,
            "wait" => {
                let told = stream.try_clone()?;
                let number = told.as_raw_fd();
                {
                    // With the lock held: the outcome is announced behind it.
                    let mut waiting = waiting.lock();
                    (&*stream).write_all(b"{\"waiting\":true}\n")?;
                    waiting.streams.push(told);
                }
                // Who leaves, as one whose unmounting is refused, is not kept.
                stream.set_read_timeout(None)?;
                let said = read_line(&mut (&mut requests).take(LINE_BYTES));
                let mut waiting = waiting.lock();
                waiting
                    .streams
                    .retain(|stream| stream.as_raw_fd() != number);
                if !said.as_ref().is_ok_and(|said| said == STAYS) {
                    waiting.left = Some((peer, Instant::now()));
                }
                return said.map(drop);
            }
            request => match with.respond(request, &mut &*stream) {
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
    stream: BufReader<Patient>,
    /// What it was found by.
    address: Option<Address>,
    /// Who answers.
    pub peer: PeerCredentials,
}

impl ControlClient {
    /// Connects to a socket of that user's; `None` when there is none. What is in the way is added
    /// to `obstacles`. A connection proves nothing yet.
    pub(super) fn connect(
        address: Address,
        uid: u32,
        obstacles: &mut Vec<Obstacle>,
    ) -> Option<Self> {
        let name = address.socket_name();
        let dirs = directories(uid).into_iter();
        dirs.map(|dir| connect_in(&dir, &name, uid))
            .find_map(|connected| match connected {
                Ok(client) => client.map(|client| Self {
                    address: Some(address),
                    ..client
                }),
                Err(obstacle) => {
                    obstacles.push(obstacle);
                    None
                }
            })
    }

    /// The connection itself, of which nothing has been read ahead.
    pub(super) fn stream(&self) -> &UnixStream {
        self.stream.get_ref().stream()
    }

    /// Says something that is not answered.
    pub(super) fn say(&self, what: &str) -> io::Result<()> {
        self.stream().write_all(format!("{what}\n").as_bytes())
    }

    /// How long reading may take; `None`: as long as the daemon lives.
    fn set_limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let (user, pid) = (self.peer.uid, self.peer.pid);
        let watched = self.address.filter(|_| limit.is_none());
        self.stream().set_read_timeout(limit)?;
        self.stream
            .get_mut()
            .keep(watched.map(|address| Vigil { address, user, pid }))
    }

    /// Sends a request and waits for its one line, at most so long, or as long as the daemon lives.
    pub fn ask(&mut self, request: &str, timeout: Option<Duration>) -> io::Result<String> {
        self.set_limit(timeout)?;
        let mut stream = self.stream();
        stream.write_all(format!("{request}\n").as_bytes())?;
        read_line(&mut (&mut self.stream).take(LINE_BYTES))
    }

    /// Sends a request whose answer is read with [`Answers`], and sets how long each line of it may
    /// take to come.
    pub(super) fn send(&mut self, request: &str, timeout: Option<Duration>) -> io::Result<()> {
        self.set_limit(timeout)?;
        let mut stream = self.stream();
        stream.write_all(format!("{request}\n").as_bytes())
    }

    /// Reads a further line of the answer, which may take so long to come.
    pub fn receive(&mut self, timeout: Option<Duration>) -> io::Result<String> {
        self.set_limit(timeout)?;
        read_line(&mut (&mut self.stream).take(LINE_BYTES))
    }
}

/// Connects to a socket in one of that user's directories.
fn connect_in(dir: &Path, name: &str, uid: u32) -> Result<Option<ControlClient>, Obstacle> {
    let denied = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Err(Obstacle::Denied(uid)),
        io::ErrorKind::ConnectionRefused => Err(Obstacle::Dead),
        _ => Ok(None),
    };
    let metadata = match fs::symlink_metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) => return denied(error),
    };
    if let Some(obstacle) = squatted(dir, &metadata, uid) {
        return Err(obstacle);
    }
    let path = dir.join(name);
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) => return denied(error),
    };
    match peer_credentials(&stream) {
        Ok(peer) if peer.uid == uid => Ok(Some(ControlClient {
            stream: BufReader::new(Patient::new(stream)),
            address: None,
            peer,
        })),
        Ok(peer) => Err(Obstacle::Foreign {
            path,
            wanted: uid,
            found: peer.uid,
        }),
        Err(_) => Ok(None),
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

    fn private() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    struct Fixed;

    impl Answer for Fixed {
        fn respond(&self, request: &str, to: &mut dyn Write) -> Option<io::Result<()>> {
            (request == "status").then(|| to.write_all(b"{\"a\":1}\n"))
        }

        fn prove(&self, mut to: &UnixStream) -> io::Result<()> {
            to.write_all(b"{}\n")
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
        let connect = || connect_in(dir.path(), "x.sock", uid).unwrap().unwrap();
        assert_eq!(
            connect().ask("status", Some(PATIENCE)).unwrap(),
            "{\"a\":1}"
        );
        assert_eq!(connect().ask("prove", Some(PATIENCE)).unwrap(), "{}");
        let unknown = connect().ask("blah", Some(PATIENCE)).unwrap();
        assert!(unknown.contains("unknown"));

        // Somebody who says nothing keeps nobody waiting.
        let _silent = connect();
        let mut waiting = connect();
        assert_eq!(waiting.ask("status", Some(PATIENCE)).unwrap(), "{\"a\":1}");
        // Nor is somebody kept who waited and left.
        let mut leaving = connect();
        leaving.ask("wait", Some(PATIENCE)).unwrap();
        let all_left = || {
            while !server.waiting.lock().streams.is_empty() {
                std::thread::yield_now();
            }
        };
        assert_eq!(server.waiting.lock().streams.len(), 1);
        // Whose unmounting was refused has not unmounted it; who was interrupted may have.
        leaving.say(STAYS).unwrap();
        all_left();
        assert_eq!(server.waits(), None);
        drop(leaving);
        let mut leaving = connect();
        leaving.ask("wait", Some(PATIENCE)).unwrap();
        drop(leaving);
        all_left();
        assert_eq!(server.waits().unwrap().pid as u32, std::process::id());
        server.waiting.lock().left.as_mut().unwrap().1 -= REMEMBERED;
        assert_eq!(server.waits(), None);
        // What was answered once it waits: nothing is announced past it from then on.
        assert_eq!(
            waiting.ask("wait", Some(PATIENCE)).unwrap(),
            "{\"waiting\":true}"
        );
        server.announce(&Closed {
            closed: true,
            error: None,
        });
        let told = waiting.receive(Some(PATIENCE)).unwrap();
        assert_eq!(told, "{\"closed\":true}");
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
        let mut client = connect(&name).unwrap().unwrap();
        assert_eq!(client.ask("ping", None).unwrap(), "{\"done\":true}");
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

    #[test]
    fn does_not_share_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        own_directory(&own).unwrap();
        own_directory(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        let error = own_directory(&own).unwrap_err();
        assert!(error.to_string().contains("has mode 0755"), "{error}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let error = own_directory(&link).unwrap_err();
        assert!(error.to_string().contains("is no directory"), "{error}");
    }

    #[test]
    fn nothing_in_a_directory_of_somebody_else_is_believed() {
        let dir = private();
        let _socket = UnixListener::bind(dir.path().join("x.sock")).unwrap();
        let uid = effective_user();
        assert!(connect_in(dir.path(), "x.sock", uid).unwrap().is_some());
        let refused = connect_in(dir.path(), "x.sock", uid + 1).unwrap_err();
        let told = refused.to_string();
        assert!(told.contains(&format!("belongs to user {uid}")), "{told}");
        assert!(refused.hint().contains("ls -ld"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o701)).unwrap();
        let refused = connect_in(dir.path(), "x.sock", uid).unwrap_err();
        assert!(matches!(refused, Obstacle::Squatted { .. }));
        let gone = connect_in(&dir.path().join("gone"), "x.sock", uid).unwrap();
        assert!(gone.is_none());
    }
}
