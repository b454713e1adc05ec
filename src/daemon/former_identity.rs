//! The identity that a volume had before `--accept-restored` or `--new-identity` changed it.
//!
//! Both options change the identity before the volume is mounted. If mounting fails afterwards, the
//! error says that the identity has already changed, and that the option must not be given again.

use std::sync::Arc;

use crate::diagnostics::UserError;
use crate::ids::{IncarnationId, VolumeId};
use crate::store::Store;
use crate::volume::{Volume, inspect};

/// The identity that a volume had when it was opened.
pub(super) struct FormerIdentity {
    store: Arc<dyn Store>,
    volume: VolumeId,
    incarnation: IncarnationId,
}

impl FormerIdentity {
    /// The identity of an open volume.
    pub(crate) fn of(volume: &Volume) -> Self {
        Self {
            store: Arc::clone(&volume.store),
            volume: volume.header().volume_id(),
            incarnation: volume.header().incarnation(),
        }
    }

    /// Adds to the error of a failed mount that the identity has already changed, if it has.
    pub(crate) fn explain(&self, error: UserError) -> UserError {
        let Ok(header) = inspect(&*self.store) else {
            return error;
        };
        let header = header.claims();
        let (change, option) = if header.volume_id() != self.volume {
            ("the copy is now a volume of its own", "--new-identity")
        } else if header.incarnation() != self.incarnation {
            ("the restored volume is now accepted", "--accept-restored")
        } else {
            return error;
        };
        let first = error.hint.map_or(String::new(), |hint| hint + "; then ");
        UserError {
            message: format!("{}; {change}", error.message),
            hint: Some(format!("{first}mount it without {option}")),
            ..error
        }
    }
}
