//! Errors of keys: a kind (for exit codes), a message (what failed, on what) and a hint (what to do
//! next).

use std::io;
use std::path::{Path, PathBuf};

use crate::audit::{Record, Unwritten};

/// The kind of a failure, which determines the exit code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// The command or its options are wrong.
    Usage,
    /// The directory contains no volume.
    NotAVolume,
    /// Another process has the volume open.
    InUse,
    /// The key, or its passphrase, is not available.
    KeyUnavailable,
    /// The key, or its newest version, is disabled at its provider.
    KeyDisabled,
    /// The key is past its date, or not valid yet.
    KeyExpired,
    /// The key was deleted at its provider, or never was there.
    KeyDeleted,
    /// The provider refuses this user the key.
    KeyForbidden,
    /// The provider does not answer, or cannot now. This says nothing about the key.
    KeyUnreachable,
    /// The key is not the one that the volume was created with.
    WrongKey,
    /// There is no platform keystore, or it lacks what the volume needs.
    KeystoreMissing,
    /// The platform keystore is not trustworthy or cannot be parsed.
    KeystoreInvalid,
    /// The superblock cannot be parsed.
    HeaderInvalid,
    /// The superblock does not authenticate: it is not the one that was written.
    Tampered,
    /// The volume was created by a newer version.
    NewerFormat,
    /// The disk is full.
    NoSpace,
    /// The operating system refused.
    Io,
}

impl ErrorKind {
    /// Its name in the audit.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotAVolume => "not-a-volume",
            Self::InUse => "in-use",
            Self::KeyUnavailable => "key-unavailable",
            Self::KeyDisabled => "key-disabled",
            Self::KeyExpired => "key-expired",
            Self::KeyDeleted => "key-deleted",
            Self::KeyForbidden => "key-forbidden",
            Self::KeyUnreachable => "key-unreachable",
            Self::WrongKey => "wrong-key",
            Self::KeystoreMissing => "keystore-missing",
            Self::KeystoreInvalid => "keystore-invalid",
            Self::HeaderInvalid => "header-invalid",
            Self::Tampered => "tampered",
            Self::NewerFormat => "newer-format",
            Self::NoSpace => "no-space",
            Self::Io => "io",
        }
    }
}

/// A failure concerning keys.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct KeyError {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    #[source]
    source: Option<io::Error>,
}

impl KeyError {
    /// Creates a failure of this kind.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    /// Adds advice on what to do next.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failure of the operating system while `doing` something (`"cannot read key file"`) to a
    /// path.
    pub(crate) fn io(doing: &str, path: &Path, error: io::Error) -> Self {
        Self {
            kind: kind_of_io(&error),
            message: format!("{doing} {}: {error}", path.display()),
            hint: None,
            source: Some(error),
        }
    }

    /// There was no memory for a secret.
    pub(crate) fn memory(error: io::Error) -> Self {
        Self {
            kind: ErrorKind::Io,
            message: format!("the machine has no memory for a key: {error}"),
            hint: None,
            source: Some(error),
        }
    }

    /// A key could not be derived from another.
    pub(crate) fn derivation() -> Self {
        Self::new(ErrorKind::Io, "a key of the volume cannot be derived")
    }

    /// The operating system provided no random bytes.
    pub(crate) fn random(error: io::Error) -> Self {
        Self {
            kind: ErrorKind::Io,
            message: format!("the operating system has no random bytes: {error}"),
            hint: None,
            source: Some(error),
        }
    }

    /// The record of a key operation could not be written, so the operation was refused.
    pub(crate) fn unaudited(unwritten: Unwritten) -> Self {
        let Unwritten { destination, error } = unwritten;
        Self {
            kind: kind_of_io(&error),
            message: format!(
                "the audit cannot be written to {destination}, and keys are not used without it: \
                 {error}"
            ),
            hint: Some(
                "make it writable, with space for a few KiB, or name another file: --audit-log \
                 FILE (mount: -o audit_log=FILE); /dev/null is no audit at all"
                    .to_owned(),
            ),
            source: Some(error),
        }
    }

    /// The error for a caller that knows no keys: that of the operating system, or `InvalidData`.
    pub(super) fn into_io(self) -> io::Error {
        match self.source {
            Some(error) => error,
            None => io::Error::new(io::ErrorKind::InvalidData, self.message),
        }
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do next: the hint given where the failure occurred, or general advice for its kind.
    pub fn hint(&self) -> Option<&str> {
        Some(self.hint.as_deref().unwrap_or(usual_hint(self.kind)))
    }
}

/// The result of a key operation, once its record is written.
///
/// # Errors
/// That of the operation; or the record of its success could not be written.
pub(crate) fn acknowledged<T>(record: Record, result: Result<T, KeyError>) -> Result<T, KeyError> {
    match record.require(&result) {
        Err(unwritten) if result.is_ok() => Err(KeyError::unaudited(unwritten)),
        _ => result,
    }
}

/// General advice for a kind of failure.
pub(crate) const fn usual_hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Usage => "see the command's --help",
        ErrorKind::NotAVolume => "make one: bilayer create DIR, or check the path",
        ErrorKind::InUse => "see who has it: fuser -v VOLUME/lock",
        ErrorKind::KeyUnavailable => "see that the file is there, and that this user may read it",
        ErrorKind::KeyDisabled => "enable the key at its provider, or name another slot's key",
        ErrorKind::KeyExpired => {
            "extend the key's dates at its provider, or rotate to a new version"
        }
        ErrorKind::KeyDeleted => "restore the key at its provider, or name another slot's key",
        ErrorKind::KeyForbidden => "have the provider's administrator allow this user to unwrap",
        ErrorKind::KeyUnreachable => {
            "see that the provider runs and can be reached, then try again"
        }
        ErrorKind::WrongKey => "name the key, or give the passphrase, that it was made with",
        ErrorKind::KeystoreMissing => {
            "name the keystore that the volume was made with: --platform-keystore DIR"
        }
        ErrorKind::KeystoreInvalid => "restore the platform keystore from a backup",
        ErrorKind::HeaderInvalid | ErrorKind::Tampered => "restore it from a backup",
        ErrorKind::NewerFormat => "upgrade bilayer",
        ErrorKind::NoSpace => "make space on the filesystem that it is on",
        ErrorKind::Io => "the kernel's log may say why: dmesg",
    }
}

/// The kind of an I/O error, which distinguishes a full disk.
pub(crate) fn kind_of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    }
}

/// Returns a closure that adds the operation and the path to an I/O error.
pub(crate) fn while_doing(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = PathBuf::from(path);
    move |error| KeyError::io(doing, &path, error)
}

/// Returns a closure that adds the operation and the path to an error of writing to the keystore,
/// and a hint if the keystore is not writable.
pub(crate) fn while_writing(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> KeyError {
    let path = PathBuf::from(path);
    move |error| {
        let refused = matches!(
            error.kind(),
            io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::PermissionDenied
        );
        let error = KeyError::io(doing, &path, error);
        match refused {
            true => {
                error.with_hint("make the keystore's directory writable, with space for a few KiB")
            }
            false => error,
        }
    }
}
