//! Slots: the customer keys that open a volume.
//!
//! Every key of every slot wraps the customer DEK of every key set. A slot has one key, or two
//! while it is being rotated: the new one first. The public key is part of the slot, so that key
//! sets that are drawn later are wrapped without the provider.
//!
//! A wrap names its key as `slot:<number>` and the key's fingerprint.

use serde::{Deserialize, Serialize};

use super::error::VolumeError;
use crate::keys::customer::{CustomerKeyProvider, KeyVersion, WrapAlgorithm, WrappingKey};
use crate::keys::encoding::hex_bytes;
use crate::keys::error::KeyError;
use crate::keys::uri::MAX_URI_BYTES;
use crate::keys::wrap::WrapRecord;
use crate::sys::clock::coarse_time;

/// Limit on the number of slots.
pub const MAX_SLOTS: usize = 8;
/// Limit on the number of keys of a slot.
pub const MAX_KEYS_PER_SLOT: usize = 2;
/// Length limit of a label, in bytes.
pub const MAX_LABEL_BYTES: usize = 128;
/// Length limit of a version's name, in bytes.
const MAX_VERSION_BYTES: usize = 128;

/// The number of a slot, from 1 to 8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotNumber(pub u8);

impl std::fmt::Display for SlotNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a slot is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// A customer key.
    Customer,
    /// A recovery code.
    Recovery,
}

impl SlotKind {
    /// The name used in the superblock.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Recovery => "recovery",
        }
    }
}

/// A key of a slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotKey {
    /// The provider's name of the key's version.
    pub version: Option<String>,
    /// How the DEKs are wrapped to it.
    pub algorithm: WrapAlgorithm,
    /// SubjectPublicKeyInfo (RFC 5280) in DER.
    #[serde(with = "hex_bytes")]
    pub public_key: Vec<u8>,
    /// When it was added, in seconds since 1970.
    pub added: i64,
    /// Its private half was seen to open what was wrapped to it. False if only the public half was
    /// there when it was added.
    pub proven: bool,
}

impl SlotKey {
    /// A key as its provider describes it, added now.
    pub fn new(version: &KeyVersion, proven: bool) -> Self {
        Self {
            version: version.name.clone(),
            algorithm: version.key.algorithm(),
            public_key: version.key.spki().to_vec(),
            added: coarse_time().secs,
            proven,
        }
    }

    /// The key in the form that providers use.
    ///
    /// # Errors
    /// When the public key is not one that is accepted.
    pub fn to_version(&self) -> Result<KeyVersion, KeyError> {
        Ok(KeyVersion {
            name: self.version.clone(),
            key: WrappingKey::from_spki(&self.public_key, self.algorithm)?,
        })
    }
}

/// A slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Its number.
    pub number: SlotNumber,
    /// What it is for.
    pub kind: SlotKind,
    /// A name for people.
    pub label: Option<String>,
    /// When it was added, in seconds since 1970.
    pub added: i64,
    /// The URI by which the key was named. A hint: it is opened only if somebody names the slot,
    /// and once the superblock is authenticated.
    pub provider: String,
    /// Its keys, the newest first.
    pub keys: Vec<SlotKey>,
}

/// A key together with its slot's number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlottedKey {
    /// The slot.
    pub slot: SlotNumber,
    /// The key.
    pub version: KeyVersion,
}

impl SlottedKey {
    /// True if a wrap was made to this key, as far as its fields say.
    pub(super) fn is_wrapped_by(&self, wrap: &WrapRecord) -> bool {
        wrap.is_made_to(self.slot.0, &self.version)
    }
}

/// The slots of a volume, in the order of their numbers; none if it is platform-managed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slots(Vec<Slot>);

impl From<Vec<Slot>> for Slots {
    fn from(slots: Vec<Slot>) -> Self {
        Self(slots)
    }
}

impl Slot {
    /// True if one of its keys was seen to open the volume.
    pub(super) fn is_proven(&self) -> bool {
        self.keys.iter().any(|key| key.proven)
    }
}

impl Slots {
    /// A single slot with the current version of a key.
    ///
    /// # Errors
    /// When the provider has no version to wrap to.
    pub fn with_key(provider: &dyn CustomerKeyProvider, now: i64) -> Result<Self, KeyError> {
        let slot = Slot {
            number: SlotNumber(1),
            kind: SlotKind::Customer,
            label: None,
            added: now,
            provider: provider.uri().to_string(),
            keys: vec![SlotKey::new(&provider.current()?, provider.can_unwrap())],
        };
        Ok(Self(vec![slot]))
    }

    /// True for a platform-managed volume.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The slots.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter()
    }

    /// The slot with that number.
    pub fn get(&self, number: SlotNumber) -> Option<&Slot> {
        self.0.iter().find(|slot| slot.number == number)
    }

    /// All keys, in the order in which every key set has its wraps.
    ///
    /// # Errors
    /// When a public key is not one that is accepted.
    pub fn keys(&self) -> Result<Vec<SlottedKey>, KeyError> {
        let keys = self.0.iter().flat_map(|slot| {
            slot.keys.iter().map(|key| {
                Ok(SlottedKey {
                    slot: slot.number,
                    version: key.to_version()?,
                })
            })
        });
        keys.collect()
    }

    /// True if a slot has this key.
    pub fn has_public_key(&self, spki: &[u8]) -> bool {
        let mut keys = self.0.iter().flat_map(|slot| &slot.keys);
        keys.any(|key| key.public_key == spki)
    }

    /// The lowest number that no slot has.
    pub(super) fn free_number(&self) -> Option<SlotNumber> {
        let numbers = (1..=MAX_SLOTS as u8).map(SlotNumber);
        numbers
            .into_iter()
            .find(|number| self.get(*number).is_none())
    }

    /// True if a key of one is a key of the other too.
    pub(super) fn share_key(&self, other: &Self) -> bool {
        let keys = |slots: &Self| -> Vec<Vec<u8>> {
            let keys = slots.0.iter().flat_map(|slot| &slot.keys);
            keys.map(|key| key.public_key.clone()).collect()
        };
        let own = keys(self);
        keys(other).iter().any(|key| own.contains(key))
    }

    /// Checks the rules for slots of a superblock, and returns all keys.
    pub(super) fn check(&self) -> Result<Vec<SlottedKey>, VolumeError> {
        let invalid = |why: &str| VolumeError::HeaderInvalid(why.to_owned());
        let numbers: Vec<u8> = self.0.iter().map(|slot| slot.number.0).collect();
        if numbers.len() > MAX_SLOTS
            || !numbers.is_sorted_by(|a, b| a < b)
            || !numbers
                .iter()
                .all(|n| (1..=MAX_SLOTS).contains(&usize::from(*n)))
        {
            return Err(invalid("its slots are too many or out of order"));
        }
        let text_ok = |text: &str, limit| {
            (1..=limit).contains(&text.len()) && !text.contains(char::is_control)
        };
        for slot in &self.0 {
            let label_ok = |label: &String| text_ok(label, MAX_LABEL_BYTES);
            if !text_ok(&slot.provider, MAX_URI_BYTES) || !slot.label.iter().all(label_ok) {
                return Err(invalid("a slot's texts are empty, too long or not text"));
            }
            let version_ok = |key: &SlotKey| {
                let named = |name: &String| text_ok(name, MAX_VERSION_BYTES);
                key.version.iter().all(named)
            };
            if !(1..=MAX_KEYS_PER_SLOT).contains(&slot.keys.len())
                || !slot.keys.iter().all(version_ok)
            {
                return Err(invalid(
                    "a slot has no keys, too many, or one without a name",
                ));
            }
        }
        if self.0.iter().filter(|slot| slot.keys.len() > 1).count() > 1 {
            return Err(invalid("two of its slots are being rotated"));
        }
        let keys = self
            .keys()
            .map_err(|error| invalid(&format!("a slot's public key is not accepted: {error}")))?;
        let mut fingerprints: Vec<&str> = keys
            .iter()
            .map(|key| key.version.key.fingerprint())
            .collect();
        fingerprints.sort_unstable();
        fingerprints.dedup();
        if fingerprints.len() != keys.len() {
            return Err(invalid("two of its slots have the same key"));
        }
        Ok(keys)
    }
}
