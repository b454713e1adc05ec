//! What can go wrong with keys: kind (for exit codes), message (what, with what) and hint (what to
//! do next).

use std::io;
use std::path::{Path, PathBuf};

/// What sort of failure it was; exit codes are made of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// The command or its options are wrong.
    Usage,
    /// The directory is no volume.
    NotAVolume,
    /// Somebody else has the volume open.
    InUse,
    /// The key, or the passphrase that opens it, cannot be had.
    KeyUnavailable,
    /// There is a key, but not the one the volume was made with.
    WrongKey,
    /// There is no platform keystore, or it lacks what the volume needs.
    KeystoreMissing,
    /// The platform keystore cannot be trusted or understood.
    KeystoreInvalid,
    /// The superblock cannot be understood.
    HeaderInvalid,
    /// The superblock is not the one that was written: it does not authenticate.
    Tampered,
    /// The volume was made by a newer version.
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

/// A failure that has to do with keys.
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
    /// A failure of this kind.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    /// The same with advice on what to do next.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The operating system failed us while `doing` something (`"cannot read key file"`) to a path.
    pub(crate) fn io(doing: &str, path: &Path, error: io::Error) -> Self {
        Self {
            kind: kind_of_io(&error),
            message: format!("{doing} {}: {error}", path.display()),
            hint: None,
            source: Some(error),
        }
    }

    /// There is no memory for a secret.
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

    /// There is no randomness to be had.
    pub(crate) fn random(error: io::Error) -> Self {
        Self {
            kind: ErrorKind::Io,
            message: format!("the operating system has no random bytes: {error}"),
            hint: None,
            source: Some(error),
        }
    }

    /// What sort of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do next: what was said where it failed, else what usually helps.
    pub fn hint(&self) -> Option<&str> {
        Some(self.hint.as_deref().unwrap_or(usual_hint(self.kind)))
    }
}

/// Advice for a failure that nothing more is known of.
pub(crate) const fn usual_hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Usage => "--help shows how the command is called",
        ErrorKind::NotAVolume => "make one: bilayer create DIR, or check the path",
        ErrorKind::InUse => "see who has it: fuser -v VOLUME/lock",
        ErrorKind::KeyUnavailable => "see that the file is there, and that this user may read it",
        ErrorKind::WrongKey => "name the key, or give the passphrase, that it was made with",
        ErrorKind::KeystoreMissing => {
            "name the keystore that the volume was made with: --platform-keystore DIR"
        }
        ErrorKind::KeystoreInvalid => "restore the platform keystore from a backup",
        ErrorKind::HeaderInvalid | ErrorKind::Tampered => "restore it from a backup",
        ErrorKind::NewerFormat => "upgrade bilayer",
        ErrorKind::NoSpace => "make room on the filesystem that it is on",
        ErrorKind::Io => "the kernel's log may say why: dmesg",
    }
}

/// The kind of an I/O error: a full disk is told apart from all else.
pub(crate) fn kind_of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    }
}

/// A closure that names what was done to `path` when it failed.
pub(crate) fn while_doing(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = PathBuf::from(path);
    move |error| KeyError::io(doing, &path, error)
}

/// As [`while_doing`], for what the keystore was to be told.
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
                error.with_hint("make the keystore's directory writable, with room for a few KiB")
            }
            false => error,
        }
    }
}
