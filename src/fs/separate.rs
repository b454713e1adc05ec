//! Giving a copy of a volume an identity of its own, before it is opened as a filesystem.

use std::sync::Arc;

use super::{Filesystem, FsError};
use crate::ids::Sequence;
use crate::meta::Meta;
use crate::sealed::MetaFile;
use crate::store::read_only::ScratchFile;
use crate::store::{OpenMode, StoreFile, StorePath};
use crate::volume::{META_NAME, Volume};

impl Filesystem {
    /// Gives a copy of a volume an identity of its own: see [`Volume::assign_new_identity`]. The
    /// metadata is accepted, however old the copy is.
    ///
    /// # Errors
    /// The metadata cannot be read or rewritten.
    pub fn separate(volume: Volume, meta_cache_bytes: usize) -> Result<Volume, FsError> {
        let file = volume
            .store
            .open(&StorePath::new(META_NAME), OpenMode::Read)?;
        // Writes of the database when it opens stay in memory: an attempt that fails changes
        // nothing.
        let file: Arc<dyn StoreFile> = Arc::new(ScratchFile::over(file)?);
        let file = MetaFile::open(file, volume.keys.active(), volume.header().meta_crypto())?;
        let meta = Meta::open(file, meta_cache_bytes)?;
        let first = Sequence(meta.sequence().0.saturating_add(1));
        let separated =
            volume.assign_new_identity(first, &mut |file| Ok(meta.copy_committed(file)?))?;
        meta.close()?;
        Ok(separated)
    }
}
