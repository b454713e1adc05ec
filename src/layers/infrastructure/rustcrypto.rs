//! ChaCha20-Poly1305 by RustCrypto: the layer itself in a `pure-rust` build, and the cross-check in
//! all others.

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};

use super::{CipherRefused, NONCE_BYTES};
use crate::layers::derivation::DerivationError;
use crate::layers::{TAG_BYTES, TagMismatch};
use crate::sys::wipe::with_stack_wiped;

#[cfg(not(feature = "aws-lc"))]
pub(super) const IMPLEMENTATION: &str = "RustCrypto (chacha20poly1305)";

#[cfg(not(feature = "aws-lc"))]
pub(crate) use crate::layers::derivation::hkdf_sha256;

pub(crate) struct Cipher(Box<ChaCha20Poly1305>);

impl Cipher {
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self, DerivationError> {
        Ok(with_stack_wiped(|| {
            Self(Box::new(ChaCha20Poly1305::new(key.into())))
        }))
    }

    pub(crate) fn seal(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CipherRefused> {
        with_stack_wiped(|| {
            self.0
                .encrypt_inout_detached(nonce.into(), aad, in_out.into())
                .map(Into::into)
                .map_err(|_| CipherRefused)
        })
    }

    pub(crate) fn open(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        tag: &[u8; TAG_BYTES],
        in_out: &mut [u8],
    ) -> Result<(), TagMismatch> {
        with_stack_wiped(|| {
            self.0
                .decrypt_inout_detached(nonce.into(), aad, in_out.into(), tag.into())
                .map_err(|_| TagMismatch)
        })
    }
}
