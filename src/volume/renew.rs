//! Begins a new incarnation: a restored copy is accepted as it is, once.
//!
//! Somebody may hold another copy of the volume and continue to write it. So nothing new is written
//! here under a key set or a crypto id that the other copy writes under: there is a fresh active
//! key set, all others become read-only, and `meta` is written anew under its own crypto id.
//! Objects stay as they are, since an object whose epoch is not the active one is never written in
//! place.
//!
//! Order of writes, each durable before the next:
//! 1. the keystore's record names the pending incarnation;
//! 2. all of `meta.next`, and its directory entry;
//! 3. `volume.json`, which names the incarnation, the key set and the crypto id of that file;
//! 4. `meta.next` replaces `meta`;
//! 5. the record states that the incarnation has begun, and contains the new key set;
//! 6. the checkpoints are removed, and the new superblock becomes the spare copy.
//!
//! The new key set carries a statement of the previous one ([`super::succession`]), so that another
//! machine, or a pinned fingerprint, can tell it from a foreign set.
//!
//! A crash before step 3 leaves the previous state, which is refused as before. A crash after step
//! 3 leaves a new incarnation that the record knows, and a `meta` that the superblock does not
//! open: the next use that may write finishes the renewal. `meta.next` is examined only if `meta`
//! does not open, so that nobody can have a newer `meta` replaced by an older one.

use std::error::Error;
use std::io;

use parking_lot::Mutex;

use super::copy_status::CopyStatus;
use super::error::VolumeError;
use super::expected::next_written_time;
use super::header::{
    HeaderContents, KeySetState, MAX_KEY_SETS, SuccessionStatement, VerifiedHeader,
};
use super::key_wraps::wrap_key_set;
use super::rewrap_platform::platform_versions;
use super::spare;
use super::succession::{known_key_set, verification_key};
use super::superblock::{replace_header, unshare};
use super::{KeyState, NEXT_META_NAME, Volume, meta_path, next_meta_path};
use crate::audit::Record;
use crate::ids::{CryptoId, Epoch, IncarnationId, Sequence};
use crate::keys::{KeyError, VolumeRecord};
use crate::layers::{ActiveSet, KeyRing, KeySet, Succession};
use crate::sealed::{MetaFile, SealedError, SlotState};
use crate::store::{OpenMode, Store, StorePath};

/// Writes the metadata of the volume durably into an empty sealed file.
pub type RenewFn<'a> = dyn FnMut(MetaFile) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

impl Volume {
    /// Begins a new incarnation that carries on the state of commit `carried_on` and counts its
    /// commits from `first` on. `fill` writes the unchanged metadata into the new `meta`.
    ///
    /// # Errors
    /// When the volume has as many key sets as it may have, a key is not available, or a write
    /// fails. An error of `fill` is returned as [`VolumeError::Format`]. The volume is then
    /// unchanged, or the next use finishes the renewal.
    pub fn renew(
        self,
        carried_on: Sequence,
        first: Sequence,
        fill: &mut RenewFn<'_>,
    ) -> Result<Self, VolumeError> {
        let volume = self.header().volume_id();
        let before = self.header().incarnation();
        let renewed = self.renew_unaudited(carried_on, first, fill);
        let mut audited = Record::new("accept-restored")
            .volume(volume)
            .with_text("before", before);
        if let Ok(now) = &renewed {
            audited = audited.with_text("incarnation", now.header().incarnation());
        }
        audited.outcome(&renewed);
        renewed
    }

    fn renew_unaudited(
        self,
        carried_on: Sequence,
        first: Sequence,
        fill: &mut RenewFn<'_>,
    ) -> Result<Self, VolumeError> {
        let incarnation = IncarnationId::random().map_err(KeyError::random)?;
        let new_meta = NewMeta {
            crypto: CryptoId::random().map_err(KeyError::random)?,
            first,
        };
        let active = next_key_set(&self.header())?;
        let mut wrapped = wrap_key_set(
            &self.keystore(),
            self.header().slots(),
            self.header().volume_id(),
            &active,
            KeySetState::Active,
        )?;
        wrapped.succeeds = Some(self.state_succession(&active, incarnation, carried_on)?);
        let remembered = self.current.lock().clone();
        let contents = self.header().renewed(
            incarnation,
            new_meta.crypto,
            wrapped,
            remembered.header_sequence,
        );
        let sets: Vec<_> = self.keys.iter().map(std::sync::Arc::clone).collect();
        let keys = KeyRing::inheriting(active, &sets);
        // Sealed before the slow part, since it may break a rule.
        let (header, bytes) = VerifiedHeader::seal(contents, &keys)?;

        let place = self
            .store
            .directory_identity()
            .map_err(VolumeError::unknown_location)?;
        let announced = VolumeRecord {
            pending_incarnation: Some(incarnation),
            ..remembered
        };
        let id = header.volume_id();
        let written = next_written_time(&self.keystore(), id, place.as_ref())?;
        self.keystore().update_record(id, &announced)?;
        write_next_meta(&*self.store, &keys, new_meta, fill)?;
        replace_header(&*self.store, &bytes)?;
        swap_in_next_meta(&*self.store)?;
        let mut begun = VolumeRecord {
            header_sequence: header.header_sequence(),
            key_sets: announced.key_sets,
            customer_key: announced.customer_key,
            platform: platform_versions(&header),
            directory: place.as_ref().map(Into::into),
            written: Some(written),
            ..VolumeRecord::new(incarnation)
        };
        begun.remember_key_set(known_key_set(keys.active())?);
        self.keystore().update_record(id, &begun)?;
        // They belong to the previous incarnation and can no longer be opened.
        spare::replace(&*self.store, &keys, &header).map_err(VolumeError::io(
            "cannot replace the spare copy of volume.json",
        ))?;
        Ok(Self {
            keys: std::sync::Arc::new(keys),
            key_state: KeyState::new(header, self.keystore()),
            record: Some(begun.clone()),
            older_header: None,
            current: Mutex::new(begun),
            copy_status: CopyStatus::Own,
            ..self
        })
    }
}

impl Volume {
    /// The active set's statement that `next` follows it.
    fn state_succession(
        &self,
        next: &KeySet,
        incarnation: IncarnationId,
        commit: Sequence,
    ) -> Result<SuccessionStatement, VolumeError> {
        let active = self.keys.active();
        let succession = Succession {
            volume: self.header().volume_id(),
            before: ActiveSet {
                key_set: active.id,
                epoch: active.epoch,
                incarnation: self.header().incarnation(),
            },
            commit,
            after: ActiveSet {
                key_set: next.id,
                epoch: next.epoch,
                incarnation,
            },
        };
        let mac = succession.mac(&verification_key(active)?, &verification_key(next)?);
        Ok(SuccessionStatement {
            key_set: active.id,
            incarnation: self.header().incarnation(),
            commit: commit.0,
            mac: mac.map_err(|_| KeyError::derivation())?,
        })
    }
}

/// A fresh key set whose epoch follows all existing ones.
pub(super) fn next_key_set(header: &HeaderContents) -> Result<KeySet, VolumeError> {
    let sets = header.key_sets();
    if sets.len() >= MAX_KEY_SETS {
        return Err(VolumeError::TooManyKeySets {
            found: sets.len(),
            most: MAX_KEY_SETS,
        });
    }
    let newest = sets.iter().map(|set| set.epoch.0).max().unwrap_or(0);
    let epoch = newest
        .checked_add(1)
        .ok_or_else(|| VolumeError::HeaderInvalid("its epoch numbers are used up".to_owned()))?;
    Ok(KeySet::random(Epoch(epoch)).map_err(KeyError::random)?)
}

/// The metadata file of a new incarnation.
#[derive(Clone, Copy)]
pub(super) struct NewMeta {
    /// Its crypto id.
    pub(super) crypto: CryptoId,
    /// The sequence of its first commit.
    pub(super) first: Sequence,
}

/// Writes `meta.next`, whose metadata comes from `fill`; durable on return.
pub(super) fn write_next_meta(
    store: &dyn Store,
    keys: &KeyRing,
    new_meta: NewMeta,
    fill: &mut RenewFn<'_>,
) -> Result<(), VolumeError> {
    let make = || {
        discard_next(store)?;
        store.open(&next_meta_path(), OpenMode::CreateNew)
    };
    let file = make().map_err(VolumeError::io("cannot make the new metadata file"))?;
    let filled = MetaFile::create_at(file, keys.active(), new_meta.crypto, new_meta.first)
        .map_err(Into::into)
        .and_then(fill);
    if let Err(error) = filled {
        // Worthless, and the next attempt would remove it.
        let _ = discard_next(store);
        return Err(VolumeError::Format(error));
    }
    store
        .sync_dir(&StorePath::root())
        .map_err(VolumeError::io("cannot sync the volume directory"))
}

fn discard_next(store: &dyn Store) -> io::Result<()> {
    match store.unlink(&next_meta_path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Replaces `meta` by `meta.next`; durable on return.
pub(super) fn swap_in_next_meta(store: &dyn Store) -> Result<(), VolumeError> {
    let rename = || {
        store.rename(&next_meta_path(), &meta_path())?;
        store.sync_dir(&StorePath::root())
    };
    rename().map_err(VolumeError::io("cannot put the new metadata file in place"))
}

/// Which file holds the metadata that belongs to the superblock, with the slots of its page 0.
pub(super) enum MetaLocation {
    /// `meta`.
    InPlace([SlotState; 2]),
    /// `meta.next`: a crash came before it replaced `meta`.
    Next([SlotState; 2]),
    /// Neither. The next reader of `meta` reports what is wrong with it.
    Missing,
}

impl MetaLocation {
    /// The slots of page 0 of that file.
    pub(super) const fn slots(&self) -> Option<&[SlotState; 2]> {
        match self {
            Self::InPlace(slots) | Self::Next(slots) => Some(slots),
            Self::Missing => None,
        }
    }
}

/// Looks for the metadata that belongs to the superblock.
pub(super) fn locate_meta(
    store: &dyn Store,
    keys: &KeyRing,
    header: &VerifiedHeader,
) -> Result<MetaLocation, VolumeError> {
    if let Some(slots) = slots_of(store, &meta_path(), keys, header)? {
        return Ok(MetaLocation::InPlace(slots));
    }
    let next = slots_of(store, &next_meta_path(), keys, header)?;
    Ok(next.map_or(MetaLocation::Missing, MetaLocation::Next))
}

/// Finishes an interrupted renewal: one of the two files belongs to the superblock.
pub(super) fn finish_meta_swap(store: &dyn Store, meta: &MetaLocation) -> Result<(), VolumeError> {
    match meta {
        MetaLocation::InPlace(_) => {
            discard_next(store).map_err(VolumeError::io("cannot clean up the volume"))
        }
        MetaLocation::Next(_) => {
            // A copy (`cp -al`) that finishes the same renewal may share it.
            unshare(store, NEXT_META_NAME).map_err(VolumeError::io("cannot copy a shared file"))?;
            swap_in_next_meta(store)
        }
        MetaLocation::Missing => Ok(()),
    }
}

/// The slots of page 0 of the file, if one of them opens under the superblock's crypto id.
fn slots_of(
    store: &dyn Store,
    path: &StorePath,
    keys: &KeyRing,
    header: &VerifiedHeader,
) -> Result<Option<[SlotState; 2]>, VolumeError> {
    let file = match store.open(path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(VolumeError::io("cannot open the metadata file"))?,
    };
    match MetaFile::open(file, keys.active(), header.meta_crypto()) {
        Ok(meta) => Ok(Some(meta.slots())),
        Err(SealedError::Io(error)) => Err(VolumeError::io("cannot read the metadata file")(error)),
        Err(_) => Ok(None),
    }
}
