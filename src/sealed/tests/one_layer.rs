//! One layer alone: what somebody with only one of the two keys can read and forge.
//!
//! Everything here is computed by the second implementations (`xts-mode`, `chacha20poly1305`,
//! `hkdf`) from the byte layouts documented in `layers::derivation` and `sealed::page`, not by the
//! code under test. So the tests also check that the documents suffice to write a second
//! implementation.

use std::sync::Arc;

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::AeadInOut;
use hkdf::Hkdf;
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use sha2::Sha256;
use xts_mode::Xts128;

use super::*;

const PAGE: u64 = 1;

/// `info` of a page's keys in segment 0.
fn info(layer: u32) -> Vec<u8> {
    [
        b"bilayer page\0\0\0\0".as_slice(),
        &layer.to_le_bytes(),
        &1u32.to_le_bytes(),
        &[3; 16],
        &1u32.to_le_bytes(),
        &CRYPTO.0,
        &0u64.to_le_bytes(),
    ]
    .concat()
}

fn aad(page: &[u8]) -> Vec<u8> {
    [
        1u16.to_le_bytes().as_slice(),
        &[3; 16],
        &CRYPTO.0,
        &PAGE.to_le_bytes(),
        &0u16.to_le_bytes(),
        &page[44..64],
    ]
    .concat()
}

/// The outer layer in the hands of somebody who knows the infrastructure DEK.
struct Outer(ChaCha20Poly1305);

impl Outer {
    fn new(dek: &[u8; 32]) -> Self {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(None, dek)
            .expand(&info(2), &mut key)
            .expect("derives");
        Self(ChaCha20Poly1305::new(&key.into()))
    }

    /// Inner tag ‖ ciphertext, if the outer tag matches.
    fn open(&self, page: &[u8]) -> Option<Vec<u8>> {
        let mut message = [&page[28..44], &page[64..]].concat();
        let nonce: [u8; 12] = page[..12].try_into().expect("12 bytes");
        let tag: [u8; 16] = page[12..28].try_into().expect("16 bytes");
        self.0
            .decrypt_inout_detached(
                &nonce.into(),
                &aad(page),
                message.as_mut_slice().into(),
                &tag.into(),
            )
            .ok()
            .map(|()| message)
    }

    fn seal(&self, page: &mut [u8], message: &[u8]) {
        let mut message = message.to_vec();
        let nonce = [0x77; 12];
        let tag = self
            .0
            .encrypt_inout_detached(&nonce.into(), &aad(page), message.as_mut_slice().into())
            .expect("seals");
        page[..12].copy_from_slice(&nonce);
        page[12..28].copy_from_slice(&tag);
        page[28..44].copy_from_slice(&message[..16]);
        page[64..].copy_from_slice(&message[16..]);
    }
}

/// The inner layer in the hands of somebody who knows the customer DEK.
struct Inner {
    xts: Xts128<Aes256>,
    tag: Aes256,
    hash: Polyval,
}

impl Inner {
    fn new(dek: &[u8; 64]) -> Self {
        let mut keys = [0; 112];
        Hkdf::<Sha256>::new(None, dek)
            .expand(&info(1), &mut keys)
            .expect("derives");
        let aes = |key: &[u8]| Aes256::new_from_slice(key).expect("32 bytes");
        Self {
            xts: Xts128::new(aes(&keys[..32]), aes(&keys[32..64])),
            tag: aes(&keys[64..96]),
            hash: Polyval::new_from_slice(&keys[96..]).expect("16 bytes"),
        }
    }

    fn encrypt(&self, plain: &[u8]) -> Vec<u8> {
        let mut ciphertext = plain.to_vec();
        let tweak = u128::from(PAGE).to_le_bytes();
        self.xts.encrypt_sector(&mut ciphertext, tweak.into());
        ciphertext
    }

    fn tag(&self, aad: &[u8], ciphertext: &[u8]) -> Vec<u8> {
        let mut hash = self.hash.clone();
        hash.update_padded(aad);
        hash.update_padded(ciphertext);
        let lengths = [aad.len() as u64 * 8, ciphertext.len() as u64 * 8];
        hash.update_padded(lengths.map(u64::to_le_bytes).as_flattened());
        let mut block = hash.finalize();
        self.tag.encrypt_block(&mut block);
        block.to_vec()
    }

    fn message(&self, page: &[u8], plain: &[u8]) -> Vec<u8> {
        let ciphertext = self.encrypt(plain);
        [self.tag(&aad(page), &ciphertext), ciphertext].concat()
    }
}

/// A file of two pages, the second one's sealed bytes, and its plaintext.
fn sealed() -> (Arc<DamageableFile>, Vec<u8>, Vec<u8>) {
    let file = DamageableFile::new();
    let data = pattern(2 * PAYLOAD_BYTES, 11);
    write(&contents(&file), 0, &data).expect("write");
    let page = file.bytes()[PAGE_BYTES..].to_vec();
    (file, page, data[PAYLOAD_BYTES..].to_vec())
}

/// Reads the second page after its bytes were replaced.
fn read_forged(file: &Arc<DamageableFile>, page: &[u8]) -> Result<Vec<u8>, SealedError> {
    file.change(|bytes| bytes[PAGE_BYTES..].copy_from_slice(page));
    read(&contents(file), PAYLOAD_BYTES as u64, PAYLOAD_BYTES)
}

#[test]
fn the_infrastructure_key_reveals_only_the_inner_ciphertext() {
    let (_, page, plain) = sealed();
    let revealed = Outer::new(&[2; 32])
        .open(&page)
        .expect("the right key of the outer layer");
    let inner = Inner::new(&[1; 64]);
    assert_eq!(
        revealed[16..],
        inner.encrypt(&plain)[..],
        "exactly AES-256-XTS"
    );
    assert_eq!(revealed[..16], inner.tag(&aad(&page), &revealed[16..])[..]);
    let alike = revealed[16..]
        .iter()
        .zip(&plain)
        .filter(|(a, b)| a == b)
        .count();
    assert!(alike < 100, "{alike} of 4032 bytes as in the plaintext");
    // Another customer key does not decrypt it.
    let mut wrong = revealed[16..].to_vec();
    Inner::new(&[9; 64])
        .xts
        .decrypt_sector(&mut wrong, u128::from(PAGE).to_le_bytes().into());
    assert_ne!(wrong, plain);
}

#[test]
fn the_customer_key_alone_opens_nothing() {
    let (_, page, plain) = sealed();
    let inner = Inner::new(&[1; 64]);
    let mut guess = page[64..].to_vec();
    assert_ne!(
        guess,
        inner.encrypt(&plain),
        "the outer layer hides the ciphertext"
    );
    inner
        .xts
        .decrypt_sector(&mut guess, u128::from(PAGE).to_le_bytes().into());
    assert_ne!(guess, plain);
    assert_ne!(page[28..44], inner.tag(&aad(&page), &page[64..])[..]);
    assert!(Outer::new(&[9; 32]).open(&page).is_none());
    // The inner tag of the same page, which would reveal equal pages, is not visible either.
    assert_ne!(page[28..44], inner.message(&page, &plain)[..16]);
}

#[test]
fn a_page_forged_with_the_infrastructure_key_alone_is_refused_by_the_inner_tag() {
    let (file, mut forged, _) = sealed();
    let outer = Outer::new(&[2; 32]);
    let message = outer.open(&forged).expect("opens");
    outer.seal(&mut forged, &message);
    assert!(
        read_forged(&file, &forged).is_ok(),
        "sealed again without a change"
    );
    for byte in [0, 15, 16, 17, 2000, message.len() - 1] {
        let mut changed = message.clone();
        changed[byte] ^= 1;
        outer.seal(&mut forged, &changed);
        assert_eq!(refused(read_forged(&file, &forged)), (PAGE, Refusal::Inner));
    }
    // Its sequence number cannot be changed either.
    forged[48] ^= 1;
    outer.seal(&mut forged, &message);
    assert_eq!(refused(read_forged(&file, &forged)), (PAGE, Refusal::Inner));
}

#[test]
fn a_page_forged_with_the_customer_key_alone_is_refused_by_the_outer_tag() {
    let (file, mut forged, _) = sealed();
    let message = Inner::new(&[1; 64]).message(&forged, &pattern(PAYLOAD_BYTES, 12));
    // Without the outer layer, or with the outer layer under another key.
    forged[28..44].copy_from_slice(&message[..16]);
    forged[64..].copy_from_slice(&message[16..]);
    assert_eq!(refused(read_forged(&file, &forged)), (PAGE, Refusal::Outer));
    Outer::new(&[9; 32]).seal(&mut forged, &message);
    assert_eq!(refused(read_forged(&file, &forged)), (PAGE, Refusal::Outer));
}

#[test]
fn both_keys_and_the_documents_suffice_to_make_a_page() {
    let (file, mut made, _) = sealed();
    let plain = pattern(PAYLOAD_BYTES, 13);
    let message = Inner::new(&[1; 64]).message(&made, &plain);
    Outer::new(&[2; 32]).seal(&mut made, &message);
    assert_eq!(
        read_forged(&file, &made).expect("a page by a second implementation"),
        plain
    );
}
