//! The wrapped form of a DEK.
//!
//! The wrapped payload, under any key, is not the bare DEK but (offsets in bytes, little-endian):
//!
//! ```text
//! 0       8      9           25           41      45
//! | magic | role | volume id | key-set id | epoch | DEK (customer 64, infrastructure 32) |
//! ```
//!
//! so that nobody can pass off one DEK as another, or the DEK of one volume as that of another:
//! wrapping to a customer key has no additional data, and anybody may have the public half. The
//! role determines the length; every field is compared with its expected value.
//!
//! Platform wraps are ChaCha20-Poly1305 (RFC 8439): a fresh random 12-byte nonce, the ciphertext,
//! and the 16-byte tag. Their additional data binds the context:
//!
//! ```text
//! 0       24     25          41         57           73      77                 81
//! | label | role | volume id | keystore | key-set id | epoch | keystore version |
//! ```
//!
//! The infrastructure role uses the implementation of the infrastructure layer (AWS-LC) and the
//! customer role uses RustCrypto, so that the wraps of the two layers do not share an
//! implementation either.
//!
//! Nonces are random: with at most 2^32 wraps per platform key, the probability of a repetition
//! stays below 2^-32.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::aead::{self, RoleCipher};
use super::customer::{CustomerKeyProvider, KeyVersion};
use super::encoding::{hex_bytes, strict};
use super::error::{ErrorKind, KeyError, acknowledged};
use super::secret::{PlatformCustomerKey, PlatformKey};
use crate::audit::Record;
use crate::ids::{Epoch, KeySetId, VolumeId};
use crate::layers::{CustomerDek, InfrastructureDek};

/// First bytes of every payload.
const MAGIC: [u8; 8] = *b"bilayerK";
/// First bytes of a platform wrap's additional data.
const LABEL: [u8; 24] = *b"bilayer platform wrap 1\0";
/// Bytes in front of the DEK.
const PREFIX_BYTES: usize = 45;
/// Bytes of a platform wrap's additional data.
const AAD_BYTES: usize = 81;
const _: () = assert!(PREFIX_BYTES == MAGIC.len() + 1 + 16 + 16 + 4);
const _: () = assert!(AAD_BYTES == LABEL.len() + 1 + 16 + 16 + 16 + 4 + 4);
// OAEP with SHA-256 leaves this many bytes in the smallest RSA key: 256 - 2 * 32 - 2.
const _: () = assert!(PREFIX_BYTES + CustomerDek::BYTES <= 190);

/// Name of the platform keys' algorithm in headers and logs.
pub const PLATFORM_ALGORITHM: &str = "ChaCha20-Poly1305";
/// Prefix of the provider of a platform wrap; the keystore's id follows.
pub const PLATFORM_PREFIX: &str = "platform:";
/// Prefix of the provider of a wrap to a customer key; the number of its slot follows.
const SLOT_PREFIX: &str = "slot:";

/// Longest ciphertext in a wrap record, in bytes.
pub(super) const MAX_CIPHERTEXT_BYTES: usize = 1024;
/// Longest text in a wrap record, in bytes.
const MAX_TEXT_BYTES: usize = super::uri::MAX_URI_BYTES;

/// The layer that a DEK belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The customer layer, which is the inner one.
    Customer,
    /// The infrastructure layer, which is the outer one.
    Infrastructure,
}

impl Role {
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Customer => 1,
            Self::Infrastructure => 2,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Customer => "customer",
            Self::Infrastructure => "infrastructure",
        })
    }
}

/// Identifies the DEK of a wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrapContext {
    /// The volume that holds the wrap.
    pub volume: VolumeId,
    /// The key set that the DEK belongs to.
    pub key_set: KeySetId,
    /// Number of the key set.
    pub epoch: Epoch,
}

/// A wrapped DEK as stored in the superblock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrapRecord {
    /// `slot:` and the number of the slot, or `platform:` and the id of the keystore.
    pub provider: String,
    /// Identifies the key: a customer key's fingerprint, or the number of a keystore version.
    pub key_version: String,
    /// The wrapping algorithm.
    pub algorithm: String,
    /// The wrapped payload.
    #[serde(with = "hex_bytes")]
    pub ciphertext: Vec<u8>,
}

impl WrapRecord {
    /// True if a platform keystore made it.
    pub fn is_platform(&self) -> bool {
        self.provider.starts_with(PLATFORM_PREFIX)
    }

    /// The platform key that made the wrap; `None` for a customer key, or if the wrap names none.
    pub fn platform_version(&self) -> Option<PlatformVersion> {
        let id = strict(self.provider.strip_prefix(PLATFORM_PREFIX)?)?;
        let version: u32 = self.key_version.parse().ok()?;
        // Exactly the text that this program writes.
        let is_exact = version > 0 && version.to_string() == self.key_version;
        is_exact.then_some(PlatformVersion {
            keystore: id.try_into().ok()?,
            version,
        })
    }

    /// True if everything is within bounds and safe to print.
    pub(crate) fn is_well_formed(&self) -> bool {
        let text_ok = |text: &str| {
            (1..=MAX_TEXT_BYTES).contains(&text.len()) && !text.contains(char::is_control)
        };
        [&self.provider, &self.key_version, &self.algorithm]
            .iter()
            .all(|text| text_ok(text))
            && (1..=MAX_CIPHERTEXT_BYTES).contains(&self.ciphertext.len())
    }

    /// The audit record of an action on this wrap.
    fn audit(&self, action: &'static str, role: Role, context: &WrapContext) -> Record {
        let record = Record::new(action)
            .volume(context.volume)
            .with_text("role", role)
            .with_text("key_set", context.key_set)
            .with("epoch", context.epoch.0);
        let slot = self.provider.strip_prefix(SLOT_PREFIX);
        let record = match slot.and_then(|number| number.parse().ok()) {
            Some(number) => record.slot(number),
            None => record.key(&self.provider),
        };
        record
            .with_text("key_version", &self.key_version)
            .with_text("algorithm", &self.algorithm)
    }

    /// Unwraps it, and returns the DEK once that is recorded.
    fn audited<T>(
        &self,
        role: Role,
        context: &WrapContext,
        unwrap: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let begin = Instant::now();
        let result = unwrap();
        acknowledged(self.audit("unwrap", role, context).since(begin), result)
    }

    /// Returns the new wrap once it is recorded.
    fn made(self, role: Role, context: &WrapContext, begin: Instant) -> Result<Self, KeyError> {
        let record = self.audit("wrap", role, context).since(begin);
        acknowledged(record, Ok(self))
    }

    /// True if it was made to that key of that slot, as far as its fields say.
    pub(crate) fn is_made_to(&self, slot: u8, version: &KeyVersion) -> bool {
        self.provider == format!("{SLOT_PREFIX}{slot}")
            && self.key_version == version.key.fingerprint()
            && self.algorithm == version.key.algorithm().name()
            && self.ciphertext.len()
                == version
                    .key
                    .ciphertext_bytes(PREFIX_BYTES + CustomerDek::BYTES)
    }
}

/// Wraps a customer DEK to a key of a slot.
pub(crate) fn wrap_for_slot(
    slot: u8,
    version: &KeyVersion,
    context: &WrapContext,
    dek: &CustomerDek,
) -> Result<WrapRecord, KeyError> {
    let begin = Instant::now();
    let payload = aead::payload(&prefix(Role::Customer, context), dek.expose());
    let record = WrapRecord {
        provider: format!("{SLOT_PREFIX}{slot}"),
        key_version: version.key.fingerprint().to_owned(),
        algorithm: version.key.algorithm().name().to_owned(),
        ciphertext: version.key.wrap(&payload)?,
    };
    record.made(Role::Customer, context, begin)
}

/// Unwraps a customer DEK that was wrapped to that key.
pub(crate) fn unwrap_from_slot(
    provider: &dyn CustomerKeyProvider,
    version: &KeyVersion,
    context: &WrapContext,
    record: &WrapRecord,
) -> Result<CustomerDek, KeyError> {
    let unwrap = || {
        let payload = provider.unwrap(version, &record.ciphertext)?;
        allocated(dek_of(Role::Customer, context, &payload).map(CustomerDek::from_bytes))
    };
    let begin = Instant::now();
    let result = unwrap();
    let audited = record.audit("unwrap", Role::Customer, context);
    acknowledged(
        audited.key(&provider.uri().to_string()).since(begin),
        result,
    )
}

/// Identifies the platform key of a wrap: keystore and version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PlatformVersion {
    /// The keystore's id.
    pub keystore: [u8; 16],
    /// Number of the version, from 1.
    pub version: u32,
}

impl fmt::Display for PlatformVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.version, hex::encode(self.keystore))
    }
}

impl PlatformVersion {
    fn record(self, ciphertext: Vec<u8>) -> WrapRecord {
        WrapRecord {
            provider: format!("{PLATFORM_PREFIX}{}", hex::encode(self.keystore)),
            key_version: self.version.to_string(),
            algorithm: PLATFORM_ALGORITHM.to_owned(),
            ciphertext,
        }
    }
}

/// Wraps an infrastructure DEK with the platform key.
pub(crate) fn wrap_infrastructure(
    key: &PlatformKey,
    version: PlatformVersion,
    context: &WrapContext,
    dek: &InfrastructureDek,
) -> Result<WrapRecord, KeyError> {
    let cipher = aead::infrastructure_cipher(key.expose())?;
    let role = Role::Infrastructure;
    seal_with_platform_key(&cipher, role, version, context, dek.expose())
}

/// Unwraps an infrastructure DEK with the platform key.
pub(crate) fn unwrap_infrastructure(
    key: &PlatformKey,
    version: PlatformVersion,
    context: &WrapContext,
    record: &WrapRecord,
) -> Result<InfrastructureDek, KeyError> {
    let role = Role::Infrastructure;
    let unwrap = || {
        let cipher = aead::infrastructure_cipher(key.expose())?;
        let payload = open_with_platform_key(&cipher, role, version, context, record)?;
        allocated(dek_of(role, context, &payload).map(InfrastructureDek::from_bytes))
    };
    record.audited(role, context, unwrap)
}

/// Wraps the customer DEK of a platform-managed volume.
pub(crate) fn wrap_customer_with_platform_key(
    key: &PlatformCustomerKey,
    version: PlatformVersion,
    context: &WrapContext,
    dek: &CustomerDek,
) -> Result<WrapRecord, KeyError> {
    let cipher = aead::customer_cipher(key.expose())?;
    seal_with_platform_key(&cipher, Role::Customer, version, context, dek.expose())
}

/// Unwraps the customer DEK of a platform-managed volume.
pub(crate) fn unwrap_customer_with_platform_key(
    key: &PlatformCustomerKey,
    version: PlatformVersion,
    context: &WrapContext,
    record: &WrapRecord,
) -> Result<CustomerDek, KeyError> {
    let role = Role::Customer;
    let unwrap = || {
        let cipher = aead::customer_cipher(key.expose())?;
        let payload = open_with_platform_key(&cipher, role, version, context, record)?;
        allocated(dek_of(role, context, &payload).map(CustomerDek::from_bytes))
    };
    record.audited(role, context, unwrap)
}

fn seal_with_platform_key(
    cipher: &dyn RoleCipher,
    role: Role,
    version: PlatformVersion,
    context: &WrapContext,
    dek: &[u8],
) -> Result<WrapRecord, KeyError> {
    let begin = Instant::now();
    let aad = additional_data(role, context, version);
    let payload = aead::payload(&prefix(role, context), dek);
    let record = version.record(aead::seal(cipher, &aad, payload)?);
    record.made(role, context, begin)
}

fn open_with_platform_key(
    cipher: &dyn RoleCipher,
    role: Role,
    version: PlatformVersion,
    context: &WrapContext,
    record: &WrapRecord,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    if record.algorithm != PLATFORM_ALGORITHM {
        return Err(foreign_algorithm(record));
    }
    let aad = additional_data(role, context, version);
    aead::open(cipher, &aad, &record.ciphertext).ok_or_else(|| does_not_open(record))
}

fn prefix(role: Role, context: &WrapContext) -> [u8; PREFIX_BYTES] {
    let mut bytes = [0; PREFIX_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8] = role.byte();
    bytes[9..25].copy_from_slice(&context.volume.0);
    bytes[25..41].copy_from_slice(&context.key_set.0);
    bytes[41..].copy_from_slice(&context.epoch.0.to_le_bytes());
    bytes
}

/// Turns a lack of memory for a key into an error of the machine, not of the key.
pub(super) fn allocated<T>(copied: Result<std::io::Result<T>, KeyError>) -> Result<T, KeyError> {
    copied?.map_err(KeyError::memory)
}

/// The DEK of a payload that matches `context` exactly.
fn dek_of<'a, const N: usize>(
    role: Role,
    context: &WrapContext,
    payload: &'a [u8],
) -> Result<&'a [u8; N], KeyError> {
    payload
        .strip_prefix(&prefix(role, context))
        .and_then(|dek| <&[u8; N]>::try_from(dek).ok())
        .ok_or_else(|| {
            KeyError::new(
                ErrorKind::Tampered,
                format!(
                    "the wrapped {role} key of epoch {} is another key, or another volume's",
                    context.epoch
                ),
            )
            .with_hint("the superblock was changed; restore volume.json from a backup")
        })
}

fn additional_data(role: Role, context: &WrapContext, version: PlatformVersion) -> [u8; AAD_BYTES] {
    let mut bytes = [0; AAD_BYTES];
    bytes[..24].copy_from_slice(&LABEL);
    bytes[24] = role.byte();
    bytes[25..41].copy_from_slice(&context.volume.0);
    bytes[41..57].copy_from_slice(&version.keystore);
    bytes[57..73].copy_from_slice(&context.key_set.0);
    bytes[73..77].copy_from_slice(&context.epoch.0.to_le_bytes());
    bytes[77..].copy_from_slice(&version.version.to_le_bytes());
    bytes
}

fn foreign_algorithm(record: &WrapRecord) -> KeyError {
    KeyError::new(
        ErrorKind::HeaderInvalid,
        format!(
            "volume.json has a key that is wrapped by {:?}",
            record.algorithm
        ),
    )
    .with_hint("this version unwraps RSA-OAEP-256 and ChaCha20-Poly1305")
}

fn does_not_open(record: &WrapRecord) -> KeyError {
    KeyError::new(
        ErrorKind::Tampered,
        format!(
            "volume.json has a wrapped key that platform key version {} does not open",
            record.key_version
        ),
    )
    .with_hint("the superblock was changed, or belongs to another platform keystore")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> WrapContext {
        WrapContext {
            volume: VolumeId([1; 16]),
            key_set: KeySetId([2; 16]),
            epoch: Epoch(3),
        }
    }

    const VERSION: PlatformVersion = PlatformVersion {
        keystore: [9; 16],
        version: 1,
    };

    #[test]
    fn every_part_of_the_context_is_bound() {
        let key = PlatformKey::random().expect("key");
        let dek = InfrastructureDek::random().expect("dek");
        let record = wrap_infrastructure(&key, VERSION, &context(), &dek).expect("wrap");
        let open =
            |context: &WrapContext, version| unwrap_infrastructure(&key, version, context, &record);
        let back = open(&context(), VERSION).expect("unwrap");
        assert_eq!(back.expose(), dek.expose());
        let mut others = [context(); 3];
        others[0].volume.0[15] ^= 1;
        others[1].key_set.0[0] ^= 1;
        others[2].epoch.0 += 1;
        for other in others {
            assert_eq!(
                open(&other, VERSION).expect_err("bound").kind(),
                ErrorKind::Tampered
            );
        }
        for other in [
            PlatformVersion {
                version: 2,
                ..VERSION
            },
            PlatformVersion {
                keystore: [8; 16],
                ..VERSION
            },
        ] {
            assert_eq!(
                open(&context(), other).expect_err("bound").kind(),
                ErrorKind::Tampered
            );
        }
    }

    #[test]
    fn one_role_does_not_open_the_others() {
        let bytes = [7; 32];
        let (outer, inner) = (
            PlatformKey::from_bytes(&bytes).expect("key"),
            PlatformCustomerKey::from_bytes(&bytes).expect("key"),
        );
        let dek = InfrastructureDek::random().expect("dek");
        let record = wrap_infrastructure(&outer, VERSION, &context(), &dek).expect("wrap");
        let error = unwrap_customer_with_platform_key(&inner, VERSION, &context(), &record)
            .expect_err("role");
        assert_eq!(error.kind(), ErrorKind::Tampered);
        // Nor does the payload pass where the additional data would.
        let text = aead::payload(&prefix(Role::Infrastructure, &context()), dek.expose());
        assert!(dek_of::<32>(Role::Infrastructure, &context(), &text).is_ok());
        assert!(dek_of::<32>(Role::Customer, &context(), &text).is_err());
        assert!(dek_of::<64>(Role::Infrastructure, &context(), &text).is_err());
        let elsewhere = WrapContext {
            volume: VolumeId([4; 16]),
            ..context()
        };
        assert!(dek_of::<32>(Role::Infrastructure, &elsewhere, &text).is_err());
        assert!(dek_of::<32>(Role::Infrastructure, &context(), &text[..76]).is_err());
    }

    #[test]
    fn every_bit_of_a_platform_wrap_counts() {
        let key = PlatformCustomerKey::random().expect("key");
        let dek = CustomerDek::random().expect("dek");
        let record =
            wrap_customer_with_platform_key(&key, VERSION, &context(), &dek).expect("wrap");
        assert_eq!(record.ciphertext.len(), 12 + 109 + 16);
        for bit in 0..record.ciphertext.len() * 8 {
            let mut changed = record.clone();
            changed.ciphertext[bit / 8] ^= 1 << (bit % 8);
            assert!(
                unwrap_customer_with_platform_key(&key, VERSION, &context(), &changed).is_err(),
                "bit {bit}"
            );
        }
        for len in 0..record.ciphertext.len() {
            let mut truncated = record.clone();
            truncated.ciphertext.truncate(len);
            assert!(
                unwrap_customer_with_platform_key(&key, VERSION, &context(), &truncated).is_err(),
                "{len} bytes"
            );
        }
    }
}
