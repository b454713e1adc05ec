//! The two keys of a version in memory.

use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::secret::{PlatformCustomerKey, PlatformKey};

/// The two keys of a version.
pub(super) struct Version {
    pub(super) infrastructure: PlatformKey,
    pub(super) customer: PlatformCustomerKey,
    /// When it was made: seconds since 1970. Unknown for versions of older programs.
    pub(super) created: Option<i64>,
    /// When it was restored from a backup.
    pub(super) restored: Option<i64>,
    /// Its file is sealed to the machine.
    pub(super) is_sealed: bool,
}

impl Version {
    /// A second copy in memory of its own.
    pub(super) fn try_clone(&self) -> Result<Self, KeyError> {
        let bad = || KeyError::new(ErrorKind::Io, "a platform key has another length");
        let infrastructure = self.infrastructure.expose().first_chunk().ok_or_else(bad)?;
        let customer = self.customer.expose().first_chunk().ok_or_else(bad)?;
        Ok(Self {
            infrastructure: PlatformKey::from_bytes(infrastructure).map_err(KeyError::memory)?,
            customer: PlatformCustomerKey::from_bytes(customer).map_err(KeyError::memory)?,
            ..*self
        })
    }

    /// Draws both keys.
    pub(super) fn random(created: i64) -> Result<Self, KeyError> {
        Ok(Self {
            infrastructure: PlatformKey::random().map_err(KeyError::random)?,
            customer: PlatformCustomerKey::random().map_err(KeyError::random)?,
            created: Some(created),
            restored: None,
            is_sealed: false,
        })
    }
}
