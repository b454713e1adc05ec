//! Checking a filesystem that is in use. The check reads its newest commit while the filesystem
//! stays in use.

use std::sync::Arc;

use super::Filesystem;
use crate::check::{self, CheckError, CheckOptions, CheckProgress, Live, Report, Subject};
use crate::ids::{ChunkIndex, FolderNumber, Ino};
use crate::meta::MetaError;
use crate::meta::page_set::PageSet;
use crate::meta::records::PartId;
use crate::meta::stored::Stored;
use crate::object::{Fault, ObjectError, Objects};
use crate::store::Store;
use crate::store::read_only::ReadOnlyStore;

/// Memory for names, and for objects, while the filesystem is in use.
const MEMORY_BYTES: usize = 16 << 20;

struct InUse<'a>(&'a Filesystem);

impl Live for InUse<'_> {
    fn first_folder(&self) -> FolderNumber {
        self.0.contents.objects().first_folder()
    }

    fn stored(&self) -> Result<Stored, MetaError> {
        self.0.meta.stored()
    }

    fn verify_again(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
        id: PartId,
        pages: &PageSet,
    ) -> Result<Vec<Fault>, ObjectError> {
        let _no_trimming = self.0.trimming.read();
        self.0.contents.verify_again(ino, chunk, id, pages)
    }
}

impl Filesystem {
    /// Checks everything that is on the disk.
    ///
    /// # Errors
    /// The check was cancelled, or the backing store failed. Damage is not an error.
    pub fn check(
        &self,
        options: &CheckOptions,
        progress: &dyn CheckProgress,
    ) -> Result<Report, CheckError> {
        // Little memory, since it belongs to the users of the mount. What does not fit is read more
        // than once.
        let options = &CheckOptions {
            memory_bytes: options.memory_bytes.min(MEMORY_BYTES),
            ..*options
        };
        progress.begin(check::Stage::Metadata, None);
        if let Err(error) = self.sync() {
            // What is on the disk can be checked nevertheless.
            tracing::warn!(%error, "not everything could be made durable before checking");
        }
        let report = Report {
            bytes: self.meta.file().len()?,
            ..Report::default()
        };
        let store: Arc<dyn Store> = Arc::new(ReadOnlyStore::over(Arc::clone(&self.volume.store)));
        let subject = Subject {
            objects: Objects::new(store, Arc::clone(&self.volume.keys), 1),
            has_objects: true,
            live: Some(&InUse(self)),
        };
        let stored = Arc::new(self.meta.stored()?);
        Ok(check::run(stored, &subject, options, progress, report)?.report)
    }
}
