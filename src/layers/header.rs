//! The superblock's MAC, and the fingerprint that pins the customer's key.
//!
//! The MAC is HMAC-SHA-256 under a key that needs both DEKs of *every* key set that the superblock
//! lists (see the table in [`derivation`](super::derivation)). Somebody who lacks one DEK of one
//! set can neither make nor verify a superblock that lists it. So nobody can add an active set of
//! their own to sets of which they have only the wraps.

use subtle::ConstantTimeEq;

use super::dek::KeySet;
use super::derivation::{Context, DerivationError, Origin, Purpose, Segment, hkdf_sha256};
use super::joint::{JointInput, hmac_sha256};
use crate::ids::{CryptoId, Epoch};

/// HMAC-SHA-256 of `bytes` under the key derived from both DEKs of all sets, in the order in which
/// the superblock lists them.
///
/// # Errors
/// When the keys cannot be derived.
pub fn header_mac(sets: &[&KeySet], bytes: &[u8]) -> Result<[u8; 32], DerivationError> {
    let input = JointInput::derive(sets, Purpose::Header, CryptoId([0; 16]))?;
    hmac_sha256(&input.key(Segment(0))?, bytes)
}

/// True if `mac` is the [`header_mac`] of `bytes`; compared in constant time. False too if the keys
/// cannot be derived.
pub fn verify_header_mac(sets: &[&KeySet], bytes: &[u8], mac: &[u8; 32]) -> bool {
    header_mac(sets, bytes).is_ok_and(|expected| expected.ct_eq(mac).into())
}

/// 16 bytes derived one-way from the customer DEK and the key set's id, as hexadecimal digits in
/// groups of four: `0123-4567-89ab-…`, 39 characters. Identical in every volume that has the set.
///
/// # Errors
/// When the key derivation fails.
pub fn fingerprint(set: &KeySet) -> Result<String, DerivationError> {
    let mut print = [0; 16];
    let context = Context {
        purpose: Purpose::Fingerprint,
        origin: Origin::Customer,
        key_set: set.id,
        // The number of a set differs between volumes, but its fingerprint must not.
        epoch: Epoch(0),
        crypto: CryptoId([0; 16]),
        segment: Segment(0),
    };
    hkdf_sha256(set.customer.expose(), &context.info(), &mut print)?;
    let groups: Vec<String> = print.chunks(2).map(hex::encode).collect();
    Ok(groups.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::KeySetId;
    use crate::layers::dek::{CustomerDek, InfrastructureDek};

    fn set(customer: u8, infrastructure: u8, id: u8, epoch: u32) -> KeySet {
        KeySet {
            id: KeySetId([id; 16]),
            epoch: Epoch(epoch),
            customer: CustomerDek::from_bytes(&[customer; 64]).unwrap(),
            infrastructure: InfrastructureDek::from_bytes(&[infrastructure; 32]).unwrap(),
        }
    }

    #[test]
    fn the_mac_depends_on_both_keys_the_set_and_the_bytes() {
        let own = set(1, 2, 3, 4);
        let mac = header_mac(&[&own], b"header").expect("mac");
        assert!(verify_header_mac(&[&own], b"header", &mac));
        assert!(!verify_header_mac(&[&own], b"headex", &mac));
        for other in [
            set(9, 2, 3, 4),
            set(1, 9, 3, 4),
            set(1, 2, 9, 4),
            set(1, 2, 3, 9),
        ] {
            assert!(!verify_header_mac(&[&other], b"header", &mac));
        }
        for bit in 0..256 {
            let mut forged = mac;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify_header_mac(&[&own], b"header", &forged));
        }
    }

    #[test]
    fn the_mac_depends_on_every_set_and_their_order() {
        let (one, two, other) = (set(1, 2, 3, 4), set(5, 6, 7, 8), set(5, 9, 7, 8));
        let mac = header_mac(&[&one, &two], b"header").expect("mac");
        assert!(verify_header_mac(&[&one, &two], b"header", &mac));
        for sets in [
            &[&one][..],
            &[&two],
            &[&two, &one],
            &[&one, &other],
            &[&one, &two, &two],
            &[],
        ] {
            assert!(!verify_header_mac(sets, b"header", &mac));
        }
    }

    #[test]
    fn the_fingerprint_depends_on_the_customer_key_and_the_id_alone() {
        let print = fingerprint(&set(1, 2, 3, 4)).expect("print");
        assert_eq!(print.len(), 39);
        assert_eq!(print, fingerprint(&set(1, 8, 3, 9)).expect("print"));
        assert_ne!(print, fingerprint(&set(7, 2, 3, 4)).expect("print"));
        assert_ne!(print, fingerprint(&set(1, 2, 7, 4)).expect("print"));
    }
}
