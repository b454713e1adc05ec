//! The consent to a change of who can open a volume: a MAC that only a holder of the customer DEK
//! can make, over the change.
//!
//! The daemon of a mount has the customer DEK for everybody who uses the mount. So it does not act
//! on its own: whoever asks for such a change unwraps the DEK with a customer key of theirs, and
//! sends this MAC with the request.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::dek::KeySet;
use super::derivation::{Context, DerivationError, Origin, Purpose, Segment, hkdf_sha256};
use super::joint::hmac_sha256;
use crate::ids::CryptoId;

/// HMAC-SHA-256 of `message` under the key derived from the customer DEK of the active set.
///
/// # Errors
/// When the key cannot be derived.
pub fn consent_mac(active: &KeySet, message: &[u8]) -> Result<[u8; 32], DerivationError> {
    let context = Context {
        purpose: Purpose::Consent,
        origin: Origin::Customer,
        key_set: active.id,
        epoch: active.epoch,
        crypto: CryptoId([0; 16]),
        segment: Segment(0),
    };
    let mut key = Zeroizing::new(vec![0; 32]);
    hkdf_sha256(active.customer.expose(), &context.info(), &mut key)?;
    hmac_sha256(&key, message)
}

/// True if `mac` is the [`consent_mac`] of `message`; compared in constant time.
pub fn verify_consent_mac(active: &KeySet, message: &[u8], mac: &[u8; 32]) -> bool {
    consent_mac(active, message).is_ok_and(|expected| expected.ct_eq(mac).into())
}
