//! How a daemon proves that it holds a volume, and how a command verifies the proof.
//!
//! A name proves nothing. The source of a mount in `/proc/self/mountinfo` is any text that the user
//! who mounted it chose, and whoever may write to a directory can create a socket in it. So a
//! command sends `prove` first. The daemon answers with the device number of its mount and passes
//! two descriptors over the socket: the open file description of the volume's `lock` that it holds,
//! and the volume's directory. A daemon answers only uid 0 and its own user.
//!
//! A command trusts daemons of uid 0 and of its own user. Root also trusts a daemon of the user who
//! owns both the volume's directory and its `lock`. The command accepts the proof if
//!
//! 1. the directory has the device and inode of the directory that the command named, if it named
//!    one;
//! 2. `lock` in that directory, opened without following a link, is a plain file with the device
//!    and inode of the received description;
//! 3. an attempt to lock the newly opened `lock` fails (EWOULDBLOCK): some process holds the lock;
//! 4. an attempt to lock the received description succeeds: this description holds the lock.
//!
//! The command takes the attributes of both descriptors from the kernel's cache. It opens nothing
//! in a directory on another user's FUSE mount. In both cases that filesystem could otherwise block
//! the command, beyond the reach of any signal.
//!
//! The command closes the received description as soon as it is verified: while it is open, the
//! lock outlives the daemon. The description is close-on-exec, and the command starts no process
//! while it has it.
//!
//! On a read-only medium several processes may share the lock. There step 4 would turn an exclusive
//! lock into a shared one, so instead the kernel's list of the locks that the description holds
//! (`/proc/self/fdinfo`) must contain the lock. If not even a shared lock can be taken, the daemon
//! answers that it has no proof, and the command asks it nothing else.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::client::ControlClient;
use super::directory::{DirectoryId, VolumeDirectory};
use super::line::RESPONSE_TIMEOUT;
use super::obstacle::Obstacle;
use super::request::Request;
use super::response::{Claim, Response};
use super::wire::{self, DecodeError};
use crate::sys::descriptors;
use crate::sys::identity::effective_user;
use crate::sys::location::{fixed_path, identity};
use crate::volume::{LOCK_NAME, Volume};

/// Longest answer to `prove`, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

// ---- the daemon's side --------------------------------------------------------------------------

/// Sends the proof that this process holds the volume in `directory`; `volume` is `None` once it
/// no longer does. `mount` is the device number of the mount, if there is one.
///
/// # Errors
/// The peer has closed the connection.
pub(crate) fn prove(
    to: &UnixStream,
    volume: Option<&Volume>,
    directory: DirectoryId,
    mount: Option<u64>,
) -> io::Result<()> {
    let held = volume.and_then(Volume::held_lock);
    let has_no_lock = volume.is_some() && held.is_none();
    let no_lock = "the volume is on a read-only medium, and its lock cannot be taken";
    let claim = Claim {
        mount,
        volume: Some(directory),
        exclusive: held.is_some_and(|held| held.exclusive),
        closing: volume.is_none(),
        error: has_no_lock.then(|| no_lock.to_owned()),
    };
    let line = wire::encode(&Response::Proof(claim))?;
    let evidence = held.map(|held| [held.file, held.directory]);
    let evidence = evidence.as_ref().map_or(&[][..], |both| both);
    let mut rest = &*line;
    let mut sent = descriptors::send(to, rest, evidence)?;
    while sent < rest.len() {
        rest = &rest[sent..];
        sent = descriptors::send(to, rest, &[])?;
    }
    Ok(())
}

// ---- the command's side -------------------------------------------------------------------------

/// A daemon that has proved that it holds a volume.
#[derive(Debug)]
pub(crate) struct ProvenDaemon {
    /// The connection over which it proved this.
    pub(crate) control: ControlClient,
    /// The volume's directory.
    pub(crate) directory: VolumeDirectory,
    /// Device number of its mount; `None` before it has mounted.
    pub(crate) mount: Option<u64>,
}

/// A daemon that serves a mount, as it claims or has proved.
#[derive(Debug)]
pub(crate) struct MountServer {
    pub(crate) control: ControlClient,
    /// The volume's directory. It is the daemon's address until its end, whereas the kernel reuses
    /// the mount's device number as soon as the mount is removed.
    pub(crate) directory: DirectoryId,
}

/// The descriptors that the daemon sent.
struct Evidence {
    lock: File,
    directory: VolumeDirectory,
    exclusive: bool,
}

/// Requests the proof that the peer holds a volume: `expected` if that is given, else any.
///
/// # Errors
/// The daemon is silent or ending, or a step of the proof fails; the error names the step.
pub(super) fn request_proof(
    control: ControlClient,
    expected: Option<&VolumeDirectory>,
) -> Result<ProvenDaemon, Obstacle> {
    let ReceivedClaim { claim, descriptors } = request_claim(&control)?;
    if let Some(error) = claim.error {
        return Err(Obstacle::Unproven(error));
    }
    let unproven = |error: io::Error| Obstacle::Unproven(error.to_string());
    let Ok([lock, directory]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(Obstacle::Unproven("it sent no descriptors".to_owned()));
    };
    let evidence = Evidence {
        lock: File::from(lock),
        directory: VolumeDirectory::new(directory).map_err(unproven)?,
        exclusive: claim.exclusive,
    };
    check(&evidence, control.peer.uid, effective_user(), expected).map_err(Obstacle::Unproven)?;
    Ok(ProvenDaemon {
        control,
        directory: evidence.directory,
        mount: claim.mount,
    })
}

/// Asks a daemon of root or of this user whether it serves the mount with this device number. The
/// claim is enough to wait for the daemon's end, even if its lock is lost.
///
/// # Errors
/// The daemon is silent or ending, serves another mount, or is of another user.
pub(super) fn request_mount_claim(
    control: ControlClient,
    device: u64,
) -> Result<MountServer, Obstacle> {
    let claim = request_claim(&control)?.claim;
    let peer = control.peer.uid;
    if claim.mount != Some(device) {
        Err(Obstacle::Unproven("it has another mount".to_owned()))
    } else if peer != 0 && peer != effective_user() {
        let why = format!("it is a process of user {peer}");
        Err(Obstacle::Unproven(why))
    } else if let Some(directory) = claim.volume {
        Ok(MountServer { control, directory })
    } else {
        Err(Obstacle::Unproven("it does not name its volume".to_owned()))
    }
}

/// The answer to `prove`.
struct ReceivedClaim {
    claim: Claim,
    descriptors: Vec<OwnedFd>,
}

fn request_claim(control: &ControlClient) -> Result<ReceivedClaim, Obstacle> {
    let received = exchange(control.stream()).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Obstacle::Silent,
        _ => Obstacle::Unproven(error.to_string()),
    })?;
    if received.claim.closing {
        return Err(Obstacle::Closing);
    }
    Ok(received)
}

/// Sends `prove` and reads the answer, within the response timeout.
fn exchange(mut stream: &UnixStream) -> io::Result<ReceivedClaim> {
    use std::io::Write;
    let deadline = Instant::now() + RESPONSE_TIMEOUT;
    stream.write_all(&wire::encode(&Request::Prove)?)?;
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut bytes = [0; 512];
        let received = descriptors::receive(stream, &mut bytes)?;
        descriptors.extend(received.descriptors);
        line.extend_from_slice(&bytes[..received.len_bytes]);
        let is_too_long =
            line.len() > ANSWER_BYTES_MAX || descriptors.len() > descriptors::DESCRIPTORS_MAX;
        if received.len_bytes == 0 || is_too_long {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not understand the request",
            ));
        }
    }
    match wire::decode(&line)? {
        Response::Proof(claim) => Ok(ReceivedClaim { claim, descriptors }),
        Response::Failed(failure) => Err(io::Error::other(failure.message)),
        _ => Err(DecodeError::Malformed.into()),
    }
}

/// True if user `asker` trusts a daemon of user `peer` with a volume that belongs to `owner`.
/// `owner` is `None` if directory and lock belong to different users.
fn is_trusted(asker: u32, peer: u32, owner: Option<u32>) -> bool {
    peer == 0 || peer == asker || (asker == 0 && owner == Some(peer))
}

/// Verifies the steps of the proof, which the top of this file lists. The error names the step that
/// failed.
fn check(
    evidence: &Evidence,
    peer: u32,
    asker: u32,
    expected: Option<&VolumeDirectory>,
) -> Result<(), String> {
    let directory = expected.unwrap_or(&evidence.directory);
    if directory.id != evidence.directory.id {
        let other = evidence.directory.path.display();
        return Err(format!("it holds another volume, {other}"));
    }
    let lock_error =
        |error: io::Error| format!("{LOCK_NAME} in {}: {error}", directory.path.display());
    if !is_trusted(asker, peer, Some(directory.owner)) {
        return Err(untrusted_peer(peer, directory));
    }
    if peer != 0 && peer != asker && directory.may_hang(asker) {
        return Err("its directory is on a FUSE mount of another user".to_owned());
    }
    let lock = directory.open_lock().map_err(lock_error)?;
    let opened = identity(&lock).map_err(lock_error)?;
    let owner = (opened.owner == directory.owner).then_some(directory.owner);
    if !is_trusted(asker, peer, owner) {
        return Err(untrusted_peer(peer, directory));
    }
    let received = identity(&evidence.lock).map_err(lock_error)?;
    if DirectoryId::of(opened) != DirectoryId::of(received) {
        return Err("it has locked another file".to_owned());
    }
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => drop(lock),
        Ok(()) => return Err("nobody holds the volume's lock".to_owned()),
        Err(TryLockError::Error(error)) => return Err(lock_error(error)),
    }
    let holds = if evidence.exclusive {
        evidence.lock.try_lock().is_ok()
    } else {
        holds_a_lock(&evidence.lock).map_err(lock_error)?
    };
    if holds {
        Ok(())
    } else {
        Err("somebody else holds the volume's lock".to_owned())
    }
}

fn untrusted_peer(peer: u32, directory: &VolumeDirectory) -> String {
    let owner = directory.owner;
    format!("it is a process of user {peer}, and the volume belongs to user {owner}")
}

/// True if this open file description holds a lock of flock(2).
fn holds_a_lock(file: &File) -> io::Result<bool> {
    let path = fixed_path(file);
    let number = path.file_name().unwrap_or_default();
    let text = fs::read_to_string(Path::new("/proc/self/fdinfo").join(number))?;
    let mut locks = text.lines().filter(|line| line.starts_with("lock:"));
    Ok(locks.any(|line| line.split_whitespace().any(|word| word == "FLOCK")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::location::Location;

    struct Held {
        top: tempfile::TempDir,
        lock: File,
    }

    impl Held {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            let lock = File::create(top.path().join(LOCK_NAME)).unwrap();
            Self { top, lock }
        }

        fn directory(&self) -> VolumeDirectory {
            VolumeDirectory::at(&Location::open(self.top.path()).unwrap()).unwrap()
        }

        fn evidence(&self, lock: &File, exclusive: bool) -> Evidence {
            Evidence {
                lock: lock.try_clone().unwrap(),
                directory: self.directory(),
                exclusive,
            }
        }
    }

    fn refusal_of(held: &Held, lock: &File, exclusive: bool) -> String {
        let me = effective_user();
        let evidence = held.evidence(lock, exclusive);
        check(&evidence, me, me, None).unwrap_err()
    }

    #[test]
    fn only_the_description_that_holds_the_lock_proves_it() {
        let held = Held::new();
        assert_eq!(
            refusal_of(&held, &held.lock, true),
            "nobody holds the volume's lock"
        );
        assert!(!held.directory().is_locked().unwrap());
        held.lock.try_lock().unwrap();
        let me = effective_user();
        let evidence = held.evidence(&held.lock, true);
        check(&evidence, me, me, None).unwrap();
        check(&evidence, me, me, Some(&held.directory())).unwrap();
        assert!(held.directory().is_locked().unwrap());
        // Another opening of the same file.
        let again = File::open(held.top.path().join(LOCK_NAME)).unwrap();
        let somebody = "somebody else holds the volume's lock";
        assert_eq!(refusal_of(&held, &again, true), somebody);
        assert_eq!(refusal_of(&held, &again, false), somebody);
        // Another file, and another volume.
        let other = Held::new();
        other.lock.try_lock().unwrap();
        assert_eq!(
            refusal_of(&held, &other.lock, true),
            "it has locked another file"
        );
        let refused = check(&evidence, me, me, Some(&other.directory())).unwrap_err();
        assert!(refused.starts_with("it holds another volume"), "{refused}");
        // The file that is locked is no longer the one in the directory.
        fs::remove_file(held.top.path().join(LOCK_NAME)).unwrap();
        assert!(refusal_of(&held, &held.lock, true).contains("lock in "));
        File::create(held.top.path().join(LOCK_NAME)).unwrap();
        assert_eq!(
            refusal_of(&held, &held.lock, true),
            "it has locked another file"
        );
    }

    #[test]
    fn a_shared_lock_is_proved_without_being_touched() {
        let held = Held::new();
        held.lock.try_lock_shared().unwrap();
        let me = effective_user();
        check(&held.evidence(&held.lock, false), me, me, None).unwrap();
        let again = File::open(held.top.path().join(LOCK_NAME)).unwrap();
        again.try_lock_shared().unwrap();
        check(&held.evidence(&again, false), me, me, None).unwrap();
        again.unlock().unwrap();
        assert!(check(&held.evidence(&again, false), me, me, None).is_err());
        // An exclusive lock that the daemon calls shared stays exclusive.
        held.lock.unlock().unwrap();
        held.lock.try_lock().unwrap();
        check(&held.evidence(&held.lock, false), me, me, None).unwrap();
        assert!(again.try_lock_shared().is_err());
    }

    #[test]
    fn links_and_directories_are_not_locks() {
        let held = Held::new();
        held.lock.try_lock().unwrap();
        let path = held.top.path().join(LOCK_NAME);
        fs::rename(&path, held.top.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(refusal_of(&held, &held.lock, true).contains("lock in "));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refusal_of(&held, &held.lock, true).contains("lock in "));
    }

    #[test]
    fn daemons_that_are_trusted() {
        // asker, peer, owner of directory and lock, trusted
        for (asker, peer, owner, expected) in [
            (0, 0, Some(1000), true),
            (0, 1000, Some(1000), true),
            (0, 1000, Some(0), false),
            (0, 1000, Some(1001), false),
            (0, 1000, None, false),
            (1000, 0, Some(1000), true),
            (1000, 1000, Some(0), true),
            (1000, 1001, Some(1001), false),
            (1000, 1001, Some(1000), false),
            (1000, 1001, None, false),
        ] {
            let trusted = is_trusted(asker, peer, owner);
            assert_eq!(trusted, expected, "{asker} {peer} {owner:?}");
        }
    }

    #[test]
    fn the_claim_that_is_sent_is_received() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = DirectoryId {
            device: 1,
            inode: 2,
        };
        prove(&ours, None, id, Some(7)).unwrap();
        let ReceivedClaim { claim, descriptors } = exchange(&theirs).unwrap();
        assert_eq!((claim.mount, claim.volume), (Some(7), Some(id)));
        assert!(claim.closing && descriptors.is_empty());
        // A peer that sends nothing, too much or nonsense.
        drop(ours);
        assert!(exchange(&theirs).is_err());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        use std::io::Write;
        ours.write_all(&[b'x'; ANSWER_BYTES_MAX + 1]).unwrap();
        let error = exchange(&theirs).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
