//! How a daemon proves that it has a volume, and how the asker checks it.
//!
//! A name proves nothing: what `/proc/self/mountinfo` calls the source of a mount is any text that
//! whoever mounted chose, and a socket is made by whoever may write to its directory. So whoever
//! connects asks `prove` first, and is given, over the socket, the open file description of the
//! volume's `lock` that the daemon holds, the volume's directory, and the device number of its
//! mount. Only uid 0 and the daemon's own user are answered at all.
//!
//! The asker believes a daemon of uid 0 and one of its own user, root also one of the user who owns
//! the volume's directory and its `lock`; and that only when
//!
//! 1. the directory is the one that the command means, where it named one, by device and inode;
//! 2. `lock` in it, opened anew without following a link, is a plain file, and the same one by
//!    device and inode as the description that was handed over;
//! 3. the asker's own lock on it fails (EWOULDBLOCK): somebody holds it;
//! 4. a lock on the description that was handed over succeeds: it is that one that holds it.
//!
//! What is handed over is looked at as the kernel remembers it, and a directory on somebody else's
//! FUSE mount is not looked into: the filesystem could keep the asker waiting past its own end.
//!
//! Then it is closed, at once: as long as the asker has it open, the lock outlives the daemon. It
//! is close-on-exec, and an asker makes no process meanwhile.
//!
//! On a medium that cannot be written to, several may share the lock to read. Then 3 is the same,
//! and instead of 4 the kernel's list of what that description holds (`/proc/self/fdinfo`) must
//! have the lock: locking it would turn an exclusive lock into a shared one. Where not even a
//! shared lock can be had, the daemon has no proof, says so, and is asked nothing.

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
const ANSWER_BYTES: usize = 4096;

// ---- the daemon's side --------------------------------------------------------------------------

/// Sends the proof that this process holds the volume; `volume` is `None` once it no longer does.
///
/// # Errors
/// The peer has closed the connection.
pub(crate) fn prove(
    to: &UnixStream,
    volume: Option<&Volume>,
    name: DirectoryId,
    mount: Option<u64>,
) -> io::Result<()> {
    let held = volume.and_then(Volume::held_lock);
    let no_lock = volume.is_some() && held.is_none();
    let why = "it is on a medium that cannot be written to, whose lock cannot be had";
    let claim = Claim {
        mount,
        volume: Some(name),
        exclusive: held.is_some_and(|held| held.exclusive),
        closing: volume.is_none(),
        error: no_lock.then(|| why.to_owned()),
    };
    let line = wire::encode(&Response::Proof(claim))?;
    let shown = held.map(|held| [held.file, held.directory]);
    let shown = shown.as_ref().map_or(&[][..], |pair| pair);
    let mut rest = &*line;
    let mut sent = descriptors::send(to, rest, shown)?;
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
    /// The connection over which it did.
    pub(crate) control: ControlClient,
    /// The volume's directory.
    pub(crate) directory: VolumeDirectory,
    /// Device number of its mount; `None` before it has mounted.
    pub(crate) mount: Option<u64>,
}

/// The descriptors that the daemon sent.
struct Evidence {
    lock: File,
    directory: VolumeDirectory,
    exclusive: bool,
}

/// Requests the proof that the peer holds a volume, namely `expected` if that is given.
///
/// # Errors
/// The daemon is silent or ending, or the step of the proof that failed.
pub(super) fn request_proof(
    control: ControlClient,
    expected: Option<&VolumeDirectory>,
) -> Result<ProvenDaemon, Obstacle> {
    let (claim, handed) = read_claim(&control)?;
    if let Some(error) = claim.error {
        return Err(Obstacle::Unproven(error));
    }
    let unproven = |error: io::Error| Obstacle::Unproven(error.to_string());
    let Ok([lock, directory]) = <[OwnedFd; 2]>::try_from(handed) else {
        return Err(Obstacle::Unproven("it handed nothing over".to_owned()));
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

/// Asks a daemon of root or of this user whether it serves the mount with this device number. That
/// is enough to wait for its end, even if its lock is lost. The returned directory is its address
/// until then: the kernel reuses the device number as soon as the mount is gone.
///
/// # Errors
/// The daemon is silent or ending, serves another mount, or is of another user.
pub(super) fn request_mount_claim(
    control: ControlClient,
    device: u64,
) -> Result<(ControlClient, DirectoryId), Obstacle> {
    let (claim, _) = read_claim(&control)?;
    let peer = control.peer.uid;
    if claim.mount != Some(device) {
        Err(Obstacle::Unproven("it has another mount".to_owned()))
    } else if peer != 0 && peer != effective_user() {
        let why = format!("it is a process of user {peer}");
        Err(Obstacle::Unproven(why))
    } else if let Some(volume) = claim.volume {
        Ok((control, volume))
    } else {
        Err(Obstacle::Unproven("it does not say of what".to_owned()))
    }
}

fn read_claim(control: &ControlClient) -> Result<(Claim, Vec<OwnedFd>), Obstacle> {
    let received = receive(control.stream()).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Obstacle::Silent,
        _ => Obstacle::Unproven(error.to_string()),
    })?;
    if received.0.closing {
        return Err(Obstacle::Closing);
    }
    Ok(received)
}

fn receive(mut stream: &UnixStream) -> io::Result<(Claim, Vec<OwnedFd>)> {
    use std::io::Write;
    let end = Instant::now() + RESPONSE_TIMEOUT;
    stream.write_all(&wire::encode(&Request::Prove)?)?;
    let (mut line, mut handed) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let left = end.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut bytes = [0; 512];
        let (count, more) = descriptors::receive(stream, &mut bytes)?;
        handed.extend(more);
        line.extend_from_slice(&bytes[..count]);
        let too_much = line.len() > ANSWER_BYTES || handed.len() > descriptors::DESCRIPTORS_MAX;
        if count == 0 || too_much {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not understand what is asked",
            ));
        }
    }
    match wire::decode(&line)? {
        Response::Proof(claim) => Ok((claim, handed)),
        Response::Failed(failure) => Err(io::Error::other(failure.message)),
        _ => Err(DecodeError::Malformed.into()),
    }
}

/// True if user `asker` trusts a daemon of user `peer` with a volume that belongs to `owner`;
/// `None`: directory and lock belong to different users.
fn is_trusted(asker: u32, peer: u32, owner: Option<u32>) -> bool {
    peer == 0 || peer == asker || (asker == 0 && owner == Some(peer))
}

/// Verifies the steps of the proof, listed at the top of this file. The error says which one
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
        return Err(format!("it has another one, {other}"));
    }
    let lock_error =
        |error: io::Error| format!("{LOCK_NAME} in {}: {error}", directory.path.display());
    if !is_trusted(asker, peer, Some(directory.owner)) {
        return Err(untrusted_peer(peer, directory));
    }
    if peer != 0 && peer != asker && directory.may_hang(asker) {
        return Err("its directory is where another user answers for every look".to_owned());
    }
    let lock = directory.open_lock().map_err(lock_error)?;
    let found = identity(&lock).map_err(lock_error)?;
    let owner = (found.owner == directory.owner).then_some(directory.owner);
    if !is_trusted(asker, peer, owner) {
        return Err(untrusted_peer(peer, directory));
    }
    let handed = identity(&evidence.lock).map_err(lock_error)?;
    if DirectoryId::of(found) != DirectoryId::of(handed) {
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
        assert!(refused.starts_with("it has another one"), "{refused}");
        // The lock that is held is not the one that is there now.
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
        // An exclusive one that is said to be shared stays what it is.
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
            let found = is_trusted(asker, peer, owner);
            assert_eq!(found, expected, "{asker} {peer} {owner:?}");
        }
    }

    #[test]
    fn the_claim_that_is_sent_is_received() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let name = DirectoryId {
            device: 1,
            inode: 2,
        };
        prove(&ours, None, name, Some(7)).unwrap();
        let (claim, handed) = receive(&theirs).unwrap();
        assert_eq!((claim.mount, claim.volume), (Some(7), Some(name)));
        assert!(claim.closing && handed.is_empty());
        // A peer that sends nothing, too much or nonsense.
        drop(ours);
        assert!(receive(&theirs).is_err());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        use std::io::Write;
        ours.write_all(&[b'x'; ANSWER_BYTES + 1]).unwrap();
        let error = receive(&theirs).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
