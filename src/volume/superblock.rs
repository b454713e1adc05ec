//! Reading and atomically replacing files of a volume's directory.
//!
//! Order of writes: the new bytes go to a file with the suffix `.new`, which is synced and renamed
//! over the old one; then the directory is synced. An existing `.new` file is left over from an
//! interrupted write and is worthless.

use std::io;

use super::error::VolumeError;
use super::header::{MAX_HEADER_BYTES, UnverifiedHeader};
use super::{HEADER_NAME, header_path};
use crate::ids::VolumeId;
use crate::store::{EntryInfo, OpenMode, Store, StorePath};

/// Temporary name of a copied object, with the suffix `.new`, before it replaces the object.
pub(super) const OBJECT_NAME: &str = "object";

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Reads a volume's superblock without any key.
///
/// # Errors
/// `NotAVolume` if there is no superblock, and every reason for which one can be refused.
pub fn inspect(store: &dyn Store) -> Result<UnverifiedHeader, VolumeError> {
    let file = store
        .open(&header_path(), OpenMode::Read)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VolumeError::NotAVolume,
            _ => VolumeError::io("cannot open volume.json")(error),
        })?;
    let mut bytes = vec![0; MAX_HEADER_BYTES + 1];
    let len = file
        .read_at(&mut bytes, 0)
        .map_err(VolumeError::io("cannot read volume.json"))?;
    UnverifiedHeader::parse(&bytes[..len])
}

/// The volume id that the unverified superblock of a refused volume claims, for messages.
pub fn claimed_id(store: &dyn Store) -> Option<VolumeId> {
    let unverified = inspect(store).ok()?;
    Some(unverified.claims().volume_id())
}

/// Replaces `volume.json`; atomic, and durable on return.
pub(super) fn replace_header(store: &dyn Store, bytes: &[u8]) -> Result<(), VolumeError> {
    let write = || {
        let aside = discard_aside(store, HEADER_NAME)?;
        let file = store.open(&aside, OpenMode::CreateNew)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        store.rename(&aside, &header_path())?;
        store.sync_dir(&StorePath::root())
    };
    write().map_err(VolumeError::io("cannot write volume.json"))
}

/// Replaces the file by a private copy if other names share it (a copy of the volume made with `cp
/// -al`). Returns true if it did.
pub(super) fn unshare(store: &dyn Store, name: &str) -> io::Result<bool> {
    let path = StorePath::new(name);
    match store.info(&path) {
        Ok(info) if info.links > 1 && is_hollow(&info) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "nearly all holes: not a file of this program's",
            ));
        }
        Ok(info) if info.links > 1 => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let aside = discard_aside(store, name)?;
    let from = store.open(&path, OpenMode::Read)?;
    let to = store.open(&aside, OpenMode::CreateNew)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let count = from.read_at(&mut buffer, offset)?;
        if count == 0 {
            break;
        }
        to.write_at(&buffer[..count], offset)?;
        offset += count as u64;
    }
    to.sync()?;
    store.rename(&aside, &path)?;
    store.sync_dir(&StorePath::root())?;
    Ok(true)
}

/// True for a file that consists almost entirely of holes, which this program never writes. Copying
/// it would fill the disk before any key could show that it is worthless.
fn is_hollow(info: &EntryInfo) -> bool {
    const ANY: u64 = 1 << 30;
    info.len_bytes > info.allocated_bytes.saturating_mul(8).saturating_add(ANY)
}

/// Removes what a crash may have left under the temporary name of `name`, and returns that name.
pub(super) fn discard_aside(store: &dyn Store, name: &str) -> io::Result<StorePath> {
    let aside = StorePath::new(&format!("{name}.new"));
    match store.unlink(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(aside),
    }
}
