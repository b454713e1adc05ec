//! Images: kept views from which new volumes are created.
//!
//! A volume from an image is never protected less than the image: its key mode and, unless another
//! one is given, its customer key are those of the image. Under the same customer key and platform
//! keystore it also has the image's key sets, read-only, and the image's sealed bytes as they are.
//! **Another holder never gets a data key:** under any other key or keystore, and in an export, all
//! contents are re-sealed under a fresh key set.
//!
//! [`deploy`](deploy()) creates the volume directly, from its source; [`export`](export()) writes a
//! [`stream`] from which [`import`](import()) creates a volume elsewhere.

mod deploy;
mod export;
mod import;
mod reseal;
pub mod stream;
mod workers;

use std::io;

use crate::check::{CheckError, Finding, Report};
use crate::errno::Errno;
use crate::keys::ErrorKind;
use crate::keys::error::{kind_of_io, usual_hint};
use crate::meta::MetaError;
use crate::meta::records::ObjectName;
use crate::object::ObjectError;
use crate::sealed::SealedError;
use crate::volume::VolumeError;
use stream::StreamError;

pub use deploy::{DeployOptions, Deployed, Source, deploy};
pub use export::{ExportOptions, Exported, Transport, export};
pub use import::{ImportOptions, Imported, import};

/// Receives the progress of a deployment, an export or an import, from any thread, and can cancel
/// it.
pub trait Progress: Sync {
    /// The total number of sealed bytes.
    fn begin(&self, total_bytes: u64);
    /// That many further sealed bytes are done.
    fn advance(&self, bytes: u64);
    /// True if the operation is to be cancelled.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Ignores progress.
#[derive(Clone, Copy, Debug)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// Fails once the operation is cancelled.
fn check_cancelled(progress: &dyn Progress) -> Result<(), ImageError> {
    if progress.cancelled() {
        return Err(ImageError::Cancelled);
    }
    Ok(())
}

/// Errors of deploying, exporting and importing images.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The new volume cannot be created.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Metadata cannot be read or written.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A stream cannot be written, read or trusted.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The metadata of a stream is not what was exported.
    #[error("the export is damaged: {0}")]
    Transported(#[source] MetaError),
    /// The metadata of an image contradicts itself.
    #[error(
        "the image is refused, because its metadata contradicts itself: {first}{}",
        and_others(*others)
    )]
    Inconsistent {
        /// The first contradiction.
        first: String,
        /// Number of further ones.
        others: u64,
    },
    /// A page of an object does not open, or cannot be read or written.
    #[error("object {} of folder {:08x}: {source}", .object.object, .object.folder.0)]
    Page {
        /// The object.
        object: ObjectName,
        /// The cause.
        source: SealedError,
    },
    /// An object is sealed under a key set that is not available.
    #[error(
        "object {} of folder {:08x} is sealed under a key set that is not available",
        .object.object,
        .object.folder.0
    )]
    NoKeySet {
        /// The object.
        object: ObjectName,
    },
    /// An object that the image names does not exist.
    #[error(
        "object {} of the image is missing from folder {:08x}",
        .object.object,
        .object.folder.0
    )]
    MissingObject {
        /// The object.
        object: ObjectName,
    },
    /// An object cannot be linked or copied.
    #[error(
        "cannot take over object {} of folder {:08x}: {source}",
        .object.object,
        .object.folder.0
    )]
    Object {
        /// The object.
        object: ObjectName,
        /// Error of the operating system.
        source: io::Error,
    },
    /// An object of the new volume cannot be created or written.
    #[error(
        "cannot write object {} of folder {:08x} of the new volume: {source}",
        .object.object, .object.folder.0
    )]
    NewObject {
        /// The object.
        object: ObjectName,
        /// The cause.
        source: SealedError,
    },
    /// The operation was cancelled.
    #[error("it was cancelled")]
    Cancelled,
    /// The image does not fit into the requested size.
    #[error("the image holds {needed_bytes} bytes of contents, more than the size of {size_bytes}")]
    TooSmall {
        /// Size of the image's contents.
        needed_bytes: u64,
        /// The requested size.
        size_bytes: u64,
    },
    /// The backing store failed.
    #[error("{doing}: {source}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// Error of the operating system.
        source: io::Error,
    },
}

fn and_others(others: u64) -> String {
    match others {
        0 => String::new(),
        others => format!(" (and {others} more)"),
    }
}

impl From<SealedError> for ImageError {
    fn from(error: SealedError) -> Self {
        Self::Meta(error.into())
    }
}

impl ImageError {
    /// Returns a closure that adds the failed operation to an I/O error.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// Converts the error of opening an object.
    fn from_object_error(object: ObjectName, error: ObjectError) -> Self {
        match error {
            ObjectError::Meta(error) => Self::Meta(error),
            ObjectError::Missing { .. } => Self::MissingObject { object },
            ObjectError::NoKeySet { .. } => Self::NoKeySet { object },
            ObjectError::Page { source, .. } => Self::Page { object, source },
            ObjectError::Io(source) => Self::Object { object, source },
            ObjectError::Full | ObjectError::TooLarge | ObjectError::Removed => {
                Self::Meta(MetaError::Corrupt("extent"))
            }
        }
    }

    /// Converts an error of reading a stream's metadata. The stream is at fault, unless the
    /// operating system failed; only then does the error have a number.
    fn from_stream_metadata_error(error: MetaError) -> Self {
        let has_number = |error: &io::Error| error.raw_os_error().is_some();
        let is_of_system = match &error {
            MetaError::Io(error) | MetaError::Sealed(SealedError::Io(error)) => has_number(error),
            MetaError::Database(error) => {
                matches!(error.as_ref(), redb::Error::Io(error) if has_number(error))
            }
            MetaError::ReadOnly | MetaError::Latched(_) => true,
            MetaError::Sealed(_)
            | MetaError::Panic(_)
            | MetaError::Corrupt(_)
            | MetaError::UsedUp(_) => false,
        };
        if is_of_system {
            Self::Meta(error)
        } else {
            Self::Transported(error)
        }
    }

    /// Refuses metadata that contradicts itself, as that of a hostile or damaged image does.
    fn check_consistent(compared: Result<Report, CheckError>) -> Result<(), Self> {
        let report = compared.map_err(|error| match error {
            CheckError::Meta(error) => Self::Meta(error),
            CheckError::Io(source) => Self::io("cannot compare the metadata")(source),
            _ => Self::Meta(MetaError::Corrupt("comparison")),
        })?;
        if report.is_clean() {
            return Ok(());
        }
        let mut faults = report.faults();
        Err(Self::Inconsistent {
            first: faults.next().map_or_else(String::new, Finding::summary),
            others: faults.count() as u64 + report.omitted_faults,
        })
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Volume(error) => error.kind(),
            Self::Stream(error) => error.kind(),
            Self::Page {
                source: SealedError::Io(error),
                ..
            }
            | Self::NewObject {
                source: SealedError::Io(error),
                ..
            } => kind_of_io(error),
            Self::NewObject { .. } | Self::Cancelled => ErrorKind::Io,
            Self::Transported(_) | Self::Inconsistent { .. } | Self::Page { .. } => {
                ErrorKind::Tampered
            }
            Self::Meta(error) if error.errno().is_full() => ErrorKind::NoSpace,
            Self::Meta(_) | Self::MissingObject { .. } | Self::NoKeySet { .. } => ErrorKind::Io,
            Self::Object { source, .. } | Self::Io { source, .. } => kind_of_io(source),
            Self::TooSmall { .. } => ErrorKind::Usage,
        }
    }

    /// What the user can do next, if anything.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Volume(error) => return error.hint(),
            Self::Stream(error) => return error.hint(),
            Self::Transported(_) => "fetch it again, or export the image again",
            Self::Inconsistent { .. } => {
                "run bilayer check on the volume that it is an image of, and export it again; if \
                 that volume is not yours, do not trust the image"
            }
            Self::TooSmall { .. } => "choose a larger size: --size",
            Self::MissingObject { .. } => {
                "it was removed from the volume's directory; restore it from a backup"
            }
            _ if self.kind() == ErrorKind::NoSpace => "make space on the backing filesystem",
            Self::Meta(_) | Self::Page { .. } | Self::NoKeySet { .. } => {
                "see what else is damaged: bilayer check VOLUME"
            }
            Self::Cancelled => "everything that was created is removed; start again",
            Self::Object { .. } | Self::NewObject { .. } | Self::Io { .. } => {
                usual_hint(ErrorKind::Io)
            }
        };
        Some(text.to_owned())
    }

    /// The error number that the caller of the filesystem receives.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Volume(_) | Self::Stream(_) => match self.kind() {
                ErrorKind::Usage => Errno::EINVAL,
                ErrorKind::InUse => Errno::EBUSY,
                ErrorKind::NoSpace => Errno::ENOSPC,
                _ => Errno::EIO,
            },
            Self::Meta(error) => error.errno(),
            Self::Page { source, .. } | Self::NewObject { source, .. } => source.errno(),
            Self::Cancelled => Errno::EINTR,
            Self::MissingObject { .. }
            | Self::Transported(_)
            | Self::Inconsistent { .. }
            | Self::NoKeySet { .. } => Errno::EIO,
            Self::Object { source, .. } | Self::Io { source, .. } => Errno::from_backing(source),
            Self::TooSmall { .. } => Errno::EINVAL,
        }
    }
}
