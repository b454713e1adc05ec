//! The identity that a volume had before `--accept-restored` or `--new-identity` changed it.
//!
//! Both options change the identity before the volume is mounted. If mounting fails afterwards, the
//! error says that the identity is changed already, and that the next attempt must leave the option
//! out.

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
            volume: volume.header.volume_id(),
            incarnation: volume.header.incarnation(),
        }
    }

    /// Adds to an error what is done already.
    pub(crate) fn explain(&self, error: UserError) -> UserError {
        let Ok(now) = inspect(&*self.store) else {
            return error;
        };
        let now = now.claims();
        let (done, option) = if now.volume_id() != self.volume {
            ("the copy is a volume of its own already", "--new-identity")
        } else if now.incarnation() != self.incarnation {
            ("the volume was taken as it is already", "--accept-restored")
        } else {
            return error;
        };
        let first = error.hint.map_or(String::new(), |hint| hint + "; then ");
        UserError {
            message: format!("{}; {done}", error.message),
            hint: Some(format!("{first}mount it without {option}")),
            ..error
        }
    }
}
