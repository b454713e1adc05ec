//! Unwraps the keys of a volume that may be in use, without opening it: to prove that a customer
//! key opens it, and to consent to a change. Nothing is written.

use super::authenticate::Authenticated;
use super::change_slots::{Consent, SlotChange};
use super::error::VolumeError;
use super::header::{HeaderContents, VerifiedHeader};
use super::key_wraps::{context_of, wrap_mismatch};
use super::slot::{SlotNumber, SlottedKey};
use super::superblock::inspect;
use super::{OpenOptions, OpenedBy, Volume};
use crate::keys::customer::CustomerKeyProvider;
use crate::keys::error::{ErrorKind, KeyError};
use crate::keys::wrap;
use crate::layers::KeyRing;
use crate::store::Store;

/// The unwrapped keys of a volume, and its superblock.
pub struct Unlocked {
    /// The superblock.
    pub header: VerifiedHeader,
    /// The customer key that opened it; `None` for a platform-managed volume.
    pub opened_by: Option<OpenedBy>,
    keys: KeyRing,
}

/// Unwraps the keys with the customer key that the options or the keystore's record name.
///
/// # Errors
/// See [`VolumeError`].
pub fn unlock(store: &dyn Store, options: &OpenOptions) -> Result<Unlocked, VolumeError> {
    let authenticated = Authenticated::new(inspect(store)?, options)?;
    Ok(Unlocked {
        header: authenticated.header,
        opened_by: authenticated.opened_by,
        keys: authenticated.keys,
    })
}

impl Unlocked {
    /// Reads the superblock again, after a change of it.
    ///
    /// # Errors
    /// It cannot be read, or does not authenticate under the keys that were unwrapped.
    pub fn refresh(&mut self, store: &dyn Store) -> Result<(), VolumeError> {
        self.header = inspect(store)?.verify(&self.keys)?;
        Ok(())
    }

    /// Consents to a change.
    ///
    /// # Errors
    /// When the consent cannot be computed.
    pub fn consent(&self, change: &SlotChange) -> Result<Consent, VolumeError> {
        Consent::give(&self.header, &self.keys, change)
    }

    /// Proves that a provider opens every key set by a slot: unwraps each with a key of the slot,
    /// and compares. Returns the key, the newest one that the provider has.
    ///
    /// # Errors
    /// The provider has no key of the slot, or it does not open what is wrapped to it.
    pub fn prove_slot(
        &self,
        provider: &dyn CustomerKeyProvider,
        slot: SlotNumber,
    ) -> Result<SlottedKey, VolumeError> {
        prove_slot(&self.header, &self.keys, provider, slot)
    }
}

impl Volume {
    /// Consents to a change of the slots. The caller has just opened the volume.
    ///
    /// # Errors
    /// When the consent cannot be computed.
    pub fn consent(&self, change: &SlotChange) -> Result<Consent, VolumeError> {
        Consent::give(&self.header(), &self.keys, change)
    }

    /// Proves that a provider opens every key set by a slot: unwraps each with a key of the slot,
    /// and compares. Returns the key, the newest one that the provider has.
    ///
    /// # Errors
    /// The provider has no key of the slot, or it does not open what is wrapped to it.
    pub fn prove_slot(
        &self,
        provider: &dyn CustomerKeyProvider,
        slot: SlotNumber,
    ) -> Result<SlottedKey, VolumeError> {
        prove_slot(&self.header(), &self.keys, provider, slot)
    }
}

/// Unwraps the customer DEK of every key set with a key of that slot, and compares. Returns the
/// key: the newest one that the provider has.
fn prove_slot(
    header: &HeaderContents,
    keys: &KeyRing,
    provider: &dyn CustomerKeyProvider,
    slot: SlotNumber,
) -> Result<SlottedKey, VolumeError> {
    let all = header.slots().keys()?;
    let own = all.iter().enumerate().filter(|(_, key)| key.slot == slot);
    let mut refused = None;
    for (place, key) in own {
        match prove_key(header, keys, provider, place, key) {
            Ok(()) => return Ok(key.clone()),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| {
        KeyError::new(ErrorKind::Usage, format!("there is no slot {slot}"))
            .with_hint("look at the slots with bilayer key list")
            .into()
    }))
}

fn prove_key(
    header: &HeaderContents,
    keys: &KeyRing,
    provider: &dyn CustomerKeyProvider,
    place: usize,
    key: &SlottedKey,
) -> Result<(), VolumeError> {
    let incomplete = || VolumeError::HeaderInvalid("a key has no wrap".to_owned());
    for set in header.key_sets() {
        let wrap = set.customer.get(place).ok_or_else(incomplete)?;
        let context = context_of(header, set);
        let unwrapped = wrap::unwrap_from_slot(provider, &key.version, &context, wrap)?;
        let held = keys.get(set.epoch).ok_or_else(incomplete)?;
        if unwrapped.expose() != held.customer.expose() {
            return Err(wrap_mismatch().into());
        }
    }
    Ok(())
}
