//! `-o remount`: changes a mount that is there, without a new daemon.
//!
//! Order for `ro`: the kernel refuses changes first (EBUSY while a file is open for writing), then
//! the daemon puts everything on disk and writes nothing more. For `rw` the other way round. If the
//! second half fails the first is taken back.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::audit::Record;
use crate::control::client::ControlClient;
use crate::control::line::PATIENCE;
use crate::control::line::is_timeout;
use crate::control::locate;
use crate::control::obstacle::{Obstacle, refusal};
use crate::control::pulse::{self, Pulse};
use crate::control::request::{Remount, Request};
use crate::control::response::Response;
use crate::control::wire::Unreadable;
use crate::daemon::options::MountWords;
use crate::diagnostics::{COPY_HINT, ExitCode, OPENED_HINT, UserError};
use crate::fs::{AccessTimes, Filesystem, FsError};
use crate::fuse::mountinfo::MountInfo;
use crate::sys::identity::effective_user;
use crate::sys::location::Location;
use crate::sys::mounts::{self, MountFlags};

/// Remounts what is mounted on `dir` with these words over what it has now.
pub(crate) fn remount(dir: &Path, words: &MountWords) -> Result<(), UserError> {
    let nothing = || failed(dir, "nothing of bilayer is there");
    let location = pulse::open(dir).map_err(|error| match error.code {
        ExitCode::NotFound => nothing(),
        _ => UserError {
            code: ExitCode::Mount,
            ..error
        },
    })?;
    let mount = pulse::mount_at(&location)
        .map_err(|error| UserError::io(doing(dir), &error))?
        .ok_or_else(nothing)?;
    remount_at(&location, &mount, words)
}

/// Remounts that mount, whatever leads to it.
pub(crate) fn remount_at(
    location: &Location,
    mount: &MountInfo,
    words: &MountWords,
) -> Result<(), UserError> {
    let dir = &mount.dir;
    if effective_user() != 0 {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        return Err(UserError::io(doing(dir), &refused).with_hint("only root may remount"));
    }
    if pulse::pulse(location) == Pulse::Dead {
        return Err(UserError {
            code: ExitCode::Mount,
            ..pulse::dead(&doing(dir), mount)
        });
    }
    let now = flags_of(mount);
    let wanted = restrain(location, mount, now, words);
    let change = |flags| change(location, dir, flags);
    if !needs_daemon(now, wanted) {
        return change(wanted);
    }
    let mut daemon = Daemon::of(location, mount)?;
    if !wanted.read_only && daemon.opened_read_only {
        let hint = if daemon.is_copy {
            COPY_HINT
        } else {
            OPENED_HINT
        };
        return Err(
            failed(dir, "it was mounted read-only and holds no right to write").with_hint(hint),
        );
    }
    if wanted.read_only {
        change(wanted)?;
        daemon.tell(dir, wanted).inspect_err(|_| {
            take_back(change(now));
        })
    } else {
        daemon.tell(dir, wanted)?;
        change(wanted).inspect_err(|_| {
            take_back(daemon.tell(dir, now));
        })
    }
}

/// Set-id programs and devices of a volume that came from elsewhere do not come back by the way, as by
/// a `remount,rw` of mount(8), which never says that it wants them. Nor where nobody says where the
/// volume came from.
fn restrain(
    location: &Location,
    mount: &MountInfo,
    now: MountFlags,
    words: &MountWords,
) -> MountFlags {
    let wanted = words.flags_over(now);
    let restrained = words.restrained(wanted);
    let kept = MountFlags {
        nosuid: wanted.nosuid || (now.nosuid && restrained.nosuid),
        nodev: wanted.nodev || (now.nodev && restrained.nodev),
        ..wanted
    };
    let foreign = || Daemon::of(location, mount).map_or(true, |daemon| daemon.foreign);
    if kept != wanted && foreign() {
        kept
    } else {
        wanted
    }
}

fn doing(dir: &Path) -> String {
    format!("cannot remount {}", dir.display())
}

fn failed(dir: &Path, why: &str) -> UserError {
    UserError::new(ExitCode::Mount, format!("{}: {why}", doing(dir)))
}

fn take_back(result: Result<(), UserError>) {
    if let Err(error) = result {
        tracing::warn!(
            "half of a remount could not be taken back: {}",
            error.message
        );
    }
}

fn flags_of(mount: &MountInfo) -> MountFlags {
    MountFlags {
        read_only: mount.has_option("ro"),
        nodev: mount.has_option("nodev"),
        nosuid: mount.has_option("nosuid"),
        noexec: mount.has_option("noexec"),
        noatime: mount.has_option("noatime"),
        strictatime: !mount.has_option("noatime") && !mount.has_option("relatime"),
        sync: mount.has_option("sync"),
        dirsync: mount.has_option("dirsync"),
    }
}

/// What the kernel does not do alone.
fn needs_daemon(now: MountFlags, wanted: MountFlags) -> bool {
    let theirs = |flags: MountFlags| (flags.read_only, flags.noatime, flags.strictatime);
    theirs(now) != theirs(wanted)
}

/// By what is held open: the path may lead elsewhere by now.
fn change(location: &Location, dir: &Path, flags: MountFlags) -> Result<(), UserError> {
    mounts::remount(&location.fixed_path(), flags).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => UserError::new(
            ExitCode::InUse,
            format!(
                "{}: a file is open for writing, or was removed and is open",
                doing(dir)
            ),
        )
        .with_hint(format!("see who uses it: fuser -vm {}", dir.display())),
        Some(libc::EPERM) => UserError::io(doing(dir), &error).with_hint("only root may remount"),
        _ => UserError::io(doing(dir), &error),
    })
}

/// The daemon of a mount.
struct Daemon {
    control: ControlClient,
    /// It has no right to write, and cannot get it.
    opened_read_only: bool,
    /// Its volume came from elsewhere.
    foreign: bool,
    /// It is a copy of a volume, or may be one.
    is_copy: bool,
}

impl Daemon {
    fn of(location: &Location, mount: &MountInfo) -> Result<Self, UserError> {
        let refuse = |obstacles: &[Obstacle]| UserError {
            code: ExitCode::Mount,
            ..refusal(doing(&mount.dir), obstacles)
        };
        let mut control = locate::daemon_of_mount(location, mount)
            .map_err(|obstacles| refuse(&obstacles))?
            .control;
        let status = control.ask(&Request::Status, Some(PATIENCE));
        let report = match status {
            Ok(Response::Status(report)) => *report,
            Err(error) if is_timeout(&error) => return Err(refuse(&[Obstacle::Silent])),
            _ => return Err(refuse(&[not_understood()])),
        };
        let Some(daemon) = &report.daemon else {
            return Err(refuse(&[not_understood()]));
        };
        let opened_read_only = daemon.read_only;
        Ok(Self {
            control,
            foreign: report.header.foreign,
            is_copy: report.copy_of.is_some(),
            opened_read_only,
        })
    }

    /// However long it takes to put everything on disk.
    fn tell(&mut self, dir: &Path, flags: MountFlags) -> Result<(), UserError> {
        let why = match self.control.ask(&Request::Remount(of_flags(flags)), None) {
            Ok(Response::Done(_)) => return Ok(()),
            Ok(Response::Failed(failure)) => failure.message,
            Ok(_) => Unreadable::Malformed.to_string(),
            Err(error) if is_timeout(&error) => {
                return Err(refusal(doing(dir), &[Obstacle::Silent]));
            }
            Err(error) => return Err(UserError::io(doing(dir), &error)),
        };
        Err(
            UserError::new(ExitCode::System, format!("{}: {why}", doing(dir))).with_hint(format!(
                "see what state it is in: bilayer status {}",
                dir.display()
            )),
        )
    }
}

fn not_understood() -> Obstacle {
    Obstacle::Unproven("its status cannot be understood".to_owned())
}

fn of_flags(flags: MountFlags) -> Remount {
    Remount {
        read_only: flags.read_only,
        access_times: match (flags.noatime, flags.strictatime) {
            (true, _) => AccessTimes::Never,
            (false, true) => AccessTimes::Strict,
            (false, false) => AccessTimes::Relative,
        },
    }
}

/// The daemon's side: changes the mount as asked.
pub(crate) fn handle_request(
    request: Remount,
    filesystem: &Arc<Filesystem>,
) -> Result<(), FsError> {
    let Remount {
        read_only,
        access_times,
    } = request;
    let turned = match (filesystem.is_read_only(), read_only) {
        (false, true) => filesystem.make_read_only(),
        (true, false) => filesystem.make_writable(),
        _ => Ok(()),
    };
    Record::new("remount")
        .volume(filesystem.volume().header.volume_id())
        .with("read_only", read_only)
        .outcome(&turned);
    if turned.is_ok() {
        filesystem.set_access_times(access_times);
        tracing::info!(read_only, ?access_times, "remounted");
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remounts_only_what_is_ours() {
        let error = remount(Path::new("/"), &MountWords::default()).unwrap_err();
        assert_eq!(error.code, ExitCode::Mount);
    }

    #[test]
    fn flags_of_a_mount_are_what_the_daemon_is_asked_for() {
        let read_only = MountFlags {
            read_only: true,
            noatime: true,
            ..MountFlags::default()
        };
        let asked = of_flags(read_only);
        assert_eq!(
            (asked.read_only, asked.access_times),
            (true, AccessTimes::Never)
        );
        let asked = of_flags(MountFlags::default());
        assert_eq!(
            (asked.read_only, asked.access_times),
            (false, AccessTimes::Relative)
        );
    }
}
