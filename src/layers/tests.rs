//! Published vectors: IEEE 1619, Wycheproof (AES-XTS, ChaCha20-Poly1305, HKDF-SHA-256), and both
//! implementations of the outer layer against each other on random inputs.

use aes::cipher::inout::InOutBuf;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use wycheproof::TestResult;

use super::infrastructure::{self, rustcrypto};
use super::xts::Aes256Xts;
use super::*;

/// IEEE 1619-2007, annex B, vectors 10 to 14 (XTS-AES-256, units of 512 bytes): unit number, first
/// and last block of the ciphertext, and SHA-256 of all of it.
const IEEE_1619: [(u128, &str, &str, &str); 5] = [
    (
        0xff,
        "1c3b3a102f770386e4836c99e370cf9b",
        "c4f36ffda9fcea70b9c6e693e148c151",
        "e97e974fa393af794f7a4684395814cf820de60a01eaec677d87b452e316b364",
    ),
    (
        0xffff,
        "77a31251618a15e6b92d1d66dffe7b50",
        "a4f9e27b42af8100cb9d59cef9645803",
        "def4fad29e95dfe1a24b1ad4620f86d7be094cced5b19e0b121aa82d9e6baf98",
    ),
    (
        0xff_ffff,
        "e387aaa58ba483afa7e8eb469778317e",
        "2263a1eef52dd6888c309f5a7d712826",
        "8bf44861a081dd660d91ce615b5cdfb4d5df9d72c3025c12e67cc0ae097fa5d5",
    ),
    (
        0xffff_ffff,
        "bf53d2dade78e822a4d949a9bc6766b0",
        "4c82f335abb152c4a93411373aaa8220",
        "c706140a11affda7402234f5e6331eacbfeb687d8e80d83962691823bb3636f0",
    ),
    (
        0xff_ffff_ffff,
        "64497e5a831e4a932c09be3e5393376d",
        "d609d273ad5b0d59631c531f6a0a57b9",
        "afba71abc4e95b186d89a63a5437c1bafcfd1a18ca273970c534aba4f8d05282",
    ),
];

#[test]
fn xts_ieee_1619() {
    let keys = hex::decode(
        "2718281828459045235360287471352662497757247093699959574966967627\
         3141592653589793238462643383279502884197169399375105820974944592",
    )
    .expect("hex");
    let xts = Aes256Xts::new(keys.first_chunk().expect("64 bytes")).expect("keys");
    let plain: Vec<u8> = (0..512).map(|i| i as u8).collect();
    for (unit, first, last, digest) in IEEE_1619 {
        let mut text = plain.clone();
        xts.encrypt(unit, text.as_chunks_mut().0.into());
        assert_eq!(hex::encode(&text[..16]), first);
        assert_eq!(hex::encode(&text[496..]), last);
        assert_eq!(hex::encode(Sha256::digest(&text)), digest);
        xts.decrypt(unit, text.as_chunks_mut().0.into());
        assert_eq!(text, plain);
    }
}

#[test]
fn xts_wycheproof() {
    use wycheproof::cipher::{TestName, TestSet};
    let set = TestSet::load(TestName::AesXts).expect("vectors");
    let mut checked = 0;
    for group in set.test_groups.iter().filter(|group| group.key_size == 512) {
        for test in &group.tests {
            let whole_blocks = !test.pt.is_empty() && test.pt.len().is_multiple_of(16);
            if !whole_blocks || test.nonce.len() > 16 || test.result != TestResult::Valid {
                // Ciphertext stealing is not part of this project.
                continue;
            }
            let mut unit = [0; 16];
            unit[..test.nonce.len()].copy_from_slice(&test.nonce);
            let xts = Aes256Xts::new(test.key.first_chunk().expect("64 bytes")).expect("keys");
            let mut text = test.pt.to_vec();
            xts.encrypt(u128::from_le_bytes(unit), text.as_chunks_mut().0.into());
            assert_eq!(text[..], test.ct[..], "test {}", test.tc_id);
            checked += 1;
        }
    }
    assert!(checked >= 10, "{checked} vectors");
}

#[test]
fn chacha20_poly1305_wycheproof_by_both_implementations() {
    use wycheproof::aead::{TestName, TestSet};
    let set = TestSet::load(TestName::ChaCha20Poly1305).expect("vectors");
    let mut checked = [0, 0];
    let groups = set.test_groups.iter();
    for test in groups
        .filter(|group| group.nonce_size == 96 && group.tag_size == 128)
        .flat_map(|group| &group.tests)
    {
        let key = test.key.first_chunk().expect("32 bytes");
        let nonce = test.nonce.first_chunk().expect("12 bytes");
        let tag = test.tag.first_chunk().expect("16 bytes");
        let (used, second) = (
            InfrastructureKeys::from_key(key).expect("key"),
            rustcrypto::Cipher::new(key).expect("key"),
        );
        let (mut one, mut other) = (test.ct.to_vec(), test.ct.to_vec());
        let opens = [
            used.open(nonce, &test.aad, tag, &mut one).is_ok(),
            second.open(nonce, &test.aad, tag, &mut other).is_ok(),
        ];
        let valid = test.result == TestResult::Valid;
        assert_eq!(opens, [valid; 2], "test {}", test.tc_id);
        checked[usize::from(valid)] += 1;
        if valid {
            assert_eq!((&one[..], &other[..]), (&test.pt[..], &test.pt[..]));
            assert_eq!(used.seal(nonce, &test.aad, &mut one), Ok(*tag));
            assert_eq!(second.seal(nonce, &test.aad, &mut other), Ok(*tag));
            assert_eq!((&one[..], &other[..]), (&test.ct[..], &test.ct[..]));
        }
    }
    assert!(checked[0] > 20 && checked[1] > 200, "{checked:?} vectors");
}

#[test]
fn hkdf_sha256_wycheproof_by_both_implementations() {
    use wycheproof::hkdf::{TestName, TestSet};
    let set = TestSet::load(TestName::HkdfSha256).expect("vectors");
    let mut checked = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        if !test.salt.is_empty() {
            // Salt is not part of this project.
            continue;
        }
        let (mut one, mut other) = (vec![0; test.size], vec![0; test.size]);
        let derived = [
            derivation::hkdf_sha256(&test.ikm, &test.info, &mut one).is_ok(),
            infrastructure::hkdf_sha256(&test.ikm, &test.info, &mut other).is_ok(),
        ];
        let valid = test.result == TestResult::Valid;
        assert_eq!(derived, [valid; 2], "test {}", test.tc_id);
        if valid {
            assert_eq!((&one[..], &other[..]), (&test.okm[..], &test.okm[..]));
            checked += 1;
        }
    }
    assert!(checked >= 5, "{checked} vectors");
}

#[test]
fn both_layers_are_described() {
    let [inner, outer] = implementations();
    assert_eq!(
        (inner.layer, outer.layer),
        (Layer::Customer, Layer::Infrastructure)
    );
    assert!(inner.algorithm.contains("XTS") && outer.algorithm.contains("ChaCha20"));
    let expected = if cfg!(feature = "aws-lc") {
        "AWS-LC"
    } else {
        "RustCrypto"
    };
    assert!(outer.implementation.contains(expected));
}

proptest! {
    #[test]
    fn the_outer_layers_implementations_agree(
        key: [u8; 32],
        nonce: [u8; 12],
        aad in proptest::collection::vec(any::<u8>(), 0..100),
        text in proptest::collection::vec(any::<u8>(), 0..5000),
        info in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let used = InfrastructureKeys::from_key(&key).expect("key");
        let second = rustcrypto::Cipher::new(&key).expect("key");
        let (mut one, mut other) = (text.clone(), text.clone());
        let tag = used.seal(&nonce, &aad, &mut one).expect("seals");
        prop_assert_eq!(second.seal(&nonce, &aad, &mut other), Ok(tag));
        prop_assert_eq!(&one, &other);
        prop_assert!(second.open(&nonce, &aad, &tag, &mut one).is_ok());
        prop_assert!(used.open(&nonce, &aad, &tag, &mut other).is_ok());
        prop_assert!(one == text && other == text);

        let (mut one, mut other) = ([0; 112], [0; 112]);
        derivation::hkdf_sha256(&key, &info, &mut one).expect("derives");
        infrastructure::hkdf_sha256(&key, &info, &mut other).expect("derives");
        prop_assert_eq!(one, other);
    }

    #[test]
    fn the_inner_layer_is_the_same_in_place_and_from_elsewhere(
        material in proptest::collection::vec(any::<u8>(), 112),
        unit: u64,
        blocks in proptest::collection::vec(any::<[u8; 16]>(), 1..260),
    ) {
        let keys = CustomerKeys::from_key_material(material.first_chunk().expect("112 bytes"))
            .expect("keys");
        let mut here = blocks.clone();
        let mut there = vec![[0xEE; 16]; blocks.len()];
        let tag = keys.seal(unit, b"aad", here.as_mut_slice().into());
        let both = InOutBuf::new(&blocks, &mut there).expect("same length");
        prop_assert_eq!(keys.seal(unit, b"aad", both), tag);
        prop_assert_eq!(&here, &there);
        let mut opened = vec![[0xEE; 16]; blocks.len()];
        let both = InOutBuf::new(&there, &mut opened).expect("same length");
        prop_assert!(keys.open(unit, b"aad", &tag, both).is_ok());
        prop_assert_eq!(opened, blocks);
    }
}
