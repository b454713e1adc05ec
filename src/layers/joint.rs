//! Keys that need both DEKs of one or several key sets, and the MACs made with them.
//!
//! The implementation of each layer derives from that layer's DEKs, and one more HKDF joins all
//! results (layer 3 of the table in [`derivation`](super::derivation)). So a holder of only one
//! layer's DEK has none of these keys.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::dek::KeySet;
use super::derivation::{Context, DerivationError, Origin, Purpose, Segment, hkdf_sha256};
use super::infrastructure;
use crate::ids::{CryptoId, Epoch, KeySetId};
use crate::sys::wipe::with_stack_wiped;

/// Bytes that are derived from one DEK.
const PART_BYTES: usize = 32;

/// The input of joint keys with one purpose: bytes from both DEKs of each key set.
pub(super) struct JointInput {
    purpose: Purpose,
    crypto: CryptoId,
    /// On the heap, so that a move leaves no copy.
    bytes: Zeroizing<Vec<u8>>,
}

impl JointInput {
    /// Derives from both DEKs of all these sets, in this order.
    pub(super) fn derive(
        sets: &[&KeySet],
        purpose: Purpose,
        crypto: CryptoId,
    ) -> Result<Self, DerivationError> {
        // Allocated at full size: a growing buffer leaves copies behind.
        let mut bytes = Zeroizing::new(vec![0; sets.len() * 2 * PART_BYTES]);
        for (set, both) in sets.iter().zip(bytes.chunks_exact_mut(2 * PART_BYTES)) {
            let (customer, infrastructure) = both.split_at_mut(PART_BYTES);
            let info = |origin| {
                let context = Context {
                    purpose,
                    origin,
                    key_set: set.id,
                    epoch: set.epoch,
                    crypto,
                    segment: Segment(0),
                };
                context.info()
            };
            hkdf_sha256(set.customer.expose(), &info(Origin::Customer), customer)?;
            infrastructure::hkdf_sha256(
                set.infrastructure.expose(),
                &info(Origin::Infrastructure),
                infrastructure,
            )?;
        }
        Ok(Self {
            purpose,
            crypto,
            bytes,
        })
    }

    /// The key of 32 bytes with this number.
    pub(super) fn key(&self, number: Segment) -> Result<Zeroizing<Vec<u8>>, DerivationError> {
        let context = Context {
            purpose: self.purpose,
            origin: Origin::Both,
            key_set: KeySetId([0; 16]),
            epoch: Epoch(0),
            crypto: self.crypto,
            segment: number,
        };
        let mut key = Zeroizing::new(vec![0; 32]);
        hkdf_sha256(&self.bytes, &context.info(), key.as_mut_slice())?;
        Ok(key)
    }
}

/// HMAC-SHA-256 (RFC 2104). Leaves nothing on the stack.
pub(super) fn hmac_sha256(key: &[u8], message: &[u8]) -> Result<[u8; 32], DerivationError> {
    with_stack_wiped(|| {
        let mut mac =
            <Hmac<Sha256> as KeyInit>::new_from_slice(key).map_err(|_| DerivationError::Refused)?;
        mac.update(message);
        Ok(mac.finalize().into_bytes().into())
    })
}
