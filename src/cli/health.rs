//! The state of a volume, which every command says before anything else.
//!
//! | health | seen by | what to do |
//! |---|---|---|
//! | `ok` | its daemon, or the opening of the volume | |
//! | `daemon dead (umount and mount again)` | `ENOTCONN` of the mount | unmount, mount |
//! | `read-only after an error: ...` | its daemon | unmount, mount |
//! | `damaged: run check` | its daemon has met a page that does not open, or the volume does not | check |
//! | `not known: ...` | no key, or nobody who can be asked | |

use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::error::{CliError, ExitCode};
use super::locate;
use crate::fuse::mountinfo::MountInfo;
use crate::sys::deadline::{Deadlines, within_notifying};
use crate::sys::location::Location;
use crate::sys::probe;

/// What a dead daemon is called, wherever it is met.
pub(super) const DEAD: &str = "daemon dead (umount and mount again)";

/// How long a mount may take to answer when it is asked whether its daemon lives.
const LIMIT: Duration = Duration::from_secs(5);

/// After how long whoever waits for that is told.
const NOTED: Duration = Duration::from_secs(2);

/// See the module's first lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Health {
    Ok,
    DaemonDead,
    ReadOnly(String),
    Damaged,
    Unknown(String),
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::DaemonDead => f.write_str(DEAD),
            Self::ReadOnly(why) => write!(f, "read-only after an error: {why}"),
            Self::Damaged => f.write_str("damaged: run check"),
            Self::Unknown(why) => write!(f, "not known: {why}"),
        }
    }
}

impl Health {
    /// The next command to type, of a volume that is mounted there or not.
    pub(super) fn next(&self, volume: &Path, dir: Option<&Path>) -> Option<String> {
        let volume = volume.display();
        match self {
            Self::Ok | Self::Unknown(_) => None,
            Self::Damaged => Some(format!("bilayer check {volume}")),
            Self::DaemonDead | Self::ReadOnly(_) => {
                let dir = dir?.display();
                Some(format!(
                    "bilayer unmount {dir} && bilayer mount {volume} {dir}"
                ))
            }
        }
    }

    /// What a daemon says of its volume.
    pub(super) fn of_usage(usage: Option<&serde_json::Value>) -> Self {
        let field = |name: &str| usage.and_then(|usage| usage.get(name));
        match field("latched").and_then(serde_json::Value::as_str) {
            _ if usage.is_none() => Self::Unknown("the daemon is ending".to_owned()),
            Some(why) => Self::ReadOnly(why.to_owned()),
            None if field("damaged").and_then(serde_json::Value::as_bool) == Some(true) => {
                Self::Damaged
            }
            None => Self::Ok,
        }
    }
}

/// How a mount answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pulse {
    /// It answers, or does not let this user ask.
    Alive,
    /// Nobody serves it any more.
    Dead,
    /// There is no answer.
    Silent,
}

/// Asks a mount itself whether anybody serves it.
pub(super) fn pulse(mount: &Location) -> Pulse {
    let Ok(mount) = mount.as_fd().try_clone_to_owned() else {
        return Pulse::Alive;
    };
    let note = || eprintln!("bilayer: waiting for a mount to answer");
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
pub(super) fn is_dead(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    )
}

/// The mount of this filesystem that begins at a path, and how it answers.
pub(super) fn mount_and_pulse(path: &Path) -> Option<(MountInfo, Pulse)> {
    let location = locate::open(path).ok()?;
    let mount = locate::mount_at(&location).ok()??;
    Some((mount, pulse(&location)))
}

/// The mount of this filesystem that begins at a path, where nobody serves it any more.
pub(super) fn dead_mount(path: &Path) -> Option<MountInfo> {
    let (mount, pulse) = mount_and_pulse(path)?;
    (pulse == Pulse::Dead).then_some(mount)
}

/// Nothing can be done with a mount that nobody serves any more.
pub(super) fn dead(doing: &str, mount: &MountInfo) -> CliError {
    let next = Health::DaemonDead.next(&mount.source, Some(&mount.dir));
    let told = CliError::new(ExitCode::System, format!("{doing}: {DEAD}"));
    match next {
        Some(next) => told.with_hint(next),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_what_to_type() {
        let of = |text: &str| Health::of_usage(Some(&serde_json::from_str(text).unwrap()));
        let (volume, dir) = (Path::new("/v"), Some(Path::new("/m")));
        let again = Some("bilayer unmount /m && bilayer mount /v /m".to_owned());
        let check = Some("bilayer check /v".to_owned());
        for (health, words, next) in [
            (of("{\"latched\":null,\"damaged\":false}"), "ok", None),
            (of("{\"damaged\":true}"), "damaged: run check", check),
            (
                of("{\"latched\":\"no space\",\"damaged\":true}"),
                "read-only after an error: no space",
                again.clone(),
            ),
            (Health::DaemonDead, DEAD, again),
            (
                Health::of_usage(None),
                "not known: the daemon is ending",
                None,
            ),
        ] {
            assert_eq!(health.to_string(), words);
            assert_eq!(health.next(volume, dir), next, "{words}");
        }
    }

    #[test]
    fn what_is_served_is_not_dead() {
        assert_eq!(dead_mount(Path::new("/")), None);
        let root = Location::open(Path::new("/")).unwrap();
        assert_eq!(pulse(&root), Pulse::Alive);
    }
}
