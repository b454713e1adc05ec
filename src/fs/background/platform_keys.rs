//! Re-wrapping the volume's data keys after the platform keystore was rotated.

use crate::fs::{Filesystem, FsError};
use crate::volume::Rewrap;

impl Filesystem {
    /// Wraps the data keys with the newest platform keys, and drops versions of the keystore that
    /// nothing needs any more. The filesystem stays in use meanwhile.
    ///
    /// # Errors
    /// EROFS if nothing may be written; the keystore or the superblock cannot be read or written.
    /// The volume then opens as before.
    pub fn rewrap_platform(&self) -> Result<Rewrap, FsError> {
        // A volume that is about to be closed is not changed any more.
        let _permit = self.begin_long_change()?;
        let rewrap = self.volume.rewrap_platform()?;
        if let Rewrap::Done(version) = rewrap {
            tracing::info!(%version, "the data keys are wrapped with another platform key version");
            self.drop_unneeded_versions();
        }
        Ok(rewrap)
    }

    /// Re-wraps if the keystore was rotated while the volume was not open. A failure does not
    /// prevent the use of the volume: the old version stays as long as the volume needs it.
    pub(in crate::fs) fn rewrap_at_open(&self) {
        if let Err(error) = self.rewrap_platform() {
            tracing::warn!(
                %error,
                "the data keys stay wrapped with an older platform key version for now"
            );
        }
    }

    fn drop_unneeded_versions(&self) {
        if let Err(error) = self.volume.keystore().drop_unneeded_versions() {
            tracing::warn!(%error, "platform key versions that nothing needs stay for now");
        }
    }
}
