//! Finds the directory of a volume that another process has open for writing. The result is only
//! shown to people.

use std::fmt;
use std::path::PathBuf;

use super::HEADER_NAME;
use super::copy_status::PATIENCE;
use super::error::VolumeError;
use super::superblock::inspect;
use crate::ids::VolumeId;
use crate::store::DirectoryIdentity;
use crate::store::directory::DirectoryStore;
use crate::sys::probe;

/// The directory of a volume that another process has open for writing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderDirectory {
    /// The path by which the holder opened it.
    opened_as: PathBuf,
    /// A volume with that id is there now, and it is not the one that was to be opened.
    is_there: bool,
}

impl HolderDirectory {
    /// `opened_as` is the path that the holder recorded, `own` the directory that was to be opened.
    pub(super) fn of(opened_as: PathBuf, id: VolumeId, own: &DirectoryIdentity) -> Self {
        // The filesystem there may not respond, and is not worth waiting for.
        if !probe::responds(&opened_as, HEADER_NAME, PATIENCE) {
            return Self {
                is_there: false,
                opened_as,
            };
        }
        let is_own = || DirectoryIdentity::at(&opened_as).is_ok_and(|found| found.is_same_now(own));
        let claimed = DirectoryStore::open(&opened_as)
            .ok()
            .and_then(|store| inspect(&store).ok());
        let has_id = claimed.is_some_and(|header| header.claims().volume_id() == id);
        Self {
            is_there: has_id && !is_own(),
            opened_as,
        }
    }
}

impl fmt::Display for HolderDirectory {
    /// Shows ` in /srv/volume`, or says that the path was valid when the volume was opened.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.opened_as.display();
        match self.is_there {
            true => write!(f, " in {path}"),
            false => write!(f, " in a directory that was {path} when it was opened"),
        }
    }
}

/// The error for a volume that another process has open for writing.
pub(super) fn writer_elsewhere(
    by: Option<PathBuf>,
    id: VolumeId,
    own: &DirectoryIdentity,
) -> VolumeError {
    let by = by.map(|path| HolderDirectory::of(path, id, own));
    VolumeError::WriterElsewhere { by }
}
