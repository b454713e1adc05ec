//! `-o remount`: changes an existing mount, without a new daemon.
//!
//! Order for `ro`: first the kernel refuses changes (EBUSY while a file is open for writing), then
//! the daemon puts everything on disk and writes nothing more. For `rw` the order is reversed. If
//! the second step fails, the first is rolled back.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::options::RequestedOptions;
use crate::audit::Record;
use crate::control::client::ControlClient;
use crate::control::line::RESPONSE_TIMEOUT;
use crate::control::line::is_timeout;
use crate::control::locate;
use crate::control::mount_state::{self, MountState};
use crate::control::obstacle::{Obstacle, refusal};
use crate::control::request::{Remount, Request};
use crate::control::response::Response;
use crate::control::wire::DecodeError;
use crate::diagnostics::{COPY_HINT, ExitCode, OPENED_HINT, UserError};
use crate::fs::{AccessTimes, Filesystem, FsError};
use crate::sys::identity::effective_user;
use crate::sys::location::Location;
use crate::sys::mountinfo::MountInfo;
use crate::sys::mounts::{self, MountFlags};

/// Remounts the bilayer mount on `dir`: the options are applied on top of its current flags.
///
/// # Errors
/// No bilayer mount is there, or [`remount_at`] fails.
pub(crate) fn remount(dir: &Path, requested: &RequestedOptions) -> Result<(), UserError> {
    let nothing = || failed(dir, "nothing of bilayer is there");
    let location = mount_state::open_path(dir).map_err(|error| match error.code {
        ExitCode::NotFound => nothing(),
        _ => UserError {
            code: ExitCode::Mount,
            ..error
        },
    })?;
    let mount = mount_state::mount_at(&location)
        .map_err(|error| UserError::io(doing(dir), &error))?
        .ok_or_else(nothing)?;
    remount_at(&location, &mount, requested)
}

/// Remounts a mount that is held open.
///
/// # Errors
/// The user is not root; the daemon is dead, silent or unproven; or the kernel or the daemon
/// refuses.
pub(crate) fn remount_at(
    location: &Location,
    mount: &MountInfo,
    requested: &RequestedOptions,
) -> Result<(), UserError> {
    let dir = &mount.dir;
    if effective_user() != 0 {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        return Err(UserError::io(doing(dir), &refused).with_hint("only root may remount"));
    }
    if mount_state::mount_state(location) == MountState::Dead {
        return Err(UserError {
            code: ExitCode::Mount,
            ..mount_state::dead_mount_error(&doing(dir), mount)
        });
    }
    let now = flags_of(mount);
    let wanted = keep_restrictions(location, mount, now, requested);
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
        return Err(failed(
            dir,
            "the volume was opened read-only and cannot become writable",
        )
        .with_hint(hint));
    }
    if wanted.read_only {
        change(wanted)?;
        daemon.request_flags(dir, wanted).inspect_err(|_| {
            log_rollback_failure(change(now));
        })
    } else {
        daemon.request_flags(dir, wanted)?;
        change(wanted).inspect_err(|_| {
            log_rollback_failure(daemon.request_flags(dir, now));
        })
    }
}

/// The flags that are wanted. If the mount has `nosuid` or `nodev`, and its volume came from
/// elsewhere, these are kept unless the options explicitly remove them: mount(8) passes on neither
/// `suid` nor `dev`, so `remount,rw` does not ask for them. A volume whose daemon does not answer
/// counts as one from elsewhere.
fn keep_restrictions(
    location: &Location,
    mount: &MountInfo,
    now: MountFlags,
    requested: &RequestedOptions,
) -> MountFlags {
    let wanted = requested.flags_over(now);
    let restricted = requested.restricted(wanted);
    let kept = MountFlags {
        nosuid: wanted.nosuid || (now.nosuid && restricted.nosuid),
        nodev: wanted.nodev || (now.nodev && restricted.nodev),
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

fn log_rollback_failure(result: Result<(), UserError>) {
    if let Err(error) = result {
        tracing::warn!(
            "the first step of a remount could not be rolled back: {}",
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

/// True if the daemon takes part in this change.
fn needs_daemon(now: MountFlags, wanted: MountFlags) -> bool {
    remount_request(now) != remount_request(wanted)
}

/// Changes the flags in the kernel, by the open location: the path may lead elsewhere by now.
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
    /// It opened the volume read-only and can never write.
    opened_read_only: bool,
    /// Its volume came from another machine or key.
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
        let status = control.ask(&Request::Status, Some(RESPONSE_TIMEOUT));
        let report = match status {
            Ok(Response::Status(report)) => *report,
            Err(error) if is_timeout(&error) => return Err(refuse(&[Obstacle::Silent])),
            _ => return Err(refuse(&[unreadable_status()])),
        };
        let Some(daemon) = &report.daemon else {
            return Err(refuse(&[unreadable_status()]));
        };
        let opened_read_only = daemon.read_only;
        Ok(Self {
            control,
            foreign: report.header.foreign,
            is_copy: report.copy_of.is_some(),
            opened_read_only,
        })
    }

    /// Asks the daemon for these flags, and waits as long as it takes to put everything on disk.
    fn request_flags(&mut self, dir: &Path, flags: MountFlags) -> Result<(), UserError> {
        let why = match self
            .control
            .ask(&Request::Remount(remount_request(flags)), None)
        {
            Ok(Response::Done(_)) => return Ok(()),
            Ok(Response::Failed(failure)) => failure.message,
            Ok(_) => DecodeError::Malformed.to_string(),
            Err(error) if is_timeout(&error) => {
                return Err(refusal(doing(dir), &[Obstacle::Silent]));
            }
            Err(error) => return Err(UserError::io(doing(dir), &error)),
        };
        Err(
            UserError::new(ExitCode::System, format!("{}: {why}", doing(dir)))
                .with_hint(format!("see its state: bilayer status {}", dir.display())),
        )
    }
}

fn unreadable_status() -> Obstacle {
    Obstacle::Unproven("its status cannot be understood".to_owned())
}

fn remount_request(flags: MountFlags) -> Remount {
    Remount {
        read_only: flags.read_only,
        access_times: match (flags.noatime, flags.strictatime) {
            (true, _) => AccessTimes::Never,
            (false, true) => AccessTimes::Strict,
            (false, false) => AccessTimes::Relative,
        },
    }
}

/// The daemon's side: applies the flags to the filesystem.
///
/// # Errors
/// The filesystem cannot be committed or made writable.
pub(super) fn apply_remount(request: Remount, filesystem: &Arc<Filesystem>) -> Result<(), FsError> {
    let Remount {
        read_only,
        access_times,
    } = request;
    let changed = match (filesystem.is_read_only(), read_only) {
        (false, true) => filesystem.make_read_only(),
        (true, false) => filesystem.make_writable(),
        _ => Ok(()),
    };
    Record::new("remount")
        .volume(filesystem.volume().header().volume_id())
        .with("read_only", read_only)
        .outcome(&changed);
    if changed.is_ok() {
        filesystem.set_access_times(access_times);
        tracing::info!(read_only, ?access_times, "remounted");
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_mounts_are_remounted() {
        let error = remount(Path::new("/"), &RequestedOptions::default()).unwrap_err();
        assert_eq!(error.code, ExitCode::Mount);
    }

    #[test]
    fn the_daemon_is_asked_for_the_flags_of_the_mount() {
        let read_only = MountFlags {
            read_only: true,
            noatime: true,
            ..MountFlags::default()
        };
        let asked = remount_request(read_only);
        assert_eq!(
            (asked.read_only, asked.access_times),
            (true, AccessTimes::Never)
        );
        let asked = remount_request(MountFlags::default());
        assert_eq!(
            (asked.read_only, asked.access_times),
            (false, AccessTimes::Relative)
        );
    }
}
