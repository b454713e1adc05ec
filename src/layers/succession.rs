//! Authenticates the successor of a key set: the *verification key*, derived from both DEKs of the
//! set (see the table in [`derivation`](super::derivation)), and the MACs made with it.
//!
//! A verification key opens nothing and wraps nothing. The platform keystore's record contains that
//! of a volume's active set. With it, a successor that the holder of that set named can be told
//! from a foreign set, long after the DEKs are gone.
//!
//! The verification key of the previous set authenticates this message by HMAC-SHA-256:
//!
//! ```text
//! 0       24       40           56          60                  76
//! | label | volume | set before | its epoch | incarnation before |
//!
//! 76      84          100         104                 120
//! | commit | set after | its epoch | incarnation after | SHA-256(label ‖ its verification key) |
//! ```
//! Numbers are little-endian. The last field binds the next set to its DEKs, since its id alone is
//! no secret.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::dek::KeySet;
use super::derivation::{DerivationError, Purpose, Segment};
use super::joint::{JointInput, hmac_sha256};
use crate::ids::{CryptoId, Epoch, IncarnationId, KeySetId, Sequence, VolumeId};

/// First bytes of the authenticated message.
const LABEL: &[u8; 24] = b"bilayer succession 1\0\0\0\0";
const MESSAGE_BYTES: usize = 152;
const _: () = assert!(MESSAGE_BYTES == LABEL.len() + 16 + 16 + 4 + 16 + 8 + 16 + 4 + 16 + 32);

/// Derived from both DEKs of a key set; makes and verifies statements about its successor.
#[derive(Clone)]
pub struct VerificationKey(Zeroizing<Vec<u8>>);

impl VerificationKey {
    /// Length in bytes.
    pub const BYTES: usize = 32;

    /// Derives the verification key of a key set.
    ///
    /// # Errors
    /// When the key derivation fails.
    pub fn of(set: &KeySet) -> Result<Self, DerivationError> {
        let input = JointInput::derive(&[set], Purpose::Succession, CryptoId([0; 16]))?;
        input.key(Segment(0)).map(Self)
    }

    /// Restores a stored key.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The key's bytes, to be stored.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for VerificationKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for VerificationKey {}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerificationKey(secret)")
    }
}

/// The active key set at one point of a volume's history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ActiveSet {
    /// The active key set.
    pub key_set: KeySetId,
    /// Number of the key set.
    pub epoch: Epoch,
    /// The incarnation in which it was active.
    pub incarnation: IncarnationId,
}

/// The statement that one key set of a volume follows another.
#[derive(Clone, Copy, Debug)]
pub struct Succession {
    /// The volume.
    pub volume: VolumeId,
    /// The previous active set.
    pub before: ActiveSet,
    /// The newest commit of the state from which the volume continues under the next set.
    pub commit: Sequence,
    /// The next active set.
    pub after: ActiveSet,
}

impl Succession {
    /// The MAC of this statement.
    ///
    /// # Errors
    /// [`DerivationError`], which should never occur.
    pub fn mac(
        &self,
        before: &VerificationKey,
        after: &VerificationKey,
    ) -> Result<[u8; 32], DerivationError> {
        hmac_sha256(before.expose(), &self.message(after))
    }

    /// True if `mac` is the MAC of this statement under these keys; compared in constant time.
    pub fn verify_mac(
        &self,
        before: &VerificationKey,
        after: &VerificationKey,
        mac: &[u8; 32],
    ) -> bool {
        self.mac(before, after)
            .is_ok_and(|expected| expected.ct_eq(mac).into())
    }

    fn message(&self, after: &VerificationKey) -> Vec<u8> {
        let digest = Sha256::new()
            .chain_update(LABEL)
            .chain_update(after.expose())
            .finalize();
        let mut message = Vec::with_capacity(MESSAGE_BYTES);
        message.extend_from_slice(LABEL);
        message.extend_from_slice(&self.volume.0);
        message.extend_from_slice(&self.before.key_set.0);
        message.extend_from_slice(&self.before.epoch.0.to_le_bytes());
        message.extend_from_slice(&self.before.incarnation.0);
        message.extend_from_slice(&self.commit.0.to_le_bytes());
        message.extend_from_slice(&self.after.key_set.0);
        message.extend_from_slice(&self.after.epoch.0.to_le_bytes());
        message.extend_from_slice(&self.after.incarnation.0);
        message.extend_from_slice(&digest);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(epoch: u32) -> VerificationKey {
        VerificationKey::of(&KeySet::random(Epoch(epoch)).expect("random")).expect("key")
    }

    fn succession() -> Succession {
        let active = |number: u8| ActiveSet {
            key_set: KeySetId([number; 16]),
            epoch: Epoch(u32::from(number)),
            incarnation: IncarnationId([number; 16]),
        };
        Succession {
            volume: VolumeId([9; 16]),
            before: active(1),
            commit: Sequence(7),
            after: active(2),
        }
    }

    #[test]
    fn every_part_of_a_succession_is_bound() {
        let (before, after) = (key_of(1), key_of(2));
        let stated = succession();
        let mac = stated.mac(&before, &after).expect("mac");
        assert_eq!(stated.message(&after).len(), MESSAGE_BYTES);
        assert!(stated.verify_mac(&before, &after, &mac));
        // Another set under the same id and number.
        assert!(!stated.verify_mac(&before, &key_of(2), &mac));
        assert!(!stated.verify_mac(&key_of(1), &after, &mac));
        let mut others = [stated; 8];
        others[0].volume.0[0] ^= 1;
        others[1].before.key_set.0[15] ^= 1;
        others[2].before.epoch.0 += 1;
        others[3].before.incarnation.0[0] ^= 1;
        others[4].commit.0 += 1;
        others[5].after.key_set.0[0] ^= 1;
        others[6].after.epoch.0 += 1;
        others[7].after.incarnation.0[15] ^= 1;
        for other in others {
            assert!(!other.verify_mac(&before, &after, &mac), "{other:?}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", key_of(1)), "VerificationKey(secret)");
    }
}
