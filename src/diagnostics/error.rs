//! How a command ends: exit codes, and errors as two lines for people.
//!
//! ```text
//! bilayer: what, with what: why
//! hint: what to do next
//! ```

use std::fmt;
use std::io;

use super::io_hints;
use crate::check::CheckError;
use crate::errno::Errno;
use crate::fs::FsError;
use crate::fs::snapshots::{ReadOnlyBecause, ViewError};
use crate::image::ImageError;
use crate::keys::{ErrorKind, KeyError};
use crate::sys::interrupt;
use crate::volume::{Rollback, VolumeError};

/// Exit codes of every command but `mount`, which has mount(8)'s ([`ExitCode::for_mount`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Done.
    Done = 0,
    /// The command line is wrong.
    Usage = 1,
    /// There is no such volume, mount, snapshot or image.
    NotFound = 2,
    /// The volume, the mount or the name is in use.
    InUse = 3,
    /// A key is missing, not available, or the wrong one.
    Key = 4,
    /// What is on disk is damaged, not authentic or of a newer format.
    Integrity = 5,
    /// The operating system refused: I/O, no space, no permission.
    System = 6,
    /// Mounting failed.
    Mount = 32,
}

impl ExitCode {
    /// The corresponding exit code of mount(8): 1 usage, 2 system, 32 mount failed.
    pub(crate) fn for_mount(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 1,
            Self::System => 2,
            _ => 32,
        }
    }

    /// The code with that number; an unknown number becomes `System`.
    pub(crate) fn of_number(number: u8) -> Self {
        match number {
            0 => Self::Done,
            1 => Self::Usage,
            2 => Self::NotFound,
            3 => Self::InUse,
            4 => Self::Key,
            5 => Self::Integrity,
            32 => Self::Mount,
            _ => Self::System,
        }
    }

    /// The code for a failure of this kind.
    pub(crate) fn of_kind(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Usage => Self::Usage,
            ErrorKind::NotAVolume => Self::NotFound,
            ErrorKind::InUse => Self::InUse,
            ErrorKind::KeyUnavailable
            | ErrorKind::KeyDisabled
            | ErrorKind::KeyExpired
            | ErrorKind::KeyDeleted
            | ErrorKind::KeyForbidden
            | ErrorKind::KeyUnreachable
            | ErrorKind::WrongKey
            | ErrorKind::KeystoreMissing
            | ErrorKind::KeystoreInvalid => Self::Key,
            ErrorKind::HeaderInvalid | ErrorKind::Tampered | ErrorKind::NewerFormat => {
                Self::Integrity
            }
            ErrorKind::NoSpace | ErrorKind::Io => Self::System,
        }
    }

    /// The code for a failed system call on a file that the user named.
    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound,
            io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => Self::InUse,
            _ => Self::System,
        }
    }
}

/// A command's failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct UserError {
    /// The exit code.
    pub(crate) code: ExitCode,
    /// What failed, on what, and why. One line.
    pub(crate) message: String,
    /// The next step for the user. One line.
    pub(crate) hint: Option<String>,
}

impl UserError {
    /// A failure without a hint.
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// A wrong command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// Adds a hint, or replaces it.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Removes the hint if a signal has ended the command: that user needs no advice.
    #[must_use]
    pub(crate) fn unless_asked_to_end(self) -> Self {
        let hint = self.hint.filter(|_| interrupt::arrived().is_none());
        Self { hint, ..self }
    }

    /// A failure to open, create or read a volume.
    pub(crate) fn volume(doing: impl fmt::Display, error: &VolumeError) -> Self {
        let code = ExitCode::of_kind(error.kind());
        Self {
            code,
            message: format!("{doing}: {error}"),
            hint: error.hint(),
        }
    }

    /// A failure of the filesystem in a volume.
    pub(crate) fn filesystem(doing: impl fmt::Display, error: &FsError) -> Self {
        if let FsError::Volume(error) = error {
            return Self::volume(doing, error);
        }
        let (code, hint) = match error.errno() {
            _ if matches!(error, FsError::HalfRestored) => (
                ExitCode::System,
                "mount it once for writing: bilayer mount VOLUME DIR",
            ),
            _ if matches!(error, FsError::RolledBack(_)) => (ExitCode::Integrity, Rollback::HINT),
            _ if error.is_all_on_disk() => (
                ExitCode::System,
                "make the keystore's directory writable, with space for a few KiB, and mount and \
                 unmount the volume once",
            ),
            Errno::ENOSPC | Errno::EDQUOT => (
                ExitCode::System,
                "make space on the filesystem that holds the volume, then try again",
            ),
            Errno::EROFS => (
                ExitCode::System,
                "the filesystem that holds the volume is read-only; to look at the volume: \
                 bilayer mount -o ro VOLUME DIR",
            ),
            _ => (
                ExitCode::Integrity,
                "copy the volume's directory before anything else; the log names the page; to \
                 copy what can be read: bilayer salvage VOLUME OUT",
            ),
        };
        Self::new(code, format!("{doing}: {error}")).with_hint(hint)
    }

    /// A failure of an operation on snapshots or images.
    pub(crate) fn view(doing: impl fmt::Display, error: &ViewError) -> Self {
        let with_hint =
            |code, hint: &str| Self::new(code, format!("{doing}: {error}")).with_hint(hint);
        match error {
            ViewError::NotFound { kind, .. } => with_hint(
                ExitCode::NotFound,
                &format!("see which there are: bilayer {} list VOLUME", kind.noun()),
            ),
            ViewError::Exists { .. } => with_hint(
                ExitCode::InUse,
                "choose another name, or delete the one that has it",
            ),
            ViewError::BadName { .. } => with_hint(
                ExitCode::Usage,
                "choose a name of at most 255 bytes without a / or an @ in it",
            ),
            ViewError::Busy { .. } => {
                with_hint(ExitCode::InUse, "see who uses it: fuser -vm MOUNTPOINT")
            }
            ViewError::TooMany => {
                with_hint(ExitCode::System, "delete some: bilayer snapshot prune")
            }
            ViewError::ReadOnly(because) => with_hint(ExitCode::System, how_to_write(*because)),
            ViewError::NoSuchPath { name, .. } => with_hint(
                ExitCode::NotFound,
                &format!(
                    "paths begin at the root of the volume; see what it has: ls -a \
                     MOUNTPOINT/.snapshots/{name}"
                ),
            ),
            ViewError::NoDirectory { .. } => with_hint(
                ExitCode::NotFound,
                "make the directory, or restore the one that held it",
            ),
            ViewError::Image(error) => Self::image(doing, error),
            ViewError::Fs(error) => Self::filesystem(doing, error),
        }
    }

    /// A failure to create, export, import or deploy an image.
    pub(crate) fn image(doing: impl fmt::Display, error: &ImageError) -> Self {
        Self {
            code: ExitCode::of_kind(error.kind()),
            message: format!("{doing}: {error}"),
            hint: error.hint(),
        }
    }

    /// A failure concerning keys.
    pub(crate) fn key(doing: impl fmt::Display, error: &KeyError) -> Self {
        let code = ExitCode::of_kind(error.kind());
        let hint = error.hint().map(str::to_owned);
        Self {
            code,
            message: format!("{doing}: {error}"),
            hint,
        }
    }

    /// A check that could not be completed.
    pub(crate) fn check(doing: impl fmt::Display, error: &CheckError) -> Self {
        Self::new(ExitCode::System, format!("{doing}: {error}")).with_hint(check_hint(error))
    }

    /// A failed system call.
    pub(crate) fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self {
            code: ExitCode::of_io(error),
            message: format!("{doing}: {error}"),
            hint: io_hints::hint(error).map(str::to_owned),
        }
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bilayer: {}", one_line(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", one_line(hint)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for UserError {}

/// The hint for a change to a copy of a volume, which is mounted read-only.
pub(crate) const COPY_HINT: &str = "a copy is not written to; unmount it, and make it a volume of \
                                    its own: bilayer mount --new-identity VOLUME DIR";
/// The hint for a change to a volume that was opened read-only.
pub(crate) const OPENED_HINT: &str = "unmount it and mount it again without -o ro";

fn check_hint(error: &CheckError) -> &'static str {
    match error {
        CheckError::Cancelled => "run it again; no change was left incomplete",
        CheckError::Meta(_) | CheckError::Object(_) => {
            "copy the volume's directory; to copy what can be read: bilayer salvage VOLUME OUT"
        }
        CheckError::Io(error) => io_hints::hint(error).unwrap_or("see the kernel's log: dmesg"),
        CheckError::NotRemembered(_) => {
            "make the keystore's directory writable, with space for a few KiB, and mount and \
             unmount the volume once"
        }
        CheckError::Fault => {
            "see the log; the volume can be mounted read-only: bilayer mount -o ro VOLUME DIR"
        }
    }
}

const fn how_to_write(because: ReadOnlyBecause) -> &'static str {
    match because {
        ReadOnlyBecause::Copy => COPY_HINT,
        ReadOnlyBecause::Opened => OPENED_HINT,
        ReadOnlyBecause::Remounted => "mount it for writing: mount -o remount,rw MOUNTPOINT",
        ReadOnlyBecause::Failed => "the log says why; unmount it, then: bilayer check VOLUME",
        ReadOnlyBecause::Unknown => {
            "the user who mounted it can see why, with bilayer status MOUNTPOINT, and mount it for \
             writing"
        }
    }
}

/// Replaces control characters: text from elsewhere (paths, messages of fusermount3) must neither
/// add lines nor control the terminal.
fn one_line(text: &str) -> String {
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_two_lines_whatever_it_contains() {
        let error = UserError::usage("a\nb\x1b[1m\n").with_hint("do\nthis");
        assert_eq!(error.to_string(), "bilayer: a b [1m\nhint: do this");
        assert_eq!(UserError::usage("x").to_string(), "bilayer: x");
    }

    #[test]
    fn mount_codes() {
        for (code, expected) in [
            (ExitCode::Done, 0),
            (ExitCode::Usage, 1),
            (ExitCode::System, 2),
            (ExitCode::NotFound, 32),
            (ExitCode::InUse, 32),
            (ExitCode::Key, 32),
            (ExitCode::Integrity, 32),
            (ExitCode::Mount, 32),
        ] {
            assert_eq!(code.for_mount(), expected, "{code:?}");
        }
    }
}
