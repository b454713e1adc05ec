//! Creating a volume, whether it starts empty, is deployed from an image, or is imported.
//!
//! Inherited key sets keep their ids, epochs and DEKs, because the inherited bytes are sealed under
//! them. They are wrapped again, since a wrap names its volume, and they are read-only. The key
//! sets of another volume never leave their key holder. One fresh set, with the next epoch, becomes
//! the active set: other volumes hold the inherited sets too, so nothing new is written under
//! those.
//!
//! Order of writes:
//! 1. the target directory is claimed and marked ([`super::target_dir`]), then `objects/` is made;
//! 2. the caller writes and syncs the metadata database and the objects;
//! 3. `volume.json` is written atomically;
//! 4. the platform keystore's record is written;
//! 5. the mark is cleared.
//!
//! A crash before step 3 leaves a directory that is no volume; the next attempt cleans it up. An
//! attempt that fails removes what it made.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::error::VolumeError;
use super::expected::next_written_time;
use super::header::{
    HeaderContents, KeyMode, KeySetState, MAX_KEY_SETS, Provenance, VerifiedHeader, WrappedKeySet,
};
use super::key_wraps::{prove_unwrap, wrap_key_set};
use super::mark::clear_mark;
use super::rewrap_platform::platform_versions;
use super::slot::Slots;
use super::succession::known_key_set;
use super::superblock::replace_header;
use super::{CreateOptions, FreshVolume, Volume, objects_path, target_dir};
use crate::audit::Record;
use crate::ids::{CryptoId, Epoch, IncarnationId, VolumeId};
use crate::keys::customer::{self, CustomerKeyProvider};
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::{KeyUri, PlatformKeystore, VolumeRecord};
use crate::layers::{KeyRing, KeySet};
use crate::store::{Store, StorePath};
use crate::sys::clock::coarse_time;

pub use super::target_dir::refuse_occupied_directory;

/// Writes and syncs the metadata database of a new volume.
pub type FormatFn<'a> = dyn FnMut(&FreshVolume) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

/// Creates an empty volume in an empty directory. `format` writes and syncs `meta`.
///
/// # Errors
/// When the directory is not empty, a key is not available, or a write fails. Everything that was
/// made is removed again.
pub fn create_empty(
    store: Arc<dyn Store>,
    options: &CreateOptions,
    format: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    // Before anything is written, since this may ask for a passphrase and be refused.
    let audit_refusal = |error: &VolumeError| {
        Record::new("create-volume")
            .with("kind", error.kind().name())
            .refused(error);
    };
    let customer = options
        .customer_key
        .as_ref()
        .map(|uri| customer::open(uri, &options.passphrase))
        .transpose()
        .map_err(VolumeError::from)
        .inspect_err(audit_refusal)?;
    let customer = customer
        .as_deref()
        .map(NewCustomer::with_key)
        .transpose()
        .map_err(VolumeError::from)
        .inspect_err(audit_refusal)?;
    let new_volume = NewVolume {
        action: "create-volume",
        customer,
        keystore: &options.keystore,
        size_bytes: options.size_bytes,
        inherited: None,
    };
    create_volume(store, &new_volume, format)
}

/// What a new volume inherits from another volume.
#[derive(Clone, Debug)]
pub struct Inheritance {
    /// Key sets whose bytes stay readable, in any order: the source's sets if the key holder stays
    /// the same, otherwise sets that were drawn for the recipient.
    pub key_sets: Vec<Arc<KeySet>>,
    /// The key holder that the sets must not leave. `None` for sets that were drawn for the
    /// recipient.
    pub holder: Option<KeyHolder>,
    /// Key mode of the source. A source with a customer key never yields a volume without one.
    pub key_mode: KeyMode,
    /// Where the volume comes from.
    pub provenance: Provenance,
}

/// The holder of the keys that wrap a volume's data keys.
#[derive(Clone, Debug)]
pub struct KeyHolder {
    /// The platform keystore.
    pub keystore: Arc<PlatformKeystore>,
    /// The customer keys; none if the platform wraps the keys of both layers.
    pub slots: Slots,
}

impl KeyHolder {
    /// The key holder of an open volume.
    pub fn of(volume: &Volume) -> Self {
        Self {
            keystore: volume.keystore(),
            slots: volume.header().slots().clone(),
        }
    }

    /// Whether this keystore, and the customer key that was named, if one was, are the same holder.
    /// The customer key may be that of any slot. The keystore is compared by its keys, because its
    /// id is no secret.
    pub fn matches(&self, keystore: &PlatformKeystore, named: Option<&NewCustomer<'_>>) -> bool {
        let named_matches = named.is_none_or(|named| self.slots.share_key(&named.slots));
        named_matches && keystore.holds_keys_of(&self.keystore)
    }
}

/// The customer keys of a new volume.
#[derive(Clone, Debug)]
pub struct NewCustomer<'a> {
    /// The slots.
    pub slots: Slots,
    /// The URI that the keystore's record gets.
    pub uri: KeyUri,
    /// The provider that proves that it opens what is wrapped; `None` if there is only the public
    /// half, or if the volume inherits slots that were proven when they were added.
    pub provider: Option<&'a dyn CustomerKeyProvider>,
}

impl<'a> NewCustomer<'a> {
    /// One slot with the current version of that key.
    ///
    /// # Errors
    /// When the provider has no version to wrap to.
    pub fn with_key(provider: &'a dyn CustomerKeyProvider) -> Result<Self, KeyError> {
        Ok(Self {
            slots: Slots::with_key(provider, coarse_time().secs)?,
            uri: provider.uri().clone(),
            provider: provider.can_unwrap().then_some(provider),
        })
    }

    /// The slots of an open volume; `None` for a platform-managed one.
    pub fn of(volume: &Volume) -> Option<Self> {
        let opened_by = volume.opened_by.as_ref()?;
        Some(Self {
            slots: volume.header().slots().clone(),
            uri: opened_by.uri.clone(),
            provider: None,
        })
    }
}

/// Describes the volume to be created.
#[derive(Debug)]
pub struct NewVolume<'a> {
    /// Name of the action in the audit log.
    pub action: &'static str,
    /// The customer keys. Without them the volume is platform-managed.
    pub customer: Option<NewCustomer<'a>>,
    /// Directory of the platform keystore, which is created if missing.
    pub keystore: &'a Path,
    /// Largest size of the contents, for the filesystem's metadata.
    pub size_bytes: Option<u64>,
    /// What the volume inherits; `None` for an empty volume.
    pub inherited: Option<&'a Inheritance>,
}

impl NewVolume<'_> {
    fn key_mode(&self) -> KeyMode {
        match self.customer {
            Some(_) => KeyMode::PlatformAndCustomer,
            None => KeyMode::PlatformManaged,
        }
    }

    /// Makes sure that key sets which must not leave their holder are wrapped for no other one. The
    /// caller has checked this too; this check uses the very keys that will wrap.
    fn check_holder(&self, keystore: &PlatformKeystore) -> Result<(), VolumeError> {
        let Some(holder) = self.inherited.and_then(|from| from.holder.as_ref()) else {
            return Ok(());
        };
        let same_slots = holder.slots == self.slots();
        if same_slots && keystore.holds_keys_of(&holder.keystore) {
            return Ok(());
        }
        let message = "these are not the keys of the source's holder: its data keys stay there";
        Err(KeyError::new(ErrorKind::WrongKey, message).into())
    }

    fn slots(&self) -> Slots {
        let customer = self.customer.as_ref();
        customer.map_or_else(Slots::default, |customer| customer.slots.clone())
    }

    fn inherited_sets(&self) -> &[Arc<KeySet>] {
        self.inherited.map_or(&[], |from| &from.key_sets)
    }

    /// Checks everything that can be refused before the first write.
    fn check(&self) -> Result<(), VolumeError> {
        let customer_managed = self
            .inherited
            .is_some_and(|from| from.key_mode == KeyMode::PlatformAndCustomer);
        if customer_managed && self.customer.is_none() {
            return Err(VolumeError::WouldDowngrade);
        }
        let found = self.inherited_sets().len();
        if found >= MAX_KEY_SETS {
            return Err(VolumeError::TooManyKeySets {
                found,
                most: MAX_KEY_SETS,
            });
        }
        Ok(())
    }

    /// A fresh key set whose epoch follows all inherited ones.
    fn fresh_set(&self) -> Result<KeySet, VolumeError> {
        let newest = self.inherited_sets().iter().map(|set| set.epoch.0).max();
        let epoch = newest.unwrap_or(0).checked_add(1);
        let epoch = epoch.ok_or_else(|| {
            VolumeError::HeaderInvalid("its epoch numbers are used up".to_owned())
        })?;
        Ok(KeySet::random(Epoch(epoch)).map_err(KeyError::random)?)
    }
}

/// Creates a volume in an empty directory, or in one where an earlier attempt was interrupted.
/// `fill` writes and syncs `meta`, and links or writes and syncs the objects.
///
/// # Errors
/// When the directory is not empty, a key is not available, a rule of inheritance is broken, or a
/// write fails. An error of `fill` is returned as [`VolumeError::Format`]. Everything that was made
/// is removed again.
pub fn create_volume(
    store: Arc<dyn Store>,
    new_volume: &NewVolume<'_>,
    fill: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    let begin = Instant::now();
    let made = create_unaudited(&store, new_volume, fill);
    let source = new_volume.inherited.map(|from| &from.provenance);
    let mut audited = Record::new(new_volume.action)
        .with("key_mode", new_volume.key_mode().name())
        .since(begin);
    if let Some(source) = source {
        audited = audited
            .with_text("source_volume", source.volume)
            .with_text("source_image", &source.image)
            .with("inherited_key_sets", new_volume.inherited_sets().len());
    }
    match &made {
        Ok(volume) => audited.volume(*volume).done(),
        Err(error) => audited.with("kind", error.kind().name()).refused(error),
    }
    made
}

fn create_unaudited(
    store: &Arc<dyn Store>,
    new_volume: &NewVolume<'_>,
    fill: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    new_volume.check()?;
    let lock = target_dir::claim(&**store)?;
    let made = write_volume(store, new_volume, fill);
    if made.is_err() {
        target_dir::rollback(&**store);
    }
    drop(lock);
    made
}

fn write_volume(
    store: &Arc<dyn Store>,
    new_volume: &NewVolume<'_>,
    fill: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    store
        .create_dir(&objects_path())
        .map_err(VolumeError::io("cannot make objects/"))?;
    // Not earlier: `lock` and `objects/` are how a keystore inside this volume is recognised.
    let keystore = PlatformKeystore::open_or_create(new_volume.keystore)?;
    new_volume.check_holder(&keystore)?;
    let volume = VolumeId::random().map_err(KeyError::random)?;
    let incarnation = IncarnationId::random().map_err(KeyError::random)?;
    let meta_crypto = CryptoId::random().map_err(KeyError::random)?;
    let active = new_volume.fresh_set()?;
    let wrapped = wrap_key_sets(&keystore, new_volume, volume, &active)?;
    let contents = HeaderContents::fresh(
        volume,
        incarnation,
        meta_crypto,
        new_volume.slots(),
        wrapped,
        new_volume.inherited.map(|from| from.provenance.clone()),
    );
    let fresh = FreshVolume {
        store: Arc::clone(store),
        keys: Arc::new(KeyRing::inheriting(active, new_volume.inherited_sets())),
        meta_crypto,
        size_bytes: new_volume.size_bytes,
    };
    // Sealed before the slow part, since it may break a rule.
    let (header, bytes) = VerifiedHeader::seal(contents, &fresh.keys)?;
    // The volume belongs to this location, even if the directory is moved while it is filled.
    let place = store
        .directory_identity()
        .map_err(VolumeError::unknown_location)?;
    fill(&fresh).map_err(VolumeError::Format)?;
    store
        .sync_dir(&StorePath::root())
        .map_err(VolumeError::io("cannot sync the volume directory"))?;
    replace_header(&**store, &bytes)?;
    let written = next_written_time(&keystore, volume, place.as_ref())?;
    keystore.update_record(
        volume,
        &VolumeRecord {
            header_sequence: header.header_sequence(),
            key_sets: vec![known_key_set(fresh.keys.active())?],
            customer_key: new_volume
                .customer
                .as_ref()
                .map(|customer| customer.uri.to_string()),
            platform: platform_versions(&header),
            directory: place.as_ref().map(Into::into),
            written: Some(written),
            ..VolumeRecord::new(incarnation)
        },
    )?;
    clear_mark(&**store).map_err(VolumeError::io("cannot write the lock file"))?;
    Ok(volume)
}

/// Wraps the inherited sets as read-only, and the active set.
fn wrap_key_sets(
    keystore: &PlatformKeystore,
    new_volume: &NewVolume<'_>,
    volume: VolumeId,
    active: &KeySet,
) -> Result<Vec<WrappedKeySet>, VolumeError> {
    let inherited = new_volume.inherited_sets().iter();
    let mut sets: Vec<(&KeySet, KeySetState)> = inherited
        .map(|set| (&**set, KeySetState::ReadOnly))
        .collect();
    sets.sort_by_key(|(set, _)| set.epoch);
    sets.push((active, KeySetState::Active));
    let slots = new_volume.slots();
    let wrap = |(set, state)| wrap_key_set(keystore, &slots, volume, set, state);
    let wrapped: Vec<_> = sets.into_iter().map(wrap).collect::<Result<_, _>>()?;
    let provider = new_volume
        .customer
        .as_ref()
        .and_then(|customer| customer.provider);
    if let (Some(provider), Some(last)) = (provider, wrapped.last()) {
        prove_unwrap(provider, &slots.keys()?, volume, active, last)?;
    }
    Ok(wrapped)
}
