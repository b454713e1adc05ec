//! Errors of operations on views, and the words for views in messages.

use crate::errno::Errno;
use crate::fs::{FsError, NAME_BYTES_MAX};
use crate::image::ImageError;
use crate::meta::MetaError;
use crate::meta::records::ViewKind;
use crate::object::ObjectError;

/// Errors of operations on views.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There is no view of that name.
    #[error("there is no {} {name:?}", .kind.noun())]
    NotFound {
        /// Kind of the view.
        kind: ViewKind,
        /// Its name.
        name: String,
    },
    /// There is a view of that name already.
    #[error("there is {} {name:?} already", .kind.with_article())]
    Exists {
        /// Kind of the view.
        kind: ViewKind,
        /// Its name.
        name: String,
    },
    /// The name is not allowed.
    #[error("{name:?} is no name for a snapshot or image: {why}")]
    BadName {
        /// The name.
        name: String,
        /// Why it is not allowed.
        why: &'static str,
    },
    /// A file or directory in it is open.
    #[error("the {} {name:?} is in use: something in it is open", .kind.noun())]
    Busy {
        /// Kind of the view.
        kind: ViewKind,
        /// Its name.
        name: String,
    },
    /// The volume has the maximum number of views.
    #[error("the volume has as many snapshots and images as it can have")]
    TooMany,
    /// The volume is read-only.
    #[error("the volume is read-only")]
    ReadOnly(ReadOnlyBecause),
    /// The path does not exist in the view.
    #[error("there is no {path:?} in the {} {name:?}", .kind.noun())]
    NoSuchPath {
        /// Kind of the view.
        kind: ViewKind,
        /// Its name.
        name: String,
        /// The path.
        path: String,
    },
    /// The directory to restore into does not exist.
    #[error("there is no directory {path:?} now to restore into")]
    NoDirectory {
        /// The directory.
        path: String,
    },
    /// An image cannot be deployed, exported or imported.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The filesystem failed.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// Why a volume is read-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadOnlyBecause {
    /// It is a copy of a volume, or may be one.
    Copy,
    /// It was opened read-only.
    Opened,
    /// It was opened for writing and remounted read-only.
    Remounted,
    /// Writing has failed before.
    Failed,
    /// The kernel reports it without a reason.
    Unknown,
}

impl ViewKind {
    /// The word for it in messages.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        }
    }

    const fn with_article(self) -> &'static str {
        match self {
            Self::Snapshot => "a snapshot",
            Self::Image => "an image",
        }
    }
}

impl ViewError {
    /// The error number that a caller of the filesystem receives.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound { .. } | Self::NoSuchPath { .. } | Self::NoDirectory { .. } => {
                Errno::ENOENT
            }
            Self::Exists { .. } => Errno::EEXIST,
            Self::BadName { name, .. } if name.len() > NAME_BYTES_MAX => Errno::ENAMETOOLONG,
            Self::BadName { .. } => Errno::EINVAL,
            Self::Busy { .. } => Errno::EBUSY,
            Self::TooMany => Errno::EMLINK,
            Self::ReadOnly(_) => Errno::EROFS,
            Self::Image(error) => error.errno(),
            Self::Fs(error) => error.errno(),
        }
    }
}

macro_rules! from_fs_error {
    ($($error:ty),*) => {
        $(impl From<$error> for ViewError {
            fn from(error: $error) -> Self {
                Self::Fs(error.into())
            }
        })*
    };
}
from_fs_error!(MetaError, ObjectError);

impl From<Errno> for ViewError {
    fn from(errno: Errno) -> Self {
        Self::Fs(errno.into())
    }
}

/// The error of an operation on views after a shutdown.
pub(in crate::fs) fn shut_down_error() -> ViewError {
    ViewError::Fs(FsError::Meta(MetaError::Latched("shut down".to_owned())))
}
