//! `bilayer unmount`: returns when everything is on disk and the daemon is gone.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::control::{Closed, ControlClient, Done};
use super::error::{CliError, ExitCode};
use super::options::MountWords;
use super::paths::mount_point;
use super::remount::remount;
use crate::fuse;
use crate::fuse::mountinfo::{MountInfo, mounts_of};
use crate::store::directory::DirectoryStore;
use crate::store::{Store, StorePath};
use crate::sys::identity::effective_user;
use crate::sys::mounts::Detach;
use crate::sys::process::WatchedProcess;
use crate::volume::LOCK_NAME;

/// How often the lock of a volume is looked at whose daemon cannot be asked.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a mount may live on that nobody here sees: a process that is about to leave the mount
/// namespace it copied is no reason to say that the mount lives on.
const GRACE: Duration = Duration::from_secs(2);

/// How long a mount may be in use by somebody who only looks at it in passing, as whoever mounts on
/// the same place does.
const PASSING: Duration = Duration::from_millis(300);

/// How to unmount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnmountRequest {
    /// Detach at once and do not wait, since it may last until the last user of the mount has gone.
    pub lazy: bool,
    /// Unmount also if the daemon does not answer any more; what it has not written is lost.
    pub force: bool,
    /// If it is in use, remount it read-only instead.
    pub or_read_only: bool,
}

/// What is left of a mount that was taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Nothing: everything is on disk, the daemon is gone. Or nothing that this waited for.
    Nothing,
    /// Everything is on disk; the volume is mounted elsewhere in this mount namespace.
    OtherPlaces,
    /// Everything is on disk; another mount namespace has the volume mounted.
    OtherNamespaces,
}

/// Unmounts.
pub fn unmount(dir: &Path, request: UnmountRequest) -> Result<Left, CliError> {
    let mount = find(dir)?;
    if request.lazy {
        return take_away(&mount, Detach::Lazy).map(|()| Left::Nothing);
    }
    let filesystem = mount.backing_device();
    // Asked before the mount goes: the daemon ends with it.
    let daemon = Daemon::of(&mount);
    let how = match &daemon {
        None if request.force => Detach::Abort,
        _ => Detach::No,
    };
    match take_away(&mount, how) {
        Err(error) if request.or_read_only && error.code == ExitCode::InUse => {
            let words = MountWords {
                read_only: Some(true),
                ..MountWords::default()
            };
            return remount(&mount.dir, &words).map(|()| Left::OtherPlaces);
        }
        result => result?,
    }
    if how == Detach::Abort {
        return Ok(Left::Nothing);
    }
    let left = what_is_left(&mount, filesystem);
    match (left, daemon) {
        (Left::Nothing, Some(daemon)) => daemon.wait()?,
        (Left::Nothing, None) => wait_for_lock(&mount.source)?,
        (_, daemon) => drop(daemon),
    }
    if left != Left::Nothing {
        sync(&mount)?;
    }
    Ok(left)
}

fn take_away(mount: &MountInfo, how: Detach) -> Result<(), CliError> {
    let doing = || format!("cannot unmount {}", mount.dir.display());
    let (user, owner) = (effective_user(), mount.owner().unwrap_or_default());
    if user != 0 && user != owner {
        let message = format!("{}: it was mounted by user {owner}", doing());
        return Err(
            CliError::new(ExitCode::System, message).with_hint("that user and root may unmount it")
        );
    }
    unmount_when_free(&mount.dir, how).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => CliError::new(ExitCode::InUse, format!("{}: it is in use", doing()))
            .with_hint(format!(
                "see who uses it: fuser -vm {}",
                mount.dir.display()
            )),
        _ => CliError::io(doing(), &error),
    })
}

fn unmount_when_free(dir: &Path, how: Detach) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match fuse::unmount(dir, how) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && begin.elapsed() < PASSING =>
            {
                std::thread::sleep(LOCK_INTERVAL);
            }
            result => return result,
        }
    }
}

/// Where the filesystem of a mount that was taken away lives on.
fn what_is_left(mount: &MountInfo, filesystem: Option<u64>) -> Left {
    let end = Instant::now() + GRACE;
    while filesystem.is_some() && mount.backing_device() == filesystem {
        let elsewhere = MountInfo::all().unwrap_or_default();
        if elsewhere.iter().any(|other| other.device == mount.device) {
            return Left::OtherPlaces;
        }
        if Instant::now() > end {
            return Left::OtherNamespaces;
        }
        std::thread::sleep(LOCK_INTERVAL);
    }
    Left::Nothing
}

/// Has the daemon of a mount that lives on elsewhere put on disk what was done through this one.
fn sync(mount: &MountInfo) -> Result<(), CliError> {
    let connected = mount
        .owner()
        .and_then(|uid| ControlClient::connect(&mount.source, uid));
    let Some(mut control) = connected else {
        return Ok(());
    };
    // A daemon that ends now puts everything on disk by itself.
    let answer = control.ask("sync", None).unwrap_or_default();
    match serde_json::from_str::<Done>(&answer).map(|done| done.error) {
        Ok(Some(why)) => Err(CliError::new(
            ExitCode::System,
            format!("unmounted, but not everything is on disk: {why}"),
        )),
        _ => Ok(()),
    }
}

/// The mount at that place; also a volume's directory will do if it is mounted once.
fn find(dir: &Path) -> Result<MountInfo, CliError> {
    let wanted = mount_point(dir);
    let listed = |error: io::Error| CliError::io("cannot list the mounts", &error);
    if let Some(mount) = MountInfo::at(&wanted).map_err(listed)? {
        if mount.is_ours() {
            return Ok(mount);
        }
        return Err(CliError::new(
            ExitCode::NotFound,
            format!(
                "{} is a mount of {}, not of bilayer",
                dir.display(),
                mount.filesystem
            ),
        ));
    }
    let mut mounts = mounts_of(&wanted).unwrap_or_default();
    match (mounts.pop(), mounts.is_empty()) {
        (Some(mount), true) => Ok(mount),
        _ => Err(CliError::new(
            ExitCode::NotFound,
            format!("nothing of bilayer is mounted on {}", dir.display()),
        )
        .with_hint("findmnt -t fuse.bilayer lists what is")),
    }
}

/// The daemon of a mount, watched and asked to say how closing went.
struct Daemon {
    control: ControlClient,
    process: Option<WatchedProcess>,
}

impl Daemon {
    fn of(mount: &MountInfo) -> Option<Self> {
        let mut control = ControlClient::connect(&mount.source, mount.owner()?)?;
        let process = WatchedProcess::open(control.peer.pid).ok();
        // It answers after the process was taken hold of, so that is the one.
        control.ask("status", Some(Duration::from_secs(5))).ok()?;
        // Answered once it waits: a daemon that has little to do may be gone in an instant.
        control.ask("wait", Some(Duration::from_secs(5))).ok()?;
        Some(Self { control, process })
    }

    fn wait(mut self) -> Result<(), CliError> {
        let answer = self.control.receive();
        if let Some(process) = self.process {
            process
                .wait(None)
                .map_err(|error| CliError::io("cannot wait", &error))?;
        }
        let lost = || "the daemon ended without saying that everything is on disk".to_owned();
        let closed: Closed = answer
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_else(|| Closed {
                closed: false,
                error: Some(lost()),
            });
        if closed.closed {
            return Ok(());
        }
        let why = closed.error.unwrap_or_else(lost);
        Err(CliError::new(
            ExitCode::System,
            format!("unmounted, but not closed cleanly: {why}"),
        )
        .with_hint("the volume recovers at the next mount; see the daemon's log"))
    }
}

/// Waits until the daemon lets go of the volume. Somebody who is not allowed to look, or a volume
/// that cannot be reached, is no reason to fail: the mount is gone.
fn wait_for_lock(volume: &Path) -> Result<(), CliError> {
    let Ok(store) = DirectoryStore::open(volume) else {
        return Ok(());
    };
    loop {
        match store.lock(&StorePath::new(LOCK_NAME)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        for place in [
            dir.path(),
            Path::new("/"),
            Path::new("/no/such/place"),
            Path::new("/proc"),
        ] {
            let error = unmount(place, UnmountRequest::default()).unwrap_err();
            assert_eq!(error.code, ExitCode::NotFound, "{}", place.display());
            let lazy = UnmountRequest {
                lazy: true,
                ..UnmountRequest::default()
            };
            assert!(unmount(place, lazy).is_err());
        }
    }

    #[test]
    fn waits_for_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOCK_NAME), b"").unwrap();
        let store = DirectoryStore::open(dir.path()).unwrap();
        let lock = store.lock(&StorePath::new(LOCK_NAME)).unwrap();
        let path = dir.path().to_path_buf();
        let waiter = std::thread::spawn(move || wait_for_lock(&path));
        std::thread::sleep(LOCK_INTERVAL * 3);
        assert!(!waiter.is_finished());
        drop(lock);
        waiter.join().unwrap().unwrap();
        wait_for_lock(Path::new("/no/such/volume")).unwrap();
    }
}
