//! Founding a volume: the one way in which a volume comes to be, whether it is empty, deployed from
//! an image or imported.
//!
//! Key sets that the volume inherits keep their ids, epochs and DEKs, which the inherited bytes are
//! sealed under; they are wrapped anew, since wraps name the volume, and are read-only. Those of
//! another volume never leave their holder. One fresh set, whose epoch is the next, is the active
//! one: other volumes have the others, so nothing new is written under them.
//!
//! Order of writes: the place is taken and marked ([`super::place`]); `objects/`; then the metadata
//! database and the objects by the caller, all of it synced; `volume.json` last and atomically;
//! then the keystore's record; then the mark goes. A crash before `volume.json` leaves a directory
//! that is no volume and that the next attempt takes over. A failure takes away what was made.

use std::path::Path;
use std::sync::Arc;

use super::create::FormatFn;
use super::error::VolumeError;
use super::expected::written_now;
use super::header::{
    HeaderContents, KeyMode, KeySetState, MAX_KEY_SETS, Provenance, VerifiedHeader, WrappedKeySet,
};
use super::open::unknown_place;
use super::succession::known;
use super::superblock::replace_header;
use super::{FreshVolume, Volume, objects_path, place};
use crate::audit::Record;
use crate::ids::{CryptoId, Epoch, IncarnationId, VolumeId};
use crate::keys::customer::CustomerKeyProvider;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::wrap::{self, WrapContext, WrapRecord};
use crate::keys::{PlatformKeystore, VolumeRecord};
use crate::layers::{KeyRing, KeySet};
use crate::store::{Store, StorePath};

/// What a volume takes over from another.
#[derive(Clone, Debug)]
pub struct Inheritance {
    /// Key sets whose bytes stay readable, in any order: those of the source where the holders stay
    /// the same, else those that were drawn for whoever gets the volume.
    pub key_sets: Vec<Arc<KeySet>>,
    /// Who holds the key sets, where they must not leave them. `None` for sets that were drawn for
    /// whoever gets the volume.
    pub holder: Option<Holder>,
    /// Key mode of the source: one with a customer key never gives a volume without.
    pub key_mode: KeyMode,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// Who holds the keys that the data keys of a volume are wrapped with.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The platform keystore.
    pub keystore: Arc<PlatformKeystore>,
    /// Fingerprint of the customer key; `None` where both layers' keys are the platform's.
    pub customer_key: Option<String>,
}

impl Holder {
    /// That of an open volume.
    pub fn of(volume: &Volume) -> Self {
        Self {
            keystore: Arc::clone(&volume.keystore),
            customer_key: volume.customer_key.as_deref().map(fingerprint),
        }
    }

    /// Whether these two are the same holder. Of the keystore its keys decide: its id is no secret.
    pub fn is(
        &self,
        keystore: &PlatformKeystore,
        customer_key: Option<&dyn CustomerKeyProvider>,
    ) -> bool {
        customer_key.map(fingerprint) == self.customer_key && keystore.holds_keys_of(&self.keystore)
    }
}

fn fingerprint(key: &dyn CustomerKeyProvider) -> String {
    key.describe().key_version.clone()
}

/// How a volume is founded.
#[derive(Debug)]
pub struct Founding<'a> {
    /// Name of what is done, in the audit log.
    pub action: &'static str,
    /// The customer key; without one the volume is platform-managed. Its public half is enough.
    pub customer_key: Option<&'a dyn CustomerKeyProvider>,
    /// Directory of the platform keystore; made where missing.
    pub keystore: &'a Path,
    /// Largest size of the contents, for the filesystem's metadata.
    pub size_bytes: Option<u64>,
    /// What it takes over; `None` for an empty volume.
    pub inherited: Option<&'a Inheritance>,
}

impl Founding<'_> {
    fn key_mode(&self) -> KeyMode {
        match self.customer_key {
            Some(_) => KeyMode::PlatformAndCustomer,
            None => KeyMode::PlatformManaged,
        }
    }

    /// A set that must not leave its holder is wrapped for no other. Whoever asked has made sure of
    /// that; here it is about the very keys that will wrap.
    fn check_holder(&self, keystore: &PlatformKeystore) -> Result<(), VolumeError> {
        let holder = self.inherited.and_then(|from| from.holder.as_ref());
        if holder.is_none_or(|holder| holder.is(keystore, self.customer_key)) {
            return Ok(());
        }
        let message = "these are not the keys of the source's holder: its data keys stay there";
        Err(KeyError::new(ErrorKind::WrongKey, message).into())
    }

    fn inherited_sets(&self) -> &[Arc<KeySet>] {
        self.inherited.map_or(&[], |from| &from.key_sets)
    }

    /// What can be refused before anything is written.
    fn check(&self) -> Result<(), VolumeError> {
        let customer_managed = self
            .inherited
            .is_some_and(|from| from.key_mode == KeyMode::PlatformAndCustomer);
        if customer_managed && self.customer_key.is_none() {
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

    /// A set of its own, after all that it inherits.
    fn fresh_set(&self) -> Result<KeySet, VolumeError> {
        let newest = self.inherited_sets().iter().map(|set| set.epoch.0).max();
        let epoch = newest.unwrap_or(0).checked_add(1);
        let epoch =
            epoch.ok_or_else(|| VolumeError::HeaderInvalid("its epochs are used up".to_owned()))?;
        Ok(KeySet::random(Epoch(epoch)).map_err(KeyError::random)?)
    }
}

/// Makes a volume in an empty directory, or in one that an earlier attempt left half made.
/// `fill` writes and syncs `meta`, and links or writes and syncs the objects.
///
/// # Errors
/// When the directory is not empty, a key cannot be had, a rule of inheritance is broken, or
/// something cannot be written; what `fill` returns is in [`VolumeError::Format`]. What was made is
/// then taken away again.
pub fn found(
    store: Arc<dyn Store>,
    founding: &Founding<'_>,
    fill: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    let made = found_unaudited(&store, founding, fill);
    let source = founding.inherited.map(|from| &from.provenance);
    let mut audited = Record::new(founding.action).with("key_mode", founding.key_mode().name());
    if let Some(source) = source {
        audited = audited
            .with_text("source_volume", source.volume)
            .with_text("source_image", &source.image)
            .with("inherited_key_sets", founding.inherited_sets().len());
    }
    match &made {
        Ok(volume) => audited.volume(*volume).done(),
        Err(error) => audited.with("kind", error.kind().name()).refused(error),
    }
    made
}

fn found_unaudited(
    store: &Arc<dyn Store>,
    founding: &Founding<'_>,
    fill: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    founding.check()?;
    let lock = place::take(&**store)?;
    let made = make(store, founding, fill);
    if made.is_err() {
        place::take_away(&**store);
    }
    drop(lock);
    made
}

fn make(
    store: &Arc<dyn Store>,
    founding: &Founding<'_>,
    fill: &mut FormatFn<'_>,
) -> Result<VolumeId, VolumeError> {
    store
        .create_dir(&objects_path())
        .map_err(VolumeError::io("cannot make objects/"))?;
    // Only now: a keystore inside this volume is told by `lock` and `objects/`.
    let keystore = PlatformKeystore::open_or_create(founding.keystore)?;
    founding.check_holder(&keystore)?;
    let volume = VolumeId::random().map_err(KeyError::random)?;
    let incarnation = IncarnationId::random().map_err(KeyError::random)?;
    let meta_crypto = CryptoId::random().map_err(KeyError::random)?;
    let active = founding.fresh_set()?;
    let wrapped = wrap_key_sets(&keystore, founding, volume, &active)?;
    let contents = HeaderContents::fresh(
        volume,
        incarnation,
        meta_crypto,
        founding.key_mode(),
        wrapped,
        founding.inherited.map(|from| from.provenance.clone()),
    );
    let fresh = FreshVolume {
        store: Arc::clone(store),
        keys: Arc::new(KeyRing::inheriting(active, founding.inherited_sets())),
        meta_crypto,
        size_bytes: founding.size_bytes,
    };
    // Sealed before the long part, since it may break a rule.
    let (header, bytes) = VerifiedHeader::seal(contents, &fresh.keys)?;
    // It takes over this place, and none that the directory may be moved to meanwhile.
    let place = store.place().map_err(unknown_place)?;
    fill(&fresh).map_err(VolumeError::Format)?;
    store
        .sync_dir(&StorePath::root())
        .map_err(VolumeError::io("cannot sync the volume directory"))?;
    replace_header(&**store, &bytes)?;
    let written = written_now(&keystore, volume, place.as_ref())?;
    keystore.update_record(
        volume,
        &VolumeRecord {
            header_sequence: header.header_sequence(),
            key_sets: vec![known(fresh.keys.active())?],
            customer_key: founding
                .customer_key
                .map(|provider| provider.describe().uri.to_string()),
            directory: place.as_ref().map(Into::into),
            written: Some(written),
            ..VolumeRecord::unknown(incarnation)
        },
    )?;
    place::clear_mark(&**store).map_err(VolumeError::io("cannot write the lock file"))?;
    Ok(volume)
}

/// Wraps the inherited sets, read-only, and the active one.
fn wrap_key_sets(
    keystore: &PlatformKeystore,
    founding: &Founding<'_>,
    volume: VolumeId,
    active: &KeySet,
) -> Result<Vec<WrappedKeySet>, VolumeError> {
    let inherited = founding.inherited_sets().iter();
    let mut sets: Vec<(&KeySet, KeySetState)> = inherited
        .map(|set| (&**set, KeySetState::ReadOnly))
        .collect();
    sets.sort_by_key(|(set, _)| set.epoch);
    sets.push((active, KeySetState::Active));
    let wrapped = sets.into_iter().map(|(set, state)| {
        Ok(wrap_key_set(
            keystore,
            founding.customer_key,
            volume,
            set,
            state,
        )?)
    });
    wrapped.collect()
}

/// Wraps both DEKs of a set and proves, as far as the keys at hand allow, that the wraps open.
pub(super) fn wrap_key_set(
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
    volume: VolumeId,
    set: &KeySet,
    state: KeySetState,
) -> Result<WrappedKeySet, KeyError> {
    let context = WrapContext {
        volume,
        key_set: set.id,
        epoch: set.epoch,
    };
    let infrastructure = keystore.wrap_infrastructure(&context, &set.infrastructure)?;
    let proof = keystore.unwrap_infrastructure(&context, &infrastructure)?;
    if proof.expose() != set.infrastructure.expose() {
        return Err(not_proven());
    }
    Ok(WrappedKeySet {
        id: set.id,
        epoch: set.epoch,
        state,
        succeeds: None,
        customer: vec![wrap_customer_dek(keystore, customer, &context, set)?],
        infrastructure: vec![infrastructure],
    })
}

fn wrap_customer_dek(
    keystore: &PlatformKeystore,
    customer: Option<&dyn CustomerKeyProvider>,
    context: &WrapContext,
    set: &KeySet,
) -> Result<WrapRecord, KeyError> {
    let (record, proof) = match customer {
        None => {
            let record = keystore.wrap_customer(context, &set.customer)?;
            let proof = keystore.unwrap_customer(context, &record)?;
            (record, Some(proof))
        }
        Some(provider) => {
            let record = wrap::wrap_with_customer_key(provider, context, &set.customer)?;
            let proof = if provider.describe().can_unwrap {
                Some(wrap::unwrap_with_customer_key(provider, context, &record)?)
            } else {
                None
            };
            (record, proof)
        }
    };
    if proof.is_some_and(|proof| proof.expose() != set.customer.expose()) {
        return Err(not_proven());
    }
    Ok(record)
}

fn not_proven() -> KeyError {
    KeyError::new(
        ErrorKind::WrongKey,
        "a wrapped key did not unwrap to what was wrapped",
    )
}
