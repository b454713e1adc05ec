//! The directory that is a volume, as stored in its record.
//!
//! ```text
//! "directory": {"path": HEX, "inode": N, "filesystem": TEXT | null, "inside": HEX | null}
//! "former": {"directory": {…}, "written": SECONDS | null}
//! ```
//! `path` is the absolute path without symbolic links and `inside` the path within its filesystem,
//! both as bytes in hexadecimal digits. `filesystem` comes from [`crate::store::DirectoryIdentity`]
//! and identifies the directory together with `inode`, whatever is mounted where.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::keys::encoding::hex_bytes;
use crate::store::DirectoryIdentity;

/// Length limits of a path (`PATH_MAX` is 4096) and of a filesystem's identity, in bytes.
const PATH_BYTES_MAX: usize = 8192;
const FILESYSTEM_BYTES_MAX: usize = 1024;

/// The directory that contained a volume when it was last open for writing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RememberedDirectory {
    /// Absolute path without symbolic links.
    pub path: PathBuf,
    /// Its inode number.
    pub inode: u64,
    /// Identity of its filesystem, if there is one.
    pub filesystem: Option<String>,
    /// Its path within that filesystem, if known.
    pub inside: Option<PathBuf>,
}

/// The directory in which a volume was opened, if it was moved while the volume was open. Somebody
/// other than the user may have moved it, so it is remembered until the volume is opened elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormerDirectory {
    /// The directory.
    pub directory: RememberedDirectory,
    /// When the volume was last written there, if known: seconds since 1970.
    pub written: Option<i64>,
}

impl RememberedDirectory {
    /// True if this is that location: the same path, or the same path within the same filesystem,
    /// wherever that is mounted now. Inode numbers are reused, so they do not identify a directory
    /// that may have been replaced.
    pub fn names(&self, place: &DirectoryIdentity) -> bool {
        let same_part = self.filesystem.is_some()
            && self.filesystem == place.filesystem
            && self.inside.is_some()
            && self.inside == place.inside;
        same_part || self.path == place.path
    }
}

impl From<&DirectoryIdentity> for RememberedDirectory {
    fn from(place: &DirectoryIdentity) -> Self {
        Self {
            path: place.path.clone(),
            inode: place.inode,
            filesystem: place.filesystem.clone(),
            inside: place.inside.clone(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct PathDigits(#[serde(with = "hex_bytes")] Vec<u8>);

/// The directory as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectoryFile {
    path: PathDigits,
    inode: u64,
    filesystem: Option<String>,
    inside: Option<PathDigits>,
}

impl From<&RememberedDirectory> for DirectoryFile {
    fn from(directory: &RememberedDirectory) -> Self {
        let digits = |path: &PathBuf| PathDigits(path.as_os_str().as_bytes().to_vec());
        Self {
            path: digits(&directory.path),
            inode: directory.inode,
            filesystem: directory.filesystem.clone(),
            inside: directory.inside.as_ref().map(digits),
        }
    }
}

impl DirectoryFile {
    /// Returns `None` for values that are never written.
    pub(super) fn read(self) -> Option<RememberedDirectory> {
        let filesystem_ok = |text: &String| {
            (1..=FILESYSTEM_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
        };
        if !self.filesystem.as_ref().is_none_or(filesystem_ok) {
            return None;
        }
        let inside = match self.inside {
            Some(digits) => Some(absolute(digits)?),
            None => None,
        };
        Some(RememberedDirectory {
            path: absolute(self.path)?,
            inode: self.inode,
            filesystem: self.filesystem,
            inside,
        })
    }
}

/// A former directory as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FormerFile {
    directory: DirectoryFile,
    written: Option<i64>,
}

impl From<&FormerDirectory> for FormerFile {
    fn from(former: &FormerDirectory) -> Self {
        Self {
            directory: DirectoryFile::from(&former.directory),
            written: former.written,
        }
    }
}

impl FormerFile {
    /// Returns `None` for values that are never written.
    pub(super) fn read(self) -> Option<FormerDirectory> {
        Some(FormerDirectory {
            directory: self.directory.read()?,
            written: self.written,
        })
    }
}

/// A path as it is written in a record.
pub(super) fn digits_of(path: &Path) -> String {
    hex::encode(path.as_os_str().as_bytes())
}

fn absolute(digits: PathDigits) -> Option<PathBuf> {
    let bytes = digits.0;
    let fits = bytes.len() <= PATH_BYTES_MAX && bytes.first() == Some(&b'/');
    (fits && !bytes.contains(&0)).then(|| PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}
