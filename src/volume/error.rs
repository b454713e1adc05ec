//! Errors of volumes: a kind (for exit codes), a message (what failed, on what) and a hint (what to
//! do next).

use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::holder::HolderDirectory;
use super::rollback::{LastKnown, Rollback};
use crate::ids::VolumeId;
use crate::keys::error::{kind_of_io, usual_hint};
use crate::keys::{ErrorKind, KeyError};

/// A failure to create, open or read a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The directory holds no volume.
    #[error("this directory is no bilayer volume: it has no volume.json")]
    NotAVolume,
    /// The target directory of a new volume is not empty.
    #[error("cannot make a volume here: the directory has {0}")]
    Occupied(String),
    /// Another process has the volume open.
    #[error(
        "the volume{} is mounted or otherwise in use",
        if *shared { ", or a directory that shares its files," } else { "" }
    )]
    InUse {
        /// The lock is shared with a hard-linked copy.
        shared: bool,
    },
    /// The same volume is open for writing elsewhere.
    #[error("the volume is open for writing already{}", shown_directory(.by.as_ref()))]
    WriterElsewhere {
        /// The directory in which it is open, if its holder recorded one.
        by: Option<HolderDirectory>,
    },
    /// The volume was to be opened for writing, but its filesystem is mounted read-only.
    #[error("the volume is on a filesystem that is mounted read-only")]
    ReadOnlyMedium,
    /// A copy of a volume was to be opened for writing.
    #[error(
        "this directory is a copy of the volume in {}{}, and a copy is not written to{}",
        .original.display(),
        LastKnown::at(*.written),
        if *.accepting { ": the original still exists, so this copy cannot replace \
             it" } else { "" }
    )]
    IsCopy {
        /// Directory of the original.
        original: PathBuf,
        /// When the volume was last written: seconds since 1970.
        written: Option<i64>,
        /// The copy was to replace the original.
        accepting: bool,
    },
    /// The directory may be a copy: the remembered directory of the volume cannot be seen.
    #[error(
        "this directory may be a copy of the volume that was in {}{}: that place cannot be seen \
         now, so nobody can tell",
        .original.display(),
        LastKnown::at(*.written)
    )]
    MayBeCopy {
        /// Directory of the original.
        original: PathBuf,
        /// When the volume was last written: seconds since 1970.
        written: Option<i64>,
    },
    /// A new identity was asked for, but this is the volume itself.
    #[error("this directory is the volume itself and no copy: it has the identity that it needs")]
    NotACopy,
    /// A copy shares files with its original, which is in use.
    #[error(
        "this copy shares files with the volume{}, which is open for writing",
        shown_directory(.by.as_ref())
    )]
    SharesFiles {
        /// The directory of the original, if its holder recorded one.
        by: Option<HolderDirectory>,
    },
    /// The superblock cannot be parsed.
    #[error("volume.json is not a valid superblock: {0}")]
    HeaderInvalid(String),
    /// The superblock needs a newer program.
    #[error("volume.json is of a newer bilayer (format {found}); this one reads {supported}")]
    NewerFormat {
        /// Format version of the volume.
        found: u64,
        /// Newest format version that this program reads.
        supported: u32,
    },
    /// The superblock requires features that this program does not have.
    #[error("volume.json names features that this bilayer does not have: {0}")]
    UnknownFeatures(String),
    /// The superblock does not authenticate.
    #[error("volume.json does not authenticate: it is not the superblock that was written")]
    Tampered,
    /// The superblock states less protection than the keystore remembers.
    #[error("volume.json says {found}, and the volume is known to be {known}")]
    Downgraded {
        /// What the superblock states.
        found: &'static str,
        /// What is known.
        known: &'static str,
    },
    /// The volume is older than the state that the keystore knows.
    #[error("the volume is not the newest state that this machine knows: {0}")]
    RolledBack(#[from] Rollback),
    /// The active key set is not known to the keystore, and no known set vouches for it.
    #[error(
        "the active key set that volume.json names is not one that this machine's platform \
         keystore knows, nor does one that it knows vouch for it"
    )]
    UnknownKeySet {
        /// The keystore's record file of the volume.
        record: PathBuf,
    },
    /// The keystore knows another volume at this location.
    #[error(
        "this machine knows the volume {known} in {}{}, and another one, {found}, is there now",
        .path.display(),
        LastKnown::at(*.written)
    )]
    AnotherVolume {
        /// Id of the known volume.
        known: VolumeId,
        /// The location.
        path: PathBuf,
        /// When the volume was last written: seconds since 1970.
        written: Option<i64>,
        /// Id of the volume that is there.
        found: VolumeId,
        /// Fingerprint of the volume that is there.
        fingerprint: String,
    },
    /// A volume was to be created implicitly, but the keystore knows one at this location.
    #[error(
        "this machine knows the volume {known} in {}{}, and no volume is there now",
        .path.display(),
        LastKnown::at(*.written)
    )]
    Vanished {
        /// Id of the known volume.
        known: VolumeId,
        /// The location.
        path: PathBuf,
        /// When the volume was last written: seconds since 1970.
        written: Option<i64>,
    },
    /// Accepting a restored copy was interrupted; only a use that may write can finish it.
    #[error("accepting the restored volume was interrupted")]
    HalfRenewed,
    /// The volume needs its customer key, and none was named.
    #[error("this volume needs its customer key")]
    CustomerKeyNeeded {
        /// Where the unverified superblock says that the key is.
        claimed: String,
    },
    /// The remembered file of the customer key does not exist.
    #[error(
        "the customer key of this volume is remembered to be in {}, and nothing is there",
        .path.display()
    )]
    RememberedKeyGone {
        /// Path of the missing file.
        path: PathBuf,
    },
    /// The customer key is not the one that wraps the volume's keys.
    #[error(
        "the customer key {given} (fingerprint {found}) is not the one this volume was made with \
         ({wanted})"
    )]
    WrongCustomerKey {
        /// The key that was tried.
        given: String,
        /// Its fingerprint.
        found: String,
        /// The fingerprints that the unverified superblock names.
        wanted: String,
    },
    /// The volume's fingerprint is not the pinned one.
    #[error("the volume's fingerprint is {found}, not {pinned}")]
    FingerprintMismatch {
        /// Fingerprint of the volume.
        found: String,
        /// The pinned fingerprint.
        pinned: String,
    },
    /// A volume with a customer key was to yield one without.
    #[error("a volume that has a customer key never gives one without")]
    WouldDowngrade,
    /// The source of the inherited keys has as many key sets as a volume may have.
    #[error("the source has {found} key sets already, and a volume has at most {most}")]
    TooManyKeySets {
        /// Number of key sets of the source.
        found: usize,
        /// Limit for any volume.
        most: usize,
    },
    /// The keystore's record could not be written, so the volume must not be written either.
    #[error(
        "the platform keystore's record of the volume cannot be written, and without it an older \
         copy put in the volume's place would not be noticed: {0}"
    )]
    CannotRemember(#[source] KeyError),
    /// A failure of a key or of the keystore.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Writing the metadata of a new volume failed.
    #[error("cannot write the filesystem of the new volume: {0}")]
    Format(#[source] Box<dyn Error + Send + Sync>),
    /// The backing store failed.
    #[error("{doing}: {source}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl VolumeError {
    /// Returns a closure that adds the operation to an I/O error.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// The location of the volume's directory is unknown, so a volume and its copy look the same.
    pub(super) fn unknown_location(error: io::Error) -> Self {
        Self::io(
            "cannot determine the location of the volume's directory, so nothing is written to it",
        )(error)
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAVolume => ErrorKind::NotAVolume,
            Self::Occupied(_) | Self::WouldDowngrade | Self::TooManyKeySets { .. } => {
                ErrorKind::Usage
            }
            Self::InUse { .. }
            | Self::WriterElsewhere { .. }
            | Self::IsCopy { .. }
            | Self::MayBeCopy { .. }
            | Self::SharesFiles { .. } => ErrorKind::InUse,
            Self::NotACopy => ErrorKind::Usage,
            Self::HeaderInvalid(_) => ErrorKind::HeaderInvalid,
            Self::NewerFormat { .. } | Self::UnknownFeatures(_) => ErrorKind::NewerFormat,
            Self::Tampered
            | Self::Downgraded { .. }
            | Self::RolledBack(_)
            | Self::UnknownKeySet { .. }
            | Self::AnotherVolume { .. }
            | Self::Vanished { .. } => ErrorKind::Tampered,
            Self::HalfRenewed | Self::ReadOnlyMedium => ErrorKind::Io,
            Self::CustomerKeyNeeded { .. } | Self::RememberedKeyGone { .. } => {
                ErrorKind::KeyUnavailable
            }
            Self::WrongCustomerKey { .. } | Self::FingerprintMismatch { .. } => ErrorKind::WrongKey,
            Self::Key(error) | Self::CannotRemember(error) => error.kind(),
            Self::Format(error) => kind_of_chain(&**error),
            Self::Io { source, .. } => kind_of_io(source),
        }
    }

    /// What the user can do next, if anything. Hints name options together with their command,
    /// because the error may surface in a command that does not have them.
    pub fn hint(&self) -> Option<String> {
        const RESTORE: &str =
            "restore volume.json from a backup of this volume or from its checkpoints/volume.json";
        let text = match self {
            Self::NotAVolume => {
                "make one: bilayer create DIR, or check the path; if it has lost its volume.json: \
                 bilayer salvage"
            }
            Self::Occupied(_) => "choose an empty directory",
            Self::InUse { shared: true } => {
                "unmount it, or the directory that shares its files with it, as one of the two was \
                 made with cp -al; see who has it: fuser -v VOLUME/lock"
            }
            Self::WriterElsewhere { .. } => {
                "unmount it there first; a copy becomes a volume of its own by: bilayer mount \
                 --new-identity VOLUME DIR"
            }
            Self::IsCopy { .. } => {
                "to look at it, which changes nothing of the original: bilayer mount -o ro VOLUME \
                 DIR; to make it a volume of its own: bilayer mount --new-identity VOLUME DIR"
            }
            Self::MayBeCopy { .. } => {
                "mount the disk that it was on, and try again. To look only: bilayer mount -o ro \
                 VOLUME DIR; for a volume of its own: bilayer mount --new-identity VOLUME DIR; if \
                 the original is gone for good: bilayer mount --accept-restored VOLUME DIR"
            }
            Self::NotACopy => "mount it without --new-identity",
            Self::SharesFiles { .. } => "unmount the original first, or copy it with cp -a",
            Self::InUse { shared: false } => {
                "unmount it first: umount MOUNTPOINT; where nothing is mounted, see who has it: \
                 fuser -v VOLUME/lock VOLUME/objects"
            }
            Self::ReadOnlyMedium => {
                "to look at it: bilayer mount -o ro VOLUME DIR; to write to it, have its \
                 filesystem mounted for writing"
            }
            Self::HeaderInvalid(_) | Self::Tampered => RESTORE,
            Self::NewerFormat { .. } | Self::UnknownFeatures(_) => "upgrade bilayer",
            Self::Downgraded { .. } => {
                "somebody may have put another volume in its place; restore it from a backup"
            }
            Self::RolledBack(_) => Rollback::HINT,
            Self::AnotherVolume {
                known, fingerprint, ..
            } => {
                return Some(format!(
                    "somebody may have put another volume in its place. If the volumes were moved, \
                     mount {known} where it is now; if the one that is here belongs here, mount it \
                     with -o fingerprint={fingerprint}: once, or each time where a link leads to it"
                ));
            }
            Self::Vanished { path, .. } => {
                return Some(format!(
                    "mount the disk that it is on, or restore it from a backup; for a new volume \
                     in its place: bilayer create {}",
                    path.display()
                ));
            }
            Self::UnknownKeySet { record } => {
                return Some(format!(
                    "somebody made a volume of the same id with keys of their own: restore the \
                     directory from a backup; if that was you, so that this machine knows the \
                     wrong one, take away what it knows: mv {0} {0}.wrong",
                    record.display()
                ));
            }
            Self::HalfRenewed => "mount it once for writing: bilayer mount VOLUME DIR",
            Self::CustomerKeyNeeded { claimed } => {
                return Some(format!(
                    "name it: bilayer mount -o customer_key=URI VOLUME DIR; the first that opens \
                     the volume is remembered (unverified: volume.json names {claimed:?})"
                ));
            }
            Self::RememberedKeyGone { path } => {
                return Some(format!(
                    "put the key back as {}, or name the file that has it at every mount: \
                     bilayer mount -o customer_key=URI VOLUME DIR; what is mounted needs none",
                    path.display()
                ));
            }
            Self::WrongCustomerKey { .. } => {
                "name the right key: bilayer mount -o customer_key=URI VOLUME DIR"
            }
            Self::FingerprintMismatch { .. } => {
                "do not use this volume unless you know why its keys changed"
            }
            Self::WouldDowngrade => "name the customer key of the new volume: --customer-key URI",
            Self::TooManyKeySets { .. } => {
                "copy the files into a volume made by bilayer create: it starts with one key set"
            }
            Self::CannotRemember(_) => {
                "make the keystore's directory writable, with space for a few KiB; to look at the \
                 volume only: bilayer mount -o ro VOLUME DIR"
            }
            Self::Key(error) => return error.hint().map(str::to_owned),
            Self::Format(_) | Self::Io { .. } if self.kind() == ErrorKind::NoSpace => {
                "make space on the backing filesystem"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as the user who owns the volume's directory, or as root"
            }
            Self::Format(_) | Self::Io { .. } => usual_hint(ErrorKind::Io),
        };
        Some(text.to_owned())
    }
}

/// The kind of the I/O error that caused a failure.
fn kind_of_chain(error: &(dyn Error + 'static)) -> ErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return kind_of_io(error);
        }
        cause = error.source();
    }
    ErrorKind::Io
}

/// The directory with a leading space, or nothing.
fn shown_directory(directory: Option<&HolderDirectory>) -> String {
    directory.map_or(String::new(), ToString::to_string)
}
