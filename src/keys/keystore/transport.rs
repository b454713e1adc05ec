//! Platform keys as the key holder of an export: the destination has the same keystore.

use super::{PlatformKeystore, files};
use crate::ids::ExportId;
use crate::keys::encoding::strict;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::transport::{TransportKeys, TransportMethod};

impl PlatformKeystore {
    /// Keys for a new export under the current version, and the description for its header.
    pub(crate) fn transport(
        &self,
        export: ExportId,
    ) -> Result<(TransportMethod, TransportKeys), KeyError> {
        let (version, keys) = self.current()?;
        // From now on the version stays, whatever volumes need.
        files::mark_exported(&self.directory, version.version)?;
        let method = TransportMethod::Keystore {
            keystore: hex::encode(version.keystore),
            key_version: version.version,
        };
        let keys = TransportKeys::from_platform(&keys.infrastructure, &keys.customer, export)?;
        Ok((method, keys))
    }

    /// The keys of an export that was made with version `key_version` of the keystore with this id.
    pub(crate) fn transport_of(
        &self,
        keystore: &str,
        key_version: u32,
        export: ExportId,
    ) -> Result<TransportKeys, KeyError> {
        let directory = self.directory.display();
        let id = strict(keystore).and_then(|id| id.try_into().ok());
        let Some(versions) = id.and_then(|id| self.numbered(id)) else {
            return Err(KeyError::new(
                ErrorKind::WrongKey,
                format!(
                    "the export was made for platform keystore {keystore:?}, and {directory} is {}",
                    self.id()
                ),
            )
            .with_hint("import it where that keystore is, or export it anew under a passphrase"));
        };
        let keys = versions.get(&key_version).ok_or_else(|| {
            KeyError::new(
                ErrorKind::KeystoreMissing,
                format!(
                    "platform key version {key_version}, which the export was made with, is not in \
                     {directory}"
                ),
            )
            .with_hint("restore the keystore from a backup that has this version")
        })?;
        TransportKeys::from_platform(&keys.infrastructure, &keys.customer, export)
    }
}
