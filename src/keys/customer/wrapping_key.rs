//! The public half of a customer key, which is all that wrapping needs.
//!
//! | name in the superblock | algorithm |
//! |---|---|
//! | `RSA-OAEP-256` | RSA-OAEP with SHA-256 for both hashes and an empty label (RFC 8017 section 7.1) |
//! | `RSA-OAEP` | the same with SHA-1, for tokens that can do no other |
//!
//! The security of OAEP does not depend on collisions of its hash, which is what SHA-1 lacks.
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
use crate::keys::error::{ErrorKind, KeyError};
use crate::sys::wipe::with_secrets;

/// Smallest public exponent (NIST SP 800-56B revision 2, section 6.2).
const MIN_EXPONENT: u32 = 65537;

/// How a DEK is wrapped to a customer key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum WrapAlgorithm {
    /// RSA-OAEP with SHA-256.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaepSha256,
    /// RSA-OAEP with SHA-1.
    #[serde(rename = "RSA-OAEP")]
    RsaOaepSha1,
}

impl WrapAlgorithm {
    /// Its name in superblocks and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RsaOaepSha256 => "RSA-OAEP-256",
            Self::RsaOaepSha1 => "RSA-OAEP",
        }
    }

    /// The padding, with an empty label.
    pub(super) fn padding(self) -> Oaep {
        match self {
            Self::RsaOaepSha256 => Oaep::new::<rsa::sha2::Sha256>(),
            Self::RsaOaepSha1 => Oaep::new::<sha1::Sha1>(),
        }
    }
}

impl fmt::Display for WrapAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The public half of a customer key, and how DEKs are wrapped to it.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappingKey {
    algorithm: WrapAlgorithm,
    key: RsaPublicKey,
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
        let spki = der.as_bytes().to_vec();
        let fingerprint = hex::encode(Sha256::digest(&spki));
        Ok(Self {
            algorithm,
            key,
            spki,
            fingerprint,
        })
    }

    /// A public key from its SubjectPublicKeyInfo in DER, which must be exactly the encoding that
    /// [`Self::spki`] returns.
    ///
    /// # Errors
    /// Kind `Usage` if it is no RSA key that is accepted.
    pub fn from_spki(der: &[u8], algorithm: WrapAlgorithm) -> Result<Self, KeyError> {
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

    /// Size of the modulus in bits.
    pub fn bits(&self) -> usize {
        self.key.n().bits()
    }

    /// Length of a ciphertext in bytes.
    pub fn ciphertext_bytes(&self) -> usize {
        self.key.size()
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

    /// The modulus, big-endian without leading zeros, and the public exponent likewise.
    pub fn modulus_and_exponent(&self) -> (Vec<u8>, Vec<u8>) {
        (self.key.n().to_bytes_be(), self.key.e().to_bytes_be())
    }

    /// Encrypts `plain`, at most 190 bytes, which fit the smallest key.
    ///
    /// # Errors
    /// When `plain` is too long, or there is no randomness.
    pub fn wrap(&self, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let padding = self.algorithm.padding();
        // The padded number reveals the plaintext.
        with_secrets(|| self.key.encrypt(&mut OsRng, padding, plain)).map_err(|error| {
            KeyError::new(
                ErrorKind::KeyUnavailable,
                format!("the customer key cannot wrap: {error}"),
            )
        })
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
