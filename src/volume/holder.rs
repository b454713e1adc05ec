//! The directory of a volume that another process has open for writing, as shown to people.

use std::fmt;
use std::path::PathBuf;

/// The directory of a volume that another process has open for writing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderDirectory {
    /// The path by which the holder opened it.
    pub(super) opened_as: PathBuf,
    /// A volume with that id is there now, and it is not the one that was to be opened.
    pub(super) is_there: bool,
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
