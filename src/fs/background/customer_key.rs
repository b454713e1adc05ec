//! Following the customer key to a new version.

use crate::fs::{Filesystem, FsError};
use crate::keys::CustomerKeyProvider;
use crate::volume::follow_key::Followed;

impl Filesystem {
    /// Wraps the data keys with the newest version of the customer key that opened the volume. The
    /// filesystem stays in use meanwhile.
    ///
    /// # Errors
    /// EROFS if nothing may be written; the key is not available or does not open the volume; or
    /// the superblock cannot be written. The volume then opens as before.
    pub fn follow_customer_key(
        &self,
        provider: &dyn CustomerKeyProvider,
    ) -> Result<Followed, FsError> {
        // A volume that is about to be closed is not changed any more.
        let _permit = self.begin_long_change()?;
        Ok(self.volume.follow_customer_key(provider)?)
    }
}
