//! Making volumes from images.
//!
//! An image is held while something is made from it, so it cannot be deleted meanwhile; and nothing is
//! trimmed: what its records name must be there when its objects are taken over.

use std::io::Write;
use std::sync::Arc;

use super::Filesystem;
use super::views::{ViewError, ViewKind};
use crate::audit::Record;
use crate::image::{
    DeployOptions, Deployed, ExportOptions, Exported, Progress, Source, deploy, export,
};
use crate::meta::View;
use crate::meta::records::ViewRecord;
use crate::sealed::PAGE_BYTES;
use crate::store::Store;

impl Filesystem {
    /// Makes a volume of its own from an image, in an empty directory; see [`crate::image`]. Durable
    /// when this returns.
    pub fn deploy_image(
        &self,
        name: &str,
        target: Arc<dyn Store>,
        options: &DeployOptions,
        progress: &dyn Progress,
    ) -> Result<Deployed, ViewError> {
        let refused = |error: &ViewError| self.refused_deployment(name).refused(error);
        let held = self.hold_view(ViewKind::Image, name);
        let image = held.inspect_err(refused)?;
        let _no_trimming = self.trimming.read();
        self.freeze(&image.record).inspect_err(refused)?;
        // Pages that have only space set aside count too: it may end a little earlier.
        let bytes = image.record.pages.saturating_mul(PAGE_BYTES as u64);
        progress.begin(bytes);
        let deployed = deploy(&self.source(&image.record), target, options, progress)?;
        Ok(deployed)
    }

    /// From now on nothing of an image is written in place, also when the image is gone.
    fn freeze(&self, image: &ViewRecord) -> Result<(), ViewError> {
        if self.meta.counters().frozen < image.generation {
            let _change = self.begin_view_change()?;
            self.meta.freeze(image.generation);
            self.commit_now()?;
        }
        Ok(())
    }

    /// The record of a deployment that was refused before a volume was begun.
    pub fn refused_deployment(&self, image: &str) -> Record {
        Record::new("deploy-image")
            .with_text("source_volume", self.volume.header.volume_id())
            .with("source_image", image)
    }

    /// Writes an image as one sealed stream; see [`crate::image`].
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
