//! Whether anybody serves a mount any more, and walking to one.
//!
//! A mount whose daemon is dead, stopped or hangs keeps whoever looks at it waiting; so a process of
//! its own looks first ([`probe`]), for a limited time.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::health::{DEAD, Health};
use crate::diagnostics::{ExitCode, UserError, notice};
use crate::fuse::mountinfo::{self, MountInfo};
use crate::sys::deadline::{Deadlines, within_notifying};
use crate::sys::location::Location;
use crate::sys::probe;

/// How long a mount may take to answer when it is asked whether its daemon lives.
const LIMIT: Duration = Duration::from_secs(5);

/// After how long whoever waits for that is told.
const NOTED: Duration = Duration::from_secs(2);

/// How a mount answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pulse {
    /// It answers, or does not let this user ask.
    Alive,
    /// Nobody serves it any more.
    Dead,
    /// There is no answer.
    Silent,
}

/// Asks a mount itself whether anybody serves it.
pub(crate) fn pulse(mount: &Location) -> Pulse {
    let Ok(mount) = mount.as_fd().try_clone_to_owned() else {
        return Pulse::Alive;
    };
    let note = || notice(format_args!("waiting for a mount to answer"));
    let asked = within_notifying(
        Deadlines {
            note: NOTED,
            give_up: LIMIT,
        },
        note,
        move || probe::statistics(mount.as_fd(), LIMIT),
    );
    match asked.flatten() {
        None => Pulse::Silent,
        Some(Err(error)) if is_dead(&error) => Pulse::Dead,
        Some(_) => Pulse::Alive,
    }
}

/// What the kernel answers for a daemon that is no more.
pub(crate) fn is_dead(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    )
}

/// The mount of this filesystem that begins at a path, and how it answers.
pub(crate) fn mount_and_pulse(path: &Path) -> Option<(MountInfo, Pulse)> {
    let location = open(path).ok()?;
    let mount = mount_at(&location).ok()??;
    Some((mount, pulse(&location)))
}

/// The mount of this filesystem that begins at a path, where nobody serves it any more.
pub(crate) fn dead_mount(path: &Path) -> Option<MountInfo> {
    let (mount, pulse) = mount_and_pulse(path)?;
    (pulse == Pulse::Dead).then_some(mount)
}

/// The mount of this filesystem that a path leads to the beginning of.
pub(crate) fn mount_at(location: &Location) -> io::Result<Option<MountInfo>> {
    Ok(MountInfo::beginning_at(location)?.filter(MountInfo::is_ours))
}

/// Walks to where a path leads.
///
/// # Errors
/// There is nothing; or the way leads through a mount that is dead or does not answer.
pub(crate) fn open(path: &Path) -> Result<Location, UserError> {
    let doing = format!("cannot find {}", path.display());
    if !probe::resolves(path, LIMIT) {
        let why = "a filesystem on the way does not answer";
        return Err(
            UserError::new(ExitCode::System, format!("{doing}: {why}")).with_hint(format!(
                "see which mounts are on the way: findmnt -t {}",
                mountinfo::FILESYSTEM_TYPE
            )),
        );
    }
    Location::open(path).map_err(|error| {
        let above = path.ancestors().skip(1);
        let dead_one = match is_dead(&error) {
            true => above.filter_map(dead_mount).next(),
            false => None,
        };
        match dead_one {
            Some(mount) => dead(&doing, &mount),
            None => UserError::io(doing, &error),
        }
    })
}

/// Nothing can be done with a mount that nobody serves any more.
pub(crate) fn dead(doing: &str, mount: &MountInfo) -> UserError {
    let next = Health::DaemonDead.next(&mount.source, Some(&mount.dir));
    let told = UserError::new(ExitCode::System, format!("{doing}: {DEAD}"));
    match next {
        Some(next) => told.with_hint(next),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_not_dead() {
        assert_eq!(dead_mount(Path::new("/")), None);
        let root = Location::open(Path::new("/")).unwrap();
        assert_eq!(pulse(&root), Pulse::Alive);
    }
}
