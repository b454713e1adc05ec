//! Deploying and exporting images.
//!
//! Until the operation ends, the image is held, so that it cannot be deleted, and no pages are
//! trimmed: the objects that its records name must exist when they are linked, copied or read.

use std::io::Write;
use std::sync::Arc;

use super::error::ViewError;
use crate::audit::Record;
use crate::fs::Filesystem;
use crate::image::{
    DeployOptions, Deployed, ExportOptions, Exported, Progress, Source, deploy, export,
};
use crate::meta::View;
use crate::meta::records::{ViewKind, ViewRecord};
use crate::sealed::PAGE_BYTES;
use crate::store::Store;

impl Filesystem {
    /// Creates a volume from an image, in an empty directory; see [`crate::image`]. It is durable
    /// on return.
    ///
    /// # Errors
    /// There is no such image, the volume is read-only, or the new volume cannot be created.
    pub fn deploy_image(
        &self,
        name: &str,
        target: Arc<dyn Store>,
        options: &DeployOptions,
        progress: &dyn Progress,
    ) -> Result<Deployed, ViewError> {
        let audit = |error: &ViewError| self.refused_deployment(name).refused(error);
        let held = self.hold_view(ViewKind::Image, name);
        let image = held.inspect_err(audit)?;
        let _no_trimming = self.trimming.read();
        self.freeze(&image.record).inspect_err(audit)?;
        // Reserved pages count too, so the progress may end a little earlier.
        let bytes = image.record.pages.saturating_mul(PAGE_BYTES as u64);
        progress.begin(bytes);
        let deployed = deploy(&self.source(&image.record), target, options, progress)?;
        Ok(deployed)
    }

    /// Makes sure that no object of the image is written in place from now on, even after the image
    /// is deleted.
    fn freeze(&self, image: &ViewRecord) -> Result<(), ViewError> {
        if self.meta.counters().frozen < image.generation {
            let _change = self.begin_view_change()?;
            self.meta.freeze(image.generation);
            self.commit_now()?;
        }
        Ok(())
    }

    /// The audit record of a deployment that was refused before the new volume was begun.
    pub fn refused_deployment(&self, image: &str) -> Record {
        Record::new("deploy-image")
            .with_text("source_volume", self.volume.header().volume_id())
            .with("source_image", image)
    }

    /// Writes an image as one sealed stream; see [`crate::image`].
    ///
    /// # Errors
    /// There is no such image, or it cannot be read, sealed or written.
    pub fn export_image(
        &self,
        name: &str,
        options: &ExportOptions,
        to: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<Exported, ViewError> {
        let image = self.hold_view(ViewKind::Image, name)?;
        let _no_trimming = self.trimming.read();
        let source = self.source(&image.record);
        let exported = export(&source, image.record.created, options, to, progress)?;
        Ok(exported)
    }

    fn source<'a>(&'a self, image: &'a ViewRecord) -> Source<'a> {
        Source {
            volume: &self.volume,
            meta: &self.meta,
            view: View(image.generation),
            image: &image.name,
        }
    }
}
