//! The customer layer: AES-256-XTS, with its own tag over the ciphertext.
//!
//! ```text
//! h, k, data key, tweak key   112 bytes of HKDF: data key ‖ tweak key ‖ k ‖ h   (see `derivation`)
//! ciphertext = AES-256-XTS(data key, tweak key; unit number = page index)
//! tag        = AES-256_k( POLYVAL_h( pad(AAD) ‖ pad(ciphertext) ‖ lengths ) )
//! ```
//! `pad` appends zero bytes to a multiple of 16; `lengths` is one block: bits of AAD, then bits of
//! ciphertext, each a 64-bit little-endian number (RFC 8452, sections 3 and 4). `k` is an AES-256
//! key of 32 bytes and `h` a POLYVAL key of 16 bytes in RFC 8452's byte order, used as derived.
//! Unlike AES-GCM-SIV, this adds no nonce and masks no bit: the whole 128-bit hash is the cipher's
//! input.
//!
//! The tag is a keyed universal hash under a pseudorandom permutation, so it needs no nonce. Equal
//! messages have equal tags (the outer layer hides that). A forgery requires guessing 128 bits or a
//! collision of POLYVAL, whose probability for pages is at most 260 / 2^128 per pair.
//!
//! The tag is verified, in constant time, before anything is decrypted.

use aes::Aes256;
use aes::cipher::inout::InOutBuf;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::dek::KeySet;
use super::derivation::{Context, DerivationError, Origin, Purpose, Segment, hkdf_sha256};
use super::xts::{Aes256Xts, Block};
use super::{TAG_BYTES, TagMismatch};
use crate::ids::CryptoId;
use crate::sys::wipe::with_stack_wiped;

/// The implementation of the inner layer in every build.
pub(super) const IMPLEMENTATION: &str = "RustCrypto (aes, polyval; XTS mode of our own)";

/// Bytes of derived key material: 64 XTS, 32 tag cipher, 16 POLYVAL.
pub(super) const KEY_BYTES: usize = 112;

/// The expanded inner-layer keys of one segment of one sealed file. Zeroised when dropped.
pub struct CustomerKeys(Box<Expanded>);

struct Expanded {
    xts: Aes256Xts,
    tag: Aes256,
    /// Powers of h, computed once; cloned to hash.
    hash: Polyval,
}

impl CustomerKeys {
    /// Derives the keys of a segment.
    ///
    /// # Errors
    /// When the derivation fails or the keys are degenerate.
    pub fn derive(
        set: &KeySet,
        crypto: CryptoId,
        segment: Segment,
    ) -> Result<Self, DerivationError> {
        let context = Context {
            purpose: Purpose::Page,
            origin: Origin::Customer,
            key_set: set.id,
            epoch: set.epoch,
            crypto,
            segment,
        };
        with_stack_wiped(|| {
            let mut material = Zeroizing::new([0; KEY_BYTES]);
            hkdf_sha256(
                set.customer.expose(),
                &context.info(),
                material.as_mut_slice(),
            )?;
            Self::from_key_material(&material)
        })
    }

    /// Creates keys from the raw 112 bytes.
    pub(crate) fn from_key_material(material: &[u8; KEY_BYTES]) -> Result<Self, DerivationError> {
        let (xts, rest) = material
            .split_first_chunk::<64>()
            .ok_or(DerivationError::Refused)?;
        let (tag, hash) = rest
            .split_first_chunk::<32>()
            .ok_or(DerivationError::Refused)?;
        if hash.ct_eq(&[0; 16]).into() {
            return Err(DerivationError::Degenerate);
        }
        Ok(Self(Box::new(Expanded {
            xts: Aes256Xts::new(xts)?,
            tag: Aes256::new(tag.into()),
            hash: Polyval::new_from_slice(hash).map_err(|_| DerivationError::Refused)?,
        })))
    }

    /// Encrypts as data unit `unit`, in place or from one buffer to another, and returns the tag.
    /// This leaves parts of the keys on the stack, as do opening and verifying. Callers that
    /// process pages wipe it, once for many pages (`sys::wipe::StackWipe`).
    #[inline(never)]
    pub fn seal(
        &self,
        unit: u64,
        aad: &[u8],
        mut blocks: InOutBuf<'_, '_, Block>,
    ) -> [u8; TAG_BYTES] {
        self.0.xts.encrypt(u128::from(unit), blocks.reborrow());
        self.tag(aad, blocks.get_out())
    }

    /// Verifies, then decrypts, in place or from one buffer to another. On error nothing is
    /// written.
    ///
    /// # Errors
    /// [`TagMismatch`] if the tag does not match.
    #[inline(never)]
    pub fn open(
        &self,
        unit: u64,
        aad: &[u8],
        tag: &[u8; TAG_BYTES],
        blocks: InOutBuf<'_, '_, Block>,
    ) -> Result<(), TagMismatch> {
        self.verify(aad, tag, blocks.get_in())?;
        self.0.xts.decrypt(u128::from(unit), blocks);
        Ok(())
    }

    /// Verifies without decrypting: the tag covers the ciphertext.
    ///
    /// # Errors
    /// [`TagMismatch`] if the tag does not match.
    #[inline(never)]
    pub fn verify(
        &self,
        aad: &[u8],
        tag: &[u8; TAG_BYTES],
        blocks: &[Block],
    ) -> Result<(), TagMismatch> {
        let matches: bool = self.tag(aad, blocks).ct_eq(tag).into();
        matches.then_some(()).ok_or(TagMismatch)
    }

    fn tag(&self, aad: &[u8], ciphertext: &[Block]) -> [u8; TAG_BYTES] {
        let bits = |bytes: usize| (bytes as u64 * 8).to_le_bytes();
        let mut lengths = [0; 16];
        lengths[..8].copy_from_slice(&bits(aad.len()));
        lengths[8..].copy_from_slice(&bits(ciphertext.as_flattened().len()));

        let mut hash = self.0.hash.clone();
        hash.update_padded(aad);
        hash.update(Array::cast_slice_from_core(ciphertext));
        hash.update(&[lengths.into()]);
        let mut block = hash.finalize();
        self.0.tag.encrypt_block(&mut block);
        block.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> CustomerKeys {
        let material: [u8; KEY_BYTES] = std::array::from_fn(|i| i as u8 * 2 + 1);
        CustomerKeys::from_key_material(&material).expect("keys")
    }

    #[test]
    fn the_tag_is_that_of_the_documented_formula() {
        let material: [u8; KEY_BYTES] = std::array::from_fn(|i| i as u8 * 2 + 1);
        let (aad, ciphertext) = ([9u8; 20], [[4u8; 16], [6; 16]]);
        // The formula, written out with a message built by hand.
        let mut message = vec![0u8; 32];
        message[..20].copy_from_slice(&aad);
        message.extend_from_slice(ciphertext.as_flattened());
        message.extend_from_slice(&160u64.to_le_bytes());
        message.extend_from_slice(&256u64.to_le_bytes());
        let mut hash = Polyval::new_from_slice(&material[96..]).expect("16 bytes");
        for block in message.chunks(16) {
            hash.update(&[Array::try_from(block).expect("16 bytes")]);
        }
        let mut expected = hash.finalize();
        Aes256::new_from_slice(&material[64..96])
            .expect("32 bytes")
            .encrypt_block(&mut expected);
        assert_eq!(keys().tag(&aad, &ciphertext)[..], expected[..]);
    }

    #[test]
    fn only_the_sealed_bytes_open() {
        let plain: [Block; 5] = std::array::from_fn(|i| [i as u8; 16]);
        let mut sealed = plain;
        let tag = keys().seal(7, b"aad", sealed.as_mut_slice().into());
        let opens = |aad: &[u8], tag: &[u8; 16], blocks: &[Block]| {
            let mut opened = blocks.to_vec();
            let result = keys().open(7, aad, tag, opened.as_mut_slice().into());
            assert!(
                result.is_ok() || opened == blocks,
                "nothing is decrypted before the tag is verified"
            );
            result.map(|()| opened)
        };
        assert_eq!(opens(b"aad", &tag, &sealed), Ok(plain.to_vec()));
        assert!(opens(b"aae", &tag, &sealed).is_err());
        assert!(opens(b"aad\0", &tag, &sealed).is_err());
        assert!(opens(b"aad", &tag, &sealed[..4]).is_err());
        for bit in 0..sealed.as_flattened().len() * 8 {
            let mut forged = sealed;
            forged.as_flattened_mut()[bit / 8] ^= 1 << (bit % 8);
            assert!(opens(b"aad", &tag, &forged).is_err());
        }
        for bit in 0..128 {
            let mut forged = tag;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(opens(b"aad", &forged, &sealed).is_err());
        }
    }

    #[test]
    fn degenerate_keys_are_refused() {
        let mut material = [1; KEY_BYTES];
        assert!(CustomerKeys::from_key_material(&material).is_err());
        material[0] = 2;
        assert!(CustomerKeys::from_key_material(&material).is_ok());
        material[96..].fill(0);
        assert!(CustomerKeys::from_key_material(&material).is_err());
    }
}
