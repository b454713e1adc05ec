//! Customer keys: RSA keys that wrap customer DEKs, wherever they are stored.
//!
//! A provider has a URI and three operations. Wherever the key is stored, the wrap is RSA-OAEP with
//! SHA-256 for both hashes (RFC 8017 section 7.1; `RSA-OAEP-256` of RFC 7518) and an empty label,
//! so a key can be moved to another kind of storage without changing stored wraps.

use std::fmt;

use zeroize::Zeroizing;

use super::error::KeyError;
use super::passphrase::PassphraseSource;
use super::uri::{KeyUri, Scheme};
use crate::sys::wipe::with_secrets;

pub mod file;
mod pem;

/// Name of the algorithm in headers and logs (RFC 7518).
pub const ALGORITHM: &str = "RSA-OAEP-256";

/// Accepted sizes of RSA keys, in bits.
pub const RSA_BITS: [usize; 3] = [2048, 3072, 4096];

/// The public description of a customer key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyDescription {
    /// Its location.
    pub uri: KeyUri,
    /// Its wrapping algorithm: [`ALGORITHM`].
    pub algorithm: &'static str,
    /// Size of the modulus in bits.
    pub bits: usize,
    /// Identifies this key: SHA-256 of its SubjectPublicKeyInfo (DER), 64 hexadecimal digits.
    pub key_version: String,
    /// True if the private half is available, so that [`CustomerKeyProvider::unwrap`] can work.
    pub can_unwrap: bool,
}

/// Holds a customer key.
pub trait CustomerKeyProvider: Send + Sync + fmt::Debug {
    /// The public description of the key.
    fn describe(&self) -> &KeyDescription;

    /// Encrypts `plain` (at most 190 bytes, which fit a 2048-bit key) to the key, which needs only
    /// the public half. The ciphertext is as long as the modulus.
    ///
    /// # Errors
    /// When `plain` is too long, or there is no randomness.
    fn wrap(&self, plain: &[u8]) -> Result<Vec<u8>, KeyError>;

    /// Decrypts what [`Self::wrap`] made.
    ///
    /// # Errors
    /// Kind `KeyUnavailable` if only the public half is available, `WrongKey` if the ciphertext
    /// does not decrypt. The reason is not stated, as that would be an oracle.
    fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError>;

    /// The key without its private half: it wraps but does not unwrap. An open volume keeps this,
    /// to wrap further DEKs without a passphrase and without a secret in memory.
    fn public_half(&self) -> Box<dyn CustomerKeyProvider>;
}

/// Opens the key that the URI names. The passphrase is requested only if it is needed.
///
/// # Errors
/// Kind `KeyUnavailable` if the key or its passphrase is not available, `WrongKey` if the
/// passphrase is wrong, `Usage` if the file contains no RSA key of an accepted size.
pub fn open(
    uri: &KeyUri,
    passphrase: &PassphraseSource,
) -> Result<Box<dyn CustomerKeyProvider>, KeyError> {
    let Scheme::File(path) = uri.scheme();
    with_secrets(|| {
        let key = file::FileKey::open(uri, path, passphrase)?;
        Ok(Box::new(key) as _)
    })
}
