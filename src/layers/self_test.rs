//! The start-up self-test: compares results with published answers and between two implementations.
//!
//! It takes well under a millisecond. On a machine, or with a compiler or library, that deviates
//! from the standards, no byte must be written.
//!
//! It checks AES-256-XTS against IEEE 1619-2007 vector 10 and against `xts-mode`; POLYVAL against
//! RFC 8452 appendix A; AES-256 against FIPS 197 C.3; ChaCha20-Poly1305 against RFC 8439 2.8.2 with
//! the layer's own implementation and with `chacha20poly1305`, and both against each other on a
//! whole page; HKDF-SHA-256 against RFC 5869 A.3 with both layers' implementations; and that each
//! layer refuses a forged tag.

use aes::Aes256;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use xts_mode::Xts128;

use super::customer::{CustomerKeys, KEY_BYTES};
use super::derivation::hkdf_sha256;
use super::infrastructure::{self, InfrastructureKeys, NONCE_BYTES, rustcrypto};
use super::xts::{Aes256Xts, Block};

/// The check whose result differed from the published one, or from the second implementation's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cryptographic self-test failed: {0}")]
pub struct SelfTestError(&'static str);

/// Blocks of a page's payload.
const PAGE_BLOCKS: usize = 252;

/// Runs all checks.
///
/// # Errors
/// The first failed check.
pub fn self_test() -> Result<(), SelfTestError> {
    check(aes_256(), "AES-256, FIPS 197")?;
    check(xts(), "AES-256-XTS, IEEE 1619 and xts-mode")?;
    check(polyval(), "POLYVAL, RFC 8452")?;
    check(customer_layer(), "customer layer")?;
    check(chacha20_poly1305(), "ChaCha20-Poly1305, RFC 8439")?;
    check(
        infrastructure_layer(),
        "infrastructure layer and chacha20poly1305",
    )?;
    check(hkdf(), "HKDF-SHA-256, RFC 5869")
}

fn check(passed: Option<bool>, what: &'static str) -> Result<(), SelfTestError> {
    (passed == Some(true))
        .then_some(())
        .ok_or(SelfTestError(what))
}

/// A block from 32 hexadecimal digits.
const fn block(digits: u128) -> Block {
    digits.to_be_bytes()
}

/// A page that is neither random nor regular.
fn page() -> [Block; PAGE_BLOCKS] {
    let mut page = [[0; 16]; PAGE_BLOCKS];
    for (i, byte) in page.as_flattened_mut().iter_mut().enumerate() {
        *byte = (i * 167 + i / 256 * 29) as u8;
    }
    page
}

fn aes_256() -> Option<bool> {
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    let mut text = Array(block(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff));
    Aes256::new_from_slice(&key).ok()?.encrypt_block(&mut text);
    Some(text.0 == block(0x8ea2_b7ca_5167_45bf_eafc_4990_4b49_6089))
}

fn xts() -> Option<bool> {
    let keys = [
        block(0x2718_2818_2845_9045_2353_6028_7471_3526),
        block(0x6249_7757_2470_9369_9959_5749_6696_7627),
        block(0x3141_5926_5358_9793_2384_6264_3383_2795),
        block(0x0288_4197_1693_9937_5105_8209_7494_4592),
    ];
    let keys: &[u8; 64] = keys.as_flattened().first_chunk()?;
    let ours = Aes256Xts::new(keys).ok()?;
    let mut unit: [Block; 32] = [[0; 16]; 32];
    for (i, byte) in unit.as_flattened_mut().iter_mut().enumerate() {
        *byte = i as u8;
    }
    ours.encrypt(0xff, unit.as_mut_slice().into());
    let published = unit[0] == block(0x1c3b_3a10_2f77_0386_e483_6c99_e370_cf9b)
        && unit[31] == block(0xc4f3_6ffd_a9fc_ea70_b9c6_e693_e148_c151);

    let expand = |half: &[u8]| Aes256::new_from_slice(half).ok();
    let theirs = Xts128::new(expand(&keys[..32])?, expand(&keys[32..])?);
    let (mut one, mut other) = (page(), page());
    ours.encrypt(1040, one.as_mut_slice().into());
    theirs.encrypt_sector(other.as_flattened_mut(), 1040u128.to_le_bytes().into());
    let agree = one == other;
    ours.decrypt(1040, one.as_mut_slice().into());
    Some(published && agree && one == page())
}

fn polyval() -> Option<bool> {
    let h = block(0x2562_9347_5892_4276_1d31_f826_ba4b_757b);
    let mut hash = Polyval::new_from_slice(&h).ok()?;
    hash.update(&[
        Array(block(0x4f4f_9566_8c83_dfb6_4017_62bb_2d01_a262)),
        Array(block(0xd1a2_4ddd_2721_d006_bbe4_5f20_d3c9_f362)),
    ]);
    Some(hash.finalize().0 == block(0xf7a3_b47b_8461_19fa_e5b7_866c_f5e5_b77e))
}

fn customer_layer() -> Option<bool> {
    let material: [u8; KEY_BYTES] = std::array::from_fn(|i| i as u8);
    let keys = CustomerKeys::from_key_material(&material).ok()?;
    let mut sealed = page();
    let mut tag = keys.seal(3, b"associated", sealed.as_mut_slice().into());
    let mut opened = sealed;
    let opens = keys.open(3, b"associated", &tag, opened.as_mut_slice().into());
    tag[0] ^= 1;
    let forged = keys.open(3, b"associated", &tag, sealed.as_mut_slice().into());
    Some(opens.is_ok() && opened == page() && forged.is_err())
}

fn chacha20_poly1305() -> Option<bool> {
    let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
    let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
    let aad = [
        0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
    ];
    let text = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for \
                  the future, sunscreen would be it.";
    let expected_tag = block(0x1ae1_0b59_4f09_e26a_7e90_2ecb_d060_0691);
    let expected_start = block(0xd31a_8d34_648e_60db_7b86_afbc_53ef_7ec2);

    let (mut one, mut other) = (text, text);
    let one_tag = InfrastructureKeys::from_key(&key)
        .ok()?
        .seal(&nonce, &aad, &mut one)
        .ok()?;
    let other_tag = rustcrypto::Cipher::new(&key)
        .ok()?
        .seal(&nonce, &aad, &mut other)
        .ok()?;
    Some(
        one == other
            && one.starts_with(&expected_start)
            && one_tag == expected_tag
            && other_tag == expected_tag,
    )
}

fn infrastructure_layer() -> Option<bool> {
    let (key, nonce) = ([0x5a; 32], [0xa5; NONCE_BYTES]);
    let keys = InfrastructureKeys::from_key(&key).ok()?;
    let second = rustcrypto::Cipher::new(&key).ok()?;
    let mut sealed = page();
    let mut tag = keys
        .seal(&nonce, b"associated", sealed.as_flattened_mut())
        .ok()?;
    let mut opened = sealed;
    let opens = second.open(&nonce, b"associated", &tag, opened.as_flattened_mut());
    tag[15] ^= 0x80;
    let mut scratch = sealed;
    let forged = keys.open(&nonce, b"associated", &tag, scratch.as_flattened_mut());
    let forged_for_second = second.open(&nonce, b"associated", &tag, sealed.as_flattened_mut());
    Some(opens.is_ok() && opened == page() && forged.is_err() && forged_for_second.is_err())
}

fn hkdf() -> Option<bool> {
    let expected = block(0x8da4_e775_a563_c18f_715f_802a_063c_5a31);
    let (mut one, mut other) = ([0; 42], [0; 42]);
    hkdf_sha256(&[0x0b; 22], b"", &mut one).ok()?;
    infrastructure::hkdf_sha256(&[0x0b; 22], b"", &mut other).ok()?;
    Some(one == other && one.starts_with(&expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes() {
        assert_eq!(self_test(), Ok(()));
    }

    #[test]
    fn a_check_that_fails_or_cannot_run_is_named() {
        assert!(check(Some(true), "x").is_ok());
        for result in [Some(false), None] {
            let error = check(result, "the sum").expect_err("failed");
            assert!(error.to_string().contains("the sum"));
        }
    }
}
