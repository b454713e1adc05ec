//! Customer keys: RSA keys that wrap customer DEKs, wherever they are held.
//!
//! A provider is a URI and three verbs. Whatever holds the key, the wrap is RSA-OAEP with SHA-256
//! in both places (RFC 8017 section 7.1; `RSA-OAEP-256` of RFC 7518) and an empty label, so a key
//! can move from one holder to another without a change of what is stored.

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

/// Sizes of RSA keys taken, in bits.
pub const RSA_BITS: [usize; 3] = [2048, 3072, 4096];

/// What is public about a customer key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyDescription {
    /// Where it is.
    pub uri: KeyUri,
    /// How it wraps; [`ALGORITHM`].
    pub algorithm: &'static str,
    /// Size of the modulus in bits.
    pub bits: usize,
    /// Names this very key: SHA-256 of its SubjectPublicKeyInfo (DER), 64 hexadecimal digits.
    pub key_version: String,
    /// True when the private half is there, so that [`CustomerKeyProvider::unwrap`] can work.
    pub can_unwrap: bool,
}

/// Holds a customer key.
pub trait CustomerKeyProvider: Send + Sync + fmt::Debug {
    /// What is public about the key.
    fn describe(&self) -> &KeyDescription;

    /// Encrypts `plain` (at most 190 bytes, what fits a 2048-bit key) to the key; needs the public
    /// half only. The ciphertext is as long as the modulus.
    ///
    /// # Errors
    /// When it is too long or there is no randomness.
    fn wrap(&self, plain: &[u8]) -> Result<Vec<u8>, KeyError>;

    /// Decrypts what [`Self::wrap`] made.
    ///
    /// # Errors
    /// Kind `KeyUnavailable` when only the public half is there, `WrongKey` when the ciphertext
    /// does not decrypt. No more is said about why it does not: that would be an oracle.
    fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError>;

    /// The same key without its private half: it wraps and does not unwrap. What an open volume
    /// keeps, to wrap further DEKs without a passphrase and without a secret in memory.
    fn public_half(&self) -> Box<dyn CustomerKeyProvider>;
}

/// Opens the key that the URI names. The passphrase is asked for only when it is needed.
///
/// # Errors
/// Kind `KeyUnavailable` when the key or its passphrase cannot be had, `WrongKey` when the
/// passphrase is wrong, `Usage` when the file holds no RSA key of a size taken.
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
