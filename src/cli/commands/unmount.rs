//! `bilayer unmount`: returns when everything is on disk and the daemon is gone.
//!
//! The mount is known by its number, and its daemon by the device of the mount: root's or this
//! user's by what it says, anybody else's by its proof ([`crate::control::proof`]). What happened to names, of the volume's directory or of anything above
//! it, makes no difference. Where none is found the mount goes, and the command fails: it cannot
//! say that everything is on disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::cli::output::{complain, format};
use crate::control::address::Address;
use crate::control::client::ControlClient;
use crate::control::directory::DirectoryId;
use crate::control::line::PATIENCE;
use crate::control::line::is_timeout;
use crate::control::locate::{self, Holder};
use crate::control::obstacle::{Obstacle, refusal};
use crate::control::patient::is_alive;
use crate::control::pulse::{self, Pulse};
use crate::control::request::Request;
use crate::control::response::{Closed, Failure, Response};
use crate::daemon::options::MountWords;
use crate::daemon::remount::remount_at;
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::fuse;
use crate::fuse::mountinfo::{MountInfo, holders_elsewhere};
use crate::sys::identity::effective_user;
use crate::sys::location::Location;
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

/// Unmounts, and says what lives on.
pub(in crate::cli) fn run(args: &UnmountArgs) -> Result<(), UserError> {
    let request = UnmountRequest {
        lazy: args.lazy,
        force: args.force,
        or_read_only: false,
    };
    unmount(&args.dir, request).map(|left| tell_left(&args.dir, &left))
}

/// How often it is looked whether a mount is free or gone.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long a mount may live on that nobody here sees: a process that is about to leave the mount
/// namespace it copied is no reason to say that the mount lives on.
const GRACE: Duration = Duration::from_secs(2);

/// How long a mount may be in use by somebody who only looks at it in passing, as whoever mounts on
/// the same place does.
const PASSING: Duration = Duration::from_millis(300);

/// How long who does not want to wait waits for a daemon to answer.
const AT_ONCE: Duration = Duration::from_millis(500);

/// How often in a row a daemon that closes its volume may leave a question unanswered.
const UNANSWERED_MAX: u32 = 3;

/// How long the process may take to end once it has said that everything is on disk.
const END: Duration = Duration::from_secs(30);

/// How to unmount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct UnmountRequest {
    /// Detach at once and do not wait, since it may last until the last user of the mount has gone.
    pub lazy: bool,
    /// Unmount also if the daemon does not answer any more; what it has not written is lost.
    pub force: bool,
    /// If it is in use, remount it read-only instead.
    pub or_read_only: bool,
}

/// What is left of a mount that was taken away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// Nothing: everything is on disk, the daemon is gone. Or nothing that this waited for.
    Nothing,
    /// Everything is on disk; the volume is mounted elsewhere in this mount namespace.
    OtherPlaces,
    /// Everything is on disk; another mount namespace has the volume mounted: processes that are in
    /// one.
    OtherNamespaces(Vec<u32>),
    /// Its daemon was dead and it was in use: it is detached, and nobody comes in any more.
    Detached,
}

/// Unmounts.
pub(crate) fn unmount(dir: &Path, request: UnmountRequest) -> Result<Left, UserError> {
    let (location, mount) = find(dir)?;
    if request.lazy {
        let _asker = tell_who_asks(location, &mount);
        return take_away(&mount, Detach::Lazy).map(|()| Left::Nothing);
    }
    may_unmount(&mount)?;
    let filesystem = mount.backing_device();
    // Asked before the mount goes: the daemon ends with it.
    let daemon = Daemon::of(&location, &mount);
    let daemon = daemon.map_err(|why| match why {
        Unasked::Silent | Unasked::Dead => why,
        Unasked::Unproven(_) if pulse::pulse(&location) == Pulse::Dead => Unasked::Dead,
        Unasked::Unproven(_) => why,
    });
    let how = match &daemon {
        Err(_) if request.force => Detach::Abort,
        Err(Unasked::Silent) => return Err(silent(&mount)),
        _ => Detach::No,
    };
    // What is held open would be in the way.
    drop(location);
    match take_away(&mount, how) {
        // Nothing more can be written, and whoever works in it can do nothing but leave.
        Err(error) if error.code == ExitCode::InUse && matches!(daemon, Err(Unasked::Dead)) => {
            return take_away(&mount, Detach::Lazy).map(|()| Left::Detached);
        }
        Err(error) if error.code == ExitCode::InUse && !request.or_read_only => {
            daemon.iter().for_each(Daemon::stays);
            return Err(error);
        }
        Err(error) if request.or_read_only && error.code == ExitCode::InUse => {
            let words = MountWords {
                read_only: Some(true),
                ..MountWords::default()
            };
            daemon.iter().for_each(Daemon::stays);
            let (location, mount) = find(dir)?;
            return remount_at(&location, &mount, &words).map(|()| Left::OtherPlaces);
        }
        result => result?,
    }
    if how == Detach::Abort {
        return Ok(Left::Nothing);
    }
    let left = what_is_left(&mount, filesystem);
    match (&left, daemon) {
        (_, Err(Unasked::Dead)) => {}
        (_, Err(Unasked::Silent)) => return Err(silent(&mount)),
        (_, Err(Unasked::Unproven(obstacles))) => return Err(unsure(&obstacles)),
        (Left::Nothing, Ok(daemon)) => daemon.wait()?,
        (_, Ok(daemon)) => daemon.sync()?,
    }
    Ok(left)
}

fn silent(mount: &MountInfo) -> UserError {
    let dir = mount.dir.display();
    UserError::new(
        ExitCode::System,
        format!("cannot unmount {dir}: its daemon does not answer"),
    )
    .with_hint(format!(
        "look at its log; what it has not written is lost with: bilayer unmount --force {dir}"
    ))
}

/// The mount is gone, and nobody can be asked how that went.
fn unsure(obstacles: &[Obstacle]) -> UserError {
    let what = "unmounted, but it is not known whether everything is on disk";
    refusal(what.to_owned(), obstacles)
        .with_hint("look at the daemon's log; the volume recovers at the next mount")
}

/// Only root and whoever mounted it may.
fn may_unmount(mount: &MountInfo) -> Result<(), UserError> {
    let (user, owner) = (effective_user(), mount.owner().unwrap_or_default());
    if user == 0 || user == owner {
        return Ok(());
    }
    let dir = mount.dir.display();
    let message = format!("cannot unmount {dir}: it was mounted by user {owner}");
    Err(UserError::new(ExitCode::System, message).with_hint("that user and root may unmount it"))
}

fn take_away(mount: &MountInfo, how: Detach) -> Result<(), UserError> {
    may_unmount(mount)?;
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
                if error.raw_os_error() == Some(libc::EBUSY) && begin.elapsed() < PASSING =>
            {
                std::thread::sleep(INTERVAL);
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
            return Left::OtherNamespaces(holders_elsewhere(&mount.device));
        }
        std::thread::sleep(INTERVAL);
    }
    Left::Nothing
}

/// The mount at that place; also a volume's directory will do if it is mounted once.
fn find(dir: &Path) -> Result<(Location, MountInfo), UserError> {
    let listed = |error: io::Error| UserError::io("cannot list the mounts", &error);
    let location = match pulse::open(dir) {
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

/// The one mount of a volume, as its daemon says.
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
        // Of a daemon that is dead the list of mounts alone knows.
        (None, Some(directory)) => {
            let mut mounts = locate::hinted(directory);
            mounts.retain(|mount| pulse::dead_mount(&mount.dir).is_some());
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

/// Why the daemon of a mount is not asked.
enum Unasked {
    /// It is no more; nothing is to be waited for.
    Dead,
    /// It does not answer.
    Silent,
    /// None has proved that it has the volume.
    Unproven(Vec<Obstacle>),
}

/// Has the daemon know who unmounts, though nobody waits for its end. One that does not answer at
/// once stays without.
fn tell_who_asks(location: Location, mount: &MountInfo) -> Option<Daemon> {
    let mount = mount.clone();
    let (tells, told) = mpsc::channel();
    // Left behind where the daemon is silent: this process ends soon.
    std::thread::spawn(move || {
        let daemon = Daemon::of(&location, &mount).ok();
        // What is held open would be in use.
        drop(location);
        let _ = tells.send(daemon);
    });
    told.recv_timeout(AT_ONCE).ok().flatten()
}

/// The daemon of a mount, watched and asked to say how closing went.
struct Daemon {
    control: ControlClient,
    process: Option<WatchedProcess>,
    /// What it is found by until it ends.
    volume: DirectoryId,
    /// Device number of the mount, as long as there is one.
    device: u64,
}

impl Daemon {
    fn of(location: &Location, mount: &MountInfo) -> Result<Self, Unasked> {
        let device = location.info().map(|info| info.device);
        let found = locate::server_of_mount(location, mount);
        let (mut control, volume) = found.map_err(|obstacles| {
            if obstacles.contains(&Obstacle::Silent) {
                Unasked::Silent
            } else if obstacles.contains(&Obstacle::Dead) {
                // Whoever serves a mount answers under its name, or has nobody's answer there.
                Unasked::Dead
            } else {
                Unasked::Unproven(obstacles)
            }
        })?;
        let process = WatchedProcess::open(control.peer.pid).ok();
        // Answered once it waits, and after the process was taken hold of, so that is the one: a
        // daemon that has little to do may be gone in an instant.
        match control.ask(&Request::Wait, Some(PATIENCE)) {
            Ok(Response::Waiting) => {}
            _ => return Err(Unasked::Silent),
        }
        Ok(Self {
            control,
            process,
            volume,
            device: device.unwrap_or_default(),
        })
    }

    /// Says that the mount was not taken away.
    fn stays(&self) {
        // Who cannot be told has ended.
        let _ = self.control.say(&Request::Stays);
    }

    /// Waits until it is gone. That may take long, but not without a sign of life.
    fn wait(mut self) -> Result<(), UserError> {
        let (mut unanswered, mut is_told) = (0, false);
        let answer = loop {
            match self.control.receive(Some(PATIENCE)) {
                Err(error) if is_timeout(&error) => {}
                answer => break answer.ok(),
            }
            if !is_told {
                is_told = true;
                let pid = self.control.peer.pid;
                notice(format_args!(
                    "waiting until process {pid} has put everything on disk"
                ));
            }
            if is_alive(Address::Volume(self.volume), self.control.peer.uid) {
                unanswered = 0;
            } else {
                unanswered += 1;
            }
            if unanswered == UNANSWERED_MAX {
                return Err(unsure(&[Obstacle::Silent]));
            }
        };
        if let Some(process) = self.process {
            let ended = process.wait(Some(END));
            if !ended.map_err(|error| UserError::io("cannot wait", &error))? {
                return Err(unsure(&[Obstacle::Silent]));
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
                    "make the keystore's directory writable, with room for a few KiB, and mount and \
                     unmount the volume once",
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

    /// Has it put on disk what was done through a mount that is gone, of a filesystem that lives on
    /// elsewhere.
    fn sync(self) -> Result<(), UserError> {
        // On the first connection it waits; this is the same process.
        let (address, user) = (Address::Mount(self.device), self.control.peer.uid);
        let connected = ControlClient::connect(address, user, &mut Vec::new());
        let Some(mut control) = connected.filter(|other| other.peer == self.control.peer) else {
            return self.wait();
        };
        // A daemon that ends now puts everything on disk by itself.
        let answer = match control.ask(&Request::Sync, None) {
            Ok(answer) => answer,
            Err(error) if is_timeout(&error) => return Err(unsure(&[Obstacle::Silent])),
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
                self.stays();
                Ok(())
            }
        }
    }
}

/// Says what nobody here can see: that the mount lives on.
pub(in crate::cli) fn tell_left(dir: &Path, left: &Left) {
    let dir = dir.display();
    match left {
        Left::OtherNamespaces(processes) => complain(&format_args!(
            "bilayer: {dir} is unmounted here and everything is on disk; another mount namespace has \
             the volume mounted still{}",
            format::processes(processes)
        )),
        Left::Detached => complain(&format_args!(
            "bilayer: {dir} is detached: its daemon is dead; whoever works in it gets errors until \
             they leave"
        )),
        Left::Nothing | Left::OtherPlaces => {}
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
}
