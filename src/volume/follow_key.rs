//! Follows a customer key to its newest version, while the volume is open: the rotation of
//! `bilayer key rotate` without anybody who asks for it.
//!
//! The URI that opened the volume stays the same, and its provider says which version is current.
//! So nobody gets a key that the holder of this URI did not choose. The old version stays until the
//! new one has opened what the superblock holds for it ([`super::change_slots`]).

use super::Volume;
use super::change_slots::SlotChange;
use super::error::VolumeError;
use super::slot::{Slot, SlotKey, SlotNumber};
use crate::keys::customer::{CustomerKeyProvider, KeyVersion};
use crate::keys::error::{ErrorKind, KeyError};

/// What following a key has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Followed {
    /// The newest version wraps the volume's keys already.
    Current(KeyVersion),
    /// The volume's keys are wrapped to this version now, and to no older one of this slot.
    Rotated(KeyVersion),
    /// The slot that opened the volume no longer belongs to this URI: somebody gave it another key.
    NotOurs,
}

impl Volume {
    /// Rotates the slot that opened the volume to the current version of its key, or finishes an
    /// interrupted rotation.
    ///
    /// # Errors
    /// The provider has no current version, or it does not open what is wrapped to it; or the
    /// superblock cannot be written. The volume then opens as before.
    pub fn follow_customer_key(
        &self,
        provider: &dyn CustomerKeyProvider,
    ) -> Result<Followed, VolumeError> {
        let Some(opened_by) = &self.opened_by else {
            return Ok(Followed::NotOurs);
        };
        let number = opened_by.key.slot;
        let header = self.header();
        let Some(slot) = header.slots().get(number) else {
            return Ok(Followed::NotOurs);
        };
        let version = provider.current()?;
        if has_newest(slot, &version) {
            if slot.keys.len() > 1 {
                self.finish(provider, number, &version)?;
                return Ok(Followed::Rotated(version));
            }
            return Ok(Followed::Current(version));
        }
        // Somebody has given the slot another key, or is about to.
        if slot.provider != provider.uri().to_string() || slot.keys.len() > 1 {
            return Ok(Followed::NotOurs);
        }
        // A version that takes the place of one that is disabled or gone would be an older one: the
        // key is followed forwards only.
        self.prove_slot(provider, number)?;
        version.prove(provider)?;
        let begin = SlotChange::BeginRotation {
            slot: number,
            provider: slot.provider.clone(),
            key: SlotKey::new(&version, false),
        };
        self.change_own_slots(&begin)?;
        self.finish(provider, number, &version)?;
        Ok(Followed::Rotated(version))
    }

    fn finish(
        &self,
        provider: &dyn CustomerKeyProvider,
        slot: SlotNumber,
        version: &KeyVersion,
    ) -> Result<(), VolumeError> {
        let proven = self.prove_slot(provider, slot)?;
        if !proven.version.key.is_same_key(&version.key) {
            let message = "the new version of the customer key has not opened the volume";
            return Err(KeyError::new(ErrorKind::WrongKey, message).into());
        }
        let header = self.header();
        let named = header.slots().get(slot).map(|slot| slot.provider.clone());
        let finish = SlotChange::FinishRotation {
            slot,
            provider: named.unwrap_or_else(|| provider.uri().to_string()),
            keep: version.key.fingerprint().to_owned(),
        };
        self.change_own_slots(&finish)?;
        Ok(())
    }
}

fn has_newest(slot: &Slot, version: &KeyVersion) -> bool {
    let newest = slot.keys.first();
    newest.is_some_and(|newest| newest.public_key == version.key.spki())
}
