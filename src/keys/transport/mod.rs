//! The wrapped form of a DEK in an export, and the keys that wrap it there.
//!
//! ```text
//! platform keys vN  ──HKDF────────────┐
//!                                     ├─► transport keys, one per role ──ChaCha20-Poly1305─► DEK
//! passphrase ──Argon2id──► ──HKDF─────┘
//! customer RSA key ──RSA-OAEP-256──────────────────────────────────────────────► customer DEK
//! ```
//!
//! An export contains the one key set that was drawn for it and seals all of it, never a key set of
//! a volume. The customer DEK of a customer-managed image is wrapped only for the customer key; the
//! infrastructure DEK never is. The wrapped payload is (offsets in bytes, little-endian):
//!
//! ```text
//! 0       8      9            25      29          45
//! | magic | role | key-set id | epoch | export id | DEK (customer 64, infrastructure 32) |
//! ```
//!
//! HKDF-SHA-256 without salt. The input is the platform key of the role (see
//! [`keystore`](super::keystore)) or the 32 bytes from Argon2id. `info` and additional data are:
//!
//! ```text
//! 0       24     25          41           57      61
//! | label | role | export id |                         info
//! | label | role | export id | key-set id | epoch |    additional data
//! ```
//!
//! As in volumes, the infrastructure role uses AWS-LC for everything and the customer role uses
//! RustCrypto. Argon2id (RFC 9106): the cost that a header requests is bounded before anything is
//! computed, so that a hostile header can exhaust neither memory nor time.

use std::io;
use std::time::Instant;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::aead::{self, RoleCipher, cipher_failed};
use super::customer::{CustomerKeyProvider, KeyVersion, WrappingKey};
use super::encoding::hex_array;
use super::error::{ErrorKind, KeyError, acknowledged};
use super::secret::{
    Passphrase, PlatformCustomerKey, PlatformKey, TransportCustomerKey, TransportKey,
};
use super::wrap::{Role, allocated};
use crate::audit::Record;
use crate::ids::{Epoch, ExportId, KeySetId};
use crate::layers::derivation::hkdf_sha256;
use crate::layers::infrastructure;
use crate::layers::{CustomerDek, InfrastructureDek};
use crate::sys::wipe::with_secrets;

/// First bytes of every payload.
const MAGIC: [u8; 8] = *b"bilayerX";
/// First bytes of `info` and additional data.
const LABEL: [u8; 24] = *b"bilayer transport 1\0\0\0\0\0";
/// Bytes in front of the DEK.
const PREFIX_BYTES: usize = 45;
const INFO_BYTES: usize = 41;
const AAD_BYTES: usize = 61;
const _: () = assert!(PREFIX_BYTES == MAGIC.len() + 1 + 16 + 4 + 16);
const _: () = assert!(INFO_BYTES == LABEL.len() + 1 + 16 && AAD_BYTES == INFO_BYTES + 16 + 4);
// OAEP with SHA-256 leaves this many bytes in the smallest RSA key: 256 - 2 * 32 - 2.
const _: () = assert!(PREFIX_BYTES + CustomerDek::BYTES <= 190);

/// Length limit of a wrap, in bytes: one under a 4096-bit key.
pub const MAX_WRAP_BYTES: usize = 512;

/// Limit on the memory that a header may request, in KiB.
const MAX_MEMORY_KIB: u32 = 1 << 20;
/// Limit on memory times passes, in KiB: a few seconds.
const MAX_WORK_KIB: u64 = 4 << 20;
const MAX_LANES: u32 = 16;

/// The cost parameters of Argon2id (RFC 9106 section 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Argon2idCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Number of passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2idCost {
    /// The second recommended option of RFC 9106 section 4: 64 MiB, three passes, four lanes.
    pub const DEFAULT: Self = Self {
        memory_kib: 64 << 10,
        passes: 3,
        lanes: 4,
    };

    /// True if a reader accepts the cost.
    pub(super) fn is_within_limits(self) -> bool {
        (1..=MAX_LANES).contains(&self.lanes)
            && (8 * self.lanes..=MAX_MEMORY_KIB).contains(&self.memory_kib)
            && self.passes > 0
            && u64::from(self.memory_kib) * u64::from(self.passes) <= MAX_WORK_KIB
    }
}

/// The holder of the keys that wrap the DEKs of an export, as stated in its header.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TransportMethod {
    /// A platform keystore, which the destination must have too.
    Keystore {
        /// Its id, 32 hexadecimal digits.
        keystore: String,
        /// Number of the version.
        key_version: u32,
    },
    /// Anybody who knows a passphrase.
    Passphrase {
        /// The cost of Argon2id.
        argon2id: Argon2idCost,
        /// Random salt.
        #[serde(with = "hex_array")]
        salt: [u8; 16],
    },
}

impl TransportMethod {
    /// True if everything is within bounds and safe to print.
    pub(crate) fn is_well_formed(&self) -> bool {
        match self {
            Self::Keystore { keystore, .. } => {
                super::encoding::strict(keystore).is_some_and(|id| id.len() == 16)
            }
            Self::Passphrase { argon2id, .. } => argon2id.is_within_limits(),
        }
    }
}

/// Identifies the DEK and the export of a wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TransportContext {
    pub(crate) export: ExportId,
    pub(crate) key_set: KeySetId,
    pub(crate) epoch: Epoch,
}

/// The keys that wrap the DEKs of one export, one per role.
#[derive(Debug)]
pub(crate) struct TransportKeys {
    infrastructure: TransportKey,
    customer: TransportCustomerKey,
    /// They are derived from a passphrase, which may be wrong.
    is_from_passphrase: bool,
}

impl TransportKeys {
    /// Derives the keys from the two keys of a version of the platform keystore.
    pub(super) fn from_platform(
        infrastructure: &PlatformKey,
        customer: &PlatformCustomerKey,
        export: ExportId,
    ) -> Result<Self, KeyError> {
        with_secrets(|| Self::derive(infrastructure.expose(), customer.expose(), export, false))
    }

    /// Derives the keys of a new export from a passphrase, and draws the salt.
    pub(crate) fn from_new_passphrase(
        passphrase: &Passphrase,
        cost: Argon2idCost,
        export: ExportId,
    ) -> Result<(TransportMethod, Self), KeyError> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt)
            .map_err(|error| KeyError::random(io::Error::other(error.to_string())))?;
        let method = TransportMethod::Passphrase {
            argon2id: cost,
            salt,
        };
        Ok((
            method,
            Self::from_passphrase(passphrase, cost, &salt, export)?,
        ))
    }

    /// Derives the keys from a passphrase. Whether it is the right one is known only once a DEK
    /// opens.
    ///
    /// # Errors
    /// Kind `HeaderInvalid` if the cost exceeds the limits.
    pub(crate) fn from_passphrase(
        passphrase: &Passphrase,
        cost: Argon2idCost,
        salt: &[u8; 16],
        export: ExportId,
    ) -> Result<Self, KeyError> {
        if !cost.is_within_limits() {
            return Err(KeyError::new(
                ErrorKind::HeaderInvalid,
                "the export requests a cost of Argon2id beyond the limits",
            ));
        }
        with_secrets(|| {
            let root = argon2id(passphrase, cost, salt)?;
            Self::derive(root.as_slice(), root.as_slice(), export, true)
        })
    }

    fn derive(
        infrastructure: &[u8],
        customer: &[u8],
        export: ExportId,
        is_from_passphrase: bool,
    ) -> Result<Self, KeyError> {
        let mut key = Zeroizing::new([0; 32]);
        let info = info(Role::Infrastructure, export);
        infrastructure::hkdf_sha256(infrastructure, &info, key.as_mut_slice())
            .map_err(|_| cipher_failed())?;
        let infrastructure = TransportKey::from_bytes(&key).map_err(KeyError::memory)?;
        let info = self::info(Role::Customer, export);
        hkdf_sha256(customer, &info, key.as_mut_slice()).map_err(|_| cipher_failed())?;
        let customer = TransportCustomerKey::from_bytes(&key).map_err(KeyError::memory)?;
        Ok(Self {
            infrastructure,
            customer,
            is_from_passphrase,
        })
    }

    /// Wraps an infrastructure DEK.
    pub(crate) fn wrap_infrastructure(
        &self,
        context: &TransportContext,
        dek: &InfrastructureDek,
    ) -> Result<Vec<u8>, KeyError> {
        let cipher = aead::infrastructure_cipher(self.infrastructure.expose())?;
        seal(&cipher, Role::Infrastructure, context, dek.expose())
    }

    /// Unwraps an infrastructure DEK.
    pub(crate) fn unwrap_infrastructure(
        &self,
        context: &TransportContext,
        wrapped: &[u8],
    ) -> Result<InfrastructureDek, KeyError> {
        let role = Role::Infrastructure;
        let unwrap = || {
            let cipher = aead::infrastructure_cipher(self.infrastructure.expose())?;
            let payload = self.open(&cipher, role, context, wrapped)?;
            allocated(dek_of(role, context, &payload).map(InfrastructureDek::from_bytes))
        };
        audited(role, context, unwrap)
    }

    /// Wraps the customer DEK of a platform-managed image.
    pub(crate) fn wrap_customer(
        &self,
        context: &TransportContext,
        dek: &CustomerDek,
    ) -> Result<Vec<u8>, KeyError> {
        let cipher = aead::customer_cipher(self.customer.expose())?;
        seal(&cipher, Role::Customer, context, dek.expose())
    }

    /// Unwraps the customer DEK of a platform-managed image.
    pub(crate) fn unwrap_customer(
        &self,
        context: &TransportContext,
        wrapped: &[u8],
    ) -> Result<CustomerDek, KeyError> {
        let role = Role::Customer;
        let unwrap = || {
            let cipher = aead::customer_cipher(self.customer.expose())?;
            let payload = self.open(&cipher, role, context, wrapped)?;
            allocated(dek_of(role, context, &payload).map(CustomerDek::from_bytes))
        };
        audited(role, context, unwrap)
    }

    /// Seals a part of a keystore's backup.
    pub(super) fn seal_part(
        &self,
        role: Role,
        additional_data: &[u8],
        text: Zeroizing<Vec<u8>>,
    ) -> Result<Vec<u8>, KeyError> {
        aead::seal(&*self.cipher(role)?, additional_data, text)
    }

    /// Opens a part of a keystore's backup; `None` if it does not authenticate.
    pub(super) fn open_part(
        &self,
        role: Role,
        additional_data: &[u8],
        sealed: &[u8],
    ) -> Option<Zeroizing<Vec<u8>>> {
        aead::open(&*self.cipher(role).ok()?, additional_data, sealed)
    }

    fn cipher(&self, role: Role) -> Result<Box<dyn RoleCipher>, KeyError> {
        Ok(match role {
            Role::Customer => Box::new(aead::customer_cipher(self.customer.expose())?),
            Role::Infrastructure => {
                Box::new(aead::infrastructure_cipher(self.infrastructure.expose())?)
            }
        })
    }

    fn open(
        &self,
        cipher: &dyn RoleCipher,
        role: Role,
        context: &TransportContext,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let payload = aead::open(cipher, &additional_data(role, context), wrapped);
        payload.ok_or_else(|| self.does_not_open())
    }

    /// A wrong passphrase and a changed header cannot be distinguished.
    fn does_not_open(&self) -> KeyError {
        if self.is_from_passphrase {
            KeyError::new(
                ErrorKind::WrongKey,
                "the passphrase does not open the keys of the export",
            )
            .with_hint("try again with the right passphrase; or the export was changed")
        } else {
            KeyError::new(
                ErrorKind::Tampered,
                "the platform key does not open the keys of the export: it was changed",
            )
            .with_hint("fetch it again, or export the image anew")
        }
    }
}

fn seal(
    cipher: &dyn RoleCipher,
    role: Role,
    context: &TransportContext,
    dek: &[u8],
) -> Result<Vec<u8>, KeyError> {
    let begin = Instant::now();
    let aad = additional_data(role, context);
    let payload = aead::payload(&prefix(role, context), dek);
    let wrapped = aead::seal(cipher, &aad, payload)?;
    acknowledged(audit("wrap", role, context).since(begin), Ok(wrapped))
}

/// Wraps the customer DEK of a customer-managed image to the customer key.
pub(crate) fn wrap_with_customer_key(
    key: &WrappingKey,
    context: &TransportContext,
    dek: &CustomerDek,
) -> Result<Vec<u8>, KeyError> {
    let begin = Instant::now();
    let payload = aead::payload(&prefix(Role::Customer, context), dek.expose());
    let wrapped = key.wrap(&payload)?;
    let record = audit("wrap", Role::Customer, context);
    acknowledged(record.since(begin), Ok(wrapped))
}

/// Unwraps the customer DEK of a customer-managed image.
pub(crate) fn unwrap_with_customer_key(
    provider: &dyn CustomerKeyProvider,
    version: &KeyVersion,
    context: &TransportContext,
    wrapped: &[u8],
) -> Result<CustomerDek, KeyError> {
    let role = Role::Customer;
    let unwrap = || {
        let payload = provider.unwrap(version, wrapped)?;
        allocated(dek_of(role, context, &payload).map(CustomerDek::from_bytes))
    };
    audited(role, context, unwrap)
}

/// Computes 32 bytes with Argon2id and wipes its memory.
fn argon2id(
    passphrase: &Passphrase,
    cost: Argon2idCost,
    salt: &[u8; 16],
) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let refused = || KeyError::new(ErrorKind::HeaderInvalid, "Argon2id refuses its parameters");
    let params =
        Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(|_| refused())?;
    let mut memory: Vec<Block> = Vec::new();
    memory
        .try_reserve_exact(params.block_count())
        .map_err(|error| KeyError::memory(io::Error::other(error.to_string())))?;
    memory.resize(params.block_count(), Block::new());
    let mut root = Zeroizing::new([0; 32]);
    let computed = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(
            passphrase.expose(),
            salt,
            root.as_mut_slice(),
            memory.as_mut_slice(),
        );
    memory.iter_mut().for_each(Zeroize::zeroize);
    computed.map_err(|_| refused())?;
    Ok(root)
}

fn info(role: Role, export: ExportId) -> [u8; INFO_BYTES] {
    let mut bytes = [0; INFO_BYTES];
    bytes[..24].copy_from_slice(&LABEL);
    bytes[24] = role.byte();
    bytes[25..].copy_from_slice(&export.0);
    bytes
}

fn additional_data(role: Role, context: &TransportContext) -> [u8; AAD_BYTES] {
    let mut bytes = [0; AAD_BYTES];
    bytes[..INFO_BYTES].copy_from_slice(&info(role, context.export));
    bytes[41..57].copy_from_slice(&context.key_set.0);
    bytes[57..].copy_from_slice(&context.epoch.0.to_le_bytes());
    bytes
}

fn prefix(role: Role, context: &TransportContext) -> [u8; PREFIX_BYTES] {
    let mut bytes = [0; PREFIX_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8] = role.byte();
    bytes[9..25].copy_from_slice(&context.key_set.0);
    bytes[25..29].copy_from_slice(&context.epoch.0.to_le_bytes());
    bytes[29..].copy_from_slice(&context.export.0);
    bytes
}

/// The DEK of a payload that matches `context` exactly.
fn dek_of<'a, const N: usize>(
    role: Role,
    context: &TransportContext,
    payload: &'a [u8],
) -> Result<&'a [u8; N], KeyError> {
    payload
        .strip_prefix(&prefix(role, context))
        .and_then(|dek| <&[u8; N]>::try_from(dek).ok())
        .ok_or_else(|| {
            KeyError::new(
                ErrorKind::Tampered,
                format!(
                    "the wrapped {role} key of epoch {} is another key than this export's",
                    context.epoch
                ),
            )
        })
}

fn audit(action: &'static str, role: Role, context: &TransportContext) -> Record {
    Record::new(action)
        .with_text("role", role)
        .with_text("export", context.export)
        .with_text("key_set", context.key_set)
        .with("epoch", context.epoch.0)
}

fn audited<T>(
    role: Role,
    context: &TransportContext,
    unwrap: impl FnOnce() -> Result<T, KeyError>,
) -> Result<T, KeyError> {
    let begin = Instant::now();
    let result = unwrap();
    acknowledged(audit("unwrap", role, context).since(begin), result)
}

#[cfg(test)]
mod tests;
