//! The lock of a volume's identity: only one process writes to a volume, however many copies exist.
//!
//! `volumes/VOLUME-ID.lock`, mode 0600, is locked (`flock(2)`) while the volume is open for
//! writing, in addition to the lock in the volume's directory, of which every copy has its own. The
//! file contains the path of the directory that holds the lock, for people to read; nothing depends
//! on it. It remains when the lock is released.
//!
//! It is open for reading only, so that it does not prevent the keystore's filesystem from being
//! remounted read-only.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::files::{self, VOLUMES};
use crate::ids::VolumeId;
use crate::keys::error::{KeyError, while_writing};
use crate::sys::files::{self as sys, Access};

/// Limit on the bytes read of the holder's path.
const HOLDER_BYTES_MAX: u64 = 8192;

/// The right to write to a volume. It ends when this is dropped, or when the process ends.
#[derive(Debug)]
pub struct WriterLock {
    #[expect(dead_code, reason = "held, never read")]
    file: File,
}

/// The outcome of requesting the lock.
#[derive(Debug)]
pub enum WriterLocked {
    /// The caller holds the lock.
    Own(WriterLock),
    /// Another process holds it, for the volume in this directory if it recorded one.
    Held(Option<PathBuf>),
}

/// Requests the lock for the volume in `directory` without waiting.
pub(super) fn lock(
    keystore: &Path,
    volume: VolumeId,
    directory: &Path,
) -> Result<WriterLocked, KeyError> {
    let folder = keystore.join(VOLUMES);
    files::make_directory(&folder)?;
    let name = name_of(volume);
    let taken = || -> io::Result<WriterLocked> {
        let file = open_or_make(&folder, &name, Access::Read)?;
        let (file, locked) = match file.try_lock() {
            // NFS turns an exclusive lock into a write lock.
            Err(TryLockError::Error(_)) => {
                let file = open_or_make(&folder, &name, Access::ReadWrite)?;
                let locked = file.try_lock();
                (file, locked)
            }
            locked => (file, locked),
        };
        match locked {
            Ok(()) => {
                write_holder(&folder, &name, directory);
                Ok(WriterLocked::Own(WriterLock { file }))
            }
            Err(TryLockError::WouldBlock) => Ok(WriterLocked::Held(holder(file))),
            Err(TryLockError::Error(error)) => Err(error),
        }
    };
    taken().map_err(while_writing("cannot lock", &folder.join(&name)))
}

/// The name of the lock's file.
pub(super) fn name_of(volume: VolumeId) -> String {
    format!("{volume}.lock")
}

/// No link is followed, and a pipe does not block.
fn open_or_make(folder: &Path, name: &str, access: Access) -> io::Result<File> {
    let folder = sys::open_directory(folder)?;
    let file = loop {
        match sys::open_file_at(&folder, name, access) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => break opened?,
        }
        match sys::open_file_at(&folder, name, Access::CreateNew) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            // Opened again with the requested access, whoever created it.
            _ => {}
        }
    };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no plain file",
        )),
    }
}

/// Records the path for people; a failure to write it is harmless.
fn write_holder(folder: &Path, name: &str, directory: &Path) {
    let write = || {
        let mut file = open_or_make(folder, name, Access::ReadWrite)?;
        file.set_len(0)?;
        file.write_all(directory.as_os_str().as_bytes())
    };
    if let Err(error) = write() {
        tracing::debug!(%error, "the lock does not name the volume's directory");
    }
}

fn holder(file: File) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    file.take(HOLDER_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
    path.is_absolute().then_some(path)
}
