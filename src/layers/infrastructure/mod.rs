//! The infrastructure layer: ChaCha20-Poly1305 (RFC 8439) under a key derived from the
//! infrastructure DEK.
//!
//! The nonce has 12 bytes and the tag 16; encryption is in place with a detached tag. There are two
//! byte-compatible implementations: `aws_lc` (feature `aws-lc`, the default) and `rustcrypto`,
//! which is always built to cross-check the other, and is the layer itself in a `pure-rust` build.

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

/// The implementation of the outer layer in this build.
pub(super) const IMPLEMENTATION: &str = chosen::IMPLEMENTATION;

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;

/// HKDF-SHA-256 without salt, by the outer layer's implementation.
pub(crate) use chosen::hkdf_sha256;

/// The implementation refused to seal a page, which should never occur.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the cipher refused")]
pub struct CipherRefused;

/// The expanded outer-layer keys of one segment of one sealed file. Zeroised when dropped.
pub struct InfrastructureKeys(chosen::Cipher);

impl InfrastructureKeys {
    /// Derives the keys of a segment.
    ///
    /// # Errors
    /// When the derivation fails.
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

    /// Creates keys from the raw 32 bytes.
    pub(crate) fn from_key(key: &[u8; 32]) -> Result<Self, DerivationError> {
        Ok(Self(chosen::Cipher::new(key)?))
    }

    /// Encrypts in place and returns the tag. A nonce must never be used twice with the same key.
    ///
    /// # Errors
    /// When the implementation refuses, for example input longer than 256 GiB.
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CipherRefused> {
        self.0.seal(nonce, aad, in_out)
    }

    /// Verifies and decrypts in place. On error the contents of `in_out` are undefined.
    ///
    /// # Errors
    /// [`TagMismatch`] if the tag does not match.
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
