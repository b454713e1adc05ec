//! Sealing and opening of a wrapped payload, shared by the wraps of volumes and of exports: a fresh
//! random nonce, the ciphertext, the tag.
//!
//! Each role has its own implementation of ChaCha20-Poly1305, that of its layer: AWS-LC for the
//! infrastructure role, RustCrypto for the customer role.

use zeroize::Zeroizing;

use super::error::{ErrorKind, KeyError};
use crate::layers::TAG_BYTES;
use crate::layers::infrastructure::{InfrastructureKeys, NONCE_BYTES, rustcrypto};

/// The cipher of a role.
pub(super) trait RoleCipher {
    /// Encrypts in place and returns the tag; `None` if the cipher refuses.
    fn seal(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        text: &mut [u8],
    ) -> Option<[u8; TAG_BYTES]>;

    /// Verifies and decrypts in place; `None` if the tag does not match.
    fn open(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        tag: &[u8; TAG_BYTES],
        text: &mut [u8],
    ) -> Option<()>;
}

macro_rules! role_cipher {
    ($cipher:ty) => {
        impl RoleCipher for $cipher {
            fn seal(
                &self,
                nonce: &[u8; NONCE_BYTES],
                aad: &[u8],
                text: &mut [u8],
            ) -> Option<[u8; TAG_BYTES]> {
                Self::seal(self, nonce, aad, text).ok()
            }

            fn open(
                &self,
                nonce: &[u8; NONCE_BYTES],
                aad: &[u8],
                tag: &[u8; TAG_BYTES],
                text: &mut [u8],
            ) -> Option<()> {
                Self::open(self, nonce, aad, tag, text).ok()
            }
        }
    };
}

role_cipher!(InfrastructureKeys);
role_cipher!(rustcrypto::Cipher);

/// The cipher of the infrastructure role under a key of 32 bytes.
pub(super) fn infrastructure_cipher(key: &[u8]) -> Result<InfrastructureKeys, KeyError> {
    let key = key.first_chunk().ok_or_else(cipher_failed)?;
    InfrastructureKeys::from_key(key).map_err(|_| cipher_failed())
}

/// The cipher of the customer role under a key of 32 bytes.
pub(super) fn customer_cipher(key: &[u8]) -> Result<rustcrypto::Cipher, KeyError> {
    let key = key.first_chunk().ok_or_else(cipher_failed)?;
    rustcrypto::Cipher::new(key).map_err(|_| cipher_failed())
}

/// The payload of a wrap: a prefix that identifies the DEK, and the DEK. Its full length is
/// allocated at once, so that no smaller buffer that contains the DEK is left behind.
pub(super) fn payload(prefix: &[u8], dek: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(prefix.len() + dek.len()));
    bytes.extend_from_slice(prefix);
    bytes.extend_from_slice(dek);
    bytes
}

/// Encrypts a payload in place and returns nonce, ciphertext and tag.
pub(super) fn seal(
    cipher: &dyn RoleCipher,
    aad: &[u8],
    mut payload: Zeroizing<Vec<u8>>,
) -> Result<Vec<u8>, KeyError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)
        .map_err(|error| KeyError::random(std::io::Error::other(error.to_string())))?;
    let tag = cipher.seal(&nonce, aad, &mut payload);
    let tag = tag.ok_or_else(cipher_failed)?;
    Ok([&nonce[..], &payload, &tag].concat())
}

/// The payload of what [`seal`] returned; `None` if it does not authenticate.
pub(super) fn open(
    cipher: &dyn RoleCipher,
    aad: &[u8],
    wrapped: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = wrapped.split_first_chunk::<NONCE_BYTES>()?;
    let (text, tag) = rest.split_last_chunk::<TAG_BYTES>()?;
    let mut payload = Zeroizing::new(text.to_vec());
    cipher.open(nonce, aad, tag, &mut payload)?;
    Some(payload)
}

/// A key could not be expanded, or a cipher refused, which should never occur.
pub(super) fn cipher_failed() -> KeyError {
    KeyError::new(ErrorKind::Io, "the cipher of the platform keys refused")
}
