//! The superblock's MAC, and the fingerprint that pins the customer's key.
//!
//! The MAC is HMAC-SHA-256 (RFC 2104) under a key that needs both DEKs of *every* key set that the
//! superblock lists. The implementation of each layer derives from that layer's DEKs, and one more
//! HKDF joins all results (see the table in [`derivation`](super::derivation)). Somebody who lacks
//! one DEK of one set can neither make nor verify a superblock that lists it. So nobody can add an
//! active set of their own to sets of which they have only the wraps.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::dek::KeySet;
use super::derivation::{Context, DerivationError, Origin, Purpose, Segment, hkdf_sha256};
use super::infrastructure;
use crate::ids::{CryptoId, Epoch, KeySetId};
use crate::sys::wipe::with_stack_wiped;

/// HMAC-SHA-256 of `bytes` under the key derived from both DEKs of all sets, in the order in which
/// the superblock lists them.
///
/// # Errors
/// When the keys cannot be derived.
pub fn header_mac(sets: &[&KeySet], bytes: &[u8]) -> Result<[u8; 32], DerivationError> {
    with_stack_wiped(|| {
        let key = joint_key(sets, Purpose::Header)?;
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.as_slice())
            .map_err(|_| DerivationError::Refused)?;
        mac.update(bytes);
        Ok(mac.finalize().into_bytes().into())
    })
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
        // The number of a set differs between volumes, but its fingerprint must not.
        epoch: Epoch(0),
        ..header_context(set, Origin::Customer)
    };
    hkdf_sha256(set.customer.expose(), &context.info(), &mut print)?;
    let groups: Vec<String> = print.chunks(2).map(hex::encode).collect();
    Ok(groups.join("-"))
}

/// A key of 32 bytes that depends on both DEKs of all these sets.
pub(super) fn joint_key(
    sets: &[&KeySet],
    purpose: Purpose,
) -> Result<Zeroizing<Vec<u8>>, DerivationError> {
    // Allocated at full size: a growing buffer leaves copies behind.
    let mut joined = Zeroizing::new(vec![0; sets.len() * 64]);
    for (set, both) in sets.iter().zip(joined.chunks_exact_mut(64)) {
        let (customer, machine) = both.split_at_mut(32);
        let info = |origin| {
            let context = Context {
                purpose,
                ..header_context(set, origin)
            };
            context.info()
        };
        hkdf_sha256(set.customer.expose(), &info(Origin::Customer), customer)?;
        infrastructure::hkdf_sha256(
            set.infrastructure.expose(),
            &info(Origin::Infrastructure),
            machine,
        )?;
    }
    let joint = Context {
        purpose,
        origin: Origin::Both,
        key_set: KeySetId([0; 16]),
        epoch: Epoch(0),
        crypto: CryptoId([0; 16]),
        segment: Segment(0),
    };
    let mut key = Zeroizing::new(vec![0; 32]);
    hkdf_sha256(&joined, &joint.info(), key.as_mut_slice())?;
    Ok(key)
}

fn header_context(set: &KeySet, origin: Origin) -> Context {
    Context {
        purpose: Purpose::Header,
        origin,
        key_set: set.id,
        epoch: set.epoch,
        crypto: CryptoId([0; 16]),
        segment: Segment(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::dek::{CustomerDek, InfrastructureDek};

    fn set(customer: u8, machine: u8, id: u8, epoch: u32) -> KeySet {
        KeySet {
            id: KeySetId([id; 16]),
            epoch: Epoch(epoch),
            customer: CustomerDek::from_bytes(&[customer; 64]).unwrap(),
            infrastructure: InfrastructureDek::from_bytes(&[machine; 32]).unwrap(),
        }
    }

    #[test]
    fn mac_needs_both_keys_the_set_and_the_bytes() {
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
    fn mac_needs_every_set_in_its_order() {
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
    fn fingerprint_follows_the_customer_key_alone() {
        let print = fingerprint(&set(1, 2, 3, 4)).expect("print");
        assert_eq!(print.len(), 39);
        assert_eq!(print, fingerprint(&set(1, 8, 3, 9)).expect("print"));
        assert_ne!(print, fingerprint(&set(7, 2, 3, 4)).expect("print"));
        assert_ne!(print, fingerprint(&set(1, 2, 7, 4)).expect("print"));
    }
}
