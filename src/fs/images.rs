//! Making volumes from images.
//!
//! An image counts as in use while something is made from it, so it cannot be deleted meanwhile; and
//! nothing is trimmed: what its records name must be there when its objects are taken over.

use std::io::Write;
use std::sync::Arc;

use parking_lot::RwLockReadGuard;

use super::Filesystem;
use super::types::NodeId;
use super::views::{ViewError, ViewKind};
use crate::ids::{Ino, ViewId};
use crate::image::{DeployOptions, Deployed, ExportOptions, Exported, Source, deploy, export};
use crate::meta::View;
use crate::meta::records::ViewRecord;
use crate::store::Store;

/// An image that something is made from.
struct InUse<'a> {
    filesystem: &'a Filesystem,
    node: NodeId,
    record: ViewRecord,
    _no_trimming: RwLockReadGuard<'a, ()>,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.filesystem.references.closed(self.node, false);
    }
}

impl InUse<'_> {
    fn source(&self) -> Source<'_> {
        Source {
            volume: &self.filesystem.volume,
            meta: &self.filesystem.meta,
            view: View(self.record.generation),
            image: &self.record.name,
        }
    }
}

impl Filesystem {
    /// Makes a volume of its own from an image, in an empty directory; see [`crate::image`]. Durable
    /// when this returns.
    pub fn deploy_image(
        &self,
        name: &str,
        target: Arc<dyn Store>,
        options: &DeployOptions,
    ) -> Result<Deployed, ViewError> {
        let image = self.use_image(name)?;
        if self.meta.counters().frozen < image.record.generation {
            self.check_views_change()?;
            // From now on nothing of it is written in place, also when the image is gone.
            self.meta.freeze(image.record.generation);
            self.commit_now()?;
        }
        let deployed = deploy(&image.source(), target, options)?;
        Ok(deployed)
    }

    /// Writes an image as one sealed stream; see [`crate::image`].
    pub fn export_image(
        &self,
        name: &str,
        options: &ExportOptions,
        to: &mut dyn Write,
    ) -> Result<Exported, ViewError> {
        let image = self.use_image(name)?;
        let exported = export(&image.source(), image.record.created, options, to)?;
        Ok(exported)
    }

    fn use_image(&self, name: &str) -> Result<InUse<'_>, ViewError> {
        let _turn = self.viewing.lock();
        let (id, record): (ViewId, ViewRecord) = self.found_view(ViewKind::Image, name)?;
        let node = NodeId::new(id, Ino::ROOT);
        self.references.opened(node, false);
        Ok(InUse {
            filesystem: self,
            node,
            record,
            _no_trimming: self.trimming.read(),
        })
    }
}
