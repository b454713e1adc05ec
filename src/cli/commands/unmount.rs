//! `bilayer unmount`: returns when everything is on disk and the daemon is gone.
//!
//! The mount is identified by its number, and its daemon by the device of the mount. The claim of a
//! daemon of root or of this user suffices; any other daemon must prove that it serves the mount
//! ([`crate::control::proof`]). Renames of the volume's directory, or of a directory above it, make
//! no difference. If no daemon is found, the command unmounts the volume and fails: it cannot
//! confirm that everything is on disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::cli::output::{format, print_error};
use crate::control::address::Address;
use crate::control::client::ControlClient;
use crate::control::directory::DirectoryId;
use crate::control::line::RESPONSE_TIMEOUT;
use crate::control::line::is_timeout;
use crate::control::liveness::{UNANSWERED_PINGS_MAX, is_alive};
use crate::control::locate::{self, Holder};
use crate::control::mount_state::{self, MountState};
use crate::control::obstacle::{Obstacle, refusal};
use crate::control::proof::MountServer;
use crate::control::request::Request;
use crate::control::response::{Closed, Failure, Response};
use crate::daemon::options::RequestedOptions;
use crate::daemon::remount::remount_at;
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::fuse;
use crate::sys::identity::effective_user;
use crate::sys::location::Location;
use crate::sys::mountinfo::{MountInfo, holders_elsewhere};
use crate::sys::mounts::Detach;
use crate::sys::process::WatchedProcess;

#[derive(Args, Debug)]
pub(in crate::cli) struct UnmountArgs {
    /// Where it is mounted
    dir: PathBuf,
    /// Detach at once, even if it is in use, and do not wait
    #[arg(long)]
    lazy: bool,
    /// Unmount also if the daemon does not answer any more; what it has not written is lost
    #[arg(long)]
    force: bool,
}

/// Unmounts, and reports remaining mounts.
///
/// # Errors
/// Nothing is mounted there, it is in use, or it is not certain that everything is on disk.
pub(in crate::cli) fn run(args: &UnmountArgs) -> Result<(), UserError> {
    let request = UnmountRequest {
        lazy: args.lazy,
        force: args.force,
        or_read_only: false,
    };
    unmount(&args.dir, request).map(|remaining| report_remaining_mounts(&args.dir, &remaining))
}

/// Time between two checks whether a mount is no longer busy, or no longer exists.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long a mount may remain in another mount namespace before it is reported: a process may be
/// about to leave a namespace that it copied.
const NAMESPACE_GRACE: Duration = Duration::from_secs(2);

/// How long a busy mount is retried: a process that mounts on the same directory uses it for a
/// moment.
const BUSY_RETRY: Duration = Duration::from_millis(300);

/// How long `--lazy` waits for a daemon's answer.
const REQUESTER_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the daemon may take to exit after it has reported that everything is on disk.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// How to unmount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::cli) struct UnmountRequest {
    /// Detach at once, and do not wait until the last user of the mount has left.
    pub(crate) lazy: bool,
    /// Unmount also if the daemon does not answer any more; what it has not written is lost.
    pub(crate) force: bool,
    /// If it is in use, remount it read-only instead.
    pub(in crate::cli) or_read_only: bool,
}

/// Where the filesystem is still mounted after an unmount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) enum RemainingMounts {
    /// Nowhere: everything is on disk and the daemon has ended; or the command did not wait.
    None,
    /// Everything is on disk; the volume is mounted elsewhere in this mount namespace.
    OtherPlaces,
    /// Everything is on disk; the volume is mounted in another mount namespace, that of these
    /// processes.
    OtherNamespaces(Vec<u32>),
    /// Its daemon was dead and the mount was in use: it is detached and cannot be entered any more.
    Detached,
}

/// Unmounts.
///
/// # Errors
/// Nothing is mounted there, it is in use, or it is not certain that everything is on disk.
pub(crate) fn unmount(dir: &Path, request: UnmountRequest) -> Result<RemainingMounts, UserError> {
    let (location, mount) = find(dir)?;
    if request.lazy {
        let _asker = announce_requester(location, &mount);
        return detach(&mount, Detach::Lazy).map(|()| RemainingMounts::None);
    }
    check_may_unmount(&mount)?;
    let filesystem = mount.backing_device();
    // Before unmounting: the daemon ends with the mount.
    let daemon = Daemon::of(&location, &mount);
    let daemon = daemon.map_err(|why| match why {
        DaemonUnavailable::Silent | DaemonUnavailable::Dead => why,
        DaemonUnavailable::Unproven(_)
            if mount_state::mount_state(&location) == MountState::Dead =>
        {
            DaemonUnavailable::Dead
        }
        DaemonUnavailable::Unproven(_) => why,
    });
    let how = match &daemon {
        Err(_) if request.force => Detach::Abort,
        Err(DaemonUnavailable::Silent) => return Err(silent_daemon(&mount)),
        _ => Detach::No,
    };
    // An open location would keep the mount busy.
    drop(location);
    match detach(&mount, how) {
        // Nothing more can be written, and its users can only leave.
        Err(error)
            if error.code == ExitCode::InUse && matches!(daemon, Err(DaemonUnavailable::Dead)) =>
        {
            return detach(&mount, Detach::Lazy).map(|()| RemainingMounts::Detached);
        }
        Err(error) if error.code == ExitCode::InUse && !request.or_read_only => {
            daemon.iter().for_each(Daemon::leave_mounted);
            return Err(error);
        }
        Err(error) if request.or_read_only && error.code == ExitCode::InUse => {
            let options = RequestedOptions {
                read_only: Some(true),
                ..RequestedOptions::default()
            };
            daemon.iter().for_each(Daemon::leave_mounted);
            let (location, mount) = find(dir)?;
            return remount_at(&location, &mount, &options).map(|()| RemainingMounts::OtherPlaces);
        }
        result => result?,
    }
    if how == Detach::Abort {
        return Ok(RemainingMounts::None);
    }
    let remaining = remaining_mounts(&mount, filesystem);
    match (&remaining, daemon) {
        (_, Err(DaemonUnavailable::Dead)) => {}
        (_, Err(DaemonUnavailable::Silent)) => return Err(silent_daemon(&mount)),
        (_, Err(DaemonUnavailable::Unproven(obstacles))) => return Err(unconfirmed(&obstacles)),
        (RemainingMounts::None, Ok(daemon)) => daemon.wait()?,
        (_, Ok(daemon)) => daemon.sync()?,
    }
    Ok(remaining)
}

fn silent_daemon(mount: &MountInfo) -> UserError {
    let dir = mount.dir.display();
    UserError::new(
        ExitCode::System,
        format!("cannot unmount {dir}: its daemon does not answer"),
    )
    .with_hint(format!(
        "look at its log; what it has not written is lost with: bilayer unmount --force {dir}"
    ))
}

/// The error if the mount is removed and no daemon confirms that everything is on disk.
fn unconfirmed(obstacles: &[Obstacle]) -> UserError {
    let what = "unmounted, but it is not known whether everything is on disk";
    refusal(what.to_owned(), obstacles)
        .with_hint("look at the daemon's log; the volume recovers at the next mount")
}

/// Refuses users other than root and the one who mounted it.
fn check_may_unmount(mount: &MountInfo) -> Result<(), UserError> {
    let (user, owner) = (effective_user(), mount.owner().unwrap_or_default());
    if user == 0 || user == owner {
        return Ok(());
    }
    let dir = mount.dir.display();
    let message = format!("cannot unmount {dir}: it was mounted by user {owner}");
    Err(UserError::new(ExitCode::System, message).with_hint("that user and root may unmount it"))
}

fn detach(mount: &MountInfo, how: Detach) -> Result<(), UserError> {
    check_may_unmount(mount)?;
    let doing = || format!("cannot unmount {}", mount.dir.display());
    unmount_when_free(mount, how).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => {
            UserError::new(ExitCode::InUse, format!("{}: it is in use", doing())).with_hint(
                format!("see who uses it: fuser -vm {}", mount.dir.display()),
            )
        }
        _ => UserError::io(doing(), &error),
    })
}

fn unmount_when_free(mount: &MountInfo, how: Detach) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match fuse::unmount(mount, how) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && begin.elapsed() < BUSY_RETRY =>
            {
                std::thread::sleep(POLL_INTERVAL);
            }
            result => return result,
        }
    }
}

/// Where the filesystem is still mounted.
fn remaining_mounts(mount: &MountInfo, filesystem: Option<u64>) -> RemainingMounts {
    let end = Instant::now() + NAMESPACE_GRACE;
    while filesystem.is_some() && mount.backing_device() == filesystem {
        let elsewhere = MountInfo::all().unwrap_or_default();
        if elsewhere.iter().any(|other| other.device == mount.device) {
            return RemainingMounts::OtherPlaces;
        }
        if Instant::now() > end {
            return RemainingMounts::OtherNamespaces(holders_elsewhere(&mount.device));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    RemainingMounts::None
}

/// The mount at a path; or the only mount of the volume in that directory.
fn find(dir: &Path) -> Result<(Location, MountInfo), UserError> {
    let listed = |error: io::Error| UserError::io("cannot list the mounts", &error);
    let location = match mount_state::open_path(dir) {
        Err(error) if error.code == ExitCode::NotFound => return Err(nothing_mounted(dir)),
        opened => opened?,
    };
    let there = MountInfo::beginning_at(&location).map_err(listed)?;
    let Some(there) = there else {
        return mount_of_volume(dir);
    };
    if there.is_ours() {
        return Ok((location, there));
    }
    // A filesystem of its own may be mounted where the volume is.
    mount_of_volume(dir).map_err(|error| match error.code {
        ExitCode::NotFound => UserError::new(
            ExitCode::NotFound,
            format!(
                "{} is a mount of {}, not of bilayer",
                dir.display(),
                there.filesystem
            ),
        )
        .with_hint(format!("unmount it with: umount {}", dir.display())),
        _ => error,
    })
}

fn nothing_mounted(dir: &Path) -> UserError {
    UserError::new(
        ExitCode::NotFound,
        format!("nothing of bilayer is mounted on {}", dir.display()),
    )
    .with_hint("findmnt -t fuse.bilayer lists what is")
}

/// The only mount of a volume, according to its daemon.
fn mount_of_volume(dir: &Path) -> Result<(Location, MountInfo), UserError> {
    let located = locate::find(dir).map_err(|_| nothing_mounted(dir))?;
    let device = match located.holder {
        Holder::Unknown(error) => return Err(error),
        Holder::Daemon { mount, .. } => mount,
        Holder::Mount(_) | Holder::Nobody => None,
    };
    let mut mounts = match (device, &located.directory) {
        (Some(device), _) => MountInfo::on_device(device)
            .map_err(|error| UserError::io("cannot list the mounts", &error))?,
        // Only the list of mounts shows the mount of a dead daemon.
        (None, Some(directory)) => {
            let mut mounts = locate::hinted_mounts(directory);
            mounts.retain(|mount| mount_state::dead_mount(&mount.dir).is_some());
            mounts
        }
        (None, None) => Vec::new(),
    };
    let (Some(mount), true) = (mounts.pop(), mounts.is_empty()) else {
        return Err(nothing_mounted(dir));
    };
    let covered = || {
        UserError::new(
            ExitCode::System,
            format!(
                "cannot unmount {}: something else is mounted over it",
                mount.dir.display()
            ),
        )
        .with_hint(format!(
            "unmount that first; see what it is: findmnt {}",
            mount.dir.display()
        ))
    };
    let location = Location::open(&mount.dir).map_err(|_| covered())?;
    match location.info() {
        Ok(info) if info.mount_id == mount.id => Ok((location, mount)),
        _ => Err(covered()),
    }
}

/// Why the daemon of a mount cannot be asked.
enum DaemonUnavailable {
    /// It is dead; there is nothing to wait for.
    Dead,
    /// It does not answer.
    Silent,
    /// None has proved that it has the volume.
    Unproven(Vec<Obstacle>),
}

/// Connects to the daemon, so that its audit names this process as the one that unmounts. Does not
/// wait for a daemon that does not answer at once.
fn announce_requester(location: Location, mount: &MountInfo) -> Option<Daemon> {
    let mount = mount.clone();
    let (sender, receiver) = mpsc::channel();
    // If the daemon is silent, the thread is abandoned: this process ends soon.
    std::thread::spawn(move || {
        let daemon = Daemon::of(&location, &mount).ok();
        // An open location would keep the mount busy.
        drop(location);
        let _ = sender.send(daemon);
    });
    receiver.recv_timeout(REQUESTER_TIMEOUT).ok().flatten()
}

/// The daemon of a mount, which will report the outcome of closing the volume.
struct Daemon {
    control: ControlClient,
    process: Option<WatchedProcess>,
    /// The volume's directory, which is the daemon's address until it ends.
    directory: DirectoryId,
    /// Device number of the mount, as long as there is one.
    device: u64,
}

impl Daemon {
    fn of(location: &Location, mount: &MountInfo) -> Result<Self, DaemonUnavailable> {
        let device = location.info().map(|info| info.device);
        let server = locate::server_of_mount(location, mount);
        let MountServer {
            mut control,
            directory,
        } = server.map_err(|obstacles| {
            if obstacles.contains(&Obstacle::Silent) {
                DaemonUnavailable::Silent
            } else if obstacles.contains(&Obstacle::Dead) {
                // The socket has the name of the mount, and no process answers it.
                DaemonUnavailable::Dead
            } else {
                DaemonUnavailable::Unproven(obstacles)
            }
        })?;
        let process = WatchedProcess::open(control.peer.pid).ok();
        // After opening the process. The answer shows that the daemon was still alive then, so the
        // number of its process was not yet reused.
        match control.ask(&Request::Wait, Some(RESPONSE_TIMEOUT)) {
            Ok(Response::Waiting) => {}
            _ => return Err(DaemonUnavailable::Silent),
        }
        Ok(Self {
            control,
            process,
            directory,
            device: device.unwrap_or_default(),
        })
    }

    /// Informs the daemon that the mount was not unmounted.
    fn leave_mounted(&self) {
        // If this fails, the daemon has ended.
        let _ = self.control.send(&Request::Stays);
    }

    /// Waits until the daemon has ended, as long as it answers pings.
    fn wait(mut self) -> Result<(), UserError> {
        let (mut unanswered, mut noticed) = (0, false);
        let answer = loop {
            match self.control.receive(Some(RESPONSE_TIMEOUT)) {
                Err(error) if is_timeout(&error) => {}
                answer => break answer.ok(),
            }
            if !noticed {
                noticed = true;
                let pid = self.control.peer.pid;
                notice(format_args!(
                    "waiting until process {pid} has put everything on disk"
                ));
            }
            if is_alive(Address::Volume(self.directory), self.control.peer.uid) {
                unanswered = 0;
            } else {
                unanswered += 1;
            }
            if unanswered == UNANSWERED_PINGS_MAX {
                return Err(unconfirmed(&[Obstacle::Silent]));
            }
        };
        if let Some(process) = self.process {
            let ended = process.wait(Some(EXIT_TIMEOUT));
            if !ended.map_err(|error| UserError::io("cannot wait", &error))? {
                return Err(unconfirmed(&[Obstacle::Silent]));
            }
        }
        let lost = || "the daemon ended without saying that everything is on disk".to_owned();
        let closed = match answer {
            Some(Response::Closed(closed)) => closed,
            _ => Closed {
                is_on_disk: false,
                error: Some(lost()),
            },
        };
        match (closed.is_on_disk, &closed.error) {
            (true, None) => return Ok(()),
            (true, Some(why)) => {
                let message = format!("unmounted: {why}");
                return Err(UserError::new(ExitCode::System, message).with_hint(
                    "make the keystore's directory writable, with space for a few KiB, and mount \
                     and unmount the volume once",
                ));
            }
            (false, _) => {}
        }
        let why = closed.error.unwrap_or_else(lost);
        Err(UserError::new(
            ExitCode::System,
            format!("unmounted, but not closed cleanly: {why}"),
        )
        .with_hint("the volume recovers at the next mount; see the daemon's log"))
    }

    /// Asks the daemon to commit everything: its filesystem is still mounted elsewhere.
    fn sync(self) -> Result<(), UserError> {
        // A second connection to the same process: on the first one the daemon waits.
        let (address, user) = (Address::Mount(self.device), self.control.peer.uid);
        let connected = ControlClient::connect(address, user, &mut Vec::new());
        let Some(mut control) = connected.filter(|other| other.peer == self.control.peer) else {
            return self.wait();
        };
        // A daemon that is ending puts everything on disk anyway.
        let answer = match control.ask(&Request::Sync, None) {
            Ok(answer) => answer,
            Err(error) if is_timeout(&error) => return Err(unconfirmed(&[Obstacle::Silent])),
            Err(_) => return self.wait(),
        };
        match answer {
            Response::Failed(Failure { message: why, .. }) => Err(UserError::new(
                ExitCode::System,
                format!("unmounted, but not everything is on disk: {why}"),
            )
            .with_hint(
                "it is still mounted elsewhere: unmount it there, and see the daemon's log",
            )),
            _ => {
                self.leave_mounted();
                Ok(())
            }
        }
    }
}

/// Reports remaining mounts that cannot be seen from here.
pub(in crate::cli) fn report_remaining_mounts(dir: &Path, remaining: &RemainingMounts) {
    let dir = dir.display();
    match remaining {
        RemainingMounts::OtherNamespaces(processes) => print_error(&format_args!(
            "bilayer: {dir} is unmounted here and everything is on disk; another mount namespace \
             still has the volume mounted{}",
            format::processes(processes)
        )),
        RemainingMounts::Detached => print_error(&format_args!(
            "bilayer: {dir} is detached: its daemon is dead; processes in it get errors until they \
             leave it"
        )),
        RemainingMounts::None | RemainingMounts::OtherPlaces => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_mounts_are_left_alone() {
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
}
