//! ChaCha20-Poly1305 and HKDF-SHA-256 by AWS-LC, which zeroises its keys when they are dropped.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};

use super::{CipherRefused, NONCE_BYTES};
use crate::layers::derivation::DerivationError;
use crate::layers::{TAG_BYTES, TagMismatch};
use crate::sys::wipe::{with_small_stack_wiped, with_stack_wiped};

pub(super) const IMPLEMENTATION: &str = "AWS-LC (aws-lc-rs)";

struct OutputBytes(usize);

impl KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

pub(crate) fn hkdf_sha256(
    input: &[u8],
    info: &[u8],
    output: &mut [u8],
) -> Result<(), DerivationError> {
    with_stack_wiped(|| {
        Salt::new(HKDF_SHA256, &[])
            .extract(input)
            .expand(&[info], OutputBytes(output.len()))
            .and_then(|okm| okm.fill(output))
            .map_err(|_| DerivationError::Refused)
    })
}

pub(super) struct Cipher(Box<LessSafeKey>);

impl Cipher {
    pub(super) fn new(key: &[u8; 32]) -> Result<Self, DerivationError> {
        with_stack_wiped(|| {
            UnboundKey::new(&CHACHA20_POLY1305, key)
                .map(|key| Self(Box::new(LessSafeKey::new(key))))
                .map_err(|_| DerivationError::Refused)
        })
    }

    pub(super) fn seal(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CipherRefused> {
        with_small_stack_wiped(|| {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let tag = self
                .0
                .seal_in_place_separate_tag(nonce, Aad::from(aad), in_out)
                .map_err(|_| CipherRefused)?;
            tag.as_ref().try_into().map_err(|_| CipherRefused)
        })
    }

    pub(super) fn open(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        tag: &[u8; TAG_BYTES],
        in_out: &mut [u8],
    ) -> Result<(), TagMismatch> {
        with_small_stack_wiped(|| {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            self.0
                .open_in_place_separate_tag(nonce, Aad::from(aad), tag, in_out)
                .map(|_| ())
                .map_err(|_| TagMismatch)
        })
    }
}
