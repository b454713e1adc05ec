//! Images: kept views that new volumes are made from.
//!
//! A volume made from an image inherits what the image is sealed under: key mode, customer key and
//! the key sets of both layers, which become read-only in it. Inherited bytes are shared or copied
//! as they are, sealed; no plaintext of contents is made on the way.

mod deploy;

use std::io;

use crate::errno::Errno;
use crate::keys::ErrorKind;
use crate::keys::error::kind_of_io;
use crate::meta::MetaError;
use crate::meta::records::ObjectName;
use crate::sealed::SealedError;
use crate::volume::VolumeError;

pub use deploy::{DeployOptions, Deployed, Source, deploy};

/// What can go wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The new volume cannot be made.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Metadata cannot be read or written.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// An object that the image names is not there.
    #[error("object {} of the image is missing from folder {:08x}", .object.object, .object.folder.0)]
    MissingObject {
        /// The object.
        object: ObjectName,
    },
    /// An object cannot be linked or copied.
    #[error("cannot take over object {} of folder {:08x}: {source}", .object.object, .object.folder.0)]
    Object {
        /// The object.
        object: ObjectName,
        /// What the operating system says.
        source: io::Error,
    },
    /// The image does not fit the size that was asked for.
    #[error("the image holds {needed_bytes} bytes of contents, more than the size of {size_bytes}")]
    TooSmall {
        /// Contents of the image.
        needed_bytes: u64,
        /// Asked for.
        size_bytes: u64,
    },
    /// The backing store failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done to what.
        doing: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
}

impl From<SealedError> for ImageError {
    fn from(error: SealedError) -> Self {
        Self::Meta(error.into())
    }
}

impl ImageError {
    /// A closure that says what was being done.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// What sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Volume(error) => error.kind(),
            Self::Meta(error) if error.errno() == Errno::ENOSPC => ErrorKind::NoSpace,
            Self::Meta(_) | Self::MissingObject { .. } => ErrorKind::Io,
            Self::Object { source, .. } | Self::Io { source, .. } => kind_of_io(source),
            Self::TooSmall { .. } => ErrorKind::Usage,
        }
    }

    /// What to do next, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Volume(error) => return error.hint(),
            Self::TooSmall { .. } => "ask for a larger size: --size",
            Self::MissingObject { .. } => {
                "somebody removed it from the volume's directory; restore it from a backup"
            }
            _ if self.kind() == ErrorKind::NoSpace => "make room on the backing filesystem",
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// What the caller of the filesystem is told.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Volume(error) => match error.kind() {
                ErrorKind::Usage => Errno::EINVAL,
                ErrorKind::InUse => Errno::EBUSY,
                ErrorKind::NoSpace => Errno::ENOSPC,
                _ => Errno::EIO,
            },
            Self::Meta(error) => error.errno(),
            Self::MissingObject { .. } => Errno::EIO,
            Self::Object { source, .. } | Self::Io { source, .. } => Errno::from_backing(source),
            Self::TooSmall { .. } => Errno::EINVAL,
        }
    }
}
