//! Derived keys of one sealed file, expanded once per key set and segment.
//!
//! Looking up takes a lock shared and briefly; deriving happens outside of it. The number of
//! entries is bounded, so a large file cannot fill the memory with keys.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::ids::{CryptoId, Epoch, KeySetId, PageIndex};
use crate::layers::{CustomerKeys, DerivationError, InfrastructureKeys, KeySet, Segment};

/// Entries kept: segments of 8 MiB, so 4 GiB of one file.
const KEPT_SEGMENTS: usize = 512;

/// Both layers' keys of one segment under one key set.
pub(super) struct SegmentKeys {
    pub(super) epoch: Epoch,
    pub(super) segment: Segment,
    pub(super) key_set: KeySetId,
    pub(super) customer: CustomerKeys,
    pub(super) infrastructure: InfrastructureKeys,
}

/// The keys of one sealed file under all the key sets it may be read with.
pub(super) struct FileKeys {
    crypto: CryptoId,
    /// The one to seal under first.
    sets: Vec<Arc<KeySet>>,
    derived: RwLock<HashMap<(Epoch, Segment), Arc<SegmentKeys>>>,
}

impl FileKeys {
    /// Derives the keys of segment 0 of the first set at once, the others when they are needed.
    pub(super) fn new(sets: Vec<Arc<KeySet>>, crypto: CryptoId) -> Self {
        let keys = Self {
            crypto,
            sets,
            derived: RwLock::new(HashMap::new()),
        };
        // A refusal comes up again, and is reported, at the first use.
        let _ = keys.to_seal(PageIndex(0));
        keys
    }

    pub(super) const fn crypto(&self) -> CryptoId {
        self.crypto
    }

    /// The keys to seal a page with.
    pub(super) fn to_seal(&self, page: PageIndex) -> Result<Arc<SegmentKeys>, DerivationError> {
        let set = self.sets.first().ok_or(DerivationError::Refused)?;
        self.keys(set, Segment::of(page))
    }

    /// The keys to open a page with, if its key set is at hand.
    pub(super) fn to_open(
        &self,
        page: PageIndex,
        epoch: Epoch,
    ) -> Result<Option<Arc<SegmentKeys>>, DerivationError> {
        self.sets
            .iter()
            .find(|set| set.epoch == epoch)
            .map(|set| self.keys(set, Segment::of(page)))
            .transpose()
    }

    fn keys(&self, set: &KeySet, segment: Segment) -> Result<Arc<SegmentKeys>, DerivationError> {
        let key = (set.epoch, segment);
        if let Some(keys) = self.derived.read().get(&key) {
            return Ok(Arc::clone(keys));
        }
        let keys = Arc::new(SegmentKeys {
            epoch: set.epoch,
            segment,
            key_set: set.id,
            customer: CustomerKeys::derive(set, self.crypto, segment)?,
            infrastructure: InfrastructureKeys::derive(set, self.crypto, segment)?,
        });
        let mut derived = self.derived.write();
        if derived.len() >= KEPT_SEGMENTS {
            derived.clear();
        }
        derived.insert(key, Arc::clone(&keys));
        Ok(keys)
    }
}
