//! The infrastructure layer: ChaCha20-Poly1305 (RFC 8439) under a key derived from the
//! infrastructure DEK.
//!
//! Nonce 12 bytes, tag 16 bytes, in place, tag apart. Two implementations, compatible byte for
//! byte: `aws_lc` (feature `aws-lc`, the default) and `rustcrypto` (always built: it is the other
//! one's second opinion, and the layer itself in the `pure-rust` build).

#[cfg(feature = "aws-lc")]
mod aws_lc;
pub(crate) mod rustcrypto;

#[cfg(feature = "aws-lc")]
use aws_lc as chosen;
#[cfg(not(feature = "aws-lc"))]
use rustcrypto as chosen;

use zeroize::Zeroizing;

use super::dek::KeySet;
use super::derivation::{Context, DerivationError, Origin, Purpose, Segment};
use super::{TAG_BYTES, TagMismatch};
use crate::ids::CryptoId;
use crate::sys::wipe::with_stack_wiped;

/// What carries the outer layer in this build.
pub const IMPLEMENTATION: &str = chosen::IMPLEMENTATION;

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;

/// HKDF-SHA-256 without salt, by the outer layer's implementation.
pub(crate) use chosen::hkdf_sha256;

/// Sealing failed: the implementation refused a page. Not expected ever to be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the cipher refused")]
pub struct CipherRefused;

/// The outer layer's keys of one segment of one sealed file, expanded. Zeroised when dropped.
pub struct InfrastructureKeys(chosen::Cipher);

impl InfrastructureKeys {
    /// Derives the keys of a segment.
    ///
    /// # Errors
    /// When the derivation is refused.
    pub fn derive(
        set: &KeySet,
        crypto: CryptoId,
        segment: Segment,
    ) -> Result<Self, DerivationError> {
        let context = Context {
            purpose: Purpose::Page,
            origin: Origin::Infrastructure,
            key_set: set.id,
            epoch: set.epoch,
            crypto,
            segment,
        };
        with_stack_wiped(|| {
            let mut key = Zeroizing::new([0; 32]);
            hkdf_sha256(
                set.infrastructure.expose(),
                &context.info(),
                key.as_mut_slice(),
            )?;
            Self::from_key(&key)
        })
    }

    /// Keys from the raw 32 bytes.
    pub(crate) fn from_key(key: &[u8; 32]) -> Result<Self, DerivationError> {
        Ok(Self(chosen::Cipher::new(key)?))
    }

    /// Encrypts in place and returns the tag. A nonce must never meet the same key twice.
    ///
    /// # Errors
    /// When the implementation refuses (longer than 256 GiB, for one).
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CipherRefused> {
        self.0.seal(nonce, aad, in_out)
    }

    /// Verifies and decrypts in place. After an error `in_out` holds nothing of meaning.
    ///
    /// # Errors
    /// When the tag does not match.
    pub fn open(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        tag: &[u8; TAG_BYTES],
        in_out: &mut [u8],
    ) -> Result<(), TagMismatch> {
        self.0.open(nonce, aad, tag, in_out)
    }
}
