//! Whether a mount is still served, and opening paths that lead to one.
//!
//! Access to a mount whose daemon is dead, stopped or hangs may block; so a separate process tries
//! it first ([`probe`]), for a limited time.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::health::{DAEMON_DEAD, Health};
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::fuse::own_mounts::FILESYSTEM_TYPE;
use crate::sys::deadline::{Deadlines, within_notifying};
use crate::sys::location::Location;
use crate::sys::mountinfo::MountInfo;
use crate::sys::probe;

/// How long a mount may take to answer a probe.
const LIMIT: Duration = Duration::from_secs(5);

/// After how long a notice says what the command waits for.
const NOTICE_AFTER: Duration = Duration::from_secs(2);

/// How a mount answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MountState {
    /// It answers, or refuses this user.
    Alive,
    /// It is no longer served.
    Dead,
    /// It does not answer.
    Silent,
}

/// Asks a mount whether it is still served.
pub(crate) fn mount_state(mount: &Location) -> MountState {
    let Ok(mount) = mount.as_fd().try_clone_to_owned() else {
        return MountState::Alive;
    };
    let note = || notice(format_args!("waiting for a mount to answer"));
    let answer = within_notifying(
        Deadlines {
            note: NOTICE_AFTER,
            give_up: LIMIT,
        },
        note,
        move || probe::statistics(mount.as_fd(), LIMIT),
    );
    match answer.flatten() {
        None => MountState::Silent,
        Some(Err(error)) if is_dead(&error) => MountState::Dead,
        Some(_) => MountState::Alive,
    }
}

/// True for the errors that the kernel returns for a mount whose daemon is dead.
pub(crate) fn is_dead(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    )
}

/// The bilayer mount whose root is at a path, and its state.
pub(crate) fn mount_and_state(path: &Path) -> Option<(MountInfo, MountState)> {
    let location = open_path(path).ok()?;
    let mount = mount_at(&location).ok()??;
    Some((mount, mount_state(&location)))
}

/// The bilayer mount whose root is at a path, if its daemon is dead.
pub(crate) fn dead_mount(path: &Path) -> Option<MountInfo> {
    let (mount, state) = mount_and_state(path)?;
    (state == MountState::Dead).then_some(mount)
}

/// The bilayer mount whose root is at a location.
///
/// # Errors
/// The list of mounts cannot be read.
pub(crate) fn mount_at(location: &Location) -> io::Result<Option<MountInfo>> {
    Ok(MountInfo::beginning_at(location)?.filter(MountInfo::is_ours))
}

/// Opens a path without hanging in a dead mount.
///
/// # Errors
/// Nothing is there; or the path leads through a mount that is dead or does not answer.
pub(crate) fn open_path(path: &Path) -> Result<Location, UserError> {
    let doing = format!("cannot find {}", path.display());
    if !probe::resolves(path, LIMIT) {
        let why = "a filesystem on the way does not answer";
        return Err(
            UserError::new(ExitCode::System, format!("{doing}: {why}")).with_hint(format!(
                "see which mounts are on the way: findmnt -t {}",
                FILESYSTEM_TYPE
            )),
        );
    }
    Location::open(path).map_err(|error| {
        let mut above = path.ancestors().skip(1);
        let dead = is_dead(&error).then(|| above.find_map(dead_mount));
        match dead.flatten() {
            Some(mount) => dead_mount_error(&doing, &mount),
            None => UserError::io(doing, &error),
        }
    })
}

/// The error of an operation on a mount whose daemon is dead.
pub(crate) fn dead_mount_error(doing: &str, mount: &MountInfo) -> UserError {
    UserError {
        code: ExitCode::System,
        message: format!("{doing}: {DAEMON_DEAD}"),
        hint: Health::DaemonDead.next_command(&mount.source, Some(&mount.dir)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_served_mount_is_not_dead() {
        assert_eq!(dead_mount(Path::new("/")), None);
        let root = Location::open(Path::new("/")).unwrap();
        assert_eq!(mount_state(&root), MountState::Alive);
    }
}
