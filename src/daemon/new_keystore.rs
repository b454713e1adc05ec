//! The notice about a platform keystore that a command makes on its way to a volume.

use std::path::{Path, PathBuf};

use crate::diagnostics::notice;
use crate::keys::keystore::IDENTITY;

/// Notices whether a platform keystore is made.
#[derive(Debug)]
pub(crate) struct NewKeystore {
    directory: PathBuf,
    existed: bool,
}

impl NewKeystore {
    /// Looks at the directory before the command uses it.
    pub(crate) fn watch(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            existed: exists(directory),
        }
    }

    /// Says on standard error where the keystore is that was made meanwhile, and how to back it
    /// up.
    pub(crate) fn announce(self) {
        if !self.existed && exists(&self.directory) {
            notice(format_args!(
                "the platform keystore was made in {}; without it no volume can be opened: back \
                 it up: bilayer keystore backup FILE",
                self.directory.display()
            ));
        }
    }
}

fn exists(directory: &Path) -> bool {
    directory.join(IDENTITY).symlink_metadata().is_ok()
}
