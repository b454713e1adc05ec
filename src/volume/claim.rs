//! Claims a volume for this process: determines whether its directory is the volume or a copy, and
//! takes the right to write to it.

use super::OpenOptions;
use super::authenticate::Authenticated;
use super::copy_status::CopyStatus;
use super::error::VolumeError;
use super::find_holder::writer_elsewhere;
use crate::keys::{VolumeRecord, WriterLock, WriterLocked};
use crate::store::DirectoryIdentity;

/// The status of a volume's directory, and the right to write to the volume.
pub(super) struct Claim {
    /// How the directory relates to the one in the record.
    pub(super) copy_status: CopyStatus,
    /// The right to write; `None` if nothing is written, or if no other process could.
    pub(super) writer: Option<WriterLock>,
    /// The keystore's record, which is current as long as `writer` is held.
    pub(super) record: Option<VolumeRecord>,
}

impl Claim {
    /// Claims the volume at `location`.
    pub(super) fn new(
        authenticated: &Authenticated,
        location: Option<&DirectoryIdentity>,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        let claimed = Self::of(authenticated, location, authenticated.record.clone());
        if options.read_only {
            return Ok(claimed);
        }
        if options.new_identity {
            // The keystore may have no record of the volume.
            let is_itself = claimed.copy_status == CopyStatus::Own
                && claimed.record.is_some()
                && location.is_some();
            return match is_itself {
                true => Err(VolumeError::NotACopy),
                false => Ok(claimed),
            };
        }
        claimed.refuse_copy(options)?;
        let Some(location) = location else {
            return Ok(claimed);
        };
        let id = authenticated.header.volume_id();
        let keystore = &authenticated.keystore;
        let locked = keystore.lock_writer(id, &location.path);
        let writer = match locked.map_err(VolumeError::CannotRemember)? {
            WriterLocked::Own(writer) => writer,
            WriterLocked::Held(by) => return Err(writer_elsewhere(by, id, location)),
        };
        // The previous holder of the lock may have changed the record.
        let record = keystore.record(id)?;
        let claimed = Self {
            writer: Some(writer),
            ..Self::of(authenticated, Some(location), record)
        };
        claimed.refuse_copy(options)?;
        if let CopyStatus::Moved { from } = &claimed.copy_status {
            tracing::info!(
                from = %from.display(),
                to = %location.path.display(),
                "the volume's directory was moved, and is remembered at its new place"
            );
        }
        Ok(claimed)
    }

    /// The status according to this record, without the right to write.
    fn of(
        authenticated: &Authenticated,
        location: Option<&DirectoryIdentity>,
        record: Option<VolumeRecord>,
    ) -> Self {
        let header = &authenticated.header;
        let pending = record
            .as_ref()
            .and_then(|record| record.pending_incarnation);
        // A pending incarnation begins in one directory only.
        let copy_status = match pending == Some(header.incarnation()) {
            true => CopyStatus::Own,
            false => CopyStatus::of(location, record.as_ref(), header.volume_id()),
        };
        Self {
            copy_status,
            writer: None,
            record,
        }
    }

    fn refuse_copy(&self, options: &OpenOptions) -> Result<(), VolumeError> {
        let record = self.record.as_ref();
        let refusal = self.copy_status.refusal(record, options.accept_restored);
        refusal.map_or(Ok(()), Err)
    }
}
