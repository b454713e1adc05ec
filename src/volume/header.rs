//! The superblock's contents.
//!
//! ```text
//! {"format":"bilayer","version":1,…}\n       one line of JSON
//! <64 lower-case hexadecimal digits>\n       HMAC-SHA-256 of exactly the bytes of the first line
//!                                            (without its newline), under a key derived from
//!                                            both DEKs of every key set it lists, in its order
//! ```
//!
//! | field | value |
//! |---|---|
//! | `format`, `version` | `"bilayer"`, 1 |
//! | `features` | names of features that a reader must know; none are defined |
//! | `volume`, `incarnation`, `meta` | ids, 32 hexadecimal digits |
//! | `sequence` | number of this superblock, raised whenever it is rewritten |
//! | `key_mode` | `"platform-managed"` or `"platform-and-customer"` |
//! | `slots` | up to 8 of `{number, kind, label, added, provider, keys}` ([`super::slot`]) |
//! | `key_sets` | 1 to 64 of `{id, epoch, state, succeeds, customer: […], infrastructure: […]}` |
//! | `provenance` | null, or the volume and image it was made from, and whether elsewhere |
//!
//! `state` is `"active"` for exactly the set with the highest epoch and `"read-only"` for all
//! others. `succeeds` is null, or `{key_set, incarnation, commit, mac}` for a set that became
//! active in this volume after another one. It names the previous set, the incarnation in which
//! that set was active and the commit at which it ended, and holds the MAC of the previous set over
//! this statement (see [`crate::layers::succession`]). A wrap is `{provider, key_version,
//! algorithm, ciphertext}` (see `keys::wrap`), and each wrap of a DEK yields it. The infrastructure
//! DEK, and the customer DEK of a platform-managed volume, have one wrap, or two while the platform
//! key is rotated. The customer DEK of any other volume has exactly one wrap for each key of each
//! slot, in their order (see [`super::slot`]).
//!
//! Invariants: exactly the authenticated bytes are parsed, once. Duplicate or unknown fields,
//! values that are too many or too large, and unknown features are refused. An [`UnverifiedHeader`]
//! becomes a [`VerifiedHeader`] only by its MAC.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::error::VolumeError;
use super::slot::{Slots, SlottedKey};
use crate::ids::{CryptoId, Epoch, IncarnationId, KeySetId, VolumeId};
use crate::keys::encoding::{hex_array, hex_id, strict};
use crate::keys::wrap::WrapRecord;
use crate::layers::{KeyRing, KeySet, header_mac, verify_header_mac};

/// The format that is written, and the newest one that is read.
pub const FORMAT_VERSION: u32 = 1;
/// Length limit of a superblock, in bytes: enough for 64 key sets and 8 slots with 4096-bit keys.
pub const MAX_HEADER_BYTES: usize = 1024 * 1024;
/// Limit on the number of key sets.
pub const MAX_KEY_SETS: usize = 64;
/// Limit on the number of platform wraps of one DEK.
pub const MAX_PLATFORM_WRAPS: usize = 2;

const FORMAT_NAME: &str = "bilayer";
const MAX_FEATURES: usize = 32;
const MAX_NAME_BYTES: usize = 255;
const MAC_DIGITS: usize = 64;

/// Who holds the key encryption keys (KEKs).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyMode {
    /// Both DEKs are wrapped by platform keys.
    PlatformManaged,
    /// The customer DEK is wrapped by a customer key.
    PlatformAndCustomer,
}

impl KeyMode {
    /// The name used in the superblock.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PlatformManaged => "platform-managed",
            Self::PlatformAndCustomer => "platform-and-customer",
        }
    }
}

/// Whether new bytes are sealed under a key set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySetState {
    /// New bytes are sealed under it.
    Active,
    /// It only opens existing bytes.
    ReadOnly,
}

/// A key set's statement that another set follows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuccessionStatement {
    /// The previous active set.
    #[serde(with = "hex_id")]
    pub key_set: KeySetId,
    /// The incarnation in which that set was active.
    #[serde(with = "hex_id")]
    pub incarnation: IncarnationId,
    /// The newest commit of the state that the next set carries on.
    pub commit: u64,
    /// HMAC-SHA-256 under the verification key of the previous set.
    #[serde(with = "hex_array")]
    pub mac: [u8; 32],
}

/// A wrapped key set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedKeySet {
    /// Random id.
    #[serde(with = "hex_id")]
    pub id: KeySetId,
    /// Number of the set within the volume, from 1.
    #[serde(with = "epoch_number")]
    pub epoch: Epoch,
    /// Whether new bytes are sealed under it.
    pub state: KeySetState,
    /// The statement of the set that this one follows.
    pub succeeds: Option<SuccessionStatement>,
    /// Wraps of the customer DEK.
    pub customer: Vec<WrapRecord>,
    /// Wraps of the infrastructure DEK.
    pub infrastructure: Vec<WrapRecord>,
}

/// The origin of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The volume that it was deployed or copied from.
    #[serde(with = "hex_id")]
    pub volume: VolumeId,
    /// Name of the image; empty for a copy of a whole volume.
    pub image: String,
    /// Set if the volume was imported, or made by another key holder: the contents come from
    /// somebody else than the holder of these keys.
    pub foreign: bool,
}

/// The contents of a superblock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderContents {
    format: String,
    version: u32,
    features: Vec<String>,
    #[serde(with = "hex_id")]
    volume: VolumeId,
    #[serde(with = "hex_id")]
    incarnation: IncarnationId,
    sequence: u64,
    #[serde(with = "hex_id")]
    meta: CryptoId,
    key_mode: KeyMode,
    slots: Slots,
    key_sets: Vec<WrappedKeySet>,
    provenance: Option<Provenance>,
}

/// The fields that identify a newer format, whose other fields are unknown.
#[derive(Deserialize)]
struct FormatPeek {
    format: String,
    version: u64,
}

impl HeaderContents {
    /// The first superblock of a new volume.
    pub(crate) fn fresh(
        volume: VolumeId,
        incarnation: IncarnationId,
        meta: CryptoId,
        slots: Slots,
        key_sets: Vec<WrappedKeySet>,
        provenance: Option<Provenance>,
    ) -> Self {
        let key_mode = match slots.is_empty() {
            true => KeyMode::PlatformManaged,
            false => KeyMode::PlatformAndCustomer,
        };
        Self {
            format: FORMAT_NAME.to_owned(),
            version: FORMAT_VERSION,
            features: Vec::new(),
            volume,
            incarnation,
            sequence: 1,
            meta,
            key_mode,
            slots,
            key_sets,
            provenance,
        }
    }

    /// The superblock that begins a new incarnation with another `meta`. `active` is the new active
    /// key set; all others become read-only. The new superblock's number is higher than this one's
    /// and than `above`.
    pub(crate) fn renewed(
        &self,
        incarnation: IncarnationId,
        meta: CryptoId,
        active: WrappedKeySet,
        above: u64,
    ) -> Self {
        let mut key_sets = self.key_sets.clone();
        for set in &mut key_sets {
            set.state = KeySetState::ReadOnly;
        }
        key_sets.push(active);
        Self {
            incarnation,
            sequence: self.sequence.max(above).saturating_add(1),
            meta,
            key_sets,
            ..self.clone()
        }
    }

    /// The superblock with other wraps of the same key sets. Its number is higher than this one's
    /// and than `above`.
    pub(crate) fn rewrapped(&self, key_sets: Vec<WrappedKeySet>, above: u64) -> Self {
        Self {
            sequence: self.sequence.max(above).saturating_add(1),
            key_sets,
            ..self.clone()
        }
    }

    /// The superblock with other slots, and the wraps that they need. Its number is higher than
    /// this one's and than `above`.
    pub(crate) fn with_slots(
        &self,
        slots: Slots,
        key_sets: Vec<WrappedKeySet>,
        above: u64,
    ) -> Self {
        Self {
            slots,
            ..self.rewrapped(key_sets, above)
        }
    }

    /// Id of the volume.
    pub fn volume_id(&self) -> VolumeId {
        self.volume
    }

    /// Id of the incarnation.
    pub fn incarnation(&self) -> IncarnationId {
        self.incarnation
    }

    /// Number of this superblock.
    pub fn header_sequence(&self) -> u64 {
        self.sequence
    }

    /// Crypto id of `meta`.
    pub fn meta_crypto(&self) -> CryptoId {
        self.meta
    }

    /// Who holds the key encryption keys (KEKs).
    pub fn key_mode(&self) -> KeyMode {
        self.key_mode
    }

    /// The wrapped key sets, in the order in which they are written.
    pub fn key_sets(&self) -> &[WrappedKeySet] {
        &self.key_sets
    }

    /// Version of the format.
    pub fn format(&self) -> u32 {
        self.version
    }

    /// The features that a reader must know.
    pub fn features(&self) -> &[String] {
        &self.features
    }

    /// Its slots; none if it is platform-managed.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The origin of the volume, if it was not created empty.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }

    /// True if somebody other than the key holder decided what is in the volume. Set-id programs
    /// and devices in it are not trusted then.
    pub fn is_foreign(&self) -> bool {
        self.provenance.as_ref().is_some_and(|from| from.foreign)
    }

    /// Parses and checks one line of JSON.
    fn parse(line: &[u8]) -> Result<Self, VolumeError> {
        let peek: FormatPeek = serde_json::from_slice(line).map_err(not_json)?;
        if peek.format != FORMAT_NAME {
            return Err(invalid("it is of another kind"));
        }
        if peek.version > u64::from(FORMAT_VERSION) {
            return Err(VolumeError::NewerFormat {
                found: peek.version,
                supported: FORMAT_VERSION,
            });
        }
        if peek.version != u64::from(FORMAT_VERSION) {
            return Err(invalid("its format was never in use"));
        }
        let contents: Self = serde_json::from_slice(line).map_err(not_json)?;
        contents.check()?;
        Ok(contents)
    }

    fn check(&self) -> Result<(), VolumeError> {
        self.check_features()?;
        if self.sequence == 0 || self.sequence == u64::MAX {
            return Err(invalid("its sequence is out of range"));
        }
        if !(1..=MAX_KEY_SETS).contains(&self.key_sets.len()) {
            return Err(invalid("it has no key sets or too many"));
        }
        let epochs: BTreeSet<Epoch> = self.key_sets.iter().map(|set| set.epoch).collect();
        let ids: BTreeSet<KeySetId> = self.key_sets.iter().map(|set| set.id).collect();
        if epochs.len() != self.key_sets.len() || ids.len() != self.key_sets.len() {
            return Err(invalid("two of its key sets have the same id or epoch"));
        }
        if self.slots.is_empty() != (self.key_mode == KeyMode::PlatformManaged) {
            return Err(invalid("its slots do not fit its key mode"));
        }
        let keys = self.slots.check()?;
        for set in &self.key_sets {
            self.check_key_set(set, epochs.last() == Some(&set.epoch), &keys)?;
            let follows = |statement: &SuccessionStatement| {
                let mut others = self.key_sets.iter();
                others.any(|before| before.id == statement.key_set && before.epoch < set.epoch)
            };
            if set
                .succeeds
                .as_ref()
                .is_some_and(|statement| !follows(statement))
            {
                return Err(invalid("a key set follows one that is not there"));
            }
        }
        let bad_name = |name: &str| name.len() > MAX_NAME_BYTES || name.contains(char::is_control);
        if self
            .provenance
            .as_ref()
            .is_some_and(|from| bad_name(&from.image))
        {
            return Err(invalid("its provenance is not a name"));
        }
        Ok(())
    }

    fn check_features(&self) -> Result<(), VolumeError> {
        if self.features.is_empty() {
            return Ok(());
        }
        let name_ok = |name: &String| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if self.features.len() > MAX_FEATURES || !self.features.iter().all(name_ok) {
            return Err(invalid("its features are not names"));
        }
        Err(VolumeError::UnknownFeatures(self.features.join(", ")))
    }

    fn check_key_set(
        &self,
        set: &WrappedKeySet,
        newest: bool,
        keys: &[SlottedKey],
    ) -> Result<(), VolumeError> {
        if (set.state == KeySetState::Active) != newest {
            return Err(invalid("its active key set is not the newest one"));
        }
        check_platform_wraps(&set.infrastructure)?;
        if self.key_mode == KeyMode::PlatformManaged {
            return check_platform_wraps(&set.customer);
        }
        let fits =
            |(wrap, key): (&WrapRecord, &SlottedKey)| wrap.is_made_to(key.slot.0, &key.version);
        if set.customer.len() != keys.len() || !set.customer.iter().zip(keys).all(fits) {
            return Err(invalid("its wraps do not fit its slots"));
        }
        Ok(())
    }
}

fn check_platform_wraps(wraps: &[WrapRecord]) -> Result<(), VolumeError> {
    if !(1..=MAX_PLATFORM_WRAPS).contains(&wraps.len()) {
        return Err(invalid("a key has no wraps or too many"));
    }
    if !wraps.iter().all(WrapRecord::is_well_formed) {
        return Err(invalid("a wrap is empty, too long or not text"));
    }
    if !wraps.iter().all(WrapRecord::is_platform) {
        return Err(invalid("its wraps do not fit its key mode"));
    }
    Ok(())
}

/// A superblock whose MAC was not verified: its contents are claims.
#[derive(Clone, Debug)]
pub struct UnverifiedHeader {
    line: Vec<u8>,
    mac: [u8; 32],
    contents: HeaderContents,
}

impl UnverifiedHeader {
    /// Parses the bytes of `volume.json`.
    ///
    /// # Errors
    /// `HeaderInvalid` for bytes that are no superblock, `NewerFormat` and `UnknownFeatures` for
    /// one that needs a newer program.
    pub fn parse(bytes: &[u8]) -> Result<Self, VolumeError> {
        if bytes.len() > MAX_HEADER_BYTES {
            return Err(invalid("it is too long"));
        }
        let line_end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| invalid("it is incomplete"))?;
        let (line, rest) = bytes.split_at(line_end);
        let contents = HeaderContents::parse(line)?;
        let mac = rest
            .strip_prefix(b"\n")
            .and_then(|rest| rest.strip_suffix(b"\n"))
            .filter(|digits| digits.len() == MAC_DIGITS)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(strict)
            .and_then(|mac| mac.try_into().ok())
            .ok_or_else(|| invalid("its last line is no MAC"))?;
        Ok(Self {
            line: line.to_owned(),
            mac,
            contents,
        })
    }

    /// The claims.
    pub fn claims(&self) -> &HeaderContents {
        &self.contents
    }

    /// The claims as JSON, marked as unverified.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "verified": false, "claims": self.contents })
    }

    /// Verifies the MAC under all key sets that the superblock lists.
    ///
    /// # Errors
    /// `Tampered` if the MAC does not match, or if a listed key set is not in `keys`.
    pub fn verify(self, keys: &KeyRing) -> Result<VerifiedHeader, VolumeError> {
        let listed = listed_sets(&self.contents, keys).ok_or(VolumeError::Tampered)?;
        if !verify_header_mac(&listed, &self.line, &self.mac) {
            return Err(VolumeError::Tampered);
        }
        Ok(VerifiedHeader(self.contents))
    }
}

/// A superblock whose MAC was verified, or that this process made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedHeader(HeaderContents);

impl VerifiedHeader {
    /// Authenticates new contents. Returns the header and the bytes of `volume.json`.
    ///
    /// # Errors
    /// When the contents break a rule or become too long.
    pub(crate) fn seal(
        contents: HeaderContents,
        keys: &KeyRing,
    ) -> Result<(Self, Vec<u8>), VolumeError> {
        contents.check()?;
        let mut bytes = serde_json::to_vec(&contents).map_err(not_json)?;
        let listed = listed_sets(&contents, keys)
            .ok_or_else(|| invalid("a key set of it is not at hand"))?;
        let mac = header_mac(&listed, &bytes).map_err(|_| invalid("its MAC cannot be computed"))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(hex::encode(mac).as_bytes());
        bytes.push(b'\n');
        if bytes.len() > MAX_HEADER_BYTES {
            return Err(invalid("it would be too long"));
        }
        Ok((Self(contents), bytes))
    }
}

impl std::ops::Deref for VerifiedHeader {
    type Target = HeaderContents;

    fn deref(&self) -> &HeaderContents {
        &self.0
    }
}

/// The key sets that a superblock lists, in its order; `None` if one is not available.
fn listed_sets<'a>(contents: &HeaderContents, keys: &'a KeyRing) -> Option<Vec<&'a KeySet>> {
    let held = |wrapped: &WrappedKeySet| {
        let set = keys.get(wrapped.epoch).filter(|set| set.id == wrapped.id)?;
        Some(&**set)
    };
    contents.key_sets.iter().map(held).collect()
}

fn invalid(why: &str) -> VolumeError {
    VolumeError::HeaderInvalid(why.to_owned())
}

fn not_json(error: serde_json::Error) -> VolumeError {
    VolumeError::HeaderInvalid(error.to_string())
}

/// An epoch as a plain number, never 0.
pub(crate) mod epoch_number {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::ids::Epoch;

    pub(crate) fn serialize<S: Serializer>(epoch: &Epoch, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(epoch.0)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Epoch, D::Error> {
        match u32::deserialize(from)? {
            0 => Err(D::Error::custom("epochs are counted from 1")),
            number => Ok(Epoch(number)),
        }
    }
}
