//! The head of the audit, as the volume knows it: a second row of `counters`.
//!
//! The metadata does not interpret it. It belongs to the machine on which the volume is in use, so
//! no image and no new volume inherits it, and it counts as no record.

use super::keys::Table;
use super::{Batch, Meta, MetaError};

/// Its key in `counters`.
const KEY: &[u8] = b"audit";

/// Its value.
type AuditHeadBytes = [u8; 56];

impl Meta {
    /// The head, if there is one.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or the row has another length.
    pub fn audit_head(&self) -> Result<Option<AuditHeadBytes>, MetaError> {
        let row = self.row(Table::Counters, KEY)?;
        row.map(|row| row.try_into().map_err(|_| MetaError::Corrupt("counters")))
            .transpose()
    }

    /// Sets the head.
    pub fn put_audit_head(&self, batch: &mut Batch, head: AuditHeadBytes) {
        batch.change(Table::Counters, KEY.to_vec(), Some(head.to_vec()));
    }

    /// True if there are changes that no commit has made durable.
    pub fn is_changed(&self) -> bool {
        !self.is_durable(self.newest_batch())
    }
}
