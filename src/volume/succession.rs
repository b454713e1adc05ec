//! Which key sets a volume may have as its active set: a known one, or one that follows a known
//! one.
//!
//! A superblock's MAC shows that its author holds all key sets that it lists. It does not show that
//! they are the volume's: anybody who can wrap keys (with the customer's public key and the
//! platform keystore) can make a volume of the same id with sets of their own. So:
//! - a key set that became active after another carries a statement of the previous set (see
//!   [`crate::layers::succession`]), which only a holder of that set's DEKs can make;
//! - the platform keystore's record keeps the active sets that it has seen, with their verification
//!   keys; a volume whose active set neither is one of them nor follows one is refused;
//! - a pinned fingerprint matches the active set or a set that it follows.
//!
//! A set that was inherited by deploying or importing is no predecessor: somebody else may hold it.

use super::error::VolumeError;
use super::header::{HeaderContents, WrappedKeySet};
use crate::ids::{IncarnationId, Sequence};
use crate::keys::{KeyError, KnownKeySet};
use crate::layers::{ActiveSet, KeyRing, KeySet, Succession, VerificationKey, fingerprint};

/// A key set that was active in this volume and vouches for the next one.
#[derive(Debug)]
pub(super) struct Ancestor {
    /// The set, and the incarnation that it was active in.
    pub(super) active: ActiveSet,
    verification_key: VerificationKey,
    /// The newest commit of the state that the next set carried on; `None` for the active set.
    pub(super) handed_over_at: Option<Sequence>,
    fingerprint: String,
}

/// The active set and all sets that it verifiably follows, newest first.
#[derive(Debug)]
pub(super) struct Ancestry(Vec<Ancestor>);

impl Ancestry {
    /// Walks back from the active set as long as the statements verify. Each step lowers the epoch,
    /// so the walk ends.
    pub(super) fn of(header: &HeaderContents, keys: &KeyRing) -> Result<Self, VolumeError> {
        let entry = |epoch| header.key_sets().iter().find(|set| set.epoch == epoch);
        let mut newest_first = Vec::new();
        let mut next = entry(keys.active().epoch);
        let mut incarnation = header.incarnation();
        let mut handed_over_at = None;
        while let Some(wrapped) = next {
            let Some(set) = keys.get(wrapped.epoch) else {
                break;
            };
            let ancestor = ancestor(wrapped, set, incarnation, handed_over_at)?;
            next = None;
            if let Some(statement) = &wrapped.succeeds {
                let before = header
                    .key_sets()
                    .iter()
                    .filter(|set| set.epoch < wrapped.epoch)
                    .find(|set| set.id == statement.key_set);
                let held = before.and_then(|before| keys.get(before.epoch));
                if let (Some(before), Some(held)) = (before, held) {
                    let succession = Succession {
                        volume: header.volume_id(),
                        before: ActiveSet {
                            key_set: before.id,
                            epoch: before.epoch,
                            incarnation: statement.incarnation,
                        },
                        commit: Sequence(statement.commit),
                        after: ancestor.active,
                    };
                    let key = verification_key(held)?;
                    if succession.verify_mac(&key, &ancestor.verification_key, &statement.mac) {
                        next = Some(before);
                        incarnation = statement.incarnation;
                        handed_over_at = Some(Sequence(statement.commit));
                    }
                }
            }
            newest_first.push(ancestor);
        }
        Ok(Self(newest_first))
    }

    /// True if the active key set neither is known nor follows a known one.
    pub(super) fn is_unknown_to(&self, known: &[KnownKeySet]) -> bool {
        !known.is_empty() && !known.iter().any(|known| self.has(known))
    }

    /// Whether the active set is the newest known one or follows it. An older set may have got into
    /// other hands since and no longer vouches for anything.
    pub(super) fn follows_newest(&self, known: &[KnownKeySet]) -> bool {
        known.last().is_none_or(|newest| self.has(newest))
    }

    fn has(&self, known: &KnownKeySet) -> bool {
        self.0.iter().any(|ancestor| {
            known.key_set == ancestor.active.key_set
                && known.verification_key == ancestor.verification_key
        })
    }

    /// The commit at which the incarnation verifiably handed over to the next one.
    pub(super) fn handover_of(&self, incarnation: IncarnationId) -> Option<Sequence> {
        let of_it = |ancestor: &&Ancestor| ancestor.active.incarnation == incarnation;
        self.0.iter().find(of_it)?.handed_over_at
    }

    /// The newest set, starting from the active one, whose fingerprint `matches`.
    pub(super) fn find_fingerprint(&self, matches: impl Fn(&str) -> bool) -> Option<&Ancestor> {
        self.0
            .iter()
            .find(|ancestor| matches(&ancestor.fingerprint))
    }

    /// The active set, in the form that the keystore remembers.
    pub(super) fn active(&self) -> Option<KnownKeySet> {
        self.0.first().map(|ancestor| KnownKeySet {
            key_set: ancestor.active.key_set,
            verification_key: ancestor.verification_key.clone(),
        })
    }
}

impl Ancestor {
    /// True for a set that was followed by another one.
    pub(super) const fn is_past(&self) -> bool {
        self.handed_over_at.is_some()
    }
}

fn ancestor(
    wrapped: &WrappedKeySet,
    set: &KeySet,
    incarnation: IncarnationId,
    handed_over_at: Option<Sequence>,
) -> Result<Ancestor, VolumeError> {
    Ok(Ancestor {
        active: ActiveSet {
            key_set: wrapped.id,
            epoch: wrapped.epoch,
            incarnation,
        },
        verification_key: verification_key(set)?,
        handed_over_at,
        fingerprint: fingerprint(set).map_err(|_| KeyError::derivation())?,
    })
}

/// The verification key of a set.
pub(super) fn verification_key(set: &KeySet) -> Result<VerificationKey, VolumeError> {
    Ok(VerificationKey::of(set).map_err(|_| KeyError::derivation())?)
}

/// What the keystore's record keeps of a set.
pub(super) fn known_key_set(set: &KeySet) -> Result<KnownKeySet, VolumeError> {
    Ok(KnownKeySet {
        key_set: set.id,
        verification_key: verification_key(set)?,
    })
}

/// The fingerprint of the active key set.
pub(super) fn fingerprint_of(keys: &KeyRing) -> Result<String, VolumeError> {
    Ok(fingerprint(keys.active()).map_err(|_| KeyError::derivation())?)
}
