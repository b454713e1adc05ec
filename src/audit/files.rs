//! The names of a log's files.
//!
//! Rotated files are in the directory of the log, under its name and `.` or `-` and digits:
//! `audit.log.1`, `audit.log-20270101`. Their order is that of their records.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The file that writers lock.
pub(super) fn lock_path(log: &Path) -> PathBuf {
    let mut path = log.as_os_str().to_owned();
    path.push(".lock");
    PathBuf::from(path)
}

/// True if this is the name of a rotated file of the log.
pub(super) fn is_rotated(log: &OsStr, name: &OsStr) -> bool {
    let Some(suffix) = name.as_bytes().strip_prefix(log.as_bytes()) else {
        return false;
    };
    let Some((b'.' | b'-', digits)) = suffix.split_first() else {
        return false;
    };
    digits.first().is_some_and(u8::is_ascii_digit)
        && digits
            .iter()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rotated_files() {
        let is = |name: &str| is_rotated(OsStr::new("audit.log"), OsStr::new(name));
        for name in [
            "audit.log.1",
            "audit.log.40312",
            "audit.log-20270101",
            "audit.log-2027-01-01",
        ] {
            assert!(is(name), "{name}");
        }
        for name in [
            "audit.log",
            "audit.log.lock",
            "audit.log.2.gz",
            "audit.log.",
            "audit.log.x",
            "other.1",
            "audit.log1",
        ] {
            assert!(!is(name), "{name}");
        }
    }
}
