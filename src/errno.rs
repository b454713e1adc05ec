//! The only table of error numbers, which are reported to callers of the filesystem.
//!
//! Source: POSIX.1-2017 `<errno.h>`; Linux for the others. No other module names a `libc::E*`.

use std::fmt;
use std::io;

/// An error number as the kernel knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(
                #[allow(missing_docs, reason = "POSIX names them")]
                pub const $name: Self = Self(libc::$name);
            )*
        }
        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $(libc::$name => f.write_str(stringify!($name)),)*
                    other => write!(f, "errno {other}"),
                }
            }
        }
    };
}

errnos!(
    E2BIG,
    EACCES,
    EBADF,
    EBUSY,
    EEXIST,
    EFBIG,
    EINTR,
    EINVAL,
    EIO,
    EISDIR,
    EKEYREVOKED,
    EMLINK,
    EMFILE,
    ENAMETOOLONG,
    ENFILE,
    ENODATA,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENOTDIR,
    ENOTEMPTY,
    ENOTSUP,
    ENOTTY,
    ENXIO,
    EOVERFLOW,
    EPERM,
    ERANGE,
    EROFS,
    ESTALE,
    ETXTBSY,
    EXDEV,
    EDQUOT,
    ELOOP,
);

impl Errno {
    /// The kernel's number.
    pub const fn code(self) -> i32 {
        self.0
    }

    /// True if space is exhausted, on the disk or in a quota.
    pub fn is_full(self) -> bool {
        self == Self::ENOSPC || self == Self::EDQUOT
    }

    /// The error number for a failed call on the backing store. A full disk and a read-only one are
    /// passed on. Everything else is an I/O error, since numbers such as ENOENT would refer to the
    /// backing directory and not to the caller's file.
    pub fn from_backing(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC) => Self::ENOSPC,
            Some(libc::EDQUOT) => Self::EDQUOT,
            Some(libc::EROFS) => Self::EROFS,
            Some(libc::ENOMEM) => Self::ENOMEM,
            _ if error.kind() == io::ErrorKind::StorageFull => Self::ENOSPC,
            _ if error.kind() == io::ErrorKind::QuotaExceeded => Self::EDQUOT,
            _ => Self::EIO,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}
