//! The public half of a customer key, which is all that wrapping needs.
//!
//! | name in the superblock | algorithm |
//! |---|---|
//! | `RSA-OAEP-256` | RSA-OAEP with SHA-256 and an empty label (RFC 8017 section 7.1) |
//! | `RSA-OAEP` | the same with SHA-1, for tokens that can do no other |
//! | `HPKE-X25519-SHA256-ChaCha20Poly1305` | HPKE, for recovery codes ([`super::hpke`]) |
//!
//! RSA-OAEP has the same hash in MGF1. The security of OAEP does not depend on collisions of its
//! hash, which is what SHA-1 lacks.
//!
//! The names are those of RFC 7518. A public key is stored as its SubjectPublicKeyInfo (RFC 5280)
//! in DER, and identified by the SHA-256 of that: its fingerprint.

use std::fmt;

use rsa::pkcs8::{DecodePublicKey, EncodePublicKey};
use rsa::rand_core::OsRng;
use rsa::traits::PublicKeyParts;
use rsa::{BigUint, Oaep, RsaPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RSA_BITS;
use super::hpke::{self, OVERHEAD_BYTES, PUBLIC_KEY_BYTES};
use crate::keys::error::{ErrorKind, KeyError};
use crate::sys::wipe::with_secrets;

/// Smallest public exponent (NIST SP 800-56B revision 2, section 6.2).
const MIN_EXPONENT: u32 = 65537;
/// SubjectPublicKeyInfo of an X25519 key in DER, in front of the key (RFC 8410 section 4).
const X25519_SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x03, 0x21, 0x00,
];

/// How a DEK is wrapped to a customer key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum WrapAlgorithm {
    /// RSA-OAEP with SHA-256.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaepSha256,
    /// RSA-OAEP with SHA-1.
    #[serde(rename = "RSA-OAEP")]
    RsaOaepSha1,
    /// HPKE in base mode (RFC 9180), for recovery codes.
    #[serde(rename = "HPKE-X25519-SHA256-ChaCha20Poly1305")]
    HpkeX25519,
}

impl WrapAlgorithm {
    /// Its name in superblocks and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RsaOaepSha256 => "RSA-OAEP-256",
            Self::RsaOaepSha1 => "RSA-OAEP",
            Self::HpkeX25519 => "HPKE-X25519-SHA256-ChaCha20Poly1305",
        }
    }

    /// The padding of RSA, with an empty label; `None` for another algorithm.
    pub(super) fn padding(self) -> Option<Oaep> {
        match self {
            Self::RsaOaepSha256 => Some(Oaep::new::<rsa::sha2::Sha256>()),
            Self::RsaOaepSha1 => Some(Oaep::new::<sha1::Sha1>()),
            Self::HpkeX25519 => None,
        }
    }
}

impl fmt::Display for WrapAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A public key by its kind.
#[derive(Clone, PartialEq, Eq)]
enum PublicHalf {
    Rsa(RsaPublicKey),
    X25519([u8; PUBLIC_KEY_BYTES]),
}

/// The public half of a customer key, and how DEKs are wrapped to it.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappingKey {
    algorithm: WrapAlgorithm,
    half: PublicHalf,
    spki: Vec<u8>,
    fingerprint: String,
}

impl WrappingKey {
    /// A public RSA key, if its size and exponent are accepted.
    ///
    /// # Errors
    /// Kind `Usage`, with the reason as the message: `it has 1024 bits`.
    pub fn new(key: RsaPublicKey, algorithm: WrapAlgorithm) -> Result<Self, KeyError> {
        let bits = key.n().bits();
        if !RSA_BITS.contains(&bits) {
            return Err(refused(format!("it is an RSA key of {bits} bits"))
                .with_hint("RSA keys of 2048, 3072 and 4096 bits are accepted"));
        }
        let exponent = key.e();
        let odd = exponent
            .to_bytes_le()
            .first()
            .is_some_and(|byte| byte & 1 == 1);
        if !odd || *exponent < BigUint::from(MIN_EXPONENT) {
            return Err(refused(format!("it has the public exponent {exponent}"))
                .with_hint("the exponent has to be odd and at least 65537"));
        }
        let der = key
            .to_public_key_der()
            .map_err(|_| refused("it cannot be encoded".to_owned()))?;
        if algorithm.padding().is_none() {
            return Err(refused(format!("RSA keys do not wrap by {algorithm}")));
        }
        Ok(Self::with_spki(
            algorithm,
            PublicHalf::Rsa(key),
            der.as_bytes().to_vec(),
        ))
    }

    fn with_spki(algorithm: WrapAlgorithm, half: PublicHalf, spki: Vec<u8>) -> Self {
        let fingerprint = hex::encode(Sha256::digest(&spki));
        Self {
            algorithm,
            half,
            spki,
            fingerprint,
        }
    }

    /// The public key of a recovery code.
    pub(super) fn from_x25519(key: &[u8]) -> Result<Self, KeyError> {
        let key: [u8; PUBLIC_KEY_BYTES] = key
            .try_into()
            .map_err(|_| refused("it is no X25519 public key".to_owned()))?;
        let spki = [&X25519_SPKI[..], &key].concat();
        let half = PublicHalf::X25519(key);
        Ok(Self::with_spki(WrapAlgorithm::HpkeX25519, half, spki))
    }

    /// A public key from its SubjectPublicKeyInfo in DER, which must be exactly the encoding that
    /// [`Self::spki`] returns.
    ///
    /// # Errors
    /// Kind `Usage` if it is no key that is accepted with that algorithm.
    pub fn from_spki(der: &[u8], algorithm: WrapAlgorithm) -> Result<Self, KeyError> {
        if algorithm == WrapAlgorithm::HpkeX25519 {
            return Self::from_x25519(der.strip_prefix(&X25519_SPKI[..]).unwrap_or_default());
        }
        let key = RsaPublicKey::from_public_key_der(der)
            .map_err(|_| refused("it is no RSA public key".to_owned()))?;
        let this = Self::new(key, algorithm)?;
        if this.spki != der {
            return Err(refused("it is not in DER".to_owned()));
        }
        Ok(this)
    }

    /// How DEKs are wrapped to it.
    pub fn algorithm(&self) -> WrapAlgorithm {
        self.algorithm
    }

    /// The same key with another algorithm.
    #[must_use]
    pub fn with_algorithm(self, algorithm: WrapAlgorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// Size of the modulus in bits, or of the field of the curve.
    pub fn bits(&self) -> usize {
        match &self.half {
            PublicHalf::Rsa(key) => key.n().bits(),
            PublicHalf::X25519(_) => 255,
        }
    }

    /// Length in bytes of the ciphertext of `plain_bytes`.
    pub fn ciphertext_bytes(&self, plain_bytes: usize) -> usize {
        match &self.half {
            PublicHalf::Rsa(key) => key.size(),
            PublicHalf::X25519(_) => plain_bytes + OVERHEAD_BYTES,
        }
    }

    /// Its SubjectPublicKeyInfo in DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of its SubjectPublicKeyInfo, 64 hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// True if both are the same key, however DEKs are wrapped to it.
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.spki == other.spki
    }

    /// Encrypts `plain`, at most 190 bytes, which fit the smallest key.
    ///
    /// # Errors
    /// When `plain` is too long, or there is no randomness.
    pub fn wrap(&self, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let cannot = |why: &dyn fmt::Display| {
            KeyError::new(
                ErrorKind::KeyUnavailable,
                format!("the customer key cannot wrap: {why}"),
            )
        };
        match (&self.half, self.algorithm.padding()) {
            (PublicHalf::X25519(key), _) => with_secrets(|| hpke::seal(key, plain)),
            // The padded number reveals the plaintext.
            (PublicHalf::Rsa(key), Some(padding)) => {
                with_secrets(|| key.encrypt(&mut OsRng, padding, plain))
                    .map_err(|error| cannot(&error))
            }
            (PublicHalf::Rsa(_), None) => Err(cannot(&self.algorithm)),
        }
    }
}

impl fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappingKey")
            .field("algorithm", &self.algorithm)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

fn refused(why: String) -> KeyError {
    KeyError::new(ErrorKind::Usage, why)
}
