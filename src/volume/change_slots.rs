//! Changes the slots of an open volume: adds one, removes one, rotates the key of one. Only wraps
//! change. The key sets and everything sealed under them stay, and a volume in use is not paused.
//!
//! Order of writes, each durable before the next:
//! 1. `volume.json`, which is read back and must authenticate;
//! 2. its spare copy, if there is one;
//! 3. the keystore's record, after which an older superblock is refused.
//!
//! A crash leaves the superblock before the change or the one after it, whole. A rotation is two
//! changes: the new key is added in front of the old one, and only when it has opened what the
//! superblock holds for it is the old one removed.
//!
//! The daemon of a mount holds the data keys for everybody who uses the mount, so each change needs
//! a [`Consent`]: the proof that whoever asks has just opened the customer DEK with a key of
//! theirs.

use serde::{Deserialize, Serialize};

use super::Volume;
use super::error::VolumeError;
use super::header::{HeaderContents, VerifiedHeader, WrappedKeySet};
use super::key_wraps::{context_of, wrap_for_slots};
use super::slot::{MAX_LABEL_BYTES, Slot, SlotKey, SlotKind, SlotNumber, Slots};
use crate::audit::Record;
use crate::keys::KeyUri;
use crate::keys::encoding::hex_array;
use crate::keys::error::{ErrorKind, KeyError};
use crate::layers::{KeyRing, KeySet, consent_mac, verify_consent_mac};
use crate::sys::clock::coarse_time;

/// First bytes of the authenticated message.
const LABEL: &[u8; 24] = b"bilayer consent 1\0\0\0\0\0\0\0";

/// A change of the slots.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SlotChange {
    /// Adds a slot with the lowest free number.
    Add {
        /// What it is for.
        kind: SlotKind,
        /// A name for people.
        label: Option<String>,
        /// The URI by which the key was named.
        provider: String,
        /// The key.
        key: SlotKey,
    },
    /// Removes a slot. One stays that is known to open the volume.
    Remove {
        /// The slot.
        slot: SlotNumber,
        /// The slot whose key consents, and has just opened the volume.
        opened_by: SlotNumber,
    },
    /// Adds the new key of a slot in front of the present one.
    BeginRotation {
        /// The slot.
        slot: SlotNumber,
        /// The URI by which the new key was named.
        provider: String,
        /// The new key.
        key: SlotKey,
    },
    /// Removes all keys of a slot but this one, which has opened the volume: the new one, or the
    /// former one after a rotation that was given up.
    FinishRotation {
        /// The slot.
        slot: SlotNumber,
        /// The URI by which this key was named.
        provider: String,
        /// The fingerprint of the key that stays.
        keep: String,
    },
    /// Makes a URI the one that this machine opens the volume with.
    Remember {
        /// The URI, which has opened the volume.
        provider: String,
    },
}

impl SlotChange {
    /// Name of the action in the audit log.
    pub const fn action(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add-slot",
            Self::Remove { .. } => "remove-slot",
            Self::BeginRotation { .. } => "begin-rotation",
            Self::FinishRotation { .. } => "finish-rotation",
            Self::Remember { .. } => "set-key",
        }
    }

    fn message(&self, header: &HeaderContents) -> Result<Vec<u8>, VolumeError> {
        let mut message = LABEL.to_vec();
        message.extend(header.volume_id().0);
        message.extend(header.header_sequence().to_le_bytes());
        let text = serde_json::to_vec(self).map_err(|error| {
            VolumeError::HeaderInvalid(format!("the change cannot be encoded: {error}"))
        })?;
        message.extend(text);
        Ok(message)
    }
}

/// The proof that whoever asks for a change has the customer DEK. It is good for one change of one
/// superblock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    #[serde(with = "hex_array")]
    mac: [u8; 32],
    /// The number of the superblock that is to be changed; the MAC covers it.
    header_sequence: u64,
}

impl Consent {
    /// Consents to a change of the volume with this superblock, whose keys were just unwrapped.
    ///
    /// # Errors
    /// When the MAC cannot be computed.
    pub fn give(
        header: &HeaderContents,
        keys: &KeyRing,
        change: &SlotChange,
    ) -> Result<Self, VolumeError> {
        let mac = consent_mac(keys.active(), &change.message(header)?);
        Ok(Self {
            mac: mac.map_err(|_| KeyError::derivation())?,
            header_sequence: header.header_sequence(),
        })
    }

    fn verify(
        &self,
        header: &HeaderContents,
        keys: &KeyRing,
        change: &SlotChange,
    ) -> Result<(), VolumeError> {
        match verify_consent_mac(keys.active(), &change.message(header)?, &self.mac) {
            true => Ok(()),
            false if self.header_sequence == header.header_sequence() => Err(KeyError::new(
                ErrorKind::WrongKey,
                "the request does not prove that a customer key was used for it",
            )
            .with_hint("look at the slots with bilayer key list, and ask again")
            .into()),
            false => Err(KeyError::new(
                ErrorKind::InUse,
                "the slots were changed by somebody else meanwhile",
            )
            .with_hint("look at the slots with bilayer key list, and ask again")
            .into()),
        }
    }
}

/// A change that is in force.
struct Changed {
    slot: SlotNumber,
    /// Why the spare superblock or the keystore's record could not follow it.
    unrecorded: Option<VolumeError>,
}

impl Volume {
    /// Changes the slots, and returns the number of the slot that was changed. Durable on return.
    ///
    /// # Errors
    /// There is no consent, a rule would be broken, or something cannot be written. The volume then
    /// opens as before, unless the error says that the change is in force.
    pub fn change_slots(
        &self,
        change: &SlotChange,
        consent: &Consent,
    ) -> Result<SlotNumber, VolumeError> {
        self.change_slots_audited(change, Some(consent))
    }

    /// Changes the slots on behalf of the holder of the key that opened the volume.
    ///
    /// # Errors
    /// Those of [`Self::change_slots`].
    pub(super) fn change_own_slots(&self, change: &SlotChange) -> Result<SlotNumber, VolumeError> {
        self.change_slots_audited(change, None)
    }

    fn change_slots_audited(
        &self,
        change: &SlotChange,
        consent: Option<&Consent>,
    ) -> Result<SlotNumber, VolumeError> {
        let changed = self.change_slots_unaudited(change, consent);
        let mut audited = self.audit_record(change)?;
        if let Ok(Changed { slot, .. }) = &changed
            && slot.0 > 0
        {
            audited = audited.slot(u32::from(slot.0));
        }
        let unrecorded = changed.as_ref().ok().and_then(|it| it.unrecorded.as_ref());
        if let Some(error) = unrecorded {
            audited = audited.with_text("incomplete", error);
        }
        match (audited.require(&changed), changed) {
            (Err(unwritten), Ok(_)) => Err(KeyError::unaudited(unwritten).into()),
            (_, Ok(Changed { slot, unrecorded })) => {
                unrecorded.map_or(Ok(slot), |error| Err(changed_in_part(&error)))
            }
            (_, Err(error)) => Err(error),
        }
    }

    /// The audit's record of a change, without its outcome.
    fn audit_record(&self, change: &SlotChange) -> Result<Record, VolumeError> {
        let header = self.header();
        let mut audited = Record::new(change.action())
            .volume(header.volume_id())
            .with("header_sequence", header.header_sequence());
        match change {
            SlotChange::Add { provider, key, .. }
            | SlotChange::BeginRotation { provider, key, .. } => {
                let version = key.to_version()?;
                audited = audited
                    .with("customer_key", provider.as_str())
                    .with("key_version", version.key.fingerprint())
                    .with("algorithm", key.algorithm.name());
            }
            SlotChange::FinishRotation { keep, .. } => {
                audited = audited.with("key_version", keep.as_str());
            }
            SlotChange::Remember { provider } => {
                audited = audited.with("customer_key", provider.as_str());
            }
            SlotChange::Remove { .. } => {}
        }
        Ok(match change.slot() {
            Some(slot) => audited.slot(u32::from(slot.0)),
            None => audited,
        })
    }

    fn change_slots_unaudited(
        &self,
        change: &SlotChange,
        consent: Option<&Consent>,
    ) -> Result<Changed, VolumeError> {
        let _turn = self.superblock.lock();
        if let SlotChange::Remember { provider } = change {
            return self.remember_customer_key(provider, consent, change);
        }
        if self.read_only {
            return Err(VolumeError::ReadOnlyMedium);
        }
        self.check_writer()?;
        let before = self.header();
        consent.map_or(Ok(()), |it| it.verify(&before, &self.keys, change))?;
        if before.slots().is_empty() {
            return Err(no_slots());
        }
        let (slots, slot) = changed_slots(before.slots(), change, coarse_time().secs)?;
        let key_sets = rewrapped(&before, &self.keys, &slots)?;
        let above = self.current.lock().header_sequence;
        // Before anything is written: an audit that cannot be written refuses the change.
        let intent = self.audit_record(change)?.slot(u32::from(slot.0));
        intent.begun().map_err(KeyError::unaudited)?;
        self.replace_superblock(before.with_slots(slots, key_sets, above))?;
        self.follow_rotation(&before, change);
        let recorded = self
            .read_back()
            .and_then(|_| self.renew_spare())
            .and_then(|()| self.record_superblock(|_| ()));
        Ok(Changed {
            slot,
            unrecorded: recorded.err(),
        })
    }

    /// Makes a URI the one that this machine opens the volume with. That changes the keystore's
    /// record only, so a volume that is open for reading will do.
    fn remember_customer_key(
        &self,
        provider: &str,
        consent: Option<&Consent>,
        change: &SlotChange,
    ) -> Result<Changed, VolumeError> {
        self.check_writer()?;
        let header = self.header();
        consent.map_or(Ok(()), |it| it.verify(&header, &self.keys, change))?;
        if header.slots().is_empty() {
            return Err(no_slots());
        }
        let uri = KeyUri::parse(provider)?.to_string();
        self.record_superblock(|record| record.customer_key = Some(uri))?;
        Ok(Changed {
            slot: SlotNumber(0),
            unrecorded: None,
        })
    }

    /// After the rotation of a slot to another URI: the machine opens the volume by that one if it
    /// did so by the former, and an open volume follows its versions.
    fn follow_rotation(&self, before: &HeaderContents, change: &SlotChange) {
        let (SlotChange::BeginRotation { slot, provider, .. }
        | SlotChange::FinishRotation { slot, provider, .. }) = change
        else {
            return;
        };
        let former = before.slots().get(*slot).map(|slot| &slot.provider);
        let mut remembered = self.customer_key.lock();
        let is_remembered = match &remembered.to_record {
            Some(uri) => former == Some(uri),
            None => former == self.current.lock().customer_key.as_ref(),
        };
        if is_remembered {
            remembered.to_record = Some(provider.clone());
        }
        let opened_here = self.opened_by.as_ref();
        if opened_here.is_some_and(|opened| opened.key.slot == *slot) {
            remembered.followed = KeyUri::parse(provider).ok();
        }
    }

    /// The URI of the key that opened the volume, or of the one that its slot was rotated to
    /// meanwhile.
    pub fn customer_uri(&self) -> Option<KeyUri> {
        let followed = self.customer_key.lock().followed.clone();
        followed.or_else(|| self.opened_by.as_ref().map(|opened| opened.uri.clone()))
    }

    /// Reads the superblock back. It must be the one that was written.
    fn read_back(&self) -> Result<VerifiedHeader, VolumeError> {
        let written = super::inspect(&*self.store)?.verify(&self.keys)?;
        match written == *self.header() {
            true => Ok(written),
            false => Err(VolumeError::Tampered),
        }
    }
}

impl SlotChange {
    /// The slot that is named.
    fn slot(&self) -> Option<SlotNumber> {
        match self {
            Self::Remove { slot, .. }
            | Self::BeginRotation { slot, .. }
            | Self::FinishRotation { slot, .. } => Some(*slot),
            Self::Add { .. } | Self::Remember { .. } => None,
        }
    }
}

/// The slots after a change, and the number of the changed one.
fn changed_slots(
    slots: &Slots,
    change: &SlotChange,
    now: i64,
) -> Result<(Slots, SlotNumber), VolumeError> {
    let mut list: Vec<Slot> = slots.iter().cloned().collect();
    let number = match change {
        SlotChange::Add {
            kind,
            label,
            provider,
            key,
        } => {
            let number = slots.free_number().ok_or_else(no_free_slot)?;
            label.as_deref().map_or(Ok(()), check_label)?;
            refuse_known(slots, key)?;
            list.push(Slot {
                number,
                kind: *kind,
                label: label.clone(),
                added: now,
                provider: provider.clone(),
                keys: vec![SlotKey {
                    added: now,
                    ..key.clone()
                }],
            });
            list.sort_by_key(|slot| slot.number);
            number
        }
        SlotChange::Remove { slot, opened_by } => {
            find(&mut list, *slot)?;
            if list.len() == 1 {
                return Err(last_slot());
            }
            list.retain(|other| other.number != *slot);
            if !list
                .iter()
                .any(|other| other.number == *opened_by || other.is_proven())
            {
                return Err(last_proven_slot(&list));
            }
            *slot
        }
        SlotChange::BeginRotation {
            slot,
            provider,
            key,
        } => {
            refuse_known(slots, key)?;
            let in_rotation = slots.iter().find(|other| other.keys.len() > 1);
            if let Some(other) = in_rotation.filter(|other| other.number != *slot) {
                return Err(refused(
                    format!(
                        "slot {} is being rotated, and only one can be",
                        other.number
                    ),
                    "finish that one first: bilayer key rotate VOLUME --slot N --to URI",
                ));
            }
            let found = find(&mut list, *slot)?;
            if found.kind == SlotKind::Recovery {
                return Err(refused(
                    format!("slot {slot} is a recovery code, which is not rotated"),
                    "add a new code, then remove this slot: bilayer key add VOLUME --recovery",
                ));
            }
            // What an interrupted rotation left: its new key never opened the volume, since it
            // would be the only one otherwise.
            let present = found.keys.pop();
            found.keys = vec![SlotKey {
                added: now,
                ..key.clone()
            }];
            found.keys.extend(present);
            found.provider.clone_from(provider);
            *slot
        }
        SlotChange::FinishRotation {
            slot,
            provider,
            keep,
        } => {
            let found = find(&mut list, *slot)?;
            found.provider.clone_from(provider);
            let mut keys = Vec::new();
            for key in &found.keys {
                if key.to_version()?.key.fingerprint() == keep {
                    keys.push(key.clone());
                }
            }
            if keys.is_empty() {
                return Err(refused(
                    format!("slot {slot} has no key with the fingerprint {keep}"),
                    "look at the slots with bilayer key list",
                ));
            }
            for key in &mut keys {
                key.proven = true;
            }
            found.keys = keys;
            *slot
        }
        SlotChange::Remember { .. } => SlotNumber(0),
    };
    Ok((Slots::from(list), number))
}

fn find(list: &mut [Slot], number: SlotNumber) -> Result<&mut Slot, VolumeError> {
    let numbers: Vec<String> = list.iter().map(|slot| slot.number.to_string()).collect();
    list.iter_mut()
        .find(|slot| slot.number == number)
        .ok_or_else(|| {
            refused(
                format!(
                    "there is no slot {number}; there are {}",
                    numbers.join(", ")
                ),
                "look at the slots with bilayer key list",
            )
        })
}

fn refuse_known(slots: &Slots, key: &SlotKey) -> Result<(), VolumeError> {
    // It says in which way the key is not accepted, if it is not.
    let version = key.to_version()?;
    for known in slots.keys()? {
        if known.version.key.is_same_key(&version.key) {
            return Err(refused(
                format!("this key is in slot {} already", known.slot),
                "nothing has to be done; bilayer key list shows the slots",
            ));
        }
    }
    Ok(())
}

/// The key sets with exactly the wraps that these slots need. Wraps that are there stay.
fn rewrapped(
    header: &HeaderContents,
    keys: &KeyRing,
    slots: &Slots,
) -> Result<Vec<WrappedKeySet>, VolumeError> {
    let slotted = slots.keys()?;
    let rewrap = |wrapped: &WrappedKeySet| {
        let set = key_set(keys, wrapped)?;
        let context = context_of(header, wrapped);
        let mut customer = Vec::with_capacity(slotted.len());
        for key in &slotted {
            let is_made_to = |wrap: &&_| key.is_wrapped_by(wrap);
            match wrapped.customer.iter().find(is_made_to) {
                Some(wrap) => customer.push(wrap.clone()),
                None => customer.extend(wrap_for_slots(std::slice::from_ref(key), &context, set)?),
            }
        }
        Ok(WrappedKeySet {
            customer,
            ..wrapped.clone()
        })
    };
    header.key_sets().iter().map(rewrap).collect()
}

fn key_set<'a>(keys: &'a KeyRing, wrapped: &WrappedKeySet) -> Result<&'a KeySet, VolumeError> {
    let set = keys.get(wrapped.epoch);
    set.filter(|set| set.id == wrapped.id)
        .map(|set| &**set)
        .ok_or_else(|| VolumeError::HeaderInvalid("a key set of it is not at hand".to_owned()))
}

fn refused(message: String, hint: &str) -> VolumeError {
    KeyError::new(ErrorKind::Usage, message)
        .with_hint(hint)
        .into()
}

fn no_slots() -> VolumeError {
    refused(
        "the volume is platform-managed: it has no slots for customer keys".to_owned(),
        "copy the files to a volume made with bilayer create --customer-key URI",
    )
}

fn no_free_slot() -> VolumeError {
    refused(
        format!("all {} slots are in use", super::slot::MAX_SLOTS),
        "remove one first: bilayer key remove VOLUME SLOT",
    )
}

/// The error for a change that is in force, but not everywhere.
fn changed_in_part(error: &VolumeError) -> VolumeError {
    KeyError::new(
        error.kind(),
        format!("the slots have been changed, but not in every place: {error}"),
    )
    .with_hint(
        "the change is in force, see bilayer key list; when the cause is gone, a mount writes the \
         rest, now or within ten minutes",
    )
    .into()
}

fn check_label(label: &str) -> Result<(), VolumeError> {
    match (1..=MAX_LABEL_BYTES).contains(&label.len()) && !label.contains(char::is_control) {
        true => Ok(()),
        false => Err(refused(
            format!("a label has 1 to {MAX_LABEL_BYTES} bytes and no control characters"),
            "choose another label",
        )),
    }
}

fn last_slot() -> VolumeError {
    refused(
        "it is the last slot, and without one nobody could open the volume".to_owned(),
        "add another one first: bilayer key add VOLUME --customer-key URI",
    )
}

fn last_proven_slot(rest: &[Slot]) -> VolumeError {
    let rest: Vec<String> = rest.iter().map(|slot| slot.number.to_string()).collect();
    refused(
        format!(
            "no key of the slots that would stay ({}) has ever been seen to open the volume",
            rest.join(", ")
        ),
        "consent with the private key of one that stays: bilayer key remove VOLUME SLOT \
         --unlock-with URI",
    )
}
