//! Opens the keys of a damaged volume so that its contents can be salvaged. Nothing in the volume
//! is written, not even the cleanup that every other use does, and the keystore's record is not
//! changed. So it works on read-only media and preserves all evidence.
//!
//! The superblock is the first of these that authenticates with the available keys: a file that the
//! user named, `volume.json`, the spare copy ([`super::spare`]).

use std::io;
use std::sync::Arc;

use super::authenticate::Authenticated;
use super::copy_status::CopyStatus;
use super::error::VolumeError;
use super::header::{UnverifiedHeader, VerifiedHeader};
use super::history::{check_header_rollback, check_metadata_rollback};
use super::rollback::Rollback;
use super::succession::Ancestry;
use super::superblock::claimed_id;
use super::{OpenOptions, header_path, lock, spare};
use crate::audit::Record;
use crate::keys::VolumeRecord;
use crate::keys::error::ErrorKind;
use crate::layers::KeyRing;
use crate::sealed::SlotState;
use crate::store::read_only::ReadOnlyStore;
use crate::store::{DirectoryIdentity, Store, StoreLock};

/// Where the superblock was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderSource {
    /// A file that the user named.
    Given,
    /// `volume.json`.
    Volume,
    /// The spare copy.
    Spare,
}

impl HeaderSource {
    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Given => "the file that was named",
            Self::Volume => "volume.json",
            Self::Spare => "the spare copy checkpoints/volume.json",
        }
    }
}

/// A volume whose keys are open. Its lock is held until this is dropped.
#[derive(Debug)]
pub struct Rescue {
    /// The volume, to be read only.
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: KeyRing,
    /// Its superblock.
    pub header: VerifiedHeader,
    /// Where the superblock was read from.
    pub source: HeaderSource,
    /// The superblocks that were tried before and refused, with the reasons.
    pub refused: Vec<(HeaderSource, VolumeError)>,
    /// The keystore's record of the volume.
    record: Option<VolumeRecord>,
    /// The active key set and those that it follows.
    ancestry: Ancestry,
    /// How the volume's directory relates to the one in the record.
    copy_status: CopyStatus,
    #[expect(dead_code, reason = "held, never read")]
    lock: Box<dyn StoreLock>,
}

impl Rescue {
    /// Compares the superblock, and the slots of page 0 of `meta` if they open, with the keystore's
    /// record. A copy is never refused: its age says nothing about the original.
    ///
    /// # Errors
    /// When the volume is older than it is known to be.
    pub fn check_rollback(&self, slots: Option<&[SlotState; 2]>) -> Result<(), Rollback> {
        if matches!(self.copy_status, CopyStatus::Copy { .. }) {
            return Ok(());
        }
        let record = self.record.as_ref();
        check_header_rollback(&self.header, &self.ancestry, record)?;
        let same = record.filter(|record| record.incarnation == self.header.incarnation());
        slots.map_or(Ok(()), |slots| check_metadata_rollback(slots, same))
    }
}

/// Opens the keys of a volume. `given` holds the bytes of a superblock file that the user named.
///
/// # Errors
/// When the volume is in use, no superblock authenticates, or a key is not available.
pub fn rescue(
    store: Arc<dyn Store>,
    given: Option<Vec<u8>>,
    options: &OpenOptions,
) -> Result<Rescue, VolumeError> {
    let rescued = rescue_unaudited(Arc::clone(&store), given, options);
    let audited = Record::new("open-to-salvage");
    match &rescued {
        Ok(rescue) => audited.volume(rescue.header.volume_id()).done(),
        Err(error) => audited
            .volume(claimed_id(&*store))
            .with("kind", error.kind().name())
            .refused(error),
    }
    rescued
}

fn rescue_unaudited(
    store: Arc<dyn Store>,
    given: Option<Vec<u8>>,
    options: &OpenOptions,
) -> Result<Rescue, VolumeError> {
    // The lock file may be lost, or the filesystem may be read-only.
    let lock = lock::acquire_damaged(&*store)?;
    let store: Arc<dyn Store> = Arc::new(ReadOnlyStore::over(store));
    let given = given.map(|bytes| (HeaderSource::Given, Ok(bytes)));
    let own = [
        (HeaderSource::Volume, spare::read(&*store, &header_path())),
        (
            HeaderSource::Spare,
            spare::read(&*store, &spare::spare_path()),
        ),
    ];
    let mut refused = Vec::new();
    for (source, bytes) in given.into_iter().chain(own) {
        match authenticate(bytes, options) {
            Err(error) => refused.push((source, error)),
            Ok(authenticated) => {
                let location = store.directory_identity().unwrap_or_else(|error| {
                    tracing::warn!(
                        %error,
                        "the location of the volume's directory cannot be determined"
                    );
                    None
                });
                warn_of_another(&authenticated, location.as_ref(), options);
                let Authenticated {
                    keys,
                    header,
                    record,
                    ancestry,
                    ..
                } = authenticated;
                let id = header.volume_id();
                return Ok(Rescue {
                    copy_status: CopyStatus::of(location.as_ref(), record.as_ref(), id),
                    store,
                    keys,
                    header,
                    source,
                    refused,
                    record,
                    ancestry,
                    lock,
                });
            }
        }
    }
    Err(most_informative(refused))
}

/// Warns if the keystore expects another volume here: salvage works on it nevertheless.
fn warn_of_another(
    authenticated: &Authenticated,
    location: Option<&DirectoryIdentity>,
    options: &OpenOptions,
) {
    let remembered_here = authenticated.remembered_here(location, options);
    let record = authenticated.record.as_ref();
    match remembered_here.as_ref().map(|here| here.expected(record)) {
        Ok(None) => {}
        Ok(Some(known)) => tracing::warn!(
            known = %known.volume,
            found = %authenticated.header.volume_id(),
            path = %known.directory.path.display(),
            "this machine knows another volume in this place"
        ),
        Err(error) => tracing::warn!(%error, "which volume belongs here cannot be determined"),
    }
}

/// Picks the most informative of several errors: an unavailable key matters more than a missing
/// spare copy.
fn most_informative(refused: Vec<(HeaderSource, VolumeError)>) -> VolumeError {
    let rank = |error: &VolumeError| match error.kind() {
        ErrorKind::NotAVolume => 2,
        ErrorKind::HeaderInvalid | ErrorKind::Tampered => 1,
        _ => 0,
    };
    let errors = refused.into_iter().map(|(_, error)| error);
    errors.min_by_key(rank).unwrap_or(VolumeError::NotAVolume)
}

fn authenticate(
    bytes: io::Result<Vec<u8>>,
    options: &OpenOptions,
) -> Result<Authenticated, VolumeError> {
    let bytes = bytes.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => VolumeError::NotAVolume,
        _ => VolumeError::io("cannot read the superblock")(error),
    })?;
    Authenticated::new(UnverifiedHeader::parse(&bytes)?, options)
}
