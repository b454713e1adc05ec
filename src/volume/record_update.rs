//! Updates the keystore's record of a volume when the volume is opened.

use std::collections::BTreeSet;

use super::authenticate::Authenticated;
use super::error::VolumeError;
use super::{OpenOptions, OpenedBy};
use crate::keys::customer;
use crate::keys::uri::Scheme;
use crate::keys::wrap::PlatformVersion;
use crate::keys::{KeyUri, PassphraseSource, VolumeRecord};
use crate::store::DirectoryIdentity;

/// Everything that an update of the record depends on.
pub(super) struct RecordUpdate<'a> {
    /// The superblock, the keys and the keystore.
    pub(super) authenticated: &'a Authenticated,
    /// The location of the volume's directory.
    pub(super) location: Option<&'a DirectoryIdentity>,
    /// The time to record.
    pub(super) now: i64,
    /// The versions of platform keys that the superblock and its spare copy name.
    pub(super) platform: Option<BTreeSet<PlatformVersion>>,
    /// How the volume is opened.
    pub(super) options: &'a OpenOptions,
}

impl RecordUpdate<'_> {
    /// The record after this use of the volume, if it is `record` now.
    pub(super) fn next(&self, record: Option<&VolumeRecord>) -> VolumeRecord {
        let header = &self.authenticated.header;
        let same = record.filter(|record| record.incarnation == header.incarnation());
        let mut next = same.cloned().unwrap_or_else(|| VolumeRecord {
            key_sets: record.map_or_else(Vec::new, |record| record.key_sets.clone()),
            directory: record.and_then(|record| record.directory.clone()),
            written: record.and_then(|record| record.written),
            ..VolumeRecord::new(header.incarnation())
        });
        if let Some(active) = self.authenticated.ancestry.active() {
            next.remember_key_set(active);
        }
        // A pending incarnation that never began: the previous superblock is still in place.
        next.pending_incarnation = None;
        next.header_sequence = next.header_sequence.max(header.header_sequence());
        next.platform.clone_from(&self.platform);
        next.customer_key = key_to_remember(self.authenticated.opened_by.as_ref(), record);
        next
    }

    /// Writes the record after this use of the volume, and returns it. This must happen only after
    /// the superblock and page 0 of the metadata were authenticated. A caller that may write to the
    /// volume always writes the record, even if nothing is new: otherwise a keystore that cannot be
    /// written would let rollback protection lapse unnoticed.
    pub(super) fn write(&self, record: Option<&VolumeRecord>) -> Result<VolumeRecord, VolumeError> {
        let keystore = &self.authenticated.keystore;
        let id = self.authenticated.header.volume_id();
        let mut next = self.next(record);
        if self.options.read_only {
            if record != Some(&next)
                && let Err(error) = keystore.update_record(id, &next)
            {
                tracing::warn!(%error, "the platform keystore's record was not brought up to date");
            }
            return Ok(next);
        }
        if let Some(location) = self.location {
            next.directory = Some(location.into());
            next.former = None;
        }
        next.written = Some(self.now);
        keystore
            .update_record(id, &next)
            .map_err(VolumeError::CannotRemember)?;
        Ok(next)
    }
}

/// The URI of the customer key to remember. The remembered key stays, whichever key opened the
/// volume this time. Only a public half, which may create a volume but never opens one, is replaced
/// by the first key that opens the volume.
fn key_to_remember(opened_by: Option<&OpenedBy>, record: Option<&VolumeRecord>) -> Option<String> {
    let opened_by = opened_by?;
    let opened = opened_by.uri.to_string();
    let remembered = record.and_then(|record| record.customer_key.clone());
    // A code is for one time, and nobody is there to type it when a machine starts.
    if *opened_by.uri.scheme() == Scheme::Recovery {
        return remembered;
    }
    match remembered {
        Some(uri) if uri == opened || !is_public_half(&uri) => Some(uri),
        _ => Some(opened),
    }
}

/// True for the file of a key that exists and is known to lack its private half.
fn is_public_half(uri: &str) -> bool {
    let Ok(uri) = KeyUri::parse(uri) else {
        return false;
    };
    matches!(uri.scheme(), Scheme::File(_))
        && customer::open(&uri, &PassphraseSource::None).is_ok_and(|key| !key.can_unwrap())
}
