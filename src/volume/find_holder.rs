//! Finds the directory of a volume that another process has open for writing. The result is only
//! shown to people.

use std::path::PathBuf;

use super::HEADER_NAME;
use super::copy_status::PATIENCE;
use super::error::VolumeError;
use super::holder::HolderDirectory;
use super::superblock::inspect;
use crate::ids::VolumeId;
use crate::store::DirectoryIdentity;
use crate::store::directory::DirectoryStore;
use crate::sys::probe;

/// Looks for the directory of the volume `id`. `opened_as` is the path that the holder recorded,
/// `own` the directory that was to be opened.
pub(super) fn find_holder(
    opened_as: PathBuf,
    id: VolumeId,
    own: &DirectoryIdentity,
) -> HolderDirectory {
    // The filesystem there may not respond, and is not worth waiting for.
    if !probe::responds(&opened_as, HEADER_NAME, PATIENCE) {
        return HolderDirectory {
            is_there: false,
            opened_as,
        };
    }
    let is_own = || DirectoryIdentity::at(&opened_as).is_ok_and(|found| found.is_same_now(own));
    let claimed = DirectoryStore::open(&opened_as)
        .ok()
        .and_then(|store| inspect(&store).ok());
    let has_id = claimed.is_some_and(|header| header.claims().volume_id() == id);
    HolderDirectory {
        is_there: has_id && !is_own(),
        opened_as,
    }
}

/// The error for a volume that another process has open for writing.
pub(super) fn writer_elsewhere(
    by: Option<PathBuf>,
    id: VolumeId,
    own: &DirectoryIdentity,
) -> VolumeError {
    let by = by.map(|path| find_holder(path, id, own));
    VolumeError::WriterElsewhere { by }
}
