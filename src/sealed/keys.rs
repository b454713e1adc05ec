//! Derived keys of one sealed file, expanded once per segment.
//!
//! A sealed file belongs to exactly one key set, which its opener names. A page whose header names
//! another set is refused, even if that set is another one of the same volume.
//!
//! A lookup holds a shared lock briefly; keys are derived without it. The number of entries is
//! bounded, so a large file cannot fill the memory with keys.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::ids::{CryptoId, Epoch, KeySetId, PageIndex};
use crate::layers::{CustomerKeys, DerivationError, InfrastructureKeys, KeySet, Segment};

/// Limit on the cached segments of 8 MiB each: 4 GiB of one file.
const CACHED_SEGMENTS: usize = 512;

/// Both layers' keys of one segment.
pub(super) struct SegmentKeys {
    pub(super) epoch: Epoch,
    pub(super) segment: Segment,
    pub(super) key_set: KeySetId,
    pub(super) customer: CustomerKeys,
    pub(super) infrastructure: InfrastructureKeys,
}

/// The keys of one sealed file under its key set.
pub(super) struct FileKeys {
    crypto: CryptoId,
    set: Arc<KeySet>,
    derived: RwLock<HashMap<Segment, Arc<SegmentKeys>>>,
}

impl FileKeys {
    /// Derives the keys of segment 0 now and the others on demand.
    pub(super) fn new(set: Arc<KeySet>, crypto: CryptoId) -> Self {
        let keys = Self {
            crypto,
            set,
            derived: RwLock::new(HashMap::new()),
        };
        // A failure recurs, and is reported, at the first use.
        let _ = keys.of_page(PageIndex(0));
        keys
    }

    pub(super) const fn crypto(&self) -> CryptoId {
        self.crypto
    }

    /// The only key set that pages of this file are sealed under.
    pub(super) const fn set(&self) -> &Arc<KeySet> {
        &self.set
    }

    /// The number of that key set.
    pub(super) fn epoch(&self) -> Epoch {
        self.set.epoch
    }

    /// The keys of the segment that a page belongs to.
    pub(super) fn of_page(&self, page: PageIndex) -> Result<Arc<SegmentKeys>, DerivationError> {
        let segment = Segment::of(page);
        if let Some(keys) = self.derived.read().get(&segment) {
            return Ok(Arc::clone(keys));
        }
        let set = &*self.set;
        let keys = Arc::new(SegmentKeys {
            epoch: set.epoch,
            segment,
            key_set: set.id,
            customer: CustomerKeys::derive(set, self.crypto, segment)?,
            infrastructure: InfrastructureKeys::derive(set, self.crypto, segment)?,
        });
        let mut derived = self.derived.write();
        if derived.len() >= CACHED_SEGMENTS {
            derived.clear();
        }
        derived.insert(segment, Arc::clone(&keys));
        Ok(keys)
    }
}
